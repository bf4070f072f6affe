"""The comparison of the reflection with its controls as a table, with what each of them costs."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from r3core.cells import format_difference, format_rate
from r3core.episode import Arm
from r3core.result import Result, Scores, secondary

CONTROLS_TEXT = {
    "none": "retry, no reflection",
    "generic": "retry, generic sentence",
    "shuffled": "retry, another's reflection",
    "placebo": "retry, neutral text",
    "resample": "plain resampling",
}
EQUAL_TOKENS = "plain resampling at equal tokens"


def sides_of(result: Result) -> dict[str, Scores]:
    """Return the scores by model, `base` and `trained`."""
    return {"base": result.base} | ({"trained": result.trained} if result.trained else {})


def arm_differences(result: Result) -> list[tuple[str, ...]]:
    """Return a table of the reflection against each control on the same failures, the headings first.

    Beside the difference of the fix rates it has each arm's cost per failure. Empty without controls and cross table,
    and for results of versions that did not compare them.
    """
    sides = sides_of(result)
    lines = [
        (
            CONTROLS_TEXT[arm].removeprefix("retry, "),
            *(_against(side, arm) for side in sides.values()),
            *_costs(sides, arm),
        )
        for arm in result.base.against
    ]
    equal = [side.equal_tokens for side in sides.values()]
    if any(one and one.difference for one in equal):
        differences = (format_difference(one.difference) if one and one.difference else "-" for one in equal)
        costs = map(_equal_cost, sides.values())
        lines.append((EQUAL_TOKENS, *differences, *costs))
    if lines:
        lines.insert(0, ("(the reflection)", *("" for _ in sides), *_costs(sides, "reflect")))
    if result.reflections:
        compared = (format_difference(result.reflections[name]) for name in sides)
        lines.append(("trained - base reflections", *compared, *("" for _ in sides)))
    heads = ("reflection - control", *sides, *(f"cost, {name}" for name in sides))
    return [heads, *lines] if lines else []


def at_equal_tokens(sides: Sequence[Scores]) -> list[tuple[str, ...]]:
    """Return the row of resampling at equal tokens; none where it was measured on neither side."""
    shares = [side.equal_tokens.fix if side.equal_tokens else None for side in sides]
    return [(f"  {EQUAL_TOKENS}", *map(format_rate, shares), "")] if any(shares) else []


def notes_on_controls(result: Result) -> list[str]:
    """Return what the comparisons with the controls rest on; nothing for results without them."""
    lines = []
    adjusted = [one for one in secondary(result) if one.p_holm is not None]
    if len(adjusted) > 1:
        lines.append(
            "primary endpoint: the second try, trained - base; the other p-values are adjusted together by Holm's "
            f"method, for {len(adjusted)} tests; the intervals are not"
        )
    if any(side.costs and side.against for side in sides_of(result).values()):
        lines.append("cost: mean generated tokens (verdicts) per failure, without prompts and the failed attempt")
    if result.reflections:
        lines.append(
            "trained - base reflections: both models' reflections on the base's failures, with retries by each model"
        )
    sides = {name: side.equal_tokens for name, side in sides_of(result).items() if side.equal_tokens}
    if not sides:
        return lines
    ks = ", ".join(f"{name} {one.attempts:.2f}" for name, one in sides.items())
    fewest = min(one.resamples for one in sides.values())
    most = max(one.attempts for one in sides.values())
    if all(one.fix for one in sides.values()):
        lines.append(
            "at equal tokens: pass@k, with k = the tokens of reflection and retry over those of a fresh attempt "
            f"({ks}), estimated from {fewest} fresh attempts per failure; it uses k verdicts, the reflection one"
        )
    else:
        lines.append(
            f"a reflection and its retry have the tokens of more than {fewest} fresh attempts ({ks}); for plain "
            f"resampling at equal tokens, evaluate with --set evaluate.resamples={ceil(most)}"
        )
    return lines


def _against(side: Scores, arm: Arm) -> str:
    return format_difference(side.against[arm]) if arm in side.against else "-"


def _costs(sides: dict[str, Scores], arm: Arm) -> list[str]:
    """Return the mean tokens and verdicts of an arm per failure, for each model."""
    found = [side.costs.get(arm) for side in sides.values()]
    return [f"{one.tokens:.1f} ({one.verdicts:.1f})" if one else "-" for one in found]


def _equal_cost(side: Scores) -> str:
    """Return the tokens of the reflection, which resampling may use too, and how many attempts that makes."""
    reflect, equal = side.costs.get("reflect"), side.equal_tokens
    return f"{reflect.tokens:.1f} ({equal.attempts:.2f})" if reflect and equal else "-"
