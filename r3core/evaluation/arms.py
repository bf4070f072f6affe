"""The arms of an evaluation: what each costs, and reflection against every control on the same failures.

An arm is what precedes the second attempt: the model's reflection (`reflect`), or a control in its place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from math import ceil
from statistics import fmean

from r3core.episode import Answer, Arm, Episode
from r3core.evaluation.outcomes import passed
from r3core.stats import Difference, Rate, Share, clustered, mean_reward, paired, paired_shares, pass_at_k
from r3core.task import Frozen


class Cost(Frozen):
    """What an arm needs per failure, as a mean over the failures that have it; the failed attempt is not counted."""

    tokens: float
    """Generated tokens: reflection and retry for `reflect`, the retry alone for a control; prompts are not counted."""
    verdicts: float
    """Answers that the verifier judges."""


class EqualTokens(Frozen):
    """Plain resampling with as many tokens as the reflection and the retry after it have in the mean."""

    attempts: float
    """k: the mean tokens of reflection and retry, divided by those of a fresh attempt; in general no whole number."""
    resamples: int
    """Fresh attempts at each failure from which pass@k is estimated, which requires at least k of them."""
    fix: Share | None = None
    """pass@k: failures of which at least one of k fresh attempts passes; None with fewer resamples than k."""
    difference: Difference | None = None
    """The fix rate after a reflection minus pass@k, on the same failures; None with fewer resamples than k."""


def rate(outcomes: Iterable[tuple[Episode, bool | None]]) -> Rate:
    """Return the share of outcomes that are true; unknown ones are left out, samples of one problem clustered."""
    return clustered([(episode.example.id, outcome) for episode, outcome in outcomes if outcome is not None])


def fix_rate(failed: Iterable[Episode], arm: Arm) -> Rate:
    """Return the share of failures that an arm's retry fixed; retries that could not be judged are left out."""
    return rate((e, passed(e.retries.get(arm))) for e in failed)


def difference(
    before: Sequence[Episode], after: Sequence[Episode], judged: Callable[[Episode], bool | None]
) -> Difference:
    """Return the paired difference of what `judged` returns, over the problems that have it on both sides."""
    sides: list[dict[str, list[bool]]] = []
    for episodes in (before, after):
        problems: dict[str, list[bool]] = defaultdict(list)
        for episode in episodes:
            if (outcome := judged(episode)) is not None:
                problems[episode.example.id].append(outcome)
        sides.append(problems)
    one, other = sides
    shared = one.keys() & other.keys()
    return paired({key: one[key] for key in one if key in shared}, {key: other[key] for key in one if key in shared})


def against(episodes: Iterable[Episode], arm: Arm) -> Difference:
    """Return the fix rate after a reflection minus that of a control, over the failures whose retries were both judged.

    With several samples per problem each problem has the same weight, as in every paired test.
    """
    before: dict[str, list[bool]] = defaultdict(list)
    after: dict[str, list[bool]] = defaultdict(list)
    for episode in episodes:
        with_reflection, without = (passed(episode.retries.get(name)) for name in ("reflect", arm))
        if episode.failed and with_reflection is not None and without is not None:
            after[episode.example.id].append(with_reflection)
            before[episode.example.id].append(without)
    return paired(before, after)


def cost(episodes: Iterable[Episode], arm: Arm) -> Cost | None:
    """Return the mean tokens and verdicts of an arm; None when no failure has it."""
    found = [(e, e.retries[arm]) for e in episodes if e.failed and arm in e.retries]
    if not found:
        return None
    return Cost(
        tokens=fmean(_tokens(episode, arm) for episode, _ in found),
        verdicts=fmean(not retry.unanswered for _, retry in found),
    )


def equal_tokens(episodes: Iterable[Episode]) -> EqualTokens | None:
    """Return what plain resampling fixes with the tokens of the reflections and their retries.

    k is one number per model, from the means over its failures, and its own error is not in the interval. A failure
    counts when its retry after the reflection was judged, and at least k of its fresh attempts were.
    """
    found = [(e, _resamples(e)) for e in episodes if e.failed and "reflect" in e.retries]
    found = [(episode, again) for episode, again in found if again]
    fresh = fmean(fmean(one.tokens for one in again) for _, again in found) if found else 0.0
    if not fresh:
        return None
    k = fmean(_tokens(episode, "reflect") for episode, _ in found) / fresh
    resamples = max(len(again) for _, again in found)
    if resamples < k:
        return EqualTokens(attempts=k, resamples=resamples)
    shares: dict[str, list[float]] = defaultdict(list)
    reflected: dict[str, list[float]] = defaultdict(list)
    for episode, again in found:
        judged = [outcome for one in again if (outcome := passed(one)) is not None]
        fixed = passed(episode.retries["reflect"])
        if fixed is not None and len(judged) >= ceil(k):
            shares[episode.example.id].append(pass_at_k(sum(judged), len(judged), k))
            reflected[episode.example.id].append(float(fixed))
    return EqualTokens(
        attempts=k,
        resamples=resamples,
        fix=mean_reward(list(shares.values())),
        difference=paired_shares(shares, reflected),
    )


def _resamples(episode: Episode) -> list[Answer]:
    """Return the fresh attempts at a failure: the control `resample`, and further ones."""
    first = episode.retries.get("resample")
    return [first, *episode.resamples] if first is not None else []


def _tokens(episode: Episode, arm: Arm) -> int:
    """Return the tokens that were generated for an arm's second attempt."""
    reflection = episode.reflection.tokens if arm == "reflect" and episode.reflection else 0
    return reflection + episode.retries[arm].tokens
