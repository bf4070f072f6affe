"""Everything that the page shows of one run, read from its directory without a lock."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from r3core.check.certificate import Certificate
from r3core.config import Config, configure
from r3core.errors import ConfigError
from r3core.evaluation.decoding import GREEDY
from r3core.evaluation.result import Result, Scores
from r3core.evaluation.tables import sides_of
from r3core.forecast import Forecast, group_size
from r3core.page import sample
from r3core.recorded import Change, Key, Status, config_of, open_record, status_of, task_of
from r3core.runs import RunRecord, value_of
from r3core.settings import leaves
from r3core.stats import Rate, Share
from r3core.task import Task

GENERATED = "tokens/generated"
"""The metric with the tokens that training has generated so far."""
MAX_POINTS = 300
"""Points of a curve; more steps are averaged."""


@dataclass(frozen=True, eq=False)
class Collected:
    """One run, as the page shows it."""

    record: RunRecord
    config: Config
    name: str
    status: Status
    result: Result | None
    forecast: Forecast | None
    certificate: Certificate | None
    steps: list[dict[str, Any]]
    """The metrics of every training step."""
    base: sample.Counts
    trained: sample.Counts
    greedy: dict[str, sample.Counts]
    """Greedy tries by model, where they were evaluated beside sampled ones."""
    groups: list[dict[str, Any]]
    """A sample of the groups of training."""
    groups_in_all: int
    group_tokens: Counter[str]
    mined_tokens: int
    task: Task | None = field(repr=False)
    """None where its plugin is not installed."""

    @cached_property
    def sides(self) -> dict[str, Scores]:
        """The scores by model, `base` and `trained`; empty before the evaluation."""
        return sides_of(self.result) if self.result else {}

    @cached_property
    def changes(self) -> dict[Key, Change]:
        """How training changed the outcome of each problem."""
        return sample.changes(self.base, self.trained) if self.trained.outcomes else {}

    @property
    def max_steps(self) -> int | None:
        """The number of training steps that are planned, where training has started."""
        resolved = (self.record.read_json("config") or {}).get("grpo_resolved") or {}
        return int(resolved["max_steps"]) if "max_steps" in resolved else None

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """The processes that worked on the run: time, versions and command of each."""
        return self.record.read("sessions")


def collect(folder: Path, *, name: str) -> Collected:
    """Return everything that the page shows of a run.

    Raises:
        UsageError: the folder is not a run directory.
        ConfigError: this version of r3 cannot read its configuration.
    """
    record, config = open_record(folder), config_of(folder)
    groups, group_tokens, in_all = sample.groups(record, group_size(config))
    return Collected(
        record=record,
        config=config,
        name=sample.shown(name),
        status=status_of(record),
        result=value_of(Result, record, "result"),
        forecast=value_of(Forecast, record, "forecast"),
        certificate=value_of(Certificate, record, "certificate"),
        steps=record.read("train"),
        base=sample.count(record, "evaluate-base"),
        trained=sample.count(record, "evaluate-trained"),
        greedy={name: sample.count(record, f"evaluate-{name}-{GREEDY}") for name in ("base", "trained")},
        groups=groups,
        groups_in_all=in_all,
        group_tokens=group_tokens,
        mined_tokens=sum(int(row["attempt"]["tokens"]) for row in record.rows("mine")),
        task=task_of(config),
    )


def files_of(run: Collected) -> list[tuple[str, sample.Counts]]:
    """Return the files with the episodes of a run's evaluation, and what they count."""
    evaluated = [("evaluate-base", run.base), ("evaluate-trained", run.trained)]
    return [(name, counted) for name, counted in evaluated if counted.outcomes]


def names_of(folders: Iterable[Path]) -> list[str]:
    """Return a short name for each run: the end of its path that no other run has."""
    resolved = [folder.resolve() for folder in folders]
    for depth in range(1, 10):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in resolved]


