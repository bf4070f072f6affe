"""The reward of a reflection, which follows from its retries, and what is logged of rewards; no torch, no TRL."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from r3core.episode import Answer, Episode, Reflection


def judged(answer: Answer) -> bool | None:
    """Return whether an answer passed; None for an error, and for one that was cut off before it was given.

    An answer that passed although the token limit cut off what came after it was given in time.
    """
    outcome = answer.verdict.outcome
    if outcome == "error" or (outcome == "fail" and answer.stopped == "length"):
        return None
    return outcome == "pass"


def reward_of(group: Sequence[Episode], *, reward_leaks: bool = True) -> float | None:
    """Return the reward of one reflection: the share of its judged retries that passed; None when none was judged.

    `group` holds the reflection's episode once for each of its retries. The reward lies in [0, 1].
    """
    outcomes = [judged(episode.retries["reflect"]) for episode in group]
    known = [passed for passed in outcomes if passed is not None]
    reflection = group[0].reflection
    leaked = reflection.leaked if reflection else None
    if not known or (not reward_leaks and leaked is None):
        return None
    return 0.0 if leaked and not reward_leaks else sum(known) / len(known)


def is_broken(group: Sequence[Episode]) -> bool:
    """Return whether the verifier could not judge any retry of a reflection that it received."""
    asked = [retry for retry in (episode.retries["reflect"] for episode in group) if retry.stopped != "overlong"]
    return any(retry.verdict.outcome == "error" for retry in asked)


def without_broken_groups(
    rewards: Sequence[float | None], failure: Sequence[int], broken: Sequence[bool], *, max_share: float
) -> list[float | None]:
    """Return the rewards, all None in each group of which a larger share than `max_share` is broken.

    TRL gives a None row the advantage 0 and a failing row a negative one. In a group of which the verifier judged
    little, the few verdicts that are left would push failing rows down in favour of rows that broke the verifier.
    `failure` identifies the group of each row: rows of a group stand next to each other. `broken` marks rows whose None
    is the verifier's; a retry that was cut off is None too, and does not count here.
    """
    kept: list[float | None] = []
    for _, rows in groupby(zip(failure, rewards, broken, strict=True), key=lambda row: row[0]):
        group = list(rows)
        unjudged = sum(one for _, _, one in group) > max_share * len(group)
        kept += [None if unjudged else reward for _, reward, _ in group]
    return kept


def measures(
    rewards: Sequence[float | None], failure: Sequence[int], groups: Sequence[Sequence[Episode]]
) -> dict[str, float]:
    """Return what is logged of one batch beside TRL's own metrics; `failure` identifies the group of each row."""
    kinds = []
    unjudged = 0
    for _, rows in groupby(zip(failure, rewards, strict=True), key=lambda row: row[0]):
        given = {reward for _, reward in rows if reward is not None}
        if given:
            only = {frozenset([1.0]): "all_right", frozenset([0.0]): "all_wrong"}.get(frozenset(given), "all_equal")
            kinds.append("mixed" if len(given) > 1 else only)
        else:
            unjudged += 1
    reflections: list[Reflection] = [group[0].reflection for group in groups if group[0].reflection]
    tested = [reflection.leaked for reflection in reflections if reflection.leaked is not None]
    retries = [episode.retries["reflect"] for group in groups for episode in group]
    shares = {f"groups/{kind}": kinds.count(kind) / max(1, len(kinds)) for kind in ("mixed", "all_right", "all_wrong")}
    return shares | {
        "groups/unjudged": unjudged / (unjudged + len(kinds)),  # of all groups; the other kinds are shares of the rest
        "reflections/leak_rate": sum(tested) / max(1, len(tested)),
        "reflections/truncated": sum(r.stopped == "length" for r in reflections) / max(1, len(reflections)),
        "retries/truncated": sum(retry.stopped == "length" for retry in retries) / len(retries),
        "retries/unjudged": sum(judged(retry) is None for retry in retries) / len(retries),
    }
