"""A layer of transformers' key-value cache that has room for further tokens."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

_ROOM = 64
"""Tokens per row for which there is room whenever the tensors are made anew."""


class GrowingLayer(DynamicLayer):
    """Keys and values to which those of a new token are written; `DynamicLayer` copies all of them for each token.

    Both have the shape (B, heads, T, size of a head). They are views of larger tensors, and changed in place: not for
    passes through which gradients flow.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._whole: tuple[torch.Tensor, torch.Tensor] | None = None
        """The tensors of which `keys` and `values` are the beginning; None when those are tensors of their own."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values of new tokens, and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        total = before + key_states.shape[-2]
        if self._whole is None or self._whole[0].shape[-2] < total:
            self._whole = _longer(self.keys, key_states, before), _longer(self.values, value_states, before)
        keys, values = self._whole
        keys[:, :, before:total] = key_states
        values[:, :, before:total] = value_states
        self.keys, self.values = keys[:, :, :total], values[:, :, :total]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Continue with these rows, in this order."""
        super().reorder_cache(beam_idx)
        self._whole = None


def _longer(old: torch.Tensor | None, new: torch.Tensor, before: int) -> torch.Tensor:
    """Return a tensor that begins with `before` tokens of `old` and has room for those of `new` and more."""
    rows, heads, tokens, size = new.shape
    whole = new.new_empty(rows, heads, before + tokens + _ROOM, size)
    if old is not None and before:
        whole[:, :, :before] = old
    return whole
