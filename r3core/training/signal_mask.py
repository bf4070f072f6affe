"""Groups whose rewards are all equal: they carry no signal, and a mask can leave them out of the loss.

Such a group has the advantage 0 everywhere, so without a KL term its gradient is 0. With `grpo.beta` above 0, the KL
term of its tokens still pulls the model to the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any


def with_signal(rewards: Sequence[float | None], failure: Sequence[int]) -> list[bool]:
    """Return, for each of P * G rows, whether the rewards of its group differ; unjudged ones (None) do not count.

    `failure` identifies the group of each row, and rows of a group are adjacent.

    >>> with_signal([1.0, 0.0, 1.0, 1.0, None, 1.0], [7, 7, 3, 3, 5, 5])
    [True, True, False, False, False, False]
    """
    result: list[bool] = []
    for _, rows in groupby(zip(failure, rewards, strict=True), key=lambda row: row[0]):
        group = [reward for _, reward in rows]
        result += [len({reward for reward in group if reward is not None}) > 1] * len(group)
    return result


def without_equal_groups(scored: dict[str, Any], signal: Sequence[bool]) -> dict[str, Any]:
    """Return the inputs of TRL's loss, with the tokens of rows without signal left out of it.

    `scored` holds tensors of B rows, and `signal` a flag for each of them. TRL multiplies `tool_mask` (B, tokens of a
    completion) into the mask of the loss, but not into that of attention. Its normalizers count rows, or were computed
    before, so that the other rows have the loss that they had; except with `loss_type=bnpo`, the mean over the tokens
    that are left.
    """
    import torch

    completions = scored["completion_mask"]
    rows = torch.tensor(list(signal), device=completions.device, dtype=completions.dtype).unsqueeze(1)  # (B, 1)
    mask = scored.get("tool_mask", torch.ones_like(completions)) * rows
    return scored | {"tool_mask": mask}
