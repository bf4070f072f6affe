"""The tables and the charts of a page as files for papers: CSV, PNG and SVG."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r3core.evaluation.tables import HEADINGS, arm_differences, other_tasks, rows
from r3core.files import atomic_write
from r3core.page import charts, collect
from r3core.page.collect import Collected

_SCALE = 3
"""Pixels of a PNG per unit of the chart: about 300 dots per inch at the size of a column."""
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
_CONFIG = {"background": "white", "view": {"stroke": None}, "font": "sans-serif"}


def write_csv(runs: Sequence[Path], folder: Path) -> list[Path]:
    """Write the result table and the figures of every chart as CSV files, and return their paths."""
    collected = _collected(runs)
    tables: list[tuple[str, Sequence[str], Sequence[Sequence[Any]]]] = []
    for run in collected:
        if run.result is not None:
            of_run = f"-{run.name.replace('/', '-')}" if len(runs) > 1 else ""
            tables.append((f"result{of_run}", HEADINGS, rows(run.result)))
            if arms := arm_differences(run.result):
                tables.append((f"controls{of_run}", arms[0], arms[1:]))
            if others := other_tasks(run.result):
                tables.append((f"other-tasks{of_run}", others[0], others[1:]))
    tables += [(chart.name, chart.columns, list(map(_plain, chart.rows))) for chart in charts.charts(collected)]
    return [_csv(folder / f"{name}.csv", columns, body) for name, columns, body in tables]


def write_png(runs: Sequence[Path], folder: Path) -> list[Path]:
    """Write every chart as a PNG and an SVG file, and return their paths."""
    import vl_convert

    written = []
    for chart in charts.charts(_collected(runs)):
        spec = _on_paper(chart.spec)
        image = vl_convert.vegalite_to_png(spec, config=_CONFIG, scale=_SCALE)
        drawing = vl_convert.vegalite_to_svg(spec, config=_CONFIG)
        for suffix, content in (("png", image), ("svg", drawing)):
            path = folder / f"{chart.name}.{suffix}"
            atomic_write(path, content)
            written.append(path)
    return written


def _collected(runs: Sequence[Path]) -> list[Collected]:
    return [collect.collect(folder, name=name) for folder, name in zip(runs, collect.names_of(runs), strict=True)]


def _plain(row: Sequence[Any]) -> list[Any]:
    """Return a row whose texts no spreadsheet takes for formulas: error categories come from plugins and models."""
    return [f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULAS) else cell for cell in row]


def _csv(path: Path, columns: Sequence[str], body: Sequence[Sequence[Any]]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[cell.strip() if isinstance(cell, str) else cell for cell in row] for row in body])
    atomic_write(path, text.getvalue())
    return path


def _on_paper(value: Any) -> Any:
    """Return a chart's specification with a fixed width and black instead of the colour of the page's text."""
    if isinstance(value, dict):
        return {key: 480 if (key, one) == ("width", "container") else _on_paper(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_on_paper(one) for one in value]
    return "black" if value == "currentColor" else value
