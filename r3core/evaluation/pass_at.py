"""Several samples per problem: pass@k, the chance that at least one of k samples passes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from r3core.episode import Episode
from r3core.stats import Difference, Share, mean_reward, paired_shares, pass_at_k

Judged = Callable[[Episode], bool | None]
"""Whether a try passed; None where that could not be judged."""


def pass_at(episodes: Iterable[Episode], judged: Judged) -> dict[int, Share]:
    """Return pass@k by k: for each power of two up to the number of samples, and that number; empty for one sample.

    Each problem has the same weight; one of which less than k samples could be judged is left out. The interval is a
    bootstrap over problems.
    """
    counts = _counts(episodes, judged)
    return {k: mean_reward([[share] for share in _shares(counts, k).values()]) for k in _sizes(counts)}


def pass_at_differences(before: Sequence[Episode], after: Sequence[Episode], judged: Judged) -> dict[int, Difference]:
    """Return the paired difference of pass@k by k, after minus before, over the problems that have it on both sides."""
    sides = [_counts(episodes, judged) for episodes in (before, after)]
    found = {}
    for k in _sizes(sides[0]):
        old, new = (_shares(counts, k) for counts in sides)
        shared = [problem for problem in old if problem in new]
        found[k] = paired_shares({key: [old[key]] for key in shared}, {key: [new[key]] for key in shared})
    return found


def _counts(episodes: Iterable[Episode], judged: Judged) -> dict[str, tuple[int, int]]:
    """Return how many samples of each problem passed, and how many were judged."""
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for episode in episodes:
        if (outcome := judged(episode)) is not None:
            outcomes[episode.example.id].append(outcome)
    return {problem: (sum(passed), len(passed)) for problem, passed in outcomes.items()}


def _shares(counts: dict[str, tuple[int, int]], k: int) -> dict[str, float]:
    return {problem: pass_at_k(passed, judged, k) for problem, (passed, judged) in counts.items() if judged >= k}


def _sizes(counts: dict[str, tuple[int, int]]) -> list[int]:
    most = max((judged for _, judged in counts.values()), default=1)
    powers = [2**power for power in range(1, most.bit_length()) if 2**power < most]
    return [*powers, most] if most > 1 else []
