"""The tables of a result, with their cells as text: rates, controls, error categories and other tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil
from typing import Literal

from r3core.console import visible
from r3core.episode import Arm
from r3core.evaluation.result import Result, Scores, secondary
from r3core.stats import Difference, Rate, Share

HEADINGS = ("", "base", "trained", "trained - base")
CONTROLS_TEXT = {
    "none": "retry, no reflection",
    "generic": "retry, generic sentence",
    "shuffled": "retry, another's reflection",
    "placebo": "retry, neutral text",
    "resample": "plain resampling",
}
EQUAL_TOKENS = "plain resampling at equal tokens"


def rows(result: Result) -> list[tuple[str, ...]]:
    """Return the cells of the result table: label, base, trained, and the paired difference where there is one."""
    sides = [side for side in (result.base, result.trained) if side]
    paired = result.paired
    first, second = map(format_difference, (paired.first, paired.second)) if paired else ("", "")
    beside = _greedy_rows(result)
    table = [
        ("first try", *(format_rate(side.first) for side in sides), first),
        *_pass_at(result, "first"),
        *beside[:1],
        ("second try", *(format_rate(side.second) for side in sides), second),
        *_pass_at(result, "second"),
        *_within(result),
        *beside[1:2],
        ("fix rate", *(format_rate(side.fix) for side in sides), ""),
        *beside[2:],
        *(_control(sides, arm) for arm in result.base.controls),
        *_at_equal_tokens(sides),
        ("  reflection without the answer", *(format_rate(side.fix_without_leak) for side in sides), ""),
        ("reflections with the answer", *(format_rate(side.leaks) for side in sides), ""),
        *_repeated(sides),
    ]
    for by, cells in (result.cross or {}).items():
        table.append((f"retries on reflections by {by}", format_rate(cells["base"]), format_rate(cells["trained"]), ""))
    return [row if len(row) == len(HEADINGS) else (*row[:2], "", row[2]) for row in table]


def _pass_at(result: Result, which: Literal["first", "second"]) -> list[tuple[str, ...]]:
    """Return a row for each k of pass@k; none with one sample per problem."""
    sides = [getattr(side, f"{which}_at") for side in (result.base, result.trained) if side]
    paired = getattr(result.paired, f"{which}_at", {})
    return [
        (
            f"  {which} try, pass@{k}",
            *(format_rate(side.get(k)) for side in sides),
            format_difference(paired[k]) if k in paired else "",
        )
        for k in sides[0]
    ]


def _within(result: Result) -> list[tuple[str, ...]]:
    """Return a row for each further attempt of a conversation; none with one round of reflection and retry."""
    sides = [side.within for side in (result.base, result.trained) if side]
    paired = result.paired.within if result.paired else {}
    return [
        (
            f"  within {k} attempts",
            *(format_rate(side.get(k)) for side in sides),
            format_difference(paired[k]) if k in paired else "",
        )
        for k in sides[0]
        if k > 2
    ]


def _repeated(sides: Sequence[Scores]) -> list[tuple[str, ...]]:
    return [
        (f"repeated answers, attempt {k}", *(format_rate(side.repeated.get(k)) for side in sides), "")
        for k in sides[0].repeated
    ]


def _greedy_rows(result: Result) -> list[tuple[str, ...]]:
    """Return the rows of greedy first tries, second tries and fix rates; none where they were not evaluated."""
    if result.greedy is None:
        return []
    sides = [side for side in (result.greedy.base, result.greedy.trained) if side]
    paired = result.greedy.paired
    first, second = map(format_difference, (paired.first, paired.second)) if paired else ("", "")
    return [
        ("  first try, greedy", *(format_rate(side.first) for side in sides), first),
        ("  second try, greedy", *(format_rate(side.second) for side in sides), second),
        ("  fix rate, greedy", *(format_rate(side.fix) for side in sides), ""),
    ]


def _control(sides: Sequence[Scores], arm: Arm) -> tuple[str, ...]:
    return (f"  {CONTROLS_TEXT[arm]}", *(format_rate(side.controls[arm]) for side in sides), "")


def _at_equal_tokens(sides: Sequence[Scores]) -> list[tuple[str, ...]]:
    """Return the row of resampling at equal tokens; none where it was measured on neither side."""
    shares = [side.equal_tokens.fix if side.equal_tokens else None for side in sides]
    return [(f"  {EQUAL_TOKENS}", *map(format_rate, shares), "")] if any(shares) else []


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


def error_categories(result: Result) -> list[tuple[str, ...]]:
    """Return a table of error categories and how many failed answers have each, the headings first.

    Empty for a task whose verifier names no categories.
    """
    sides = sides_of(result)
    counts = {f"first try, {name}": side.first_error_categories for name, side in sides.items()}
    counts |= {f"retry, {name}": side.second_error_categories for name, side in sides.items()}
    total = sum((Counter(column) for column in counts.values()), Counter[str]())
    kinds = sorted(sorted(total), key=lambda kind: -total[kind])
    lines = [(visible(kind), *(str(column.get(kind, 0)) for column in counts.values())) for kind in kinds]
    return [("error category", *counts), *lines] if lines else []


def other_tasks(result: Result) -> list[tuple[str, ...]]:
    """Return a table of both tries on the run's own task and on the others, headings first; empty without others."""
    lines: list[tuple[str, ...]] = [HEADINGS]
    for name, one in {"own task": result, **result.also}.items():
        sides = (one.base, one.trained)
        pair = one.paired
        for measure in ("first", "second"):
            rates = [format_rate(getattr(side, measure)) if side else "" for side in sides]
            change = format_difference(getattr(pair, measure)) if pair else ""
            lines.append((f"{visible(name)}, {measure} try", *rates, change))
    return lines if result.also else []


def sides_of(result: Result) -> dict[str, Scores]:
    """Return the scores by model, `base` and `trained`."""
    return {"base": result.base} | ({"trained": result.trained} if result.trained else {})


def format_rate(rate: Rate | Share | None) -> str:
    """Return a rate in % with its interval; a dash without answers."""
    if rate is None or (isinstance(rate, Rate) and not rate.total):
        return "-"
    return f"{100 * rate.rate:5.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def format_difference(difference: Difference) -> str:
    """Return a difference in percentage points with its interval and its p-value (see `format_p`)."""
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.difference:+.1f} [{low:+.1f}, {high:+.1f}] {format_p(difference)}"


def format_p(difference: Difference) -> str:
    """Return the p-value of a difference, after Holm's correction where it was made."""
    p = difference.p if difference.p_holm is None else difference.p_holm
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
