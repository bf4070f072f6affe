"""The anchor: a penalty on first attempts that differ from those of the base model (`train.anchor`).

Training moves weights that all turns share, and the KL term of `grpo.beta` is on trained tokens alone. The anchor is on
attempts: with C mined attempts, right and wrong ones, and n positions in them, the loss gets

    anchor / n * sum over positions of KL(base || policy), KL(p || q) = sum over the vocabulary of p (log p - log q).

The attempts were sampled from the base model, so the sum over an attempt's positions estimates the divergence between
the two models' distributions of whole attempts. Attempts of failures alone would do no such thing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from r3core.errors import RunError
from r3core.failures import mined_attempts
from r3core.generation.chat import encode
from r3core.generation.control_tokens import control_tokens
from r3core.protocol import Protocol
from r3core.training.segments import padding_id

if TYPE_CHECKING:
    from r3core.training.trainer import ReflectionTrainer

_SHARE = 4  # one attempt for this number of rows in a pass


class Anchor:
    """Computes the penalty on a random sample of the mined attempts, another one in each pass and process."""

    def __init__(self, trainer: ReflectionTrainer) -> None:
        self.trainer = trainer
        self.weight = trainer.protocol.config.train.anchor
        self.attempts = _tokenized(trainer)
        self.passes = 0
        """Number of passes so far in this step; part of the seed of each sample."""

    def penalty(self, model: Any, rows: int) -> torch.Tensor:
        """Return the weighted penalty of a pass over a number of rows, a scalar."""
        trainer = self.trainer
        ids, attention, positions = self._batch(max(1, rows // _SHARE))
        with torch.no_grad(), _base(trainer) as base:
            target = base(input_ids=ids, attention_mask=attention, use_cache=False).logits
            target = target[positions].float().log_softmax(-1)  # (n, vocabulary)
        logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
        policy = logits[positions].float().log_softmax(-1)
        trainer.usage.count_forward(2 * len(ids))
        divergence = torch.nn.functional.kl_div(policy, target, log_target=True, reduction="sum") / len(policy)
        gathered = trainer.accelerator.gather(divergence.detach())
        trainer._metrics["train"]["anchor/kl"].append(gathered.mean().item())
        return self.weight * divergence / trainer.current_gradient_accumulation_steps

    def _batch(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return token ids, their mask, and which positions predict a token of an attempt or its end: (C, tokens)."""
        seed = self.trainer.seed_for(f"anchor {self.passes}", self.trainer.accelerator.process_index)
        self.passes += 1
        chosen = random.Random(seed).choices(self.attempts, k=count)
        longest = max(len(prompt) + len(ids) for prompt, ids in chosen)
        ids = torch.full((count, longest), padding_id(self.trainer.processing_class))
        attention = torch.zeros((count, longest), dtype=torch.long)
        positions = torch.zeros((count, longest), dtype=torch.bool)
        for row, (prompt, attempt) in enumerate(chosen):
            end = len(prompt) + len(attempt)
            ids[row, :end] = torch.tensor(prompt + attempt)
            attention[row, :end] = 1
            positions[row, len(prompt) - 1 : end] = True
        device = self.trainer.accelerator.device
        return ids.to(device), attention.to(device), positions.to(device)


@contextmanager
def _base(trainer: ReflectionTrainer) -> Iterator[Any]:
    """Yield the base model: TRL's reference, or the policy without its adapter."""
    if trainer.ref_model is not None:
        yield trainer.ref_model
        return
    with trainer.accelerator.unwrap_model(trainer.model).disable_adapter():
        yield trainer.model


def _tokenized(trainer: ReflectionTrainer) -> Sequence[tuple[list[int], list[int]]]:
    """Return prompt and tokens of every mined attempt that fits the context; RunError without any."""
    protocol: Protocol = trainer.protocol
    limit, control = trainer.policy.context, control_tokens(trainer.processing_class)
    found = []
    for episode in mined_attempts(trainer.run):
        attempt = episode.attempt
        ids = attempt.token_ids
        text = attempt.text if attempt.raw is None else attempt.raw
        if ids and control.spell(ids, text):  # else they are another tokenizer's
            prompt = encode(trainer.processing_class, protocol.attempt_request(episode.example))
            if limit is None or len(prompt) + len(ids) <= limit:
                found.append((prompt, ids))
    if not found:
        raise RunError(
            "`train.anchor` requires the tokens of the mined attempts, and this run has none of them",
            "mine with a local engine in this run, or name a run directory under mine.failures, not a dataset alone",
        )
    return found
