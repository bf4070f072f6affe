"""The published tables, made from the records of finished runs in `docs/runs/`, which docs/record.py writes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from pydantic import ValidationError
from scipy.stats import t
from tables import table as _table

from r3core.config import NOT_SETTINGS, Config
from r3core.episode import Arm
from r3core.evaluation.result import Result, Scores
from r3core.evaluation.tables import error_categories
from r3core.report import print_table
from r3core.stats import Difference, Rate

RUNS = Path(__file__).resolve().parent / "runs"
SEEDS = (0, 1, 2)


class MissingRecord(Exception):
    """A run was not recorded, or its record is of a version that can no longer be read."""


class Record(NamedTuple):
    """A finished run, as docs/record.py recorded it; `facts` is the whole record."""

    config: Config
    result: Result
    facts: dict[str, Any]


def read(name: str) -> Record:
    """Return a record.

    Raises:
        MissingRecord: the record does not exist, or cannot be read.
    """
    path = RUNS / f"{name}.json"
    if not path.exists():
        raise MissingRecord(f"{name}: {path.name} does not exist")
    facts = json.loads(path.read_text(encoding="utf-8"))
    settings = {key: value for key, value in facts["config"].items() if key not in NOT_SETTINGS}
    try:
        return Record(Config.model_validate(settings), Result.model_validate(facts["result"]), facts)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise MissingRecord(f"{name}: {path.name} is of another version: {where}: {first['msg']}") from None


# --- one function for each generated block


def demo_table() -> str:
    """Return what `r3 run --task countdown` prints."""
    printed = io.StringIO()
    record = read("countdown-0")
    print_table(record.result, record.config, printed)
    lines = [line.rstrip() for line in printed.getvalue().rstrip().splitlines()]
    return "\n".join(["```text", *lines, "```"])


def apigen_in_short() -> str:
    """Return one sentence about function calling."""
    runs = [record.result for record in _seeds("apigen").values()]
    second, first = _differences(runs, "second"), _differences(runs, "first")
    return (
        f"Over {len(runs)} seeds, with {runs[0].base.first.total:,} problems each, the second try changes by "
        f"{_span((one.difference for one in second), signed=True)} points ({_ps(second)}), and the first try by "
        f"{_span((one.difference for one in first), signed=True)} ({_ps(first)}): "
        "[the results](docs/results.md#function-calling)."
    )


def seeds(task: str) -> str:
    """Return a table of base and trained model by seed, and the mean difference over the seeds."""
    runs = {seed: record.result for seed, record in _seeds(task).items()}
    head = ("seed", "first try, base", "trained", "second try, base", "trained", "trained - base, second try")
    rows = []
    for seed, result in runs.items():
        base, trained = _sides(result)
        tries = (base.first, trained.first, base.second, trained.second)
        rows.append((str(seed), *map(_rate, tries), _difference(_paired(result, "second"))))
    first = [f"{_difference(_paired(result, 'first'))} (seed {seed})" for seed, result in runs.items()]
    second, tried = (_mean(_differences(list(runs.values()), which)) for which in ("second", "first"))
    return "\n\n".join(
        [
            _table(head, rows),
            f"The first try, of which no token was rewarded, changed by {'; '.join(first)}.",
            f"Mean over the {len(runs)} seeds, with the 95% t interval ({len(runs) - 1} degrees of freedom): second "
            f"try {second}, first try {tried}. It covers chance in training and sampling, not in the problems, which "
            "are the same for every seed.",
        ]
    )


def controls(task: str) -> str:
    """Return a table of the fix rates with each control in place of the reflection."""
    runs = {seed: record.result for seed, record in _seeds(task).items()}
    arms = [arm for arm in _ARMS if all(arm in side.controls for result in runs.values() for side in _sides(result))]
    head = ("seed", "model", "with its reflection", *(_ARMS[arm] for arm in arms))
    rows = [
        (str(seed), name, _rate(side.fix), *(_rate(side.controls[arm]) for arm in arms))
        for seed, result in runs.items()
        for name, side in zip(("base", "trained"), _sides(result), strict=True)
    ]
    trained = [_sides(result)[1] for result in runs.values()]
    return "\n\n".join(
        [
            _table(head, rows),
            f"With its own reflection the trained model fixes {_span(side.fix.rate for side in trained)}% of its "
            f"failures; without one {_span(side.controls['none'].rate for side in trained)}%, with another problem's "
            f"{_span(side.controls['shuffled'].rate for side in trained)}%.",
        ]
    )


def cross(task: str) -> str:
    """Return a table of fix rates by the model that reflects and the model that retries."""
    runs = {seed: record.result.cross or {} for seed, record in _seeds(task).items()}
    head = ("seed", "reflections by", "retries by the base", "retries by the trained model")
    rows = [
        (str(seed), by, _rate(cells["base"]), _rate(cells["trained"]))
        for seed, result in runs.items()
        for by, cells in result.items()
    ]

    def cell(by: str, then: str) -> str:
        return _span(result[by][then].rate for result in runs.values())

    summary = (
        f"On reflections by the trained model, the base fixes {cell('trained', 'base')}% and the trained model "
        f"{cell('trained', 'trained')}%; on those by the base, {cell('base', 'base')}% and {cell('base', 'trained')}%."
    )
    return f"{_table(head, rows)}\n\n{summary}"


def reflections(task: str) -> str:
    """Return a table of the shares of reflections that leak the answer, and that were cut off."""
    runs = {seed: record.result for seed, record in _seeds(task).items()}
    head = ("seed", "model", "reflections that hold the answer", "fix rate of the others", "cut off by the limit")
    rows = [
        (str(seed), name, _rate(side.leaks), _rate(side.fix_without_leak), _rate(side.truncated))
        for seed, result in runs.items()
        for name, side in zip(("base", "trained"), _sides(result), strict=True)
    ]
    errors = sum(side.errors for result in runs.values() for side in _sides(result))
    return f"{_table(head, rows)}\n\nAnswers that could not be judged, over all seeds: {errors}."


def categories(task: str) -> str:
    """Return a table of the failed answers by error category, of seed 0."""
    head, *rows = error_categories(read(f"{task}-0").result)
    return f"Numbers of failed answers, seed 0:\n\n{_table(head, rows)}"


def time(task: str) -> str:
    """Return a table of the seconds by stage, and the environment that they were measured in."""
    runs = _seeds(task)
    stages = list(dict.fromkeys(stage for record in runs.values() for stage in record.facts["seconds"]))
    parts = list(runs[0].facts["shares_of_a_step"])
    head = ("seed", *(f"{stage}, s" for stage in stages), *(f"of a step: {part}" for part in parts))
    rows = []
    for seed, record in runs.items():
        seconds = (f"{record.facts['seconds'].get(stage, 0):.0f}" for stage in stages)
        rows.append((str(seed), *seconds, *(f"{record.facts['shares_of_a_step'][part]:.0%}" for part in parts)))
    environment = runs[0].facts["environment"]
    libraries = ", ".join(f"{name} {environment['libraries'][name]}" for name in ("torch", "transformers", "trl"))
    setup = (
        f"{runs[0].config.grpo['max_steps']} training steps; {environment['processors']} processors, "
        f"{environment['platform']}, Python {environment['python']}, {libraries}. Other work may have run on the "
        "machine; installation and the start of Python come on top."
    )
    return f"{_table(head, rows)}\n\n{setup}"


def greedy(task: str) -> str:
    """Return a table of both tries under greedy decoding, and the mean changes over the seeds."""
    tries = ("first try, base", "trained", "difference", "second try, base", "trained", "difference")
    runs = {seed: record.result.greedy for seed, record in _seeds(task).items()}
    rows, pairs = [], []
    for seed, found in runs.items():
        if found is None or found.trained is None or found.paired is None:
            raise MissingRecord(f"{task}-{seed}: it has no greedy tries of two models")
        cells = [str(seed)]
        for which in ("first", "second"):
            of = (getattr(found.base, which), getattr(found.trained, which))
            cells += [*map(_rate, of), _difference(getattr(found.paired, which))]
        rows.append((*cells, _rate(found.trained.fix)))
        pairs.append(found.paired)
    second, first = (_mean([getattr(pair, which) for pair in pairs]) for which in ("second", "first"))
    mean = f"Mean over the seeds, with the 95% t interval: second try {second}, first try {first}."
    return f"{_table(('seed', *tries, 'fix rate, trained'), rows)}\n\n{mean}"


_OF_A_TASK: dict[str, Callable[[str], str]] = {
    "seeds": seeds,
    "controls": controls,
    "cross": cross,
    "reflections": reflections,
    "error categories": categories,
    "time": time,
    "greedy": greedy,
}
BLOCKS: dict[str, Callable[[], str]] = {
    "demo table": demo_table,
    "apigen in short": apigen_in_short,
    **{f"{task} {name}": partial(of, task) for task in ("countdown", "apigen") for name, of in _OF_A_TASK.items()},
}
"""The text between `<!-- generated: NAME -->` and `<!-- /generated -->`, by its name."""


# --- cells and tables

_ARMS: dict[Arm, str] = {
    "none": "none",
    "generic": "generic sentence",
    "shuffled": "another problem's",
    "placebo": "neutral text",
    "resample": "plain resampling",
}


def _seeds(task: str) -> dict[int, Record]:
    return {seed: read(f"{task}-{seed}") for seed in SEEDS}


def _sides(result: Result) -> tuple[Scores, Scores]:
    assert result.trained is not None, "published runs compare two models"
    return result.base, result.trained


def _paired(result: Result, which: str) -> Difference:
    difference: Difference = getattr(result.paired, which)
    return difference


def _differences(results: Sequence[Result], which: str) -> list[Difference]:
    return [_paired(result, which) for result in results]


def _rate(rate: Rate) -> str:
    return f"{100 * rate.rate:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]" if rate.total else "-"


def _difference(one: Difference) -> str:
    return f"{100 * one.difference:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}], {_p(one)}"


def _p(one: Difference) -> str:
    return "p < 0.001" if one.p < 0.001 else f"p = {one.p:.3f}"


def _ps(differences: Sequence[Difference]) -> str:
    values = [_p(one) for one in differences]
    return f"{values[0]} in each" if len(set(values)) == 1 else ", ".join(values)


def _mean(differences: Sequence[Difference]) -> str:
    """Return the mean of some differences in percentage points, with its t interval (Student 1908)."""
    values = [100 * one.difference for one in differences]
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / sqrt(len(values))
    return f"{fmean(values):+.1f} [{fmean(values) - half:+.1f}, {fmean(values) + half:+.1f}]"


def _span(rates: Iterable[float], *, signed: bool = False) -> str:
    """Return the range of some rates in percent: `68.9 to 70.3`."""
    ordered = sorted(rates)
    low, high = (f"{100 * rate:{'+' if signed else ''}.1f}" for rate in (ordered[0], ordered[-1]))
    return low if low == high else f"{low} to {high}"
