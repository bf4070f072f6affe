"""The diagnoses of the evaluation: does the retry use the reflection, where is the gain, could it be seen?"""

from __future__ import annotations

from math import sqrt

from r3core.episode import Arm
from r3core.explain import measures
from r3core.explain.findings import Seen, diagnosis, points, setting, share_text
from r3core.explain.rules import RULES, Diagnosis
from r3core.stats import Difference, Rate, problems_needed, wilson

_OTHERS: dict[Arm, str] = {
    "none": "without a reflection",
    "shuffled": "with another problem's",
    "placebo": "with a neutral text",
}
_NEEDED: set[Arm] = {"none", "shuffled"}
"""The controls without which nothing is concluded: runs of earlier versions have no placebo."""
_FEWEST_FIXED = 5
_TOKENS = 4  # whose shift is listed
_LEAST_SHARE = 0.05  # of the update, below which halving it is no advice
_LEAST_DIFFERENCE = 0.05  # that an evaluation is planned for, where a smaller one was observed


def retry_ignores_reflection(seen: Seen) -> Diagnosis | None:
    name = "trained" if seen.figures.trained else "base"
    side = seen.figures.trained or seen.figures.base
    if not _finished(seen) or side is None or not side.against.keys() >= _NEEDED:
        return None
    if side.scores.fix.passed < _FEWEST_FIXED:  # a model that fixes nothing ignores nothing
        return None
    compared = {arm: side.against[arm] for arm in _OTHERS if arm in side.against}
    limit = RULES["retry-ignores-reflection"].limit
    if any(one.low > 0 or one.high >= limit for one in compared.values()):
        return None
    listed = ", ".join(
        f"{100 * side.scores.controls[arm].rate:.1f}% {what} ({_points(compared[arm])})"
        for arm, what in _OTHERS.items()
        if arm in compared
    )
    return diagnosis(
        "retry-ignores-reflection",
        f"the {name} model's retry ignores the reflection: it fixes {share_text(side.scores.fix)} failures after its "
        f"own reflection, {listed}",
        "wording.retry: request in it that the reflection is used; sampling.retry.temperature lower; or a model that "
        "follows instructions better",
        {"fix": side.scores.fix.rate, "n": side.scores.fix.total}
        | {f"above_{arm}": one.difference for arm, one in compared.items()},
    )


def first_try_lost(seen: Seen) -> Diagnosis | None:
    paired = seen.figures.paired
    if (
        not _finished(seen)
        or paired is None
        or paired.first.high >= 0
        or paired.first.difference > -RULES["first-try-lost"].limit
    ):
        return None
    return diagnosis(
        "first-try-lost",
        f"the first try falls ({_points(paired.first)}{_on_problems(seen)}): training on reflections has changed "
        "the answers too",
        setting(seen.config, "learning_rate", factor=0.5) + ", or fewer steps (grpo.max_steps)",
        {"difference": paired.first.difference, "low": paired.first.low, "high": paired.first.high},
    )


_ANCHOR = "train.anchor=1, which holds first attempts near the base model's; or "


def greedy_first_try_lost(seen: Seen) -> Diagnosis | None:
    paired, drift = seen.figures.greedy, seen.figures.drift
    if not _finished(seen) or paired is None or seen.config.train.interpolate < _LEAST_SHARE:
        return None
    first = paired.first
    if first.high >= 0 or first.difference > -RULES["greedy-first-try-lost"].limit:
        return None
    why = ""
    if drift is not None and drift.shifts:
        tokens = ", ".join(f"`{one.token.strip() or one.token}` {one.shift:+.2f}" for one in drift.shifts[:_TOKENS])
        why = (
            f": averaged by token over {drift.attempts:,} attempts of the base, log p has shifted most for {tokens}; "
            "such a drift of token probabilities turns greedy answers wherever two tokens are close"
        )
    train = seen.config.train
    anchor = "" if train.anchor or "attempt" in seen.config.objective.turns else _ANCHOR
    return diagnosis(
        "greedy-first-try-lost",
        f"the greedy first try falls ({_points(first)}){why}",
        f"{anchor}train.interpolate={train.interpolate / 2:g}, which saves a smaller share of the update, at the cost "
        "of sampled tries",
        {"difference": first.difference, "low": first.low, "high": first.high}
        | {f"shift_{place}": one.shift for place, one in enumerate(drift.shifts[:_TOKENS] if drift else (), start=1)},
    )


