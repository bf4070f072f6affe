"""The reward of a reflection, which follows from its retries; it needs no torch and no TRL."""

from __future__ import annotations

from collections.abc import Sequence

from r3core.episode import Answer, Episode


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
    """Return whether the verifier could not judge any retry of a reflection that it was asked about."""
    asked = [retry for retry in (episode.retries["reflect"] for episode in group) if retry.stopped != "overlong"]
    return any(retry.verdict.outcome == "error" for retry in asked)
