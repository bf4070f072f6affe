"""Log-probabilities of a batch, computed without most of its padding, and with every prompt once.

TRL pads all rows of a generation to the longest prompt and the longest completion, and passes them through the model
together. In the batches of reflections more than half of the positions can be padding. Here the rows are sorted by
length and cut into pieces, each piece is trimmed on both sides to its own longest row, and the results return to the
places of the rows. They are the same up to rounding: models whose results depend on padding are refused.

The rows of a group have the same prompt. It goes through the model once, with a cache, and the pieces continue from
there; gradients flow through the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import cached_property
from typing import Any

import torch

MAX_PIECES = 8
MIN_TOKENS = {"cpu": 640}
"""Positions per piece, by device type: a smaller piece costs more time in calls than it saves in padding."""
MIN_TOKENS_ELSEWHERE = 8192

Outputs = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""Log-probabilities and entropies, both (B, T), and the load-balancing loss of a mixture of experts."""


def trimmed_pass(
    forward: Callable[..., Outputs],
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    logits_to_keep: int,
    *,
    batch_size: int | None,
    pieces: int | None,
    share_prompts: bool = False,
    compute_entropy: bool = False,
    compute_aux_loss: bool = False,
    **fields: Any,
) -> Outputs:
    """Return what `forward` returns for B rows of P prompt tokens and T = `logits_to_keep` completion tokens.

    `forward` takes the arguments of TRL's `_get_per_token_logps_and_entropies`. `pieces` is the least number of
    pieces, None for the best; no piece has more than `batch_size` rows. With `share_prompts` a prompt of several rows
    is computed once. Batches with images, batches whose load-balancing loss is computed, and compiled models go
    through as they are.
    """
    options = {"compute_entropy": compute_entropy, "compute_aux_loss": compute_aux_loss}
    with_images = any(value is not None for value in fields.values())
    if with_images or compute_aux_loss or is_compiled(model):
        return forward(model, input_ids, attention_mask, logits_to_keep, batch_size=batch_size, **options, **fields)
    rows, width = input_ids.shape  # B, P + T
    prompt = width - logits_to_keep
    shared = SharedPrompts.of(model, input_ids[:, :prompt], attention_mask[:, :prompt]) if share_prompts else None
    count = pieces or pieces_for(rows, logits_to_keep if shared else width, device=input_ids.device.type)
    count = min(rows, max(count, -(-rows // (batch_size or rows))))
    order, windows = windows_of(attention_mask, logits_to_keep, count, whole_prompts=shared is not None)
    results = []
    for place, first, end in windows:
        policy = model if shared is None else shared.continued_by(place)
        scored = end - prompt  # completion tokens of this piece
        ids, mask = input_ids[place, first:end], attention_mask[place, first:end]
        results.append(forward(policy, ids, mask, scored, **options))
    back = order.argsort()
    logps = torch.cat([_widened(values, logits_to_keep) for values, _, _ in results])[back]
    entropies = [_widened(values, logits_to_keep) for _, values, _ in results if values is not None]
    return logps, torch.cat(entropies)[back] if entropies else None, None


def pieces_for(rows: int, width: int, *, device: str) -> int:
    """Return how many pieces to cut a batch into when one process trains.

    >>> pieces_for(128, 68, device="cpu"), pieces_for(8, 900, device="cpu"), pieces_for(8, 900, device="cuda")
    (8, 8, 1)
    """
    return max(1, min(MAX_PIECES, rows, rows * width // MIN_TOKENS.get(device, MIN_TOKENS_ELSEWHERE)))


def windows_of(
    attention_mask: torch.Tensor, logits_to_keep: int, count: int, *, whole_prompts: bool = False
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, int, int]]]:
    """Return the order of the rows by length, and for each piece its rows with the first column and the end to keep.

    Prompts are padded on the left and completions on the right. Each side keeps at least one column. With
    `whole_prompts` only completions are trimmed, and rows are sorted by theirs.
    """
    prompt = attention_mask.size(1) - logits_to_keep
    real = attention_mask.bool()
    before = prompt - real[:, :prompt].int().argmax(1) if prompt else real.new_zeros(len(real), dtype=torch.int)
    columns = torch.arange(1, logits_to_keep + 1, device=real.device)
    after = (real[:, prompt:] * columns).amax(1)  # the length of each completion, also with gaps in its mask
    if whole_prompts:
        before = torch.full_like(before, prompt)
    order = (before + after).argsort(stable=True)
    places = order.tensor_split(count)
    sides = torch.stack([torch.stack([before[place].max(), after[place].max()]) for place in places]).tolist()
    return order, [
        (place, prompt - max(1, int(left)) if prompt else 0, prompt + max(1, int(right)))
        for place, (left, right) in zip(places, sides, strict=True)
    ]


class SharedPrompts:
    """The different prompts of a batch, which go through the model once; its cache has all but their last tokens."""

    def __init__(self, model: Any, prompts: torch.Tensor, masks: torch.Tensor, prompt: torch.Tensor) -> None:
        self.model = model
        self.ids, self.mask = prompts, masks  # both (U, P), padded on the left
        self.prompt = prompt  # (B,): the prompt of each row

    @classmethod
    def of(cls, model: Any, ids: torch.Tensor, mask: torch.Tensor) -> SharedPrompts | None:
        """Return those of B rows, both (B, P); None where half of the rows or more have a prompt of their own."""
        (prompts, masks), prompt = torch.unique(torch.stack([ids, mask]), dim=1, return_inverse=True)
        return cls(model, prompts, masks, prompt) if ids.size(1) > 1 and 2 * len(prompts) <= len(ids) else None

    def continued_by(self, rows: torch.Tensor) -> Callable[..., Any]:
        """Return what takes the model's place for these rows, (rows,): its arguments and results are the model's."""
        start = self.ids.size(1) - 1  # the last token of a prompt predicts the first of a completion

        def forward(input_ids: torch.Tensor, labels: torch.Tensor, **options: Any) -> Any:
            cache = copy(self._cache)
            cache.layers = [copy(layer) for layer in cache.layers]
            cache.reorder_cache(self.prompt[rows])
            return self.model(
                input_ids=input_ids[:, start:], labels=labels[:, start:], past_key_values=cache, **options
            )

        return forward

    @cached_property
    def _cache(self) -> Any:
        """Computed at the first call, which is under the autocast of training."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        self.model(
            input_ids=self.ids[:, :-1],
            attention_mask=self.mask[:, :-1],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return cache


def is_compiled(model: torch.nn.Module) -> bool:
    """Return whether a model was compiled: it would be compiled again for each width."""
    return any(type(module).__name__ == "OptimizedModule" for module in model.modules())


def _widened(values: torch.Tensor, width: int) -> torch.Tensor:
    """Return the values of a piece, (rows, tokens), with zeros for the columns that were cut off."""
    return torch.nn.functional.pad(values, (0, width - values.size(1)))
