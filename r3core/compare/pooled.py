"""Statistics over several training seeds, which are crossed with the problems, and over several comparisons.

Every training seed is evaluated on the same problems. With y[s, p] for seed s and problem p, S seeds and P problems,
the mean squares of the two-way table of random effects give an unbiased variance of the overall mean (Searle, Casella
and McCulloch 1992, chapter 4), in two parts:

    V = MS(seeds) / (S P)  +  max(MS(problems) - MS(cells), 0) / (S P)

The first part has S - 1 degrees of freedom, which are few. It contains the variance of the cells, so that what remains
of the second part is due to the problems alone, with P - 1. This is the analysis of several readers of the same cases
(Obuchowski and Rockette 1995), with seeds as readers. The critical value is the mean of the two t quantiles, weighted
by the parts (Cochran 1964, for the Behrens-Fisher problem): with a single t quantile at Satterthwaite's degrees of
freedom, intervals over 3 seeds cover 92.5% where both parts matter, since a small MS(seeds) then also increases these.

A rate whose denominator varies, as the fix rate, enters with the linearised values of the ratio estimator (Cochran
1977, section 2.11), whose mean over the problems is the rate of the seed.

Simulated coverage of the 95% interval is 94 to 97% for 3, 5 and 10 seeds and 200 or 500 problems, of rates between 8%
and 80% and of differences; 93 to 97% for 2 seeds, whose intervals are wide. `tests/test_pooled.py` repeats a part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING, NamedTuple

from r3core.stats import clustered_counts, paired, problems_needed, wilson
from r3core.task import Frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.float64]  # (seeds, problems)

Outcomes = Mapping[str, Sequence[bool]]
"""The outcomes of one training seed: problem id -> whether each of its samples passed."""
_POWER, _CONFIDENCE = 0.8, 0.95
_BY_CHANCE = 0.01


class Pooled(Frozen):
    """A rate or a difference of rates, the mean over training seeds, with its 95% interval."""

    mean: float
    low: float
    high: float
    p: float | None = None
    """Two-sided p-value for the null hypothesis of no difference; None for a rate."""
    seeds: int
    """Number of training seeds; with 1, the interval counts the problems only."""
    problems: int
    deviation: float | None = None
    """Standard deviation over the training seeds; None for one seed."""
    error: float | None = None
    """Standard error of the mean; None where another interval than mean +- t * error is given."""
    seed_share: float | None = None
    """Share of the variance of the mean that is due to the training seeds and sampling, not to the problems."""


class Detectable(Frozen):
    """What a paired comparison can find with a power of 80%, at the 5% level."""

    difference: float
    """The smallest difference that would be found on these problems."""
    problems_needed: int | None
    """Number of problems on which a difference as large as the observed one would be found; None if it is 0."""


class _Part(NamedTuple):
    """A part of a variance, with its degrees of freedom."""

    variance: float
    freedom: float


def pooled_rate(seeds: Sequence[Outcomes]) -> Pooled:
    """Return the mean over training seeds of a pass rate, with a 95% interval that counts problems and seeds.

    One seed: the interval of `stats.clustered`, over problems only. Where all outcomes agree there is no variance to
    estimate: Wilson's interval, with the problems as samples.

    Raises:
        ValueError: a seed has no outcome.
    """
    sums = [_sums(outcomes) for outcomes in seeds]
    values = _values(sums)
    problems = values.shape[1]
    rates = values.mean(axis=1)
    mean = float(rates.mean())
    if len(seeds) == 1:
        rate = clustered_counts([(int(passed), count) for passed, count in sums[0].values()])
        return Pooled(mean=rate.rate, low=rate.low, high=rate.high, seeds=1, problems=problems)
    if mean in (0.0, 1.0):
        rate = wilson(round(mean * problems), problems)
        return Pooled(mean=mean, low=rate.low, high=rate.high, seeds=len(seeds), problems=problems, deviation=0.0)
    return _pooled(mean, _parts(values), values, least=0.0)


def pooled_difference(before: Sequence[Outcomes], after: Sequence[Outcomes]) -> Pooled:
    """Return the mean over training seeds of a paired difference of rates, after minus before.

    Each seed has a model before and one after training. The problems of the two may differ, as those of the fix rate
    do: each model is measured on its own failures. One seed: `stats.paired` for the same problems, else the linearised
    variance over problems.

    Raises:
        ValueError: the numbers of seeds differ, or a seed has no outcome.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} seeds before, {len(after)} after")
    if len(before) == 1 and before[0].keys() == after[0].keys():
        return _single(before[0], after[0])
    sides = [[_sums(outcomes) for outcomes in side] for side in (before, after)]
    problems = list(dict.fromkeys(problem for side in sides for seed in side for problem in seed))
    values = _values(sides[1], problems) - _values(sides[0], problems)
    return _difference(float(values.mean()), _parts(values), values)


