"""The charts of a page as Vega-Lite specifications, each with the figures behind it.

Vega-Lite (through Altair) for these reasons: one specification gives the interactive chart of the page and the PNG and
SVG of a paper; its script can be inlined (0.9 MB; plotly's has 4.5, bokeh's 1.1) and runs under a Content-Security-
Policy without `unsafe-eval`; its charts have descriptions for screen readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt

from r3core.evaluation.result import Scores
from r3core.evaluation.tables import CONTROLS_TEXT
from r3core.evaluation.validation import Validation
from r3core.page import collect, encoding
from r3core.page.collect import Collected
from r3core.page.sample import shown
from r3core.runs import values_of
from r3core.stats import Rate

_RATE = alt.Scale(domain=[0, 100])
_STEPS = alt.Axis(tickMinStep=1, format="d")

CURVES: dict[str, tuple[str, str]] = {
    "reward": (
        "mean reward",
        "Share of the retries that passed, averaged over the reflections of the step. It should rise; with "
        "few groups per step it also varies by chance.",
    ),
    "groups/mixed": (
        "groups with different rewards",
        "Share of the groups whose reflections earned different rewards. Only these teach something.",
    ),
    "groups/all_right": (
        "groups in which all passed",
        "Share of the groups in which every retry passed: their failures have become easy.",
    ),
    "groups/all_wrong": (
        "groups in which all failed",
        "Share of the groups in which every retry failed: their failures are too hard for now.",
    ),
    "groups/unjudged": ("groups without a verdict", "Share of the groups in which no retry could be judged."),
    "reflections/leak_rate": (
        "reflections with the answer",
        "Share of the reflections that contain a passing answer. If it rises, the model learns to answer early.",
    ),
    "reflections/truncated": ("reflections cut off", "Share of the reflections that the token limit cut off."),
    "retries/truncated": ("retries cut off", "Share of the retries that the token limit cut off."),
    "completions/mean_length": ("tokens per reflection", "Mean number of tokens of the reflections of the step."),
    "kl": (
        "KL to the base model",
        "How far the trained model's probabilities are from the base's; only recorded with grpo.beta above 0.",
    ),
    "entropy": (
        "entropy",
        "How uncertain the model is per token, in nats. A fall to 0 means that all reflections become the same.",
    ),
    "loss": (
        "loss",
        "The loss of GRPO. It depends on the rewards and lengths of each step, and shows little about progress.",
    ),
    "grad_norm": ("gradient norm", "Length of the gradient before clipping. Peaks point to a learning rate too high."),
    "learning_rate": ("learning rate", "The learning rate of the step, after warm-up and schedule."),
    "seconds/generation": ("seconds of generation", "Seconds per step for reflections and retries."),
    "seconds/verification": ("seconds of verification", "Seconds per step that the run waited for the verifier."),
    "seconds/training": ("seconds of training", "Seconds per step for the gradient and the optimizer."),
}
"""Metric of training -> the title of its curve, and what it means."""


class Chart(NamedTuple):
    """One chart of a page."""

    name: str
    """Name of its file, when it is written to one."""
    title: str
    meaning: str
    spec: dict[str, Any]
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    """The figures of the chart, for the table under it and for CSV files."""


def charts(runs: Sequence[Collected]) -> list[Chart]:
    """Return the charts of a page that have something to show, in the order of the page."""
    made = [rates(runs), cross(runs), *categories(runs), *curves(runs), *validation(runs), seconds(runs), tokens(runs)]
    return [chart for chart in made if chart.rows]


def rates(runs: Sequence[Collected]) -> Chart:
    """Both tries, the fix rate and the controls, with their intervals, for each model."""
    rows = [
        (measure, label, *_percent(rate))
        for label, side, beside in encoding.series(runs)
        for measure, rate in _measures(side, beside)
    ]
    columns = ("measure", "model", "rate", "low", "high", "n")
    order = list(dict.fromkeys(row[0] for row in rows))
    y = alt.Y("measure:N", sort=order, title=None, axis=alt.Axis(labelLimit=260))
    encoded = alt.Chart(encoding.inline_data(columns, rows)).encode(
        y=y,
        yOffset=alt.YOffset("model:N", sort=encoding.labels(runs)),
        color=encoding.colour(runs),
        opacity=encoding.opacity(runs),
        tooltip=encoding.tooltip(columns),
    )
    interval = encoded.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title="% with 95% interval", scale=_RATE, axis=alt.Axis(tickCount=10)), x2="high:Q"
    )
    shapes, labels = encoding.scale(runs, encoding.SHAPES), encoding.labels(runs)
    point = encoded.mark_point(filled=True, size=70).encode(
        x="rate:Q", shape=alt.Shape("model:N", sort=labels, scale=shapes, legend=encoding.legend())
    )
    meaning = (
        "Second try and fix rate should be higher for the trained model than for the base, and the fix rate higher "
        "than its controls, which retry with something else in the reflection's place."
    )
    chart = alt.layer(interval, point).properties(
        width="container", height=encoding.height(len(order), len(encoding.labels(runs)), each=14)
    )
    return _chart("rates", "Both tries, and the retries with other reflections", meaning, chart, columns, rows)


def cross(runs: Sequence[Collected]) -> Chart:
    """The fix rate of each model's reflections with each model's retries, on the base's failures."""
    rows = [
        (run.name, f"reflections by {by}, retries by {then}", *_percent(rate))
        for run in runs
        for by, cells in ((run.result and run.result.cross) or {}).items()
        for then, rate in cells.items()
    ]
    columns = ("run", "combination", "rate", "low", "high", "n")
    y = alt.Y("combination:N", sort=None, title=None, axis=alt.Axis(labelLimit=260))
    encoded = alt.Chart(encoding.inline_data(columns, rows)).encode(y=y, tooltip=encoding.tooltip(columns))
    if len(runs) > 1:
        encoded = encoded.encode(
            yOffset=alt.YOffset("run:N", sort=[run.name for run in runs]),
            color=encoding.colour_of("run", [run.name for run in runs]),
        )
        bar = encoded.mark_bar(opacity=0.8)
    else:
        bar = encoded.mark_bar(color=encoding.TRAINED)
    bar = bar.encode(x=alt.X("rate:Q", title="fix rate in % with 95% interval", scale=_RATE))
    interval = encoded.mark_rule(strokeWidth=2, color="currentColor").encode(x="low:Q", x2="high:Q")
    if len(runs) > 1:
        interval = interval.encode(color=alt.ColorValue("currentColor"))
    chart = alt.layer(bar, interval).properties(width="container", height=encoding.height(4, len(runs), each=20))
    meaning = (
        "All four on the failures of the base model; base with base is the fix rate above, the others are sampled "
        "anew, so equal models differ by chance. If the trained model's reflections help the base's retries too, they "
        " are better reflections; if only its own retries improve, something else was learned."
    )
    return _chart("cross", "Whose reflections, whose retries", meaning, chart, columns, rows)


