"""Turns that the token limit cut off: which limit that is, and the warning when there are many of them."""

from __future__ import annotations

import sys
from typing import Literal

from r3core.config import Config

Turned = Literal["attempt", "reflection", "retry"]
PLURAL: dict[Turned, str] = {"attempt": "attempts", "reflection": "reflections", "retry": "retries"}
MANY = 0.05
"""A larger share of turns that are cut off is worth a warning."""


def limit_of(config: Config, turn: Turned, *, training: bool = False) -> str:
    """Return the key and the value of the limit that holds for a turn; reflections in training may have their own."""
    if turn == "reflection" and training and "max_completion_length" in config.grpo:
        return f"grpo.max_completion_length={config.grpo['max_completion_length']}"
    return f"sampling.{turn}.max_tokens={getattr(config.sampling, turn).max_tokens}"


def warn_if_truncated(
    config: Config, turn: Turned, cut: int, *, total: int, by: str = "", training: bool = False
) -> bool:
    """Print a warning when the limit cut off more than 5% of some turns, and tell whether it did.

    `by` tells whose turns they are, for example ` of the trained model`.
    """
    if not total or cut / total <= MANY:
        return False
    limit = limit_of(config, turn, training=training)
    print(
        f"warning: {cut / total:.1%} of {total:,} {PLURAL[turn]}{by} were cut off at {limit}: raise it", file=sys.stderr
    )
    return True


class Watch:
    """Counts the turns of a training and warns once for each kind of turn, as soon as there are enough to tell."""

    def __init__(self, config: Config, least: int = 64) -> None:
        self.config = config
        self.least = least
        self.counts: dict[Turned, tuple[int, int]] = {}
        self.warned: set[Turned] = set()

    def add(self, turn: Turned, cut: int, *, total: int) -> None:
        """Count `total` more turns, of which `cut` were cut off."""
        before = self.counts.get(turn, (0, 0))
        cut, total = before[0] + cut, before[1] + total
        self.counts[turn] = (cut, total)
        if turn in self.warned or total < self.least:
            return
        if warn_if_truncated(self.config, turn, cut, total=total, training=True):
            self.warned.add(turn)
