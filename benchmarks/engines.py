"""Compare the throughput of mining through r3, verdicts included, with that of the engine alone on the same prompts.

`python benchmarks/engines.py transformers` or `vllm`; `make bench` runs both. The prompts are those of Countdown, for
its built-in model, 512 problems twice each. transformers alone is `model.generate` on batches of the same size, padded
on the left and sorted by length; vLLM alone is `LLM.generate` with the prompts' token ids. Rates are generated
tokens/s; rounds alternate, and the ratio is the median over rounds. The requirement is 0.9; below it the exit code
is 1.

`python benchmarks/engines.py groups` measures the gain of vLLM's prefix cache where the reflections of a group share a
prompt: the same requests, 16 for each of 32 prompts of random tokens, with and without reading the cache. It has no
requirement.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from random import Random
from typing import Any

from r3core import Example, get_task
from r3core.config import Config, model_of
from r3core.generation.chat import encode
from r3core.generation.generator import Generator
from r3core.plugins.engines import engine_of
from r3core.protocol import Protocol
from r3core.verification.judge import Judge

PROBLEMS = 512
SAMPLES = 2
ROUNDS = 5
REQUIRED = 0.9
LIMIT = 64

GROUPS, GROUP, LENGTH = 32, 16, 384  # prompts, reflections on each, tokens of a prompt

Rate = Callable[[], float]


def ours(protocol: Protocol, generator: Generator, examples: Sequence[Example]) -> Rate:
    """Return a function that measures the rate of judged attempts, in batches of the run's size."""
    size = protocol.config.batch_size // SAMPLES

    def rate() -> float:
        started, tokens = time.perf_counter(), 0
        for start in range(0, len(examples), size):
            batch = examples[start : start + size]
            episodes = protocol.attempt(batch, generator, seed=start, samples=SAMPLES)
            tokens += sum(episode.attempt.tokens for episode in episodes)
        return tokens / (time.perf_counter() - started)

    return rate


def by_transformers(generator: Any, prompts: Sequence[list[int]], size: int) -> Rate:
    """Return a function that measures the rate of `model.generate`."""
    import torch

    model, tokenizer = generator.model, generator.tokenizer
    tokenizer.padding_side = "left"
    ordered = sorted(prompts, key=len, reverse=True)

    def rate() -> float:
        started, tokens = time.perf_counter(), 0
        for start in range(0, len(ordered), size):
            batch = tokenizer.pad({"input_ids": ordered[start : start + size]}, return_tensors="pt")
            with torch.no_grad():
                sampled = model.generate(**batch, do_sample=True, top_k=0, temperature=1.0, max_new_tokens=LIMIT)
            new = sampled[:, batch["input_ids"].shape[1] :]
            ended = torch.isin(new, torch.tensor([tokenizer.eos_token_id, tokenizer.pad_token_id]))
            tokens += int((~ended).sum())
        return tokens / (time.perf_counter() - started)

    return rate


def by_vllm(generator: Any, prompts: Sequence[list[int]]) -> Rate:
    """Return a function that measures the rate of `LLM.generate`."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    given = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
    sampling = SamplingParams(temperature=1.0, max_tokens=LIMIT, stop_token_ids=sorted(generator.ends))

    def rate() -> float:
        started = time.perf_counter()
        written = generator.llm.generate(given, sampling, use_tqdm=False)
        ends = sum(one.outputs[0].finish_reason == "stop" for one in written)
        tokens: int = sum(len(one.outputs[0].token_ids) for one in written) - ends
        return tokens / (time.perf_counter() - started)

    return rate


def groups() -> int:
    """Print how much faster vLLM generates groups when it reads its prefix cache; return the exit code."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    task = get_task("countdown")
    options = {"enforce_eager": True, "max_num_seqs": 128, "block_size": 32}
    config = Config.model_validate({"task": "countdown", "engine": "vllm", "engine_options": options})
    generator: Any = engine_of(config).open(model_of(config, task))
    random = Random(0)
    sampled = [random.choices(range(generator.llm.get_tokenizer().vocab_size), k=LENGTH) for _ in range(GROUPS)]
    prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt in sampled for _ in range(GROUP)]

    def seconds(*, cached: bool) -> float:
        sampling = SamplingParams(max_tokens=LIMIT, ignore_eos=True, skip_reading_prefix_cache=not cached)
        generator.llm.reset_prefix_cache()
        started = time.perf_counter()
        generator.llm.generate(prompts, sampling, use_tqdm=False)
        return time.perf_counter() - started

    rounds = [(seconds(cached=False), seconds(cached=True)) for _ in range(ROUNDS + 1)][1:]
    generator.close()
    times = [statistics.median(column) for column in zip(*rounds, strict=True)]
    ratio = statistics.median(without / with_cache for without, with_cache in rounds)
    print(f"groups: {times[0]:.1f} s without the prefix cache, {times[1]:.1f} s with it, ratio {ratio:.2f}")
    return 0


def main(engine: str) -> int:
    """Print the rates and their ratio; return the exit code."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    if engine == "groups":
        return groups()
    task = get_task("countdown")
    options: dict[str, Any] = {"enforce_eager": True, "max_num_seqs": 128} if engine == "vllm" else {}
    turn = {"temperature": 1.0, "max_tokens": LIMIT}
    size = 128 if engine == "transformers" else PROBLEMS * SAMPLES  # vLLM batches by itself
    config = Config.model_validate(
        {"task": "countdown", "engine": engine, "engine_options": options, "batch_size": size}
        | {"sampling": {"attempt": turn}, "dtype": "float32"}
    )
    examples = list(islice(task.load("train"), PROBLEMS))
    generator: Any = engine_of(config).open(model_of(config, task))
    with Judge(task, config.judge) as judge:
        protocol = Protocol(task, judge, config)
        requests = [protocol.attempt_request(example) for example in examples for _ in range(SAMPLES)]
        prompts = [encode(generator.tokenizer, request) for request in requests]
        alone = by_vllm(generator, prompts) if engine == "vllm" else by_transformers(generator, prompts, size)
        mining = ours(protocol, generator, examples)
        rounds = [(mining(), alone()) for _ in range(ROUNDS + 1)][1:]  # the first round warms up
    generator.close()
    ratio = statistics.median(one / other for one, other in rounds)
    rates = [statistics.median(column) for column in zip(*rounds, strict=True)]
    print(f"{engine}: mining {rates[0]:,.0f} tokens/s, the engine alone {rates[1]:,.0f}, ratio {ratio:.2f}")
    return 0 if ratio >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
