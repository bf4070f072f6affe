"""The policy in training: the weights that a trainer has at this moment, as a generator like any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from trl.models.utils import unwrap_model_for_generation

from r3core.generation import Completion, Continued, Conversation, Ended, Samplings
from r3core.generation.local import TransformersGenerator


class Policy:
    """A generator that samples from the weights a trainer has at this moment."""

    def __init__(self, trainer: Any, batch_size: int) -> None:
        self.trainer = trainer  # a GRPOTrainer, whose attributes are typed more widely than what is put into them
        self.batch_size = batch_size

    def generate(
        self, conversations: Sequence[Conversation], sampling: Samplings, *, ended: Ended | None = None
    ) -> list[Completion]:
        """Return one completion a conversation, in the same order."""
        with self._generator() as generator:
            return generator.generate(conversations, sampling, ended=ended)

    def continue_ids(self, prompts: Sequence[list[int]], sampling: Samplings) -> list[Continued]:
        """Return what is generated after each prompt of token ids."""
        with self._generator() as generator:
            return generator.continue_ids(prompts, sampling)

    def close(self) -> None:
        """Do nothing: the weights are the trainer's."""

    @contextmanager
    def _generator(self) -> Iterator[TransformersGenerator]:
        trainer = self.trainer
        with unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        ) as model:
            yield TransformersGenerator(model, trainer.processing_class, batch_size=self.batch_size)
