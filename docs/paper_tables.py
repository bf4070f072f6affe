"""The rates that the paper has published, from `docs/paper.json`, beside those of recorded runs with r3."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import published
from tables import table

from r3core.stats import Rate

DOCS = Path(__file__).resolve().parent
FILE = DOCS / "paper.json"
COLUMNS = ("base, first try", "base, second try", "trained, first try", "trained, second try")


class Published(NamedTuple):
    """A row of the paper's table."""

    task: str
    model: str
    name: str | None
    """The name of the configuration in `examples/paper`; None for a model that was not trained."""
    rates: list[float | None]
    """The rates of `COLUMNS` in percent."""
    unchecked: list[int]
    """The columns whose value was not compared with the paper."""


def read_published() -> list[Published]:
    """Return the rows of the paper's table, in its order."""
    return [Published(**row) for row in json.loads(FILE.read_text(encoding="utf-8"))]


def paper_results() -> str:
    """Return a table of the published rates and of r3's; the latter are empty where no run is recorded."""
    lines = []
    for row in read_published():
        shown = [_published(row, index) for index in range(len(COLUMNS))]
        model = f"[{row.model}](../examples/paper/{row.name}.yaml)" if row.name else f"{row.model}, not trained"
        lines.append((row.task, model, "paper", *shown))
        if row.name is not None:
            lines.append(("", "", "r3", *_of_r3(row.name)))
    return table(("task", "model", "", *COLUMNS), lines)


def _published(row: Published, index: int) -> str:
    value = row.rates[index]
    return "" if value is None else f"{value:.1f}{'*' if index in row.unchecked else ''}"


def _of_r3(name: str) -> list[str]:
    """Return the rates of a recorded run of a configuration; empty cells without one."""
    try:
        result = published.read(f"paper-{name}").result
    except published.MissingRecord:
        return [""] * len(COLUMNS)
    sides = (result.base, result.trained)
    return [_rate(one) for side in sides for one in ((side.first, side.second) if side else (None, None))]


def _rate(rate: Rate | None) -> str:
    return "" if rate is None else f"{100 * rate.rate:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


BLOCKS: dict[str, Callable[[], str]] = {"paper results": paper_results}
"""The text between `<!-- generated: NAME -->` and `<!-- /generated -->`, by its name."""