def categories(runs: Sequence[Collected]) -> list[Chart]:
    """How many failed answers each error category has, for first tries and for retries, before and after training."""
    series = encoding.series(runs)
    first = [(label, side.first_error_categories) for label, side, _ in series]
    second = [(label, side.second_error_categories) for label, side, _ in series]
    return [_categories(runs, "first tries", first), _categories(runs, "retries", second)]


def _categories(runs: Sequence[Collected], which: str, counts: Sequence[tuple[str, dict[str, int]]]) -> Chart:
    columns = ("category", "model", "failed")
    rows = [(shown(category), label, count) for label, of_side in counts for category, count in of_side.items()]
    height = encoding.height(len({row[0] for row in rows}), len(counts), each=12)
    chart = (
        alt.Chart(encoding.inline_data(columns, rows))
        .mark_bar()
        .encode(
            x=alt.X("failed:Q", title="failed answers"),
            y=alt.Y("category:N", sort="-x", title=None, axis=alt.Axis(labelLimit=260)),
            yOffset=alt.YOffset("model:N", sort=encoding.labels(runs)),
            color=encoding.colour(runs),
            opacity=encoding.opacity(runs),
            tooltip=encoding.tooltip(columns),
        )
        .properties(width="container", height=height)
    )
    name = f"error-categories-{which.replace(' ', '-')}"
    meaning = f"Why {which} failed, in the verifier's categories, before and after training."
    return _chart(name, f"Failed {which} by error category", meaning, chart, columns, rows)


def curves(runs: Sequence[Collected]) -> list[Chart]:
    """One curve over the steps of training for each metric that was recorded."""
    return [_curve(runs, metric, title, meaning) for metric, (title, meaning) in CURVES.items()]


def validation(runs: Sequence[Collected]) -> list[Chart]:
    """The evaluations during training: both tries and the fix rate by step, with their intervals."""
    columns = ("run", "step", "measure", "rate", "low", "high", "n")
    found = [
        (run.name, row) for run in runs for row in values_of(Validation, run.record.rows("validation"), "validation")
    ]
    rows = [
        (name, row.step, measure, *_percent(rate))
        for name, row in found
        for measure, rate in [
            ("first try", row.first),
            ("second try", row.second),
            ("fix rate", row.fix),
            *((f"control: {CONTROLS_TEXT[arm]}", rate) for arm, rate in row.control.items()),
        ]
    ]
    encoded = alt.Chart(encoding.inline_data(columns, rows)).encode(
        x=alt.X("step:Q", title="step", axis=_STEPS),
        color=encoding.colour_of("measure", list(dict.fromkeys(r[2] for r in rows))),
    )
    if len(runs) > 1:
        encoded = encoded.encode(strokeDash="run:N")
    band = encoded.mark_area(opacity=0.15).encode(y=alt.Y("low:Q", title="%", scale=_RATE), y2="high:Q")
    line = encoded.mark_line(point=True).encode(y="rate:Q", tooltip=encoding.tooltip(columns))
    chart = alt.layer(band, line).properties(width="container", height=220)
    meaning = "Part of the validation split, attempted during training. The result is that of the test split, above."
    return [_chart("validation", "Both tries on the validation split", meaning, chart, columns, rows)]