def pooled_contrast(one: Sequence[Outcomes], other: Sequence[Outcomes]) -> Pooled:
    """Return the difference of the mean rates of two groups of trainings on the same problems, other minus one.

    The training seeds of the two groups are independent, also where they have the same numbers; the problems are
    paired. A group of one training is assumed to vary with its seed as the other group does. With one training on both
    sides: `stats.paired`, over problems only.

    Raises:
        ValueError: a training has no outcome.
    """
    if len(one) == len(other) == 1:
        shared = one[0].keys() & other[0].keys()
        return _single({key: one[0][key] for key in one[0] if key in shared}, {key: other[0][key] for key in shared})
    sums = [[_sums(outcomes) for outcomes in group] for group in (one, other)]
    problems = list(dict.fromkeys(problem for group in sums for seed in group for problem in seed))
    values = [_values(group, problems) for group in sums]  # (seeds, problems) each
    return _difference(float(values[1].mean() - values[0].mean()), _contrast_parts(values), *values)


def detectable(changes: Sequence[float]) -> Detectable:
    """Return what a paired comparison can find, from the change of each problem (-1, 0 or 1 with one sample each).

    The smallest difference is the solution of the formula of `stats.problems_needed` for the number of problems, with
    the mean square of these changes; without any change, that of a single one.

    Raises:
        ValueError: there are no problems.
    """
    if not changes:
        raise ValueError("a comparison needs at least one problem")
    count = len(changes)
    square = max(fmean(change * change for change in changes), 1 / count)
    normal = NormalDist()
    z, power = normal.inv_cdf((1 + _CONFIDENCE) / 2), normal.inv_cdf(_POWER)
    # z sqrt(m) + power sqrt(m - d^2) = d sqrt(n), solved for d
    root = sqrt(count * square * z * z - (count + power * power) * square * (z * z - power * power))
    smallest = (sqrt(count * square) * z + root) / (count + power * power)
    observed = abs(fmean(changes))
    return Detectable(
        difference=min(1.0, smallest),
        problems_needed=problems_needed(max(square, observed**2), observed) if observed > 1e-12 else None,
    )


def detectable_with_seeds(difference: Pooled) -> float | None:
    """Return the smallest difference that would be found with a power of 80% at this standard error.

    None where the difference has no standard error.
    """
    if difference.error is None:
        return None
    critical = (difference.high - difference.mean) / difference.error
    return min(1.0, (critical + NormalDist().inv_cdf(_POWER)) * difference.error)


def _sums(outcomes: Outcomes) -> dict[str, tuple[float, int]]:
    """Return the number of passes and of samples of each problem."""
    sums = {problem: (float(sum(passed)), len(passed)) for problem, passed in outcomes.items() if len(passed)}
    if not sums:
        raise ValueError("a training seed has no outcome")
    return sums


def _values(seeds: Sequence[Mapping[str, tuple[float, int]]], problems: Sequence[str] | None = None) -> Values:
    """Return the linearised values of each seed's rate, (seeds, problems): their mean over problems is that rate.

    A problem without samples has the rate itself, and so no influence. With one sample of each they are 0 and 1.
    """
    import numpy as np

    names = problems if problems is not None else list(dict.fromkeys(name for seed in seeds for name in seed))
    passed, counts = (
        np.array([[seed.get(name, (0.0, 0))[part] for name in names] for seed in seeds], dtype=float) for part in (0, 1)
    )
    sizes = counts.sum(axis=1, keepdims=True)
    rates = passed.sum(axis=1, keepdims=True) / sizes
    values: Values = rates + (passed - rates * counts) * len(names) / sizes
    return values


def _parts(values: Values) -> list[_Part]:
    """Return the variance of the mean of a two-way table, (seeds, problems): that of the seeds and of the problems."""
    seeds, problems = values.shape
    of_problems = _variance(values.mean(axis=0)) / problems
    if seeds == 1:
        return [_Part(of_problems, problems - 1)]
    cells = _cells(values) / (seeds * problems)
    of_seeds = _variance(values.mean(axis=1)) / seeds
    parts = [_Part(of_seeds, seeds - 1), _Part(max(of_problems - cells, 0.0), problems - 1)]
    return _at_least(parts, _Part(cells, (seeds - 1) * (problems - 1)))


