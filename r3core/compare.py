"""A stand-in for the comparison of runs, until the real one is merged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from r3core.task import Frozen


class Comparison(Frozen):
    """Runs side by side."""

    runs: list[str]


def compare(folders: Sequence[Path]) -> Comparison:
    """Return the comparison of runs."""
    return Comparison(runs=[str(folder) for folder in folders])


def print_comparison(comparison: Comparison, to: TextIO) -> None:
    """Print the comparison of runs."""
    print(f"{len(comparison.runs)} runs: {', '.join(comparison.runs)}", file=to)
