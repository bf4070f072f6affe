"""The output of `r3 compare --matrix`: tables for the terminal, and CSV rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from r3core.compare.matrix import BASE, Matrix
from r3core.compare.tables import print_lines
from r3core.console import visible
from r3core.evaluation.tables import format_difference, format_rate


def print_matrix(matrix: Matrix, to: TextIO) -> None:
    """Print the matrix as a table of fix rates, that of the differences from the base's own reflections, and notes."""
    from rich.console import Console

    console = Console(file=to, highlight=False, markup=False, width=None if to.isatty() else 120)
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*_names(matrix), strict=True))
    cells = {(cell.reflections, cell.failures): cell for cell in matrix.cells}
    heads = ("reflections by", *(f"failures of {_column(matrix, name)}" for name in columns))
    body = [[row, *(format_rate(cells[row, column].fix) for column in columns)] for row in rows]
    print_lines(console, "fix rates in % with 95% intervals, retries by the base model of the column", heads, body)
    changes = [
        [row, *(format_difference(change) if (change := cells[row, column].difference) else "-" for column in columns)]
        for row in rows
        if row != BASE
    ]
    print_lines(console, "minus those after the base model's own reflections, on the same failures", heads, changes)
    leaks = [[row, *(format_rate(cells[row, column].leaks) for column in columns)] for row in rows]
    print_lines(console, "reflections with the answer, in %", heads, leaks)
    for one in matrix.members:
        console.print(f"- {one.name}: {visible(one.run)} ({visible(one.task)}, seed {one.seed})")
    for note in _notes(matrix):
        console.print(f"- {note}")


def rows_of_matrix(matrix: Matrix) -> list[Sequence[object]]:
    """Return the headings and every cell as a row of a CSV file; rates and differences are shares of 1."""
    rates = ("fix", "fix_low", "fix_high", "fixed", "failures_judged", "leaks")
    rows: list[Sequence[object]] = [
        ("reflections", "failures", *rates, "difference", "difference_low", "difference_high", "p", "p_holm")
    ]
    for cell in matrix.cells:
        fix, change = cell.fix, cell.difference
        figures: tuple[object, ...] = (fix.rate, fix.low, fix.high, fix.passed, fix.total, cell.leaks.rate)
        compared = (change.difference, change.low, change.high, change.p, change.p_holm) if change else ("",) * 5
        rows.append((cell.reflections, cell.failures, *figures, *compared))
    return rows


def _names(matrix: Matrix) -> list[tuple[str, str]]:
    return [(cell.reflections, cell.failures) for cell in matrix.cells]


def _column(matrix: Matrix, name: str) -> str:
    return ", ".join(matrix.same_failures[name])


def _notes(matrix: Matrix) -> list[str]:
    tests = sum(cell.difference is not None for cell in matrix.cells)
    lines = [
        f"{BASE}: reflections by the base model of the column; the other rows: by the trained model of that run; all "
        "rows of a column are sampled with the same seeds",
        f"the p-values of the {tests} differences are adjusted together by Holm's method; the intervals are not, and "
        "count problems, not training seeds",
    ]
    if any(len(names) > 1 for names in matrix.same_failures.values()):
        lines.append("runs with one base model, one seed and one protocol have the same failures, and share a column")
    return lines
