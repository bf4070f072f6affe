"""The `vllm` engine: vLLM's offline engine in this process, with its cache of prefixes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Self

from r3core.config import Config
from r3core.errors import ConfigError, UsageError, did_you_mean, one_line
from r3core.generation.chat import Take, check_lengths, converse, end_ids
from r3core.generation.engine import Completion, Continued, Ended, Sampling, Samplings, each
from r3core.generation.models import adapter_in, base_of
from r3core.task import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OWNED = {
    "model": "set `model`",
    "tokenizer": "leave it out: the model's own is used",
    "revision": "set `revision`",
    "tokenizer_revision": "set `revision`",
    "dtype": "set `dtype`",
    "seed": "set `seed`",
    "trust_remote_code": "set `trust_remote_code`",
    "skip_tokenizer_init": "leave it out",
}
"""Options of `vllm.LLM` that are not set under `engine_options`, and what to do instead."""
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # for which vLLM makes room
_SEEDS = 2**63  # vLLM's seeds are signed numbers of 64 bits


class VllmGenerator:
    """Continues conversations with an engine of vLLM.

    Every prompt has a seed of its own, so the same text comes whatever else is in the batch, as far as vLLM's kernels
    go. `prompted` and `cached` count the prompts' tokens, and those of them that were in the cache of prefixes.
    """

    def __init__(
        self, llm: Any, tokenizer: PreTrainedTokenizerBase, *, ends: set[int], adapter: str | None = None
    ) -> None:
        self.llm = llm
        self.adapter = adapter
        """The folder of an adapter on the engine's model."""
        self.tokenizer = tokenizer
        self.ends = ends
        self.prompted = 0
        self.cached = 0
        self._ids = count()

    @classmethod
    def load(cls, model: str, config: Config) -> Self:
        """Start the engine on a folder or a model of the hub; UsageError when it cannot be had, or vLLM is missing."""
        from r3core.generation.models import load_tokenizer

        vllm = import_vllm()
        options = options_of(config.engine_options)
        adapter = adapter_in(model)
        base = base_of(model)
        if adapter:
            if adapter["r"] > _RANKS[-1]:
                raise UsageError(f"vLLM takes adapters of a rank up to {_RANKS[-1]}; `{model}` has {adapter['r']}")
            rank = next(rank for rank in _RANKS if rank >= adapter["r"])
            options = {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank} | options
        tokenizer = load_tokenizer(model, revision=config.revision, trust_remote_code=config.trust_remote_code)
        try:
            llm = vllm.LLM(
                model=base,
                revision=config.revision,
                dtype=_dtype_of(base, config),
                trust_remote_code=config.trust_remote_code,
                seed=config.seed,
                **options,
            )
        except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
            said = one_line(error)[:500]
            raise UsageError(
                f"vLLM cannot be started on `{model}`: {said}",
                "lower engine_options.gpu_memory_utilization or engine_options.max_model_len when memory is short",
                "VLLM_LOGGING_LEVEL=INFO shows what vLLM does",
            ) from error
        return cls(llm, tokenizer, ends=_ends_of(base, config, tokenizer), adapter=model if adapter else None)

    @property
    def context(self) -> int | None:
        """`max_model_len`: the longest sequence in tokens, prompt and completion together."""
        return int(self.llm.model_config.max_model_len)

    def generate(
        self, conversations: Sequence[Prompt], sampling: Samplings, *, ended: Ended | None = None
    ) -> list[Completion]:
        """Return one completion a conversation, in the same order; `ended` is called with each when it has ended."""
        return converse(self, self.tokenizer, conversations, sampling, ended=ended)

    def continue_ids(
        self, prompts: Sequence[list[int]], sampling: Samplings, *, take: Take | None = None
    ) -> list[Continued]:
        """Return what is generated after each prompt of token ids.

        `take` is called with those that have just ended, each with its prompt's index. Raises TooLong when a prompt
        and `max_tokens` together exceed `max_model_len`. When something else is raised on the way, vLLM is told to
        give up what it has begun.
        """
        from vllm.inputs import TokensPrompt
        from vllm.lora.request import LoRARequest

        engine = self.llm.llm_engine
        lora = LoRARequest("adapter", 1, self.adapter) if self.adapter else None
        samplings = each(sampling, len(prompts))
        check_lengths(self.tokenizer, prompts, samplings, context=self.context)
        results: list[Continued | None] = [None] * len(prompts)
        places: dict[str, int] = {}  # vLLM's request -> the prompt's index
        try:
            for index, (prompt, one) in enumerate(zip(prompts, samplings, strict=True)):
                name = f"r3-{next(self._ids)}"
                places[name] = index
                given = TokensPrompt(prompt_token_ids=prompt)
                engine.add_request(name, given, self._params(one, index), lora_request=lora)
            while places:
                new = [(places.pop(output.request_id), output) for output in engine.step() if output.finished]
                rows = [(index, self._continued(output)) for index, output in new]
                for index, continued in rows:
                    results[index] = continued
                if rows and take:
                    take(rows)
        finally:
            if places:
                engine.abort_request(list(places), internal=False)
        return [continued for continued in results if continued is not None]

    def close(self) -> None:
        """End the engine and its processes, and say how much the cache of prefixes saved."""
        if self.prompted:
            share = self.cached / self.prompted
            print(f"vLLM: {share:.0%} of {self.prompted:,} prompt tokens came from its prefix cache", file=sys.stderr)
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm

    def _params(self, sampling: Sampling, index: int) -> Any:
        from vllm import SamplingParams

        try:
            return SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
                seed=(sampling.seed + index) % _SEEDS,
                stop_token_ids=sorted(self.ends),
                logprobs=0 if sampling.logprobs else None,  # of the token drawn alone
                detokenize=False,
                skip_special_tokens=False,
            )
        except ValueError as error:
            raise UsageError(f"vLLM does not take what is set under `sampling`: {error}") from error

    def _continued(self, output: Any) -> Continued:
        self.prompted += len(output.prompt_token_ids)
        self.cached += output.num_cached_tokens or 0
        [written] = output.outputs
        ids = list(written.token_ids)
        logprobs = None
        if written.logprobs is not None:
            logprobs = [step[token].logprob for token, step in zip(ids, written.logprobs, strict=True)]
        return Continued(ids, bool(ids) and ids[-1] in self.ends, logprobs)


