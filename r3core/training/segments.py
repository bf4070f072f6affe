"""The segments of an objective as one batch of TRL's: each is scored as a batch of its own, and then joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LEFT = ("prompt_ids", "prompt_mask")
"""The tensors that are padded on the left; the others on the right."""


_OF_SEGMENT = ("reward", "frac_reward_zero_std", "completions/mean_length", "completions/clipped_ratio")
"""TRL's metrics that are logged for each segment."""


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the padding token, which TRL sets where a tokenizer has none."""
    padding = tokenizer.pad_token_id
    assert isinstance(padding, int)
    return padding


def joined(parts: Sequence[Mapping[str, Any]], *, pad: int) -> dict[str, Any]:
    """Return the rows of several scored batches as one; `pad` is the id of the padding token.

    Each part has tensors of the shapes (rows,) and (rows, tokens), and `num_items_in_batch`, the number of its trained
    tokens in all processes, which are added.
    """
    parts = [
        {"tool_mask": torch.ones_like(part["completion_mask"])} | dict(part)
        if any("tool_mask" in other for other in parts)
        else dict(part)
        for part in parts
    ]
    batch: dict[str, Any] = {}
    for key, value in parts[0].items():
        tensors = [part[key] for part in parts]
        if key == "num_items_in_batch":
            batch[key] = torch.stack(tensors).sum()
        elif value.dim() < 2:
            batch[key] = torch.cat(tensors)
        else:
            batch[key] = _stacked(tensors, left=key in _LEFT, value=pad if key.endswith("_ids") else 0)
    return batch


def _stacked(tensors: Sequence[torch.Tensor], *, left: bool, value: int) -> torch.Tensor:
    """Return tensors of the shape (rows, tokens) below each other, padded to the longest."""
    longest = max(tensor.shape[1] for tensor in tensors)
    widths = [longest - tensor.shape[1] for tensor in tensors]
    padded = [
        torch.nn.functional.pad(tensor, (width, 0) if left else (0, width), value=value)
        for tensor, width in zip(tensors, widths, strict=True)
    ]
    return torch.cat(padded)


def with_rewards_as_advantages(scored: Mapping[str, Any], rewards: Sequence[float | None]) -> dict[str, Any]:
    """Return a scored batch whose advantages are the rewards themselves, 0 where a row has none.

    With vLLM, the importance ratio becomes 1: the tokens were sampled after another prompt than they are trained under.
    """
    advantages = scored["advantages"]
    own = torch.tensor([reward or 0.0 for reward in rewards], device=advantages.device, dtype=advantages.dtype)
    changed = {**scored, "advantages": own}
    if "importance_sampling_ratio" in scored:
        changed["importance_sampling_ratio"] = torch.ones_like(scored["importance_sampling_ratio"])
    return changed


@contextmanager
def metrics_under(metrics: dict[str, list[float]], prefix: str) -> Iterator[None]:
    """Move some of what is appended to TRL's metrics during the block under names with a prefix, and drop the rest."""
    before = {name: len(values) for name, values in metrics.items()}
    yield
    appended = {name: values[before.get(name, 0) :] for name, values in metrics.items() if name != "num_tokens"}
    for name, new in appended.items():
        del metrics[name][before.get(name, 0) :]
        if not metrics[name]:
            del metrics[name]
        if new and name in _OF_SEGMENT:
            metrics[f"{prefix}/{name}"].extend(new)
