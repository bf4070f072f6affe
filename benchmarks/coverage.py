"""How often the pooled 95% intervals of `r3 compare` hold the true value, in simulated trainings.

    python benchmarks/coverage.py

Whether a try passes depends on the problem, the training seed, and both together (a probit model with normal effects).
Each setting is simulated 2,000 times; the table has the lowest and the highest coverage over the settings of a row. The
fix rate is over the failed first tries alone, which are others under every seed.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from math import erf, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from r3core.compare.pooled import Pooled, pooled_contrast, pooled_difference, pooled_rate

TRIALS = 2000
Table = NDArray[np.bool_]
"""Whether a try passes, (seeds, problems)."""
Outcomes = list[dict[str, list[bool]]]


class Setting(NamedTuple):
    """Trainings: their number, the problems, and the effects on the probit of passing, as standard deviations."""

    seeds: int
    problems: int
    mean: float
    of_problems: float
    of_seeds: float
    of_both: float


SETTINGS = (
    Setting(2, 200, 0.0, 0.7, 0.1, 0.3),
    Setting(2, 500, 0.0, 0.7, 0.3, 0.3),
    Setting(2, 500, -1.5, 0.7, 0.1, 0.3),
    Setting(3, 200, 0.0, 0.7, 0.1, 0.3),
    Setting(3, 500, 0.0, 0.7, 0.2, 0.3),
    Setting(3, 300, 0.8, 1.5, 0.2, 0.5),
    Setting(3, 500, -1.5, 0.7, 0.3, 0.3),
    Setting(5, 200, 0.0, 0.7, 0.1, 0.3),
    Setting(5, 500, 1.0, 0.7, 0.2, 0.3),
    Setting(10, 200, -1.0, 0.7, 0.2, 0.3),
    Setting(10, 500, 0.0, 0.7, 0.1, 0.3),
)
GAIN = 0.4
"""What a training adds to the probit, in differences and contrasts."""


def main() -> None:
    """Print the table."""
    print("| seeds | rate | fix rate | trained - base | one setting - another | rate, over problems alone |")
    print("| --- " * 6 + "|")
    for seeds, settings in groupby(SETTINGS, key=lambda setting: setting.seeds):
        found = [[coverage(setting) for coverage in COVERAGES] for setting in settings]
        cells = [f"{100 * min(one):.0f} to {100 * max(one):.0f}%" for one in zip(*found, strict=True)]
        print(f"| {seeds} | {' | '.join(cells)} |", flush=True)


def rates(setting: Setting, trials: int = TRIALS) -> float:
    """Return the share of the intervals of a rate that hold the true one."""
    random, truth = np.random.default_rng(setting.problems), true_rate(setting)
    found = (pooled_rate(outcomes_of(tries(setting, random))) for _ in range(trials))
    return sum(one.low <= truth <= one.high for one in found) / trials


def rates_over_problems(setting: Setting, trials: int = TRIALS) -> float:
    """Return the same for intervals over problems alone: 1.96 standard errors of the mean over seeds."""
    random, truth = np.random.default_rng(setting.problems), true_rate(setting)
    held = 0
    for _ in range(trials):
        means = tries(setting, random).mean(axis=0)
        held += abs(means.mean() - truth) <= 1.96 * means.std(ddof=1) / sqrt(len(means))
    return held / trials


def fix_rates(setting: Setting, trials: int = TRIALS) -> float:
    """Return the same for the share of the failed first tries whose retries pass."""
    many = setting._replace(seeds=2000, problems=2000)
    fixed, failed = (sum(one) for one in zip(*(counts(*retried(many, seed)) for seed in range(5)), strict=True))
    held = 0
    for seed in range(trials):
        retries, failures = retried(setting, seed + 100)
        found = pooled_rate(outcomes_of(retries, failures))
        held += found.low <= fixed / failed <= found.high
    return held / trials


def differences(setting: Setting, trials: int = TRIALS) -> float:
    """Return the same for the change of a rate by training; the base model is the same under every seed."""
    base = setting._replace(of_seeds=0.0, of_both=0.0)
    return _between(pooled_difference, base, setting._replace(mean=setting.mean + GAIN), trials)


def contrasts(setting: Setting, trials: int = TRIALS) -> float:
    """Return the same for the difference of two settings, each trained with seeds of its own."""
    return _between(pooled_contrast, setting, setting._replace(mean=setting.mean + GAIN), trials)


def _between(pool: Callable[[Outcomes, Outcomes], Pooled], one: Setting, other: Setting, trials: int) -> float:
    random, truth, held = np.random.default_rng(one.problems), true_rate(other) - true_rate(one), 0
    for _ in range(trials):
        problems = random.standard_normal(one.problems)
        before, after = (outcomes_of(tries(side, random, problems)) for side in (one, other))
        found = pool(before, after)
        held += found.low <= truth <= found.high
    return held / trials


COVERAGES: tuple[Callable[[Setting], float], ...] = (rates, fix_rates, differences, contrasts, rates_over_problems)


def tries(setting: Setting, random: np.random.Generator, problems: NDArray[np.float64] | None = None) -> Table:
    """Return whether each problem passes under each seed; `problems` are standard normal effects of the problems."""
    seeds, count, mean, of_problems, of_seeds, of_both = setting
    if problems is None:
        problems = random.standard_normal(count)
    seed = of_seeds * random.standard_normal((seeds, 1))
    both = of_both * random.standard_normal((seeds, count))
    return random.standard_normal((seeds, count)) < mean + of_problems * problems + seed + both


def retried(setting: Setting, seed: int) -> tuple[Table, Table]:
    """Return whether each retry passes, and which first tries failed; hard problems are hard for both."""
    random = np.random.default_rng(seed)
    problems = random.standard_normal(setting.problems)
    first = tries(setting._replace(mean=0.3), random, problems)
    return tries(setting, random, problems), ~first


def counts(retries: Table, failures: Table) -> tuple[int, int]:
    """Return how many retries of failed first tries pass, and how many there are."""
    return int((retries & failures).sum()), int(failures.sum())


def true_rate(setting: Setting) -> float:
    """Return the probability that a try passes, over all effects."""
    variance = 1 + setting.of_problems**2 + setting.of_seeds**2 + setting.of_both**2
    return 0.5 * (1 + erf(setting.mean / sqrt(2 * variance)))


def outcomes_of(table: Table, counted: Table | None = None) -> Outcomes:
    """Return the outcomes of each seed as `r3 compare` has them; `counted` are those that there are."""
    included = np.ones_like(table) if counted is None else counted
    return [
        {str(problem): [bool(row[problem])] for problem in np.flatnonzero(here)}
        for row, here in zip(table, included, strict=True)
    ]


if __name__ == "__main__":
    main()