def import_vllm() -> Any:
    """Import vLLM with its own messages off standard output, which belongs to --json; UsageError when it is missing."""
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # nobody was asked
    try:
        import vllm
    except ImportError as error:
        raise UsageError(
            f"vLLM is not installed, or does not fit this environment: {error}",
            "pip install 'r3core[vllm]', into an environment of its own: vLLM names the versions it needs",
        ) from error
    return vllm


def options_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options for `vllm.LLM`; ConfigError for one that it does not know, or that is set elsewhere."""
    from dataclasses import fields

    import_vllm()
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    known = {field.name for field in fields(EngineArgs)} - OWNED.keys()
    for name in given:
        if name in OWNED:
            raise ConfigError(f"`engine_options.{name}` is not set here", OWNED[name])
        if name not in known:
            raise ConfigError(f"vLLM has no option `{name}`", *did_you_mean(str(name), sorted(known)))
    ours = {"enable_prefix_caching": True, "disable_log_stats": True}
    if current_platform.is_cpu():  # where a prompt cut in two and its seed end in "CPU Generator does not use offset"
        ours["enable_chunked_prefill"] = False
    return ours | dict(given)


def _dtype_of(model: str, config: Config) -> str:
    """Return the type of the weights; for vLLM, `auto` would not be the one they were saved in."""
    from transformers import AutoConfig

    if config.dtype != "auto":
        return config.dtype
    saved = AutoConfig.from_pretrained(
        model, revision=config.revision, trust_remote_code=config.trust_remote_code
    ).dtype
    return str(saved).removeprefix("torch.") if saved is not None else "auto"


def _ends_of(model: str, config: Config, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that end a turn of a model whose weights are not loaded here."""
    from transformers import GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(model, revision=config.revision or "main")
    except OSError:  # the file is not obligatory
        generation = None
    return end_ids(tokenizer, generation)
