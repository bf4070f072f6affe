"""A batch that generates token by token with a cache of any kind, and what its prompts have in common.

Notation for shapes: B rows, T tokens including padding, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class CachedRows:
    """Left-padded prompts in a model's cache, one token longer after each step.

    With padding on the left, the last token of every row is in the last column, so one column of logits continues all
    rows. For two prompts of 3 and 1 tokens, before the first step:

        ids        [[5, 6, 7], [0, 0, 8]]   (B, T); after the first step only the new tokens, (B, 1)
        mask       [[1, 1, 1], [0, 0, 1]]   (B, T): one column more after each step, 1 for real tokens
        positions  [[0, 1, 2], [0, 0, 0]]   like ids: the first real token has position 0

    What several prompts begin with goes through the model once, if attention is all that the cache serves.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, pad: int) -> None:
        from transformers import DynamicCache
        from transformers.cache_utils import CacheLayerMixin, DynamicLayer

        from r3core.generation.growing_layer import GrowingLayer

        self.model = model
        self.cache = DynamicCache(config=model.config)
        plain: Any = getattr(model, "get_base_model", lambda: model)()  # peft's own forward takes any argument
        takes_params = "cache_params" in inspect.signature(plain.forward).parameters  # Mamba's name for a cache
        self._argument = "cache_params" if takes_params else "past_key_values"
        self._attends = not self.cache.layers or any(isinstance(layer, CacheLayerMixin) for layer in self.cache.layers)
        self.mask: torch.Tensor
        self._steps = 0
        self.cache.layers = [GrowingLayer() if type(one) is DynamicLayer else one for one in self.cache.layers]
        if attends_to_all(model):
            prompts = self._read_common(prompts, pad)
        self._add(prompts, pad)

    def _read_common(self, prompts: Sequence[Sequence[int]], pad: int) -> Sequence[Sequence[int]]:
        """Run what several prompts begin with through the model, and return what is left of each prompt."""
        import torch

        prefixes, prefix_of = common_prefixes(prompts)
        if 2 * len(prefixes) > len(prompts):
            return prompts
        self._add(prefixes, pad)
        self.next_logits()
        self.select(torch.tensor(prefix_of, device=self.model.device))
        return [prompt[len(prefixes[place]) :] for prompt, place in zip(prompts, prefix_of, strict=True)]

    def _add(self, rows: Sequence[Sequence[int]], pad: int) -> None:
        """Continue each row with these tokens, padded on the left."""
        import torch

        self.ids, mask = left_padded(rows, pad, device=self.model.device)
        self.mask = torch.cat([self.mask, mask], dim=1) if self._steps else mask
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -mask.shape[1] :]

    def next_logits(self) -> torch.Tensor:
        """Run the tokens that are not in the cache yet through the model, and return the next token's logits (B, V)."""
        # A model without attention applies the mask to its input, which has one column after the first step: the mask
        # of all T tokens would not fit, and transformers' own `generate` passes none either.
        masked = self._attends or self._steps == 0
        self._steps += 1
        output = self.model(
            input_ids=self.ids,
            attention_mask=self.mask if masked else None,
            position_ids=self.positions,
            use_cache=True,
            logits_to_keep=1,
            **{self._argument: self.cache},
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def select(self, rows: torch.Tensor) -> None:
        """Continue with these rows, in this order; a row may occur several times. `rows` are indices, (new B,)."""
        self.cache.reorder_cache(rows)  # type: ignore[arg-type]  # the only method that every kind of cache layer has
        self.ids, self.mask, self.positions = (t[rows] for t in (self.ids, self.mask, self.positions))

    def append(self, tokens: torch.Tensor) -> None:
        """Add a token to each row; `tokens` is (B,)."""
        import torch

        self.ids = tokens.unsqueeze(1)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1


def attends_to_all(model: PreTrainedModel) -> bool:
    """Return whether every layer attends to all tokens before: only then may there be padding within a row."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def common_prefixes(prompts: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], list[int]]:
    """Return prefixes of at least half a prompt, and for each prompt the index of its own; none is a whole prompt.

    The retries of a group begin with the same turns.

    >>> common_prefixes([[1, 2, 3, 4], [7, 8], [1, 2, 3, 5, 6]])
    ([[1, 2, 3], [7]], [0, 1, 0])
    """
    prefixes: list[Sequence[int]] = []
    prefix_of = [0] * len(prompts)
    for index in sorted(range(len(prompts)), key=lambda index: list(prompts[index])):
        prompt = prompts[index][:-1]
        same = takewhile(lambda pair: pair[0] == pair[1], zip(prefixes[-1], prompt, strict=False)) if prefixes else ()
        common = sum(1 for _ in same)
        if prefixes and 2 * common >= len(prompts[index]):
            prefixes[-1] = prompt[:common]
        else:
            prefixes.append(prompt)
        prefix_of[index] = len(prefixes) - 1
    return prefixes, prefix_of


def left_padded(rows: Sequence[Sequence[int]], pad: int, *, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask of rows padded on the left, both (B, longest row)."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
