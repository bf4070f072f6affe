"""The reward of a reflection, computed from its retries, and the metrics of a batch of rewards; no torch, no TRL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from r3core.episode import Answer, Episode, Reflection


def judged(answer: Answer) -> bool | None:
    """Return whether an answer passed; None for a verifier error, and for a failed answer that was cut off.

    An answer that passes although the token limit cut off the text after it is complete.
    """
    outcome = answer.verdict.outcome
    if outcome == "error" or (outcome == "fail" and answer.stopped == "length"):
        return None
    return outcome == "pass"


def reward_of(retried: Sequence[Episode], *, reward_leaks: bool = True) -> float | None:
    """Return the reward of one reflection, in [0, 1]: the share of its judged retries that passed.

    `retried` has the reflection's episode once per retry. None when no retry was judged. Without `reward_leaks`, a
    reflection that gives the answer away earns 0, and None when that is unknown.
    """
    outcomes = [judged(episode.retries["reflect"]) for episode in retried]
    known = [passed for passed in outcomes if passed is not None]
    reflection = retried[0].reflection
    leaked = reflection.leaked if reflection else None
    if not known or (not reward_leaks and leaked is None):
        return None
    return 0.0 if leaked and not reward_leaks else sum(known) / len(known)


def is_broken(retried: Sequence[Episode]) -> bool:
    """Return whether the verifier failed on a retry of a reflection; one without an answer never reached it."""
    retries = [episode.retries["reflect"] for episode in retried]
    return any(not retry.unanswered and retry.verdict.outcome == "error" for retry in retries)


def without_broken_groups(
    rewards: Sequence[float | None], failure: Sequence[int], broken: Sequence[bool], *, max_share: float
) -> list[float | None]:
    """Return the rewards, with None for every row of a group when a share above `max_share` of it is broken.

    TRL gives a None row the advantage 0 and a failing row a negative one. In a group with few verdicts, these would
    make failing less likely than breaking the verifier. All three sequences have P * G rows: `failure` identifies the
    group of each, and rows of a group are adjacent; `broken` marks rows whose None comes from the verifier, and not
    from a retry that was cut off.
    """
    result: list[float | None] = []
    for _, rows in groupby(zip(failure, rewards, broken, strict=True), key=lambda row: row[0]):
        group = list(rows)
        too_many = sum(is_broken for _, _, is_broken in group) > max_share * len(group)
        result += [None if too_many else reward for _, reward, _ in group]
    return result


def batch_metrics(
    rewards: Sequence[float | None], failure: Sequence[int], retried: Sequence[Sequence[Episode]]
) -> dict[str, float]:
    """Return the metrics of P * G reflections that are logged beside TRL's own; all are shares, in [0, 1].

    `failure` identifies the group of each row; `retried` has the episodes of each reflection, one per retry.
    """
    groups = [
        {reward for _, reward in rows if reward is not None}
        for _, rows in groupby(zip(failure, rewards, strict=True), key=lambda row: row[0])
    ]
    judged_groups = [group for group in groups if group]
    reflections: list[Reflection] = [episodes[0].reflection for episodes in retried if episodes[0].reflection]
    tested = [reflection.leaked for reflection in reflections if reflection.leaked is not None]
    retries = [episode.retries["reflect"] for episodes in retried for episode in episodes]
    return {
        "groups/mixed": _share(len(group) > 1 for group in judged_groups),
        "groups/all_right": _share(group == {1.0} for group in judged_groups),
        "groups/all_wrong": _share(group == {0.0} for group in judged_groups),
        "groups/unjudged": _share(not group for group in groups),  # of all groups; the other three of the judged ones
        "reflections/leak_rate": _share(tested),
        "reflections/truncated": _share(reflection.stopped == "length" for reflection in reflections),
        "reflections/cut_in_thought": _share(reflection.cut_in_thought for reflection in reflections),
        "retries/truncated": _share(retry.stopped == "length" for retry in retries),
        "retries/cut_in_thought": _share(retry.cut_in_thought for retry in retries),
        "retries/unjudged": _share(judged(retry) is None for retry in retries),
    }


def _share(values: Iterable[bool]) -> float:
    """Return the share of true values, 0 for no values."""
    listed = list(values)
    return sum(listed) / max(1, len(listed))