def gain_at_first_try(seen: Seen) -> Diagnosis | None:
    paired, base, trained = seen.figures.paired, seen.figures.base, seen.figures.trained
    if not _finished(seen) or paired is None or base is None or trained is None:
        return None
    if min(paired.first.low, paired.second.low) <= 0:
        return None
    part = paired.first.difference / paired.second.difference
    fix = _difference(base.scores.fix, trained.scores.fix)
    if part <= RULES["gain-at-first-try"].limit or fix.low > 0:
        return None
    return diagnosis(
        "gain-at-first-try",
        f"{part:.0%} of the gain is at the first try ({_points(paired.first)} of {_points(paired.second)}), and the "
        f"fix rate does not rise ({_points(fix)}): the reflections are not what improved",
        "compare the error categories before and after, which often show a form of answer that was learned; "
        "evaluate.cross=true separates reflections from retries",
        {"part": part, "first": paired.first.difference, "second": paired.second.difference, "fix": fix.difference},
    )


def gain_not_held_out(seen: Seen) -> Diagnosis | None:
    base, trained = seen.figures.base, seen.figures.trained
    rise = measures.reward_change(seen.figures)
    if not _finished(seen) or base is None or trained is None or rise is None or rise.low <= 0.10:
        return None
    fix = _difference(base.scores.fix, trained.scores.fix)
    if fix.high >= RULES["gain-not-held-out"].limit * rise.low:
        return None
    failures = len({group.failure for group in seen.figures.groups})
    epochs = len(seen.figures.groups) / failures
    limit = seen.config.mine.limit
    more = f"mine.limit={4 * limit}" if limit else "more training problems"
    return diagnosis(
        "gain-not-held-out",
        f"the reward in training rises by {_points(rise)}, the fix rate on held-out problems changes by {_points(fix)}"
        f"; each of {failures:,} failures was trained on {epochs:.1f} times",
        f"{more}, so that no failure is seen twice" if epochs > 1.5 else "the same sampling in training and evaluation",
        {"reward": rise.difference, "fix": fix.difference, "fix_high": fix.high, "epochs": epochs},
    )


def evaluation_too_small(seen: Seen) -> Diagnosis | None:
    paired, square, problems = seen.figures.paired, seen.figures.mean_square, seen.figures.problems
    if not _finished(seen) or paired is None or square is None or not problems:
        return None
    second = paired.second
    # Without any change, a bootstrap over the problems has no width: the limit is that of a share of none of them.
    high = second.high if square else max(second.high, wilson(0, problems).high)
    if second.p < 0.05 or high <= RULES["evaluation-too-small"].limit:
        return None
    wanted = max(second.difference, _LEAST_DIFFERENCE)
    likely = max(square, 1 / (problems + 2), wanted * wanted)  # few problems without a change do not exclude any
    needed = problems_needed(likely, wanted)
    if needed <= problems:
        return None
    what = "this size" if wanted == second.difference else f"{100 * wanted:.0f} points"
    change = (
        f"changes by {points(second.difference, second.low, high)} (p = {second.p:.2f})" if square else "is the same"
    )
    return diagnosis(
        "evaluation-too-small",
        f"the second try {change} on {problems:,} problems, too few to see a gain: for a difference of {what}, "
        f"{needed:,} problems give a power of 80%",
        _more_problems(seen, needed),
        {"difference": second.difference, "low": second.low, "high": high, "n": problems, "needed": needed},
    )


def _finished(seen: Seen) -> bool:
    """Return whether all problems were attempted: the first ones of an evaluation in progress are no sample of them."""
    return seen.figures.stages.get("evaluate", False)


def _more_problems(seen: Seen, needed: int) -> str:
    in_split, now = seen.figures.in_split, seen.config.evaluate
    whole = now.limit is None or now.limit >= needed  # then the split has no more problems
    if not whole and (in_split is None or needed <= in_split):
        return f"evaluate.limit={needed}"
    limit = "" if whole else "evaluate.limit=null "
    size = f" (the split has {in_split:,} problems)" if in_split else ""
    return f"{limit}evaluate.samples={max(4, 2 * now.samples)}{size}, or several seeds"


def _difference(before: Rate, after: Rate) -> Difference:
    """Return the difference of two independent rates with Newcombe's interval (1998, method 10)."""
    difference = after.rate - before.rate
    low = difference - sqrt((after.rate - after.low) ** 2 + (before.high - before.rate) ** 2)
    high = difference + sqrt((after.high - after.rate) ** 2 + (before.rate - before.low) ** 2)
    return Difference(difference=difference, low=low, high=high, p=1.0)


def _points(change: Difference | measures.Change) -> str:
    return points(change.difference, change.low, change.high)


def _on_problems(seen: Seen) -> str:
    return f" on {seen.figures.problems:,} problems" if seen.figures.problems else ""
