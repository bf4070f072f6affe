"""How the charts of a page encode runs and models: their data, colours, shapes, legends and tooltips.

The colours are those of Okabe and Ito, which people with any colour blindness can tell apart. Text and axes take the
colour of the page's text, so that the same chart is readable in the dark, in the light and on paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from r3core.evaluation.result import Scores
from r3core.page.collect import Collected

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#f0e442")
BASE, TRAINED = COLOURS[:2]
SHAPES = ("circle", "diamond")  # base, trained


def height(places: int, bars: int, *, each: int) -> int:
    """Return the height in pixels of a chart with some bars at each of its places."""
    return max(1, places) * (max(1, bars) * each + 8)


def inline_data(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> alt.InlineData:
    """Return rows as the data of a chart."""
    return alt.InlineData(values=[dict(zip(columns, row, strict=True)) for row in rows])


def tooltip(columns: Sequence[str]) -> list[alt.Tooltip]:
    """Return the tooltips of columns, by their names."""
    numbers = {"rate": ".1f", "low": ".1f", "high": ".1f"}
    plain = {"run", "model", "measure", "combination", "try", "category", "stage", "part"}
    kinds = {column: "N" if column in plain else "Q" for column in columns}
    return [
        alt.Tooltip(f"{name}:{kinds[name]}", format=numbers[name])
        if name in numbers
        else alt.Tooltip(f"{name}:{kinds[name]}")
        for name in columns
    ]


def colour(runs: Sequence[Collected]) -> alt.Color:
    """Return one colour per model for one run, and one per run for several; then base and trained differ in shape."""
    if len(runs) == 1:
        return colour_of("model", labels(runs))
    colours = [COLOURS[place % len(COLOURS)] for place, run in enumerate(runs) for _ in run.sides]
    colouring = alt.Scale(domain=labels(runs), range=colours)
    return alt.Color("model:N", sort=labels(runs), scale=colouring, legend=legend())


def opacity(runs: Sequence[Collected]) -> alt.Opacity | alt.OpacityValue:
    """Return full opacity, and half of it for the base model's marks where several runs share a chart."""
    if len(runs) == 1:
        return alt.OpacityValue(1)
    return alt.Opacity("model:N", sort=labels(runs), scale=scale(runs, (0.5, 1)), legend=legend())


def scale(runs: Sequence[Collected], values: Sequence[Any]) -> alt.Scale:
    """Return the scale that gives every base model the first of two values, and every trained model the second."""
    return alt.Scale(
        type="ordinal", domain=labels(runs), range=[values[model == "trained"] for run in runs for model in run.sides]
    )


def colour_of(name: str, values: Sequence[str]) -> alt.Color:
    """Return a colour for each value of a column."""
    colours = [COLOURS[index % len(COLOURS)] for index in range(len(values))]
    colouring = alt.Scale(domain=list(values), range=colours)
    return alt.Color(f"{name}:N", sort=list(values), scale=colouring, legend=legend())


def legend() -> alt.Legend:
    """Return the legend of every chart: without a title, above it."""
    return alt.Legend(title=None, orient="top", columns=3, labelLimit=300)


def series(runs: Sequence[Collected]) -> list[tuple[str, Scores, Scores | None]]:
    """Return the scores of each model of each run after its label, and those under greedy decoding."""
    many = len(runs) > 1
    return [
        (f"{run.name}: {side}" if many else side, scores, getattr(run.result and run.result.greedy, side, None))
        for run in runs
        for side, scores in run.sides.items()
    ]


def labels(runs: Sequence[Collected]) -> list[str]:
    """Return the label of each model of each run."""
    return [label for label, _, _ in series(runs)]
