"""What the diagnoses compare: shares over groups, windows of a training, and their changes, each with an interval."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf, sqrt
from typing import NamedTuple

from r3core.explain.figures import Figures, Group
from r3core.explain.rules import PEAK_WINDOW, WINDOW
from r3core.stats import Rate, clustered_counts, clustered_mean

_Z = 1.96  # of a 95% interval
_MIN_PEAK_STEPS = 3
_FEWEST_CLUSTERS = 4


class Mean(NamedTuple):
    """A mean over some steps, with its standard error."""

    value: float
    error: float
    first: int
    """The first step."""
    last: int
    """The last step."""
    samples: int
    """Number of values."""


class Change(NamedTuple):
    """The change between two means, with its 95% interval."""

    before: Mean
    after: Mean
    difference: float
    low: float
    high: float


def share(groups: Iterable[Group], part: Callable[[Group], int], of: Callable[[Group], int]) -> Rate:
    """Return a share over groups, for example of truncated reflections; groups of one failure are correlated."""
    counts: dict[int, tuple[int, int]] = {}
    for group in groups:
        some, all_ = counts.get(group.failure, (0, 0))
        counts[group.failure] = (some + part(group), all_ + of(group))
    return clustered_counts(list(counts.values()))


def windows(steps: Sequence[int], width: float, least: int = 1) -> list[tuple[int, int]]:
    """Return (first, last) step of windows one after the other, from the last one backwards; the first may be wider."""
    size = max(least, round(len(steps) * width))
    count = max(1, len(steps) // size)
    ends = [len(steps) - size * index for index in range(count)]
    starts = [*ends[1:], 0]
    return [(steps[start], steps[end - 1]) for start, end in zip(starts, ends, strict=True)][::-1]


def grows_without_reward(figures: Figures, part: Callable[[Group], int], of: Callable[[Group], int]) -> bool:
    """Return whether a share is clearly higher than in the first step, which no update precedes, and the reward is not.

    Then training has brought it about, and not the limit.
    """
    steps = steps_of(figures)
    if not steps or rises(figures):
        return False
    return share(within(figures, (steps[0], steps[0])), part, of).high < share(figures.groups, part, of).low


def steps_of(figures: Figures) -> list[int]:
    """Return the steps that have groups, in order."""
    return sorted({group.step for group in figures.groups})


def steps_made(figures: Figures) -> int:
    """Return the number of training steps made, of which not every one has a logged row or a group of its own."""
    return max([0, *(step.step for step in figures.steps), *(group.step for group in figures.groups)])


def logged(figures: Figures, value: str) -> list[tuple[float, int]]:
    """Return what TRL logs, each value with its number of steps: those since the row before (`logging_steps`)."""
    found = []
    before = 0
    for row in figures.steps:
        if (number := getattr(row, value)) is not None:
            found.append((number, row.step - before))
            before = row.step
    return found


def first_and_last(figures: Figures) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return the windows of a training that are compared; None for less than two steps."""
    steps = steps_of(figures)
    size = max(1, round(len(steps) * WINDOW))
    return ((steps[0], steps[size - 1]), (steps[-size], steps[-1])) if len(steps) > 1 else None


def within(figures: Figures, window: tuple[int, int]) -> list[Group]:
    """Return the groups of a window."""
    return [group for group in figures.groups if window[0] <= group.step <= window[1]]


def reward(figures: Figures, window: tuple[int, int]) -> Mean:
    """Return the mean reward in a window, with groups of one failure as a cluster."""
    return _mean(figures, window, lambda group: (group.reward, group.judged), bounded=True)


def earned(figures: Figures, window: tuple[int, int]) -> Mean:
    """Return the mean reward of all reflections in a window, 0 for those without one.

    A model that has collapsed writes to the token limit, and then no retry is judged: its mean reward does not fall.
    """
    return _mean(figures, window, lambda group: (group.reward, group.reflections), bounded=True)


def length(figures: Figures, window: tuple[int, int]) -> Mean:
    """Return the mean number of tokens of a reflection in a window."""
    return _mean(figures, window, lambda group: (group.tokens, group.reflections), bounded=False)


def change(before: Mean, after: Mean) -> Change:
    """Return the change from one window to another one."""
    difference = after.value - before.value
    reach = _Z * sqrt(before.error**2 + after.error**2)
    return Change(before, after, difference, difference - reach, difference + reach)


def reward_change(figures: Figures) -> Change | None:
    """Return the change of the reward from the first third of a training to the last; None for less than two steps."""
    ends = first_and_last(figures)
    if ends is None:
        return None
    before, after = (reward(figures, window) for window in ends)
    return change(before, after) if before.samples and after.samples else None


def rises(figures: Figures) -> bool:
    """Return whether the reward rises; a model that has collapsed may earn no reward at all at the end."""
    change = reward_change(figures)
    return change is not None and change.low > 0


def rewards_over_time(figures: Figures) -> list[Mean]:
    """Return what reflections earn in the first step, which no update precedes, and in sixths of the steps."""
    steps = steps_of(figures)
    if len(steps) < 2:
        return []
    least = min(_MIN_PEAK_STEPS, len(steps) // 2)
    found = [(steps[0], steps[0]), *windows(steps, PEAK_WINDOW, least)]
    means = [earned(figures, window) for window in found]
    return [mean for mean in means if mean.samples]


def logged_change(figures: Figures, value: str) -> Change | None:
    """Return the change of what TRL logs, with its rows as samples; None where a window has no row."""
    ends = first_and_last(figures)
    if ends is None:
        return None
    means = []
    for first, last in ends:
        values = [getattr(step, value) for step in figures.steps if first <= step.step <= last]
        known = [(number, 1) for number in values if number is not None]
        if not known:
            return None
        mean, error = clustered_mean(known)
        means.append(Mean(mean, error, first, last, len(known)))
    return change(*means)


def _mean(
    figures: Figures, window: tuple[int, int], of: Callable[[Group], tuple[float, int]], *, bounded: bool
) -> Mean:
    sums: dict[int, tuple[float, int]] = {}
    for group in within(figures, window):
        total, count = sums.get(group.failure, (0.0, 0))
        more, number = of(group)
        sums[group.failure] = (total + more, count + number)
    clusters = [one for one in sums.values() if one[1]]
    samples = sum(count for _, count in clusters)
    mean, error = clustered_mean(clusters)
    if bounded and clusters:
        # Where all groups agree there is no spread to estimate: at least the error of one more success and failure.
        likely = (mean * len(clusters) + 1) / (len(clusters) + 2)
        least = sqrt(likely * (1 - likely) / (len(clusters) + 2))
        error = max(error, least) if error in (0.0, inf) else max(error, sqrt(mean * (1 - mean) / samples))
    if len(clusters) < _FEWEST_CLUSTERS:  # too few to estimate their spread
        error = inf
    return Mean(mean, error, *window, samples)
