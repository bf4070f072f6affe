"""Pass rates with confidence intervals, paired comparisons and their power, and the expected share of mixed groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import ceil, comb, floor, inf, sqrt
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING

from r3core.task import Frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_RESAMPLES = 10_000
_PROBES = 2_000  # bootstrap samples of the probed failures
_CHUNK = 2_000_000  # random numbers generated at a time, which bounds the memory
_SEED = 20_250_530


class Rate(Frozen):
    """A share with its confidence interval."""

    passed: int
    total: int
    rate: float
    """passed / total; 0 when the total is 0."""
    low: float
    high: float


class Share(Frozen):
    """An estimated share or mean reward with its confidence interval."""

    rate: float
    low: float
    high: float


class Difference(Frozen):
    """The change of a pass rate, after minus before, on the same problems."""

    difference: float
    low: float
    high: float
    p: float
    """Two-sided p-value for the null hypothesis of no change."""
    p_holm: float | None = None
    """The same after Holm's correction for the other tests of its family; None for a test that stands alone."""


def wilson(passed: int, total: int, confidence: float = 0.95) -> Rate:
    """Return a rate with Wilson's score interval (Wilson 1927); for a total of 0 the rate is 0, the interval 0 to 1."""
    if not 0 <= passed <= total:
        raise ValueError(f"passed ({passed}) must be between 0 and total ({total})")
    if total == 0:
        return Rate(passed=0, total=0, rate=0.0, low=0.0, high=1.0)
    low, high = _score_interval(passed / total, total, confidence)
    return Rate(passed=passed, total=total, rate=passed / total, low=low, high=high)


def clustered(outcomes: Sequence[tuple[str, bool]], confidence: float = 0.95) -> Rate:
    """Return the pass rate over (problem id, passed) pairs, whose samples of one problem are correlated.

    The interval is Wilson's at the effective sample size: the number of samples divided by Kish's design effect (Kish
    1965), with the variance of the ratio estimator over problems, as for survey proportions (Korn and Graubard 1998).
    When all samples agree there is no variance to estimate, and the number of problems is the sample size. With one
    sample per problem the result is that of `wilson`.
    """
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for problem, passed in outcomes:
        counts[problem][0] += passed
        counts[problem][1] += 1
    return clustered_counts([(passed, samples) for passed, samples in counts.values()], confidence)


def clustered_counts(counts: Sequence[tuple[int, int]], confidence: float = 0.95) -> Rate:
    """Return the same rate from (passed, samples) of each problem."""
    problems = [(passed, samples) for passed, samples in counts if samples]
    passed, samples = (sum(column) for column in zip(*problems, strict=True)) if problems else (0, 0)
    plain = wilson(passed, samples, confidence)
    if len(problems) == samples:
        return plain
    low, high = _score_interval(plain.rate, _effective_size(problems, plain.rate), confidence)
    return plain.model_copy(update={"low": low, "high": high})


