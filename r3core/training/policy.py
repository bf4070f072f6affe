"""The policy in training: the weights that a trainer has at this moment, as a generator like any other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from accelerate.utils import gather_object
from torch.distributed.fsdp import FSDPModule
from trl.models.utils import unwrap_model_for_generation

from r3core.generation.chat import Take, converse, end_ids
from r3core.generation.engine import Completion, Continued, Ended, Sampling, Samplings
from r3core.generation.models import context_of
from r3core.generation.transformers import TransformersGenerator
from r3core.generation.vllm import VllmGenerator, import_vllm, options_of
from r3core.task import Prompt


class Policy:
    """A generator that samples from the weights a trainer has at this moment, by transformers or by TRL's vLLM.

    With vLLM, log-probabilities are those at the sampling temperature, which TRL compares with the trainer's own.
    """

    def __init__(self, trainer: Any, batch_size: int) -> None:
        self.trainer = trainer  # a GRPOTrainer, whose attributes are typed more widely than what is put into them
        self.batch_size = batch_size
        self.vllm: VllmGenerator | None = None
        """vLLM's engine, where it is in this process and works for this process alone."""
        if trainer.use_vllm:
            engine = trainer.vllm_generation
            if engine.mode == "colocate" and engine.tensor_parallel_size == 1 and not engine.enable_sleep_mode:
                self.vllm = VllmGenerator(engine.llm, trainer.processing_class, ends=self._ends())

    @property
    def context(self) -> int | None:
        """The longest sequence in tokens, prompt and completion together; None where the model names none."""
        if self.vllm is not None:
            return self.vllm.context
        return context_in_training(self.trainer.model, self.trainer.args)

    def generate(
        self, conversations: Sequence[Prompt], sampling: Samplings, *, ended: Ended | None = None
    ) -> list[Completion]:
        """Return one completion a conversation, in the same order."""
        return converse(self, self.trainer.processing_class, conversations, sampling, ended=ended)

    def continue_ids(
        self, prompts: Sequence[list[int]], sampling: Samplings, *, group: int = 1, take: Take | None = None
    ) -> list[Continued]:
        """Return what is generated after each prompt of token ids; every `group` prompts in a row are equal.

        `take` is called with what has just ended, each with its prompt's index.
        """
        if not self.trainer.use_vllm:
            with self._transformers() as generator:
                return generator.continue_ids(prompts, sampling, take=take)
        self.sync()
        if self.vllm is not None:
            return self.vllm.continue_ids(prompts, sampling, take=take)
        assert isinstance(sampling, Sampling)  # the trainer asks for one way of drawing at a time
        written = self._by_trl(prompts, sampling, group)
        if take:
            take(list(enumerate(written)))
        return written

    def sync(self) -> None:
        """Give vLLM the weights of this step, once."""
        trainer = self.trainer
        engine = trainer.vllm_generation
        if trainer.state.global_step == trainer._last_loaded_step:
            return
        if engine.mode == "colocate" and trainer.accelerator.device.type == "cpu":
            # vLLM's kernels for the CPU have repacked the weights, so that TRL's way of loading them fails
            runner = engine.llm.llm_engine.model_executor.driver_worker.model_runner
            runner.reload_weights(weights_iterator=engine._iter_named_params())
            head = (
                runner.model.lm_head
            )  # tied weights are not loaded under its name, and would stay as they were packed
            head.quant_method.process_weights_after_loading(head)
            engine.llm.reset_prefix_cache()
        else:
            engine.sync_weights()
        trainer._last_loaded_step = trainer.state.global_step

    def close(self) -> None:
        """Let go of vLLM's memory; the weights are the trainer's."""
        if self.trainer.use_vllm and self.trainer.vllm_generation.mode == "colocate":
            self.vllm = None
            self.trainer.vllm_generation.llm.llm_engine.engine_core.shutdown()
            del self.trainer.vllm_generation.llm

    def _by_trl(self, prompts: Sequence[list[int]], sampling: Sampling, group: int) -> list[Continued]:
        """Generate on a vLLM server, or on an engine that several processes share: all of them take part.

        TRL wants as many prompts of each process; one that has fewer, as some do not fit, adds prompts of one token.
        """
        engine, ends = self.trainer.vllm_generation, self._ends()
        count = len(prompts)
        most = max(gather_object([count]))
        prompts = [*prompts, *[[min(ends)]] * (most - count)]
        if not prompts:
            return []
        asked = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k")}
        with _changed(engine, asked | {"max_completion_length": sampling.max_tokens}):
            _, ids, logprobs, _ = engine.generate(list(prompts), None, group)
        drawn = [[float("nan") if one[0] is None else one[0] for one in row] for row in logprobs]
        written = [Continued(row, bool(row) and row[-1] in ends, told) for row, told in zip(ids, drawn, strict=True)]
        return written[:count]

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
            _whole(model, divide_again=trainer.accelerator),
        ):
            yield TransformersGenerator(model, trainer.processing_class, batch_size=self.batch_size)


def context_in_training(model: Any, args: Any) -> int | None:
    """Return the longest sequence of a model that is trained with TRL's arguments; None where none is named."""
    limits = [context_of(model.config), args.vllm_max_model_length if args.use_vllm else None]
    return min((limit for limit in limits if limit is not None), default=None)


@contextmanager
def _whole(model: Any, *, divide_again: Any) -> Iterator[None]:
    """Gather weights that FSDP2 divides for the block, in which the processes then need not wait for each other."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(bool(divide_again.state.fsdp_plugin.reshard_after_forward), recurse=False)
            part.reshard()
        for part in (model, model.get_output_embeddings()) if parts else ():
            if isinstance(part, FSDPModule):  # what is needed first on the way back stays whole
                part.set_reshard_after_forward(False, recurse=False)


@contextmanager
def engine_given(options: Mapping[str, Any], *, dtype: str, revision: str | None = None) -> Iterator[None]:
    """Have TRL start its colocated vLLM with options that it has no names for, in the trainer's own type.

    Left to itself vLLM would take 16 bits for a model of 32.
    """
    import_vllm()
    vllm_generation: Any = import_module("trl.generation.vllm_generation")  # it does not export what it imports
    original = vllm_generation.LLM
    vllm_generation.LLM = partial(original, **options_of(options), dtype=dtype, revision=revision)
    try:
        yield
    finally:
        vllm_generation.LLM = original


@contextmanager
def _changed(target: Any, values: Mapping[str, Any]) -> Iterator[None]:
    before = {name: getattr(target, name) for name in values}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)
