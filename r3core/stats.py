"""Rates with intervals, paired comparisons, pass@k and the expected share of groups that teach."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import comb, exp, lgamma, sqrt
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING

from r3core.task import Frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_RESAMPLES = 10_000
_AT_ONCE = 2_000_000  # numbers drawn at a time, which bounds the memory
_SEED = 20_250_530


class Rate(Frozen):
    """A share with its confidence interval."""

    passed: int
    total: int
    rate: float
    """passed / total; 0 when the total is 0."""
    low: float
    high: float


class Difference(Frozen):
    """After minus before, over the same problems."""

    difference: float
    low: float
    high: float
    p: float
    """Two-sided, for the hypothesis that nothing changed."""


def wilson(passed: int, total: int, confidence: float = 0.95) -> Rate:
    """Return a rate with Wilson's score interval (Wilson 1927); of nothing it is 0, anywhere from 0 to 1."""
    if not 0 <= passed <= total:
        raise ValueError(f"{passed} passed of {total}: it should be between 0 and the total")
    if total == 0:
        return Rate(passed=0, total=0, rate=0.0, low=0.0, high=1.0)
    low, high = _score_interval(passed / total, total, confidence)
    return Rate(passed=passed, total=total, rate=passed / total, low=low, high=high)


def clustered(outcomes: Sequence[tuple[str, bool]], confidence: float = 0.95) -> Rate:
    """Return the rate over (problem id, passed) pairs, where samples of one problem resemble each other.

    Wilson's interval at the effective sample size: the number of samples over Kish's design effect (Kish 1965), with
    the variance of the ratio estimator over problems, as Korn and Graubard (1998) do for survey proportions. When all
    samples agree there is no variance to estimate, and problems count instead of samples. With one sample a problem
    it is `wilson`.
    """
    problems: dict[str, list[bool]] = defaultdict(list)
    for problem, passed in outcomes:
        problems[problem].append(passed)
    plain = wilson(sum(passed for _, passed in outcomes), len(outcomes), confidence)
    if len(problems) == len(outcomes):
        return plain
    size = _effective_size(list(problems.values()), plain.rate)
    low, high = _score_interval(plain.rate, size, confidence)
    return plain.model_copy(update={"low": low, "high": high})