def clustered_mean(sums: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Return the mean of a quantity and its standard error, from the sum and the number of values of each cluster.

    The error is that of the ratio estimator over clusters (Cochran 1977, section 2.11); it is infinite for less than
    two clusters, and 0 if all of them have the same mean.
    """
    clusters = [(total, size) for total, size in sums if size]
    size = sum(count for _, count in clusters)
    if not clusters:
        return 0.0, inf
    mean = sum(total for total, _ in clusters) / size
    if len(clusters) == 1:
        return mean, inf
    squares = sum((total - mean * count) ** 2 for total, count in clusters)
    return mean, sqrt(len(clusters) / (len(clusters) - 1) * squares) / size


def problems_needed(mean_square: float, difference: float, *, power: float = 0.8, confidence: float = 0.95) -> int:
    """Return the number of problems on which a paired test finds a difference with this probability.

    `mean_square` is the mean over problems of the square of the change; with one sample per problem that is the share
    of problems of which one side passes and the other fails, and the formula is that of Connor (1987) for McNemar's
    test: ((z_confidence sqrt(m) + z_power sqrt(m - d^2)) / d)^2. With several, m - d^2 is still the variance.

    Raises:
        ValueError: the difference is 0, or larger than such a mean square allows.
    """
    if not 0 < difference * difference <= mean_square:
        raise ValueError(f"difference ({difference}) must not be 0, and its square at most {mean_square}")
    normal = NormalDist()
    null, other = sqrt(mean_square), sqrt(mean_square - difference * difference)
    reach = normal.inv_cdf((1 + confidence) / 2) * null + normal.inv_cdf(power) * other
    return ceil((reach / difference) ** 2)


def paired(before: Mapping[str, Sequence[bool]], after: Mapping[str, Sequence[bool]]) -> Difference:
    """Return the change of the pass rate, from problem id -> outcomes of its samples, before and after.

    With one sample per problem: exact McNemar test, and the interval of Newcombe (1998, method 10). With several, each
    problem has the same weight: sign-flip permutation test and percentile bootstrap over problems, with a fixed seed;
    p is at least 1e-4. Without problems: difference 0, interval -1 to 1.

    Raises:
        ValueError: The two sides have different problems, or a problem has no outcome.
    """
    if before.keys() != after.keys():
        unpaired = sorted(before.keys() ^ after.keys())
        raise ValueError(f"{len(unpaired)} problems are on one side only, for example {unpaired[0]!r}")
    empty = [problem for problem in before if not before[problem] or not after[problem]]
    if empty:
        raise ValueError(f"problem {empty[0]!r} has no outcome")
    if not before:
        return Difference(difference=0.0, low=-1.0, high=1.0, p=1.0)
    if all(len(before[problem]) == len(after[problem]) == 1 for problem in before):
        return _once_each([(before[problem][0], after[problem][0]) for problem in before])
    return _resampled([fmean(after[problem]) - fmean(before[problem]) for problem in before])


def paired_shares(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> Difference:
    """Return the change of a mean share, from problem id -> shares of its samples: as `paired`, where several differ.

    For shares such as pass@k, which lie between 0 and 1: sign-flip permutation test and percentile bootstrap over
    problems, of which each has the same weight.
    """
    if not before:
        return Difference(difference=0.0, low=-1.0, high=1.0, p=1.0)
    return _resampled([fmean(after[problem]) - fmean(before[problem]) for problem in before])


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, in the same order (Holm 1979): step-down, at most 1.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted


def pass_at_k(passed: int, samples: int, k: float) -> float:
    """Return the probability that at least one of k samples passes, estimated without bias from n >= k samples.

    1 - C(n - c, k) / C(n, k), with c of n samples that pass (Chen et al. 2021, section 2.1). A fractional k lies on the
    line between the whole numbers around it: the expectation when the larger number is taken with that probability.

    >>> pass_at_k(1, 4, 2), pass_at_k(1, 4, 2.5)
    (0.5, 0.625)

    Raises:
        ValueError: there are fewer samples than k, or more of them pass than there are.
    """
    if not 0 <= passed <= samples or not 0 <= k <= samples:
        raise ValueError(f"passed ({passed}) and k ({k}) must be between 0 and the number of samples ({samples})")
    whole, part = floor(k), k - floor(k)
    at = 1 - comb(samples - passed, whole) / comb(samples, whole)
    if not part:
        return at
    return (1 - part) * at + part * (1 - comb(samples - passed, whole + 1) / comb(samples, whole + 1))


def signal(p: Sequence[float], group: int) -> float:
    """Return the expected share of groups of size G with both a pass and a fail: the mean of 1 - p^G - (1-p)^G."""
    return fmean(1.0 - rate**group - (1.0 - rate) ** group for rate in p) if p else 0.0


def mean_reward(rewards: Sequence[Sequence[float]], confidence: float = 0.95) -> Share:
    """Return the mean reward of the reflections on each failure, with a percentile bootstrap interval over failures.

    When all rewards are equal, the bootstrap has no width: then it is Wilson's interval, with failures as samples.
    """
    import numpy as np

    probed = [row for row in rewards if row]
    if not probed:
        return Share(rate=0.0, low=0.0, high=1.0)
    totals, sizes = (np.array([of(row) for row in probed], dtype=float) for of in (sum, len))
    rate = float(totals.sum() / sizes.sum())
    if len({reward for row in probed for reward in row}) == 1:
        bounds = _score_interval(rate, len(probed), confidence)
    else:
        weights = _resampled_weights(len(probed))
        bounds = _quantiles((weights @ totals) / (weights @ sizes), confidence)
    return Share(rate=rate, low=bounds[0], high=bounds[1])


def expected_signal(rewards: Sequence[Sequence[float]], group: int, confidence: float = 0.95) -> Share:
    """Return the expected share of groups of size G in which at least two rewards differ, from a probe.

    `rewards` holds the rewards of a few reflections per probed failure; with k retries a reward has k + 1 levels. A
    group has no advantage when all its rewards are of one level, so the share is 1 - sum over levels of E[p(level)^G].
    The observed shares of a failure with few reflections would be 0 or 1 too often. Therefore p(level) is assumed to
    follow a beta distribution over the failures, fitted by moments for each level (Griffiths 1973), for which E[p^G]
    has a closed form. With one retry there are two levels, and the model is the beta-binomial; with more, no joint
    distribution of the levels is assumed, since the sum needs none.

    The interval is the percentile bootstrap over failures, with a fixed seed. When all rewards are equal, the bootstrap
    has no width: then the interval is from 0 to the share at a rate of Wilson's upper bound, with failures as samples.
    By Jensen's inequality no spread of the rate over the failures gives more.
    """
    import numpy as np

    probed = [row for row in rewards if row]
    if not probed:
        return Share(rate=0.0, low=0.0, high=1.0)
    levels = sorted({reward for row in probed for reward in row})
    if len(levels) == 1:
        return Share(rate=0.0, low=0.0, high=signal([min(0.5, wilson(0, len(probed), confidence).high)], group))
    counts = np.array([[row.count(level) for level in levels] for row in probed], dtype=float)  # (failures, levels)
    alike = np.full((1, len(probed)), 1 / len(probed))
    low, high = _quantiles(_mixed(_resampled_weights(len(probed)), counts, group), confidence)
    return Share(rate=float(_mixed(alike, counts, group)[0]), low=low, high=high)


def _mixed(weights: NDArray[np.float64], counts: NDArray[np.float64], group: int) -> NDArray[np.float64]:
    """Return the expected share of mixed groups for each bootstrap sample.

    `weights` is (samples, failures), `counts` (failures, levels); the result is (samples,).
    """
    import numpy as np
    from scipy.special import gammaln

    sizes = counts.sum(axis=1)
    shares = counts / sizes[:, None]
    mean = weights @ shares  # (samples, levels)
    spread = weights @ shares**2 - mean**2
    whole = mean * (1 - mean)
    size = np.broadcast_to((weights @ sizes)[:, None], mean.shape)
    some = (whole > 1e-12) & (size > 1)
    chance = 1 / np.where(some, size, 2.0)  # share of the spread that failures with equal rates would have
    overdispersion = np.where(some, (spread / np.where(some, whole, 1.0) - chance) / (1 - chance), 0.0)
    strength = 1 / np.clip(overdispersion, 1e-6, 0.999) - 1  # alpha + beta
    alpha = mean * strength
    moments = np.exp(gammaln(alpha + group) + gammaln(strength) - gammaln(alpha) - gammaln(strength + group))
    alike = np.where(overdispersion <= 1e-6, mean**group, moments).sum(axis=1)
    mixed: NDArray[np.float64] = np.clip(1.0 - alike, 0.0, 1.0)
    return mixed


def _resampled_weights(count: int) -> NDArray[np.float64]:
    """Return the weight of each failure in each bootstrap sample, (samples, failures)."""
    import numpy as np

    samples = min(_PROBES, _CHUNK // count)
    return np.random.default_rng(_SEED).multinomial(count, np.full(count, 1 / count), samples) / count


def _quantiles(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _score_interval(rate: float, size: float, confidence: float) -> tuple[float, float]:
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    center = (rate + z * z / (2 * size)) / (1 + z * z / size)
    margin = z / (1 + z * z / size) * sqrt(rate * (1 - rate) / size + (z / (2 * size)) ** 2)
    return (0.0 if rate == 0 else max(0.0, center - margin)), (1.0 if rate == 1 else min(1.0, center + margin))


def _effective_size(problems: Sequence[tuple[int, int]], rate: float) -> float:
    """Return the number of independent samples with the same variance as these; at most their number.

    `problems` has the number of passes and of samples of each.
    """
    count, samples = len(problems), sum(size for _, size in problems)
    if count == 1 or rate in (0.0, 1.0):
        return count
    squares = sum((passed - rate * size) ** 2 for passed, size in problems)
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
    values = np.asarray(changes)  # (problems,)
    rows = max(1, min(_RESAMPLES, _CHUNK // len(values)))
    flipped: list[NDArray[np.float64]] = []
    resampled: list[NDArray[np.float64]] = []
    for start in range(0, _RESAMPLES, rows):
        shape = (min(rows, _RESAMPLES - start), len(values))
        flipped.append((rng.integers(0, 2, shape) * 2 - 1) @ values / len(values))
        resampled.append(values[rng.integers(0, len(values), shape)].mean(axis=1))
    difference = float(values.mean())
    # Sums of floats depend on their order: differences within rounding count as equal.
    extreme = int((np.abs(np.concatenate(flipped)) >= abs(difference) - 1e-12).sum())
    low, high = np.quantile(np.concatenate(resampled), [0.025, 0.975])
    return Difference(difference=difference, low=float(low), high=float(high), p=(extreme + 1) / (_RESAMPLES + 1))
