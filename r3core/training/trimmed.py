"""Log-probabilities of a batch, computed without most of its padding, and with every prompt once.

TRL pads all rows of a generation to the longest prompt and the longest completion, and passes them through the model
together. In the batches of reflections more than half of the positions can be padding. Here the rows are sorted by
length and cut into pieces, each piece is trimmed on both sides to its own longest row, and the results return to the
places of the rows. They are the same up to rounding: models whose results depend on padding are refused.

The rows of a group have the same prompt, or prompts that begin with the same turns. What they have in common goes
through the model once, with a cache, and the pieces continue from there; gradients flow through the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import cached_property
from typing import Any

import torch

from r3core.generation.cache import attends_to_all, common_prefixes, left_padded

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
    pieces, None for the best; no piece has more than `batch_size` rows. With `share_prompts` what the prompts of
    several rows begin with is computed once. Batches with images, batches whose load-balancing loss is computed, and
    compiled models go through as they are.
    """
    options = {"compute_entropy": compute_entropy, "compute_aux_loss": compute_aux_loss}
    with_images = any(value is not None for value in fields.values())
    if with_images or compute_aux_loss or is_compiled(model):
        return forward(model, input_ids, attention_mask, logits_to_keep, batch_size=batch_size, **options, **fields)
    prompt = input_ids.size(1) - logits_to_keep
    shared = SharedPrompts.of(model, input_ids[:, :prompt], attention_mask[:, :prompt]) if share_prompts else None
    if shared is not None:  # from here on the prompts are what is left of them
        input_ids = torch.cat([shared.left, input_ids[:, prompt:]], dim=1)
        attention_mask = torch.cat([shared.left_mask, attention_mask[:, prompt:]], dim=1)
        prompt = shared.left.size(1)
    rows, width = input_ids.shape  # B, P + T
    count = pieces or pieces_for(rows, width - 1 if shared else width, device=input_ids.device.type)
    count = min(rows, max(count, -(-rows // (batch_size or rows))))
    order, windows = windows_of(attention_mask, logits_to_keep, count)
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
    attention_mask: torch.Tensor, logits_to_keep: int, count: int
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, int, int]]]:
    """Return the order of the rows by length, and for each piece its rows with the first column and the end to keep.

    Prompts are padded on the left and completions on the right. Each side keeps at least one column.
    """
    prompt = attention_mask.size(1) - logits_to_keep
    real = attention_mask.bool()
    before = prompt - real[:, :prompt].int().argmax(1) if prompt else real.new_zeros(len(real), dtype=torch.int)
    columns = torch.arange(1, logits_to_keep + 1, device=real.device)
    after = (real[:, prompt:] * columns).amax(1)  # the length of each completion, also with gaps in its mask
    order = (before + after).argsort(stable=True)
    places = order.tensor_split(count)
    sides = torch.stack([torch.stack([before[place].max(), after[place].max()]) for place in places]).tolist()
    return order, [
        (place, prompt - max(1, int(left)) if prompt else 0, prompt + max(1, int(right)))
        for place, (left, right) in zip(places, sides, strict=True)
    ]


class SharedPrompts:
    """What the prompts of B rows have in common, U beginnings, which go through the model once.

    A prompt of several rows is shared but for its last token, which predicts the first of a completion. Where rows have
    prompts of their own that begin alike, those have different lengths left, and there is padding behind the beginning:
    positions are then counted without padding, and every layer has to attend to all tokens.
    """

    def __init__(
        self,
        model: Any,
        beginnings: tuple[torch.Tensor, torch.Tensor],
        beginning: torch.Tensor,
        left: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        self.model = model
        self.ids, self.mask = beginnings  # both (U, tokens), padded on the left
        self.beginning = beginning  # (B,): the beginning of each row
        self.left, self.left_mask = left  # the rest of each prompt, both (B, tokens), padded on the left

    @classmethod
    def of(cls, model: Any, ids: torch.Tensor, mask: torch.Tensor) -> SharedPrompts | None:
        """Return those of B rows, both (B, P), that leave the fewest tokens; None where none has several rows."""
        if ids.size(1) == 1:
            return None
        (prompts, masks), prompt = torch.unique(torch.stack([ids, mask]), dim=1, return_inverse=True)
        equal = cls(model, (prompts[:, :-1], masks[:, :-1]), prompt, (ids[:, -1:], mask[:, -1:]))
        found = [equal] if 2 * len(prompts) <= len(ids) else []
        if attends_to_all(model):
            rows = [row[real].tolist() for row, real in zip(ids, mask.bool(), strict=True)]
            beginnings, beginning = common_prefixes(rows)
            if 2 * len(beginnings) <= len(rows) and any(beginnings):
                left = [row[len(beginnings[place]) :] for row, place in zip(rows, beginning, strict=True)]
                shared, own = (left_padded(one, 0, device=ids.device) for one in (beginnings, left))
                found.append(cls(model, shared, torch.tensor(beginning, device=ids.device), own))
        return min(found, key=lambda one: one.ids.numel() + int(one.left_mask.sum()), default=None)

    def continued_by(self, rows: torch.Tensor) -> Callable[..., Any]:
        """Return what takes the model's place for these rows, (rows,): its arguments and results are the model's."""

        def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> Any:
            beginning = self.beginning[rows]
            cache = copy(self._cache)
            cache.layers = [copy(layer) for layer in cache.layers]
            cache.reorder_cache(beginning)
            mask = torch.cat([self.mask[beginning], attention_mask], dim=1)
            return self.model(
                input_ids=input_ids,
                attention_mask=mask,
                past_key_values=cache,
                **self._positions(mask, input_ids.size(1)),
                **options,
            )

        return forward

    @cached_property
    def _cache(self) -> Any:
        """Computed at the first call, which is under the autocast of training."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        self.model(
            input_ids=self.ids,
            attention_mask=self.mask,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **self._positions(self.mask, self.ids.size(1)),
        )
        return cache

    def _positions(self, mask: torch.Tensor, last: int) -> dict[str, torch.Tensor]:
        """Return the positions of the last columns where padding behind the beginning would shift them."""
        if self.left.size(1) == 1:
            return {}
        return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, -last:]}


def is_compiled(model: torch.nn.Module) -> bool:
    """Return whether a model was compiled: it would be compiled again for each width."""
    return any(type(module).__name__ == "OptimizedModule" for module in model.modules())


def _widened(values: torch.Tensor, width: int) -> torch.Tensor:
    """Return the values of a piece, (rows, tokens), with zeros for the columns that were cut off."""
    return torch.nn.functional.pad(values, (0, width - values.size(1)))