def averaged(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the metrics of at most MAX_POINTS points: each the mean of as many steps as necessary, at the last one."""
    size = -(-len(steps) // MAX_POINTS) or 1
    return [_mean(steps[start : start + size]) for start in range(0, len(steps), size)]


def settings(run: Collected) -> list[tuple[str, str, str]]:
    """Return the settings of a run that differ from those it would have without any: key, value, that default.

    Without any: of the preset, of the task's built-in model, or of r3.
    """
    now, before = dict(_leaves(run.config.record())), dict(_leaves(_untouched(run).record()))
    keys = sorted(now.keys() | before.keys())
    changed = [key for key in keys if now.get(key) != before.get(key)]
    return [(key, now.get(key, "not set"), before.get(key, "not set")) for key in changed]


def all_settings(run: Collected) -> list[tuple[str, str]]:
    """Return every setting of a run, those that TRL resolved among them."""
    stored = run.record.read_json("config") or {}
    return sorted(_leaves(stored))


def compared_with_forecast(run: Collected) -> list[tuple[str, str, str]]:
    """Return what was forecast after mining beside what the first steps of training brought: name, forecast, measured.

    The forecast is about the untrained model, so it is compared with the first tenth of the steps.
    """
    if run.forecast is None or not run.steps:
        return []
    early = run.steps[: max(1, len(run.steps) // 10)]
    forecast, group = run.forecast, group_size(run.config)
    in_each = run.groups_in_all / max(1, len({row["step"] for row in run.steps}))
    pairs: list[tuple[str, Share | Rate, str]] = [
        ("mean reward of a reflection", forecast.reward, "reward"),
        (f"groups of {group} with different rewards", forecast.signal[group], "groups/mixed"),
        ("reflections cut off at the token limit", forecast.reflections_truncated, "reflections/truncated"),
        ("retries cut off at the token limit", forecast.retries_truncated, "retries/truncated"),
    ]
    rows = []
    for label, share, metric in pairs:
        values = [row[metric] for row in early if row.get(metric) is not None]
        steps = "step 1" if len(early) == 1 else f"steps 1 to {len(early)}"
        many = f", about {in_each * len(early):.0f} groups" if in_each else ""
        measured = f"{100 * fmean(values):.1f}% ({steps}{many})" if values else "-"
        rows.append((label, f"{100 * share.rate:.1f}% [{100 * share.low:.1f}, {100 * share.high:.1f}]", measured))
    return rows


def tokens(run: Collected) -> dict[str, Counter[str]]:
    """Return the tokens that each stage generated, by turn; the cross table and the forecast are not counted."""
    by_stage = {
        "mining": Counter({"attempts": run.mined_tokens}),
        "training": run.group_tokens,
        "evaluation during training": Counter(all=sum(row["tokens"] for row in run.record.rows("validation"))),
        "evaluation, base": run.base.tokens,
        "evaluation, trained": run.trained.tokens,
        **{f"evaluation, {name}, greedy": counted.tokens for name, counted in run.greedy.items()},
    }
    return {stage: +counts for stage, counts in by_stage.items() if +counts}


def seconds(run: Collected) -> dict[str, dict[str, float]]:
    """Return the seconds of each stage; those of training by part."""
    spent = {_STAGES.get(stage, stage): duration for stage, duration in run.record.seconds().items()}
    by_stage: dict[str, dict[str, float]] = {stage: {stage: duration} for stage, duration in spent.items()}
    if "training" in by_stage:
        parts = {part: sum(row.get(f"seconds/{part}") or 0.0 for row in run.steps) for part in _PARTS}
        rest = max(0.0, spent["training"] - sum(parts.values()))
        by_stage["training"] = {**parts, "loading, saving, rest": rest}
    return by_stage


_PARTS = ("generation", "verification", "training")
_STAGES = {"mine": "mining", "train": "training", "evaluate": "evaluation"}


def _untouched(run: Collected) -> Config:
    """Return the configuration of a run that sets nothing but its task, model and preset."""
    chosen = {"task": run.config.task, "model": run.config.model, "preset": run.config.preset}
    given = {name: value for name, value in chosen.items() if value is not None}
    try:
        if run.task is not None:
            return configure(run.task, given)
    except ConfigError:
        pass
    return Config(task=run.config.task)


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for row in rows for name in row)
    found = {name: [row[name] for row in rows if isinstance(row.get(name), int | float)] for name in names}
    sums = {name: rows[-1][name] for name in ("step", GENERATED) if rows[-1].get(name) is not None}
    return {name: fmean(values) for name, values in found.items() if values} | sums


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in leaves(tree):
        yield key, sample.shown(_text(value))


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
