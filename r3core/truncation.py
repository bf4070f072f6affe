"""Turns that the token limit cut off: the limit's key, and the warning when it cuts off many."""

from __future__ import annotations

import sys

from r3core.config import Config
from r3core.objective import PLURAL, Turn

MAX_SHARE = 0.05
"""The largest share of truncated turns without a warning."""


def limit_of(config: Config, turn: Turn, *, training: bool = False) -> str:
    """Return the token limit of a turn as `key=value`; the turn that training samples in groups may have its own."""
    if training and turn == config.objective.first and "max_completion_length" in config.grpo:
        return f"grpo.max_completion_length={config.grpo['max_completion_length']}"
    return f"sampling.{turn}.max_tokens={getattr(config.sampling, turn).max_tokens}"


def warn_if_truncated(
    config: Config, turn: Turn, cut: int, *, total: int, by: str = "", training: bool = False
) -> bool:
    """Print a warning when the limit cut off more than 5% of `total` turns, and return whether it did.

    `by` names the model in the warning, for example ` of the trained model`.
    """
    if not total or cut / total <= MAX_SHARE:
        return False
    limit = limit_of(config, turn, training=training)
    print(
        f"warning: {cut / total:.1%} of {total:,} {PLURAL[turn]}{by} were cut off at {limit}: raise it", file=sys.stderr
    )
    return True


class TruncationCounter:
    """Counts truncated turns during training; warns once per kind of turn, after `min_turns` turns at the earliest."""

    def __init__(self, config: Config, min_turns: int = 64) -> None:
        self.config = config
        self.min_turns = min_turns
        self.counts: dict[Turn, tuple[int, int]] = {}
        self.warned: set[Turn] = set()

    def add(self, turn: Turn, cut: int, *, total: int) -> None:
        """Count `total` more turns, of which `cut` were truncated."""
        before = self.counts.get(turn, (0, 0))
        cut, total = before[0] + cut, before[1] + total
        self.counts[turn] = (cut, total)
        if turn in self.warned or total < self.min_turns:
            return
        if warn_if_truncated(self.config, turn, cut, total=total, training=True):
            self.warned.add(turn)
