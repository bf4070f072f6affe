"""The rows of the result table, and of those of error categories and other tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from r3core.cells import format_difference, format_rate
from r3core.console import visible
from r3core.controls import CONTROLS_TEXT, at_equal_tokens, sides_of
from r3core.episode import Arm
from r3core.result import Result, Scores

HEADINGS = ("", "base", "trained", "trained - base")


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
        *at_equal_tokens(sides),
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