def _contrast_parts(groups: Sequence[Values]) -> list[_Part]:
    """Return the variance of the difference of the means of two tables with the same problems.

    The seeds of the two are independent: each has a part of its own, and the cells of both are in the variance of the
    problems' differences, from which they are subtracted.
    """
    problems = groups[0].shape[1]
    several = [values for values in groups if len(values) > 1]
    spread = fmean(_variance(values.mean(axis=1)) for values in several)
    cells = fmean(_cells(values) for values in several)
    known = min(len(values) for values in several) - 1
    parts = []
    for values in groups:
        alone = len(values) == 1
        variance = spread if alone else _variance(values.mean(axis=1))
        parts.append(_Part(variance / len(values), known if alone else len(values) - 1))
    if len(several) == len(groups):  # independent
        parts = [_together(parts)]
    of_cells = sum((cells if len(values) == 1 else _cells(values)) / len(values) for values in groups) / problems
    difference = groups[1].mean(axis=0) - groups[0].mean(axis=0)
    parts.append(_Part(max(_variance(difference) / problems - of_cells, 0.0), problems - 1))
    return _at_least(parts, _Part(of_cells, known * (problems - 1)))


def _together(parts: Sequence[_Part]) -> _Part:
    """Return independent parts as one, with the degrees of freedom of Satterthwaite (1946)."""
    variance = sum(part.variance for part in parts)
    squares = sum(part.variance**2 / part.freedom for part in parts)
    return _Part(variance, variance**2 / squares if squares else min(part.freedom for part in parts))


def _at_least(parts: list[_Part], cells: _Part) -> list[_Part]:
    """Return the parts; where the seeds have the same rate by chance and the problems add nothing, that of the cells.

    The expectation of the whole is at least that of the cells. As a general lower bound it would make intervals too
    wide; this one applies to tables that otherwise had an interval of almost no width.
    """
    if sum(part.variance for part in parts) >= _BY_CHANCE * cells.variance:
        return parts
    return [cells, _Part(0.0, parts[-1].freedom)]


def _cells(values: Values) -> float:
    """Return the mean square of the cells of a two-way table: what neither its seeds nor its problems explain."""
    rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0, keepdims=True) + values.mean()
    seeds, problems = values.shape
    return float((rest**2).sum() / max(1, (seeds - 1) * (problems - 1)))


def _variance(values: Values) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


def _pooled(mean: float, parts: Sequence[_Part], values: Values, *, least: float) -> Pooled:
    """Return the mean with its interval, from the parts of its variance; `least` is the smallest possible value."""
    variance = sum(part.variance for part in parts)
    reach = _critical(parts, (1 - _CONFIDENCE) / 2) * sqrt(variance)
    several = len(values) > 1
    return Pooled(
        mean=mean,
        low=max(least, mean - reach),
        high=min(1.0, mean + reach),
        seeds=len(values),
        problems=values.shape[1],
        deviation=sqrt(_variance(values.mean(axis=1))) if several else None,
        error=sqrt(variance),
        seed_share=1 - parts[-1].variance / variance if several else None,
    )


def _difference(mean: float, parts: Sequence[_Part], *groups: Values) -> Pooled:
    variance = sum(part.variance for part in parts)
    values = max(groups, key=len)
    if variance < 1e-18:  # all alike: nothing to estimate a variance from, so that of a problem which differs
        reach = wilson(0, values.shape[1]).high
        bounds = {"low": max(-1.0, mean - reach), "high": min(1.0, mean + reach), "p": 1.0 if abs(mean) < 1e-9 else 0.0}
        return Pooled(mean=mean, seeds=len(values), problems=values.shape[1], deviation=0.0, **bounds)
    found = _pooled(mean, parts, values, least=-1.0)
    changed = {"p": _p_value(parts, abs(mean) / sqrt(variance))}
    return found.model_copy(update=changed if len(groups) == 1 else changed | {"deviation": None})


def _single(before: Outcomes, after: Outcomes) -> Pooled:
    """Return the paired difference of two models, over problems only."""
    found = paired(before, after)
    return Pooled(mean=found.difference, low=found.low, high=found.high, p=found.p, seeds=1, problems=len(before))


def _critical(parts: Sequence[_Part], tail: float) -> float:
    """Return Cochran's critical value: the mean of the t quantiles of the parts, weighted by their variances."""
    from scipy.special import stdtrit

    total = sum(part.variance for part in parts)
    if total == 0:
        return 0.0
    quantiles = [-float(stdtrit(max(1, part.freedom), tail)) for part in parts]
    return sum(part.variance * quantile for part, quantile in zip(parts, quantiles, strict=True)) / total


def _p_value(parts: Sequence[_Part], statistic: float) -> float:
    """Return the two-sided p-value whose critical value is the statistic; at least 1e-12."""
    from scipy.optimize import brentq

    if _critical(parts, 0.5e-12) <= statistic:
        return 1e-12
    return float(brentq(lambda p: _critical(parts, p / 2) - statistic, 1e-12, 1.0, xtol=1e-13))
