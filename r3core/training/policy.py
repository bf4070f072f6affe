"""The policy in training: a generator that samples from the weights that a trainer has at this moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from accelerate.utils import gather_object
from trl.models.utils import unwrap_model_for_generation

from r3core.activity import PROCESS, waiting_for
from r3core.config import Config
from r3core.generation.chat import Take, converse, end_ids
from r3core.generation.generator import Completion, Continued, Ended, Sampling
from r3core.generation.models import context_of
from r3core.generation.transformers import TransformersGenerator
from r3core.generation.vllm import VllmGenerator, import_vllm, options_of
from r3core.plugins.engines import find_engine
from r3core.task import Prompt
from r3core.training.fsdp import unsharded


class Policy:
    """A generator that samples from the current weights of a trainer, by transformers or by TRL's vLLM.

    With vLLM, log-probabilities are those at the sampling temperature, which TRL compares with the trainer's own.
    """

    collective = True
    """Every process must call `generate` equally often, also without conversations: all gather the weights together."""

    def __init__(self, trainer: Any, batch_size: int) -> None:
        self.trainer = trainer  # a GRPOTrainer, whose attributes have wider types than their values
        self.batch_size = batch_size
        self.vllm: VllmGenerator | None = None
        """vLLM's engine, when it runs in this process and serves this process alone."""
        if trainer.use_vllm:
            engine = trainer.vllm_generation
            if engine.mode == "colocate" and engine.tensor_parallel_size == 1 and not engine.enable_sleep_mode:
                self.vllm = VllmGenerator(engine.llm, trainer.processing_class, ends=self._ends())

    @property
    def context(self) -> int | None:
        """The maximum length of prompt and completion together, in tokens; None when the model has none."""
        if self.vllm is not None:
            return self.vllm.context
        return context_in_training(self.trainer.model, self.trainer.args)

    def generate(
        self, conversations: Sequence[Prompt], sampling: Sampling, *, ended: Ended | None = None
    ) -> list[Completion]:
        """Return one completion per conversation, in the same order."""
        return converse(self, self.trainer.processing_class, conversations, sampling, ended=ended)

    def continue_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        *,
        group: int = 1,
        logprobs: bool = False,
        take: Take | None = None,
    ) -> list[Continued]:
        """Return the continuations of B prompts of token ids, of which every `group` adjacent ones are equal.

        With `logprobs`, vLLM also returns log-probabilities. `take` is called with the continuations that have just
        ended, each with the index of its prompt.
        """
        if not self.trainer.use_vllm:
            with self._transformers() as generator:
                return generator.continue_ids(prompts, sampling, take=take)
        self.sync()
        if self.vllm is not None:
            return self.vllm.continue_ids(prompts, sampling, take=take, logprobs=logprobs)
        results = self._by_trl(prompts, sampling, group)
        if take:
            take(list(enumerate(results)))
        return results

    def sync(self) -> None:
        """Copy the weights of this step to vLLM, unless it has them already."""
        trainer = self.trainer
        engine = trainer.vllm_generation
        if trainer.state.global_step == trainer._last_loaded_step:
            return
        if engine.mode == "colocate" and trainer.accelerator.device.type == "cpu":
            # When vLLM's CPU kernels load a weight they repack it, and `load_weights`, which TRL calls, fails on
            # repacked weights. `reload_weights` undoes that, loads, and repacks. It leaves out an output layer that is
            # tied to the embeddings, as no weight is loaded under its name: without the two lines after it, vLLM would
            # sample with the output layer of an earlier step.
            runner = engine.llm.llm_engine.model_executor.driver_worker.model_runner
            runner.reload_weights(weights_iterator=engine._iter_named_params())
            head = runner.model.lm_head
            head.quant_method.process_weights_after_loading(head)
            engine.llm.reset_prefix_cache()  # it holds keys and values of the old weights
        else:
            engine.sync_weights()
        trainer._last_loaded_step = trainer.state.global_step

    def close(self) -> None:
        """Free vLLM's memory; the weights belong to the trainer."""
        if self.trainer.use_vllm and self.trainer.vllm_generation.mode == "colocate":
            self.vllm = None
            self.trainer.vllm_generation.llm.llm_engine.engine_core.shutdown()
            del self.trainer.vllm_generation.llm

    def _by_trl(self, prompts: Sequence[list[int]], sampling: Sampling, group: int) -> list[Continued]:
        """Return the continuations by a vLLM server, or by an engine that several processes share.

        TRL gathers the prompts of all processes and slices the results evenly, so every process must pass as many. One
        with fewer, because some do not fit the context, adds prompts of one token, whose results are dropped.
        """
        engine, ends = self.trainer.vllm_generation, self._ends()
        with waiting_for(PROCESS, "the prompts of the other ranks"):
            padding = max(gather_object([len(prompts)])) - len(prompts)
        padded = [*prompts, *[[min(ends)]] * padding]
        if not padded:
            return []
        settings = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_completion_length": sampling.max_tokens,
        }
        with attributes_set(engine, settings):
            _, ids, logprobs, _ = engine.generate(padded, None, group)
        # logprobs: (rows, tokens, 1); TRL leaves a token without one out of its importance ratio, as NaN
        rows = zip(ids, logprobs, strict=True)
        results = [
            Continued(
                row, bool(row) and row[-1] in ends, [float("nan") if p is None else p for [p, *_] in row_logprobs]
            )
            for row, row_logprobs in rows
        ]
        return results[: len(prompts)]

    def _ends(self) -> set[int]:
        return end_ids(self.trainer.processing_class, self.trainer.model.generation_config)

    @contextmanager
    def _transformers(self) -> Iterator[TransformersGenerator]:
        trainer = self.trainer
        with (
            unwrap_model_for_generation(
                trainer.model_wrapped,
                trainer.accelerator,
                gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
            ) as model,
            unsharded(model, trainer.accelerator),
        ):
            yield TransformersGenerator(model, trainer.processing_class, batch_size=self.batch_size)


def context_in_training(model: Any, args: Any) -> int | None:
    """Return the maximum length of a sequence in training, in tokens; None for no limit."""
    limits = [context_of(model.config), args.vllm_max_model_length if args.use_vllm else None]
    return min((limit for limit in limits if limit is not None), default=None)


@contextmanager
def vllm_started_for(args: Any, config: Config, model: Any) -> Iterator[None]:
    """Make TRL start its colocated vLLM with `engine_options`, in the dtype that the trainer computes in.

    TRL passes none of these to `vllm.LLM`, so the class is replaced for the block. vLLM's default dtype would be 16
    bits for a model of 32.
    """
    if not (args.use_vllm and args.vllm_mode == "colocate"):
        yield
        return
    import_vllm()
    dtype = "bfloat16" if args.bf16 else "float16" if args.fp16 else str(model.dtype).removeprefix("torch.")
    options = options_of(config.engine_options if find_engine(config.engine).training.get("use_vllm") else {})
    module: Any = import_module("trl.generation.vllm_generation")  # `LLM` is not among its exports
    with attributes_set(module, {"LLM": partial(module.LLM, **options, dtype=dtype, revision=config.revision)}):
        yield


@contextmanager
def attributes_set(target: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Set attributes for the duration of the block."""
    before = {name: getattr(target, name) for name in values}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)