def paired(before: Mapping[str, Sequence[bool]], after: Mapping[str, Sequence[bool]]) -> Difference:
    """Return how much the pass rate changed, from problem id -> outcomes of its samples, before and after.

    One sample a problem: exact McNemar test, and the interval of Newcombe (1998, method 10). Several: problems count
    alike; sign-flip permutation test and percentile bootstrap, both over problems, with a fixed seed. That p is never
    below 1e-4. No problems at all: no difference, anywhere from -1 to 1. Raises ValueError when the problems differ.
    """
    if before.keys() != after.keys():
        strange = sorted(before.keys() ^ after.keys())
        raise ValueError(f"{len(strange)} problems are on one side only, for example {strange[0]!r}")
    empty = [problem for problem in before if not before[problem] or not after[problem]]
    if empty:
        raise ValueError(f"problem {empty[0]!r} has no outcome")
    if not before:
        return Difference(difference=0.0, low=-1.0, high=1.0, p=1.0)
    if all(len(before[problem]) == len(after[problem]) == 1 for problem in before):
        return _once_each([(before[problem][0], after[problem][0]) for problem in before])
    return _resampled([fmean(after[problem]) - fmean(before[problem]) for problem in before])


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the unbiased estimate of pass@k from n samples of which c passed (Chen et al. 2021, arXiv 2107.03374)."""
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"n={n}, c={c}, k={k}: it should be that 0 <= c <= n and 1 <= k <= n")
    return 1.0 - comb(n - c, k) / comb(n, k)


def signal(p: Sequence[float], group: int) -> float:
    """Return the expected share of groups that hold both a pass and a fail: the mean of 1 - p^G - (1-p)^G."""
    return fmean(1.0 - rate**group - (1.0 - rate) ** group for rate in p) if p else 0.0


def expected_signal(counts: Sequence[tuple[int, int]], group: int) -> float:
    """Return the expected share of mixed groups of size G, from (passed, tried) retries of a sample of problems.

    With few tries a problem, its own rate would say all-or-nothing too often. So the rates are taken to follow a beta
    distribution, fitted by moments (Griffiths 1973), under which E[1 - p^G - (1-p)^G] has a closed form.
    """
    tried = [(passed, total) for passed, total in counts if total]
    if not tried:
        return 0.0
    rates = [passed / total for passed, total in tried]
    mean, size = fmean(rates), fmean(total for _, total in tried)
    if mean in (0.0, 1.0):
        return 0.0
    spread = fmean((rate - mean) ** 2 for rate in rates) / (mean * (1 - mean))
    overdispersion = (spread - 1 / size) / (1 - 1 / size) if size > 1 else 0.0
    if overdispersion <= 1e-6:
        return signal([mean], group)
    strength = 1 / min(overdispersion, 0.999) - 1  # alpha + beta

    def moment(alpha: float) -> float:  # E[p^G], where p is Beta(alpha, strength - alpha)
        return exp(lgamma(alpha + group) + lgamma(strength) - lgamma(alpha) - lgamma(strength + group))

    return 1.0 - moment(mean * strength) - moment((1 - mean) * strength)


def _score_interval(rate: float, size: float, confidence: float) -> tuple[float, float]:
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    center = (rate + z * z / (2 * size)) / (1 + z * z / size)
    margin = z / (1 + z * z / size) * sqrt(rate * (1 - rate) / size + (z / (2 * size)) ** 2)
    return (0.0 if rate == 0 else max(0.0, center - margin)), (1.0 if rate == 1 else min(1.0, center + margin))


def _effective_size(problems: Sequence[Sequence[bool]], rate: float) -> float:
    """Return how many independent samples tell as much as these; never more than there are."""
    count, samples = len(problems), sum(map(len, problems))
    if count == 1 or rate in (0.0, 1.0):
        return count
    squares = sum((sum(passed) - rate * len(passed)) ** 2 for passed in problems)
    if squares == 0:
        return samples
    of_the_ratio = count / (count - 1) * squares / samples**2
    of_a_simple_sample = rate * (1 - rate) / (samples - 1)
    return min(samples, samples * of_a_simple_sample / of_the_ratio)


def _once_each(pairs: Sequence[tuple[bool, bool]]) -> Difference:
    from scipy.stats import binomtest

    both = sum(old and new for old, new in pairs)
    gained = sum(new and not old for old, new in pairs)
    lost = sum(old and not new for old, new in pairs)
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    low, high = _newcombe(both, gained, lost=lost, neither=len(pairs) - both - gained - lost)
    return Difference(difference=(gained - lost) / len(pairs), low=low, high=high, p=p)


def _newcombe(both: int, gained: int, *, lost: int, neither: int) -> tuple[float, float]:
    """Return Newcombe's square-and-add interval: two Wilson intervals, joined by the correlation phi."""
    total = both + gained + lost + neither
    old, new = wilson(both + lost, total), wilson(both + gained, total)
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    product = both * neither - gained * lost
    phi = (max(product - total / 2, 0) if product > 0 else product) / sqrt(margins) if margins else 0.0

    def reach(one: float, other: float) -> float:
        return sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))

    difference = (gained - lost) / total
    below = reach(new.rate - new.low, old.high - old.rate)
    above = reach(new.high - new.rate, old.rate - old.low)
    return max(-1.0, difference - below), min(1.0, difference + above)


def _resampled(changes: Sequence[float]) -> Difference:
    import numpy as np

    rng = np.random.default_rng(_SEED)
    values = np.asarray(changes)  # [problems]
    rows = max(1, min(_RESAMPLES, _AT_ONCE // len(values)))
    flipped: list[NDArray[np.float64]] = []
    drawn: list[NDArray[np.float64]] = []
    for start in range(0, _RESAMPLES, rows):
        shape = (min(rows, _RESAMPLES - start), len(values))
        flipped.append((rng.integers(0, 2, shape) * 2 - 1) @ values / len(values))
        drawn.append(values[rng.integers(0, len(values), shape)].mean(axis=1))
    difference = float(values.mean())
    # The sum of floats depends on their order: what is equal but for rounding counts as equal.
    extreme = int((np.abs(np.concatenate(flipped)) >= abs(difference) - 1e-12).sum())
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return Difference(difference=difference, low=float(low), high=float(high), p=(extreme + 1) / (_RESAMPLES + 1))
