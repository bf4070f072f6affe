"""The probability that a group teaches something, for each failure, by a posterior of its pass rate.

A group of G rewards has no advantage when all of them are equal. With p ~ Beta(a, b) its rewards differ with the
probability

    E[1 - p^n - (1-p)^n] = 1 - B(a+n, b) / B(a, b) - B(a, b+n) / B(a, b),    n = G * k verdicts in a group,

where B(a+n, b) / B(a, b) is the product of (a+j) / (a+b+j) for j from 0 to n-1. The prior Beta(a0, b0) is fitted by
moments to the latest group of every failure that had one. A failure adds its own passes to a0 and its fails to b0; they
lose weight with every generation, since training changes p.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from r3core.config import Config
    from r3core.failures import Failure

DECAY = 0.98
"""The weight of a verdict is multiplied by this in each generation after it: half of it is left after 34."""


def beta_moments(counts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Return (a, b) of the beta distribution of the pass rates behind (passes, verdicts) of several failures.

    The mean is that of the observed rates with one more failure at 1/2, so that it is never 0 or 1. The strength a + b
    comes from the variance of the rates beyond that of equal ones (Griffiths 1973). Where that is 0, no failure
    differs from the others, and the strength is large; with fewer than two failures it is 2.

    >>> beta_moments([])
    (1.0, 1.0)
    """
    rates = np.array([passes / judged for passes, judged in counts if judged])
    mean = float((rates.sum() + 0.5) / (len(rates) + 1))
    strength = 2.0
    if len(rates) > 1:
        size = float(np.mean([judged for _, judged in counts if judged]))
        average = float(rates.mean())
        whole = average * (1 - average)
        if whole > 0 and size > 1:
            share = (float(rates.var()) / whole - 1 / size) / (1 - 1 / size)
            strength = 1 / min(max(share, 1e-3), 0.999) - 1
    return mean * strength, (1 - mean) * strength


def expected_mixed(a: NDArray[np.float64], b: NDArray[np.float64], verdicts: int) -> NDArray[np.float64]:
    """Return E[1 - p^n - (1-p)^n] for p ~ Beta(a, b), by failure."""
    steps = np.arange(verdicts)[:, None]
    whole = a + b + steps  # (n, failures)
    mixed: NDArray[np.float64] = 1.0 - np.prod((a + steps) / whole, axis=0) - np.prod((b + steps) / whole, axis=0)
    return np.clip(mixed, 0.0, 1.0)


class Verdicts:
    """Passed and judged retries of each failure in every generation so far, in the order of the generations.

    `verdicts` is the number k of verdicts behind one reward.
    """

    def __init__(self, ids: Sequence[str], *, verdicts: int = 1) -> None:
        self.places = {name: place for place, name in enumerate(ids)}
        self.count = len(ids)
        self.verdicts = verdicts
        self.generations: list[dict[int, tuple[float, int]]] = []
        """For each generation, passes and verdicts of every failure in it."""

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add one generation, as `train-episodes` has its rows."""
        found: dict[int, tuple[float, int]] = {}
        for row in rows:
            if row["reward"] is not None:
                place = self.places[row["id"]]
                passed, judged = found.get(place, (0.0, 0))
                found[place] = passed + self.verdicts * row["reward"], judged + self.verdicts
        self.generations.append(found)

    def load(self, rows: Sequence[Mapping[str, Any]], *, size: int) -> None:
        """Replace all counts by those of recorded rows, `size` of which are one generation."""
        self.generations = []
        for start in range(0, len(rows), size):
            self.add(rows[start : start + size])

    def weights(self, before: int, *, group: int) -> NDArray[np.float64]:
        """Return the weight of each failure after the first `before` generations, for groups of G rewards."""
        passed, failed = np.zeros(self.count), np.zeros(self.count)
        latest: dict[int, tuple[float, int]] = {}
        for age, generation in zip(range(before - 1, -1, -1), self.generations, strict=False):
            latest |= generation
            for place, (passes, judged) in generation.items():
                passed[place] += DECAY**age * passes
                failed[place] += DECAY**age * (judged - passes)
        a, b = beta_moments(list(latest.values()))
        return expected_mixed(a + passed, b + failed, group * self.verdicts)


def verdicts_of(config: Config, failures: Sequence[Failure]) -> Verdicts | None:
    """Return what is known of the pass rate of each failure, at first nothing; None for a random order of failures."""
    if config.train.order == "random":
        return None
    per_reward = config.train.retries if config.objective.first == "reflection" else 1
    return Verdicts([failure.id for failure in failures], verdicts=per_reward)
