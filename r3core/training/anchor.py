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
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from r3core.errors import RunError
from r3core.failures import mined_attempts
from r3core.generation.chat import encode
from r3core.generation.control_tokens import control_tokens
from r3core.objective import attempts_of_anchor
from r3core.protocol import Protocol
from r3core.training.segments import padding_id

if TYPE_CHECKING:
    from r3core.training.trainer import ReflectionTrainer


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
        attempts = self._sample(attempts_of_anchor(rows))
        with torch.no_grad(), _base(trainer) as base:
            target = attempts.log_probabilities(base)
        policy = attempts.log_probabilities(model)
        trainer.usage.count_forward(2 * len(attempts.ids))
        found = divergence(target, policy)
        gathered = trainer.accelerator.gather(found.detach())
        trainer._metrics["train"]["anchor/kl"].append(gathered.mean().item())
        return self.weight * found / trainer.current_gradient_accumulation_steps

    def _sample(self, count: int) -> Attempts:
        """Return a random sample of the mined attempts, on the device of training."""
        seed = self.trainer.seed_for(f"anchor {self.passes}", self.trainer.accelerator.process_index)
        self.passes += 1
        chosen = random.Random(seed).choices(self.attempts, k=count)
        longest = max(len(prompt) + len(ids) for prompt, ids in chosen)
        ids = torch.full((count, longest), padding_id(self.trainer.processing_class))
        attention = torch.zeros((count, longest), dtype=torch.long)
        for row, (prompt, attempt) in enumerate(chosen):
            end = len(prompt) + len(attempt)
            ids[row, :end] = torch.tensor(prompt + attempt)
            attention[row, :end] = 1
        first = min(len(prompt) for prompt, _ in chosen) - 1
        places = [
            (row, column - first)
            for row, (prompt, attempt) in enumerate(chosen)
            for column in range(len(prompt) - 1, len(prompt) + len(attempt))
        ]
        device = self.trainer.accelerator.device
        at = torch.tensor(places, device=device)
        return Attempts(ids.to(device), attention.to(device), at[:, 0], at[:, 1], scored=longest - first)


class Attempts(NamedTuple):
    """C attempts after their prompts, with n positions that predict a token of an attempt or its end."""

    ids: torch.Tensor  # (C, tokens), padded on the right
    attention: torch.Tensor  # (C, tokens)
    rows: torch.Tensor  # (n,)
    columns: torch.Tensor  # (n,), counted within the last `scored`
    scored: int  # number of columns at the end whose logits are computed

    def log_probabilities(self, model: Any) -> torch.Tensor:
        """Return a model's log-probabilities of the next token at the n positions: (n, vocabulary)."""
        output = model(input_ids=self.ids, attention_mask=self.attention, use_cache=False, logits_to_keep=self.scored)
        logits: torch.Tensor = output.logits[self.rows, self.columns]
        return logits.float().log_softmax(-1)


def divergence(target: torch.Tensor, policy: torch.Tensor) -> torch.Tensor:
    """Return the mean KL(target || policy) of n distributions, given as log-probabilities (n, vocabulary)."""
    return torch.nn.functional.kl_div(policy, target, log_target=True, reduction="sum") / len(policy)


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
            "mine with a local engine in this run, or name a run directory under mine.failures, not a dataset alone; "
            "without an anchor: train.anchor=0",
        )
    return found
