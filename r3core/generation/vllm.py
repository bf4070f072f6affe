"""The `vllm` engine: vLLM's offline engine in this process, with its prefix cache."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import count
from typing import TYPE_CHECKING, Any, Self

from pydantic import ConfigDict

from r3core.config import Config
from r3core.engine import Engine, EngineOptions
from r3core.errors import ConfigError, UsageError, did_you_mean, one_line
from r3core.generation.chat import Take, check_lengths, converse
from r3core.generation.generator import Completion, Continued, Ended, Sampling
from r3core.generation.models import adapter_in, base_of, ends_of, saved_dtype, tokenizer_of
from r3core.task import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from r3core.runs import Run

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
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values of max_lora_rank that vLLM allows
_SEEDS = 2**63  # vLLM's seeds are signed 64-bit integers


class VllmOptions(EngineOptions):
    """Any option of `vllm.LLM` that r3 does not set itself; which ones there are depends on the installed vLLM."""

    model_config = ConfigDict(extra="allow")


class VllmEngine(Engine):
    """Generates with vLLM in this process; training then samples from a vLLM beside the trainer."""

    name = "vllm"
    Options = VllmOptions
    training = {"use_vllm": True, "vllm_mode": "colocate"}

    def check(self) -> None:
        """Raise ConfigError for an option that vLLM does not have; without vLLM only those that r3 sets are known."""
        given = self.config.engine_options
        if find_spec("vllm") is not None:
            options_of(given)
            return
        _refuse_owned(given)
        if given:
            print("warning: vLLM is not installed here, so that engine_options are not checked", file=sys.stderr)

    def open(self, model: str, *, run: Run | None = None) -> VllmGenerator:
        """Start vLLM on a local folder or a Hub model; UsageError when that fails or vLLM is not installed."""
        return VllmGenerator.load(model, self.config)


class VllmGenerator:
    """Continues conversations with an engine of vLLM.

    Every prompt has a seed of its own, so that its continuation does not depend on the rest of the batch, as far as
    vLLM's kernels allow. `prompted` and `cached` count the prompts' tokens, and those found in the prefix cache.
    """

    def __init__(
        self, llm: Any, tokenizer: PreTrainedTokenizerBase, *, ends: set[int], adapter: str | None = None
    ) -> None:
        self.llm = llm
        self.adapter = adapter
        """The folder of a LoRA adapter on the engine's model."""
        self.tokenizer = tokenizer
        self.ends = ends
        self.prompted = 0
        self.cached = 0
        self._ids = count()

    @classmethod
    def load(cls, model: str, config: Config) -> Self:
        """Start the engine on a local folder or a Hub model.

        Raises:
            UsageError: vLLM is not installed, or cannot be started on the model.
        """
        vllm = import_vllm()
        options = options_of(config.engine_options)
        adapter = adapter_in(model)
        base = base_of(model)
        if adapter:
            if adapter["r"] > _RANKS[-1]:
                raise UsageError(
                    f"the maximum rank of a LoRA adapter in vLLM is {_RANKS[-1]}; `{model}` has {adapter['r']}"
                )
            rank = next(rank for rank in _RANKS if rank >= adapter["r"])
            options = {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank} | options
        tokenizer = tokenizer_of(config, model)
        try:
            llm = vllm.LLM(
                model=base,
                revision=config.revision,
                dtype=str(saved_dtype(config, base)).removeprefix("torch."),  # vLLM's `auto` makes 16 bits of 32
                trust_remote_code=config.trust_remote_code,
                seed=config.seed,
                **options,
            )
        except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
            raise UsageError(
                f"vLLM cannot be started on `{model}`: {one_line(error)[:500]}",
                "lower engine_options.gpu_memory_utilization or engine_options.max_model_len when memory is short",
                "set VLLM_LOGGING_LEVEL=INFO to see vLLM's log",
            ) from error
        return cls(llm, tokenizer, ends=ends_of(base, config, tokenizer), adapter=model if adapter else None)

    @property
    def context(self) -> int | None:
        """`max_model_len`: the maximum number of tokens of prompt and completion together."""
        return int(self.llm.model_config.max_model_len)

    def generate(
        self, conversations: Sequence[Prompt], sampling: Sampling, *, ended: Ended | None = None
    ) -> list[Completion]:
        """Return one completion per conversation, in the same order; `ended` is called with each when it has ended."""
        return converse(self, self.tokenizer, conversations, sampling, ended=ended)

    def continue_ids(
        self, prompts: Sequence[list[int]], sampling: Sampling, *, take: Take | None = None, logprobs: bool = False
    ) -> list[Continued]:
        """Return the continuation of each prompt of token ids, with log-probabilities if `logprobs`.

        `take` is called with those that have just ended, each with its prompt's index. When anything is raised on the
        way, the unfinished requests are aborted.

        Raises:
            TooLong: a prompt and `max_tokens` together exceed `max_model_len`.
        """
        from vllm.inputs import TokensPrompt
        from vllm.lora.request import LoRARequest

        engine = self.llm.llm_engine
        lora = LoRARequest("adapter", 1, self.adapter) if self.adapter else None
        check_lengths(self.tokenizer, prompts, sampling, context=self.context)
        results: list[Continued | None] = [None] * len(prompts)
        places: dict[str, int] = {}  # id of an unfinished request -> index of its prompt
        try:
            for index, prompt in enumerate(prompts):
                name = f"r3-{next(self._ids)}"
                places[name] = index
                given = TokensPrompt(prompt_token_ids=prompt)
                parameters = self._parameters(sampling, index, logprobs=logprobs)
                engine.add_request(name, given, parameters, lora_request=lora)
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
        """Stop the engine and its processes, and print the hit rate of the prefix cache."""
        if self.prompted:
            share = self.cached / self.prompted
            print(f"vLLM: {share:.0%} of {self.prompted:,} prompt tokens came from its prefix cache", file=sys.stderr)
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm

    def _parameters(self, sampling: Sampling, index: int, *, logprobs: bool) -> Any:
        from vllm import SamplingParams

        try:
            return SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
                seed=(sampling.seed + index) % _SEEDS,
                stop_token_ids=sorted(self.ends),
                logprobs=0 if logprobs else None,  # 0: of the sampled token alone
                detokenize=False,
                skip_special_tokens=False,
            )
        except ValueError as error:
            raise UsageError(f"vLLM does not allow these values under `sampling`: {one_line(error)}") from error

    def _continued(self, output: Any) -> Continued:
        self.prompted += len(output.prompt_token_ids)
        self.cached += output.num_cached_tokens or 0
        [best] = output.outputs
        ids = list(best.token_ids)
        logprobs = None
        if best.logprobs is not None:
            logprobs = [step[token].logprob for token, step in zip(ids, best.logprobs, strict=True)]
        return Continued(ids, bool(ids) and ids[-1] in self.ends, logprobs)