def seconds(runs: Sequence[Collected]) -> Chart:
    """The seconds of each stage, those of training by part."""
    rows = [
        (run.name, stage, part, round(spent, 1))
        for run in runs
        for stage, parts in collect.seconds(run).items()
        for part, spent in parts.items()
    ]
    return _stacked(
        "seconds",
        _total("Where the time went", rows, "seconds"),
        "Seconds of each stage, over all sessions.",
        runs,
        rows,
    )


def tokens(runs: Sequence[Collected]) -> Chart:
    """The tokens that each stage generated, by turn."""
    rows = [
        (run.name, stage, turn, count)
        for run in runs
        for stage, turns in collect.tokens(run).items()
        for turn, count in turns.items()
    ]
    meaning = "Tokens that each stage generated, without the forecast and the cross table."
    return _stacked("tokens", _total("Where the tokens went", rows, "tokens"), meaning, runs, rows)


def _total(title: str, rows: Sequence[tuple[Any, ...]], unit: str) -> str:
    return f"{title}: {sum(row[3] for row in rows):,.0f} {unit} in all"


def _stacked(unit: str, title: str, meaning: str, runs: Sequence[Collected], rows: list[tuple[Any, ...]]) -> Chart:
    columns = ("run", "stage", "part", unit)
    parts = list(dict.fromkeys(row[2] for row in rows))
    chart = (
        alt.Chart(encoding.inline_data(columns, rows))
        .mark_bar()
        .encode(
            x=alt.X(f"{unit}:Q", title=unit),
            y=alt.Y("stage:N", sort=None, title=None),
            color=encoding.colour_of("part", parts),
            tooltip=encoding.tooltip(columns),
        )
        .properties(width="container", height=encoding.height(len({row[1] for row in rows}), len(runs), each=20))
    )
    if len(runs) > 1:
        chart = chart.encode(yOffset=alt.YOffset("run:N", sort=[run.name for run in runs]))
    return _chart(unit, title, meaning, chart, columns, rows)


def _curve(runs: Sequence[Collected], metric: str, title: str, meaning: str) -> Chart:
    points = [(run.name, row) for run in runs for row in collect.averaged(run.steps)]
    found = [(name, row) for name, row in points if row.get(metric) is not None]
    if metric in _SHOWN_IF_NOT_ZERO and not any(row[metric] for _, row in found):
        found = []
    columns: tuple[str, ...] = ("run", "step", title)
    rows: list[tuple[Any, ...]] = [(name, row["step"], row[metric]) for name, row in found]
    if found and all(row.get(collect.GENERATED) is not None for _, row in found):
        columns = (*columns, TOKENS)
        rows = [(*line, row[collect.GENERATED]) for line, (_, row) in zip(rows, found, strict=True)]
    share = metric.startswith("groups/") or metric == "reward"
    scale = (
        alt.Scale(domain=[0, 1])
        if share
        else alt.Scale(zero=metric.startswith(("reflections/", "retries/", "seconds/")))
    )
    encoded = alt.Chart(encoding.inline_data(columns, rows)).encode(
        x=alt.X("step:Q", title="step", axis=_STEPS),
        y=alt.Y(f"{title}:Q", title=None, scale=scale),
        tooltip=encoding.tooltip(columns),
    )
    line = encoded.mark_line(point=alt.OverlayMarkDef(size=12))
    names = [run.name for run in runs]
    line = line.encode(color=encoding.colour_of("run", names) if len(runs) > 1 else alt.value(encoding.TRAINED))
    chart = line.properties(width="container", height=120)
    return _chart(f"curve-{metric.replace('/', '-')}", title, meaning, chart, columns, rows)


TOKENS = "generated tokens"
"""The column of a curve with the tokens that training had generated after the step; only where all runs have it."""
_SHOWN_IF_NOT_ZERO = ("groups/unjudged", "reflections/truncated", "retries/truncated")


def _chart(
    name: str, title: str, meaning: str, chart: Any, columns: tuple[str, ...], rows: list[tuple[Any, ...]]
) -> Chart:
    if not rows:
        return Chart(name, title, meaning, {}, columns, rows)
    spec = chart.properties(description=f"{title}. {meaning}").to_dict()
    if spec.get("width") == "container":
        spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    return Chart(name, title, meaning, spec, columns, rows)


def _measures(side: Scores, beside: Scores | None) -> list[tuple[str, Rate]]:
    """Return the rates of a model with their names, and those under greedy decoding where there are any."""
    controls = [(f"control: {CONTROLS_TEXT[arm]}", rate) for arm, rate in side.controls.items()]
    greedy = [(f"{name}, greedy", rate) for name, rate in _tries(beside)] if beside else []
    further = [(f"within {k} attempts", rate) for k, rate in side.within.items() if k > 2]
    return [*_tries(side), *further, *controls, *greedy]


def _tries(side: Scores) -> list[tuple[str, Rate]]:
    return [("first try", side.first), ("second try", side.second), ("fix rate", side.fix)]


def _percent(rate: Rate) -> tuple[float, float, float, int]:
    return round(100 * rate.rate, 2), round(100 * rate.low, 2), round(100 * rate.high, 2), rate.total
