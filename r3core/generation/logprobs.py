"""Log probabilities of given tokens under a model in this process.

Shapes in comments: B rows of the batch, T tokens of a row, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MAX_TOKENS = 2_048  # of a batch, padding included: logits need V numbers for each


def logprobs_of(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Return the natural logarithm of the probability of each token of some continuations, at temperature 1.

    A continuation follows the prompt with the same index; prompts have at least one token.
    """
    rows = [[*prompt, *tokens] for prompt, tokens in zip(prompts, continuations, strict=True)]
    found: list[list[float]] = [[]] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    while order:
        size = max(1, _MAX_TOKENS // len(rows[order[-1]]))
        batch, order = order[-size:], order[:-size]  # the longest ones first
        given = [len(prompts[index]) for index in batch]
        for index, values in zip(batch, _batch(model, [rows[index] for index in batch], given), strict=True):
            found[index] = values
    return found


def _batch(model: PreTrainedModel, rows: Sequence[Sequence[int]], given: Sequence[int]) -> list[list[float]]:
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=model.device)  # (B, T)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=model.device)  # (B, T)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()  # (B, T-1, V)
    finally:
        model.train(was_training)
    logp = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)  # (B, T-1): of each token but the first
    return [
        logp[place, start - 1 : len(row) - 1].tolist()
        for place, (row, start) in enumerate(zip(rows, given, strict=True))
    ]