def import_vllm() -> Any:
    """Import vLLM, with its log on standard error; UsageError when it is not installed or does not fit."""
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # r3 has no consent to share usage data
    try:
        import vllm
    except ImportError as error:
        raise UsageError(
            f"vLLM is not installed, or does not fit this environment: {error}",
            "pip install 'r3core[vllm]', into an environment of its own, as vLLM pins the versions of its dependencies",
        ) from error
    return vllm


def options_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options for `vllm.LLM`; ConfigError for one that it does not have, or that r3 sets itself."""
    from dataclasses import fields

    _refuse_owned(given)
    import_vllm()
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    known = {field.name for field in fields(EngineArgs)} - OWNED.keys()
    for name in given:
        if name not in known:
            raise ConfigError(f"vLLM has no option `{name}`", *did_you_mean(str(name), sorted(known)))
    defaults = {"enable_prefix_caching": True, "disable_log_stats": True}
    if current_platform.is_cpu():
        # On the CPU a prompt in two chunks with a seed of its own fails: "CPU Generator does not use offset".
        defaults["enable_chunked_prefill"] = False
    return defaults | dict(given)


def _refuse_owned(given: Mapping[str, Any]) -> None:
    """Raise ConfigError for an option that r3 sets itself."""
    for name in given:
        if name in OWNED:
            raise ConfigError(f"`engine_options.{name}` cannot be set here", OWNED[name])
