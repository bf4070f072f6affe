"""The transfer matrix: reflections by each of several trained models on the failures of each base model.

A row is the model that reflects: the base model itself, or the trained model of a run. A column is the failures of a
run's base model in its evaluation, which retries them too. The rows are recorded in a folder of its own, which resumes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from r3core.compare.comparison import letters
from r3core.config import Config, local_model
from r3core.console import visible
from r3core.episode import Episode
from r3core.errors import UsageError
from r3core.evaluation.arms import difference, fix_rate, rate
from r3core.evaluation.evaluate import reflected, retried, tally
from r3core.evaluation.outcomes import passed
from r3core.executor import Executor, Function, LocalExecutor, episodes_of, executor_of
from r3core.files import digest
from r3core.plugins.discovery import get_task
from r3core.plugins.engines import checked_engine, engine_of
from r3core.preflight import check_template, print_notes
from r3core.protocol import Protocol
from r3core.recorded import config_of, open_record
from r3core.runs import Run, each_value
from r3core.stats import Difference, Rate, holm
from r3core.task import Frozen, Task
from r3core.verification.judge import Judge

BASE = "base"
"""The row of each column's base model itself, whose reflections are sampled with the seeds of the other rows."""
_ROWS = "evaluate-base"
_NOT_RETRYING = ("train", "grpo", "lora", "evaluate", "mine", "uncertified")
"""Sections and keys of a configuration that change neither reflections nor retries."""


class Cell(Frozen):
    """Reflections by one model on the failures of one base model."""

    reflections: str
    """Who reflects: the name of a run, for its trained model, or `base` for the base model of the column."""
    failures: str
    """The name of the run whose base model failed, and retries."""
    fix: Rate
    """Retries that passed."""
    leaks: Rate
    """Reflections that contain the answer, of those that could be tested."""
    difference: Difference | None = None
    """`fix` minus that after the base model's reflections, on the same failures; None in the row of the base."""


class Member(Frozen):
    """A run of the matrix."""

    name: str
    """A letter, in the order in which the runs are named."""
    run: str
    task: str
    seed: int


class Matrix(Frozen):
    """What `r3 compare --matrix --json` prints."""

    members: list[Member]
    same_failures: dict[str, list[str]]
    """The name of each column, and the runs whose base model has exactly these failures."""
    cells: list[Cell]


class Source(NamedTuple):
    """A run with a trained model, and the failures of its base model."""

    name: str
    folder: Path
    config: Config
    task: Task
    base: str
    trained: Path
    failed: list[Episode]
    fingerprint: str
    """A hash of the failures, and of the settings by which they are reflected on and retried."""


def read_sources(folders: Sequence[Path]) -> list[Source]:
    """Return the runs of a matrix.

    Raises:
        UsageError: there are fewer than two runs, or one has no trained model, or no evaluation of its base model.
    """
    distinct = list({folder.resolve(): folder for folder in folders}.values())
    if len(distinct) < 2:
        raise UsageError("a transfer matrix requires at least two runs", "name several run directories")
    return [_read(folder, name=letters(index)) for index, folder in enumerate(distinct)]


def transfer_matrix(sources: Sequence[Source], run: Run) -> Matrix:
    """Return the matrix of some runs, after generating what is missing of its rows in `run`.

    All rows of a column are sampled with the same seeds: two models that do not differ have the same cells.
    """
    columns = _columns(sources)
    with ExitStack() as stack, run.clock("matrix") as tick:
        desk = _Desk(run, tick, stack)
        for column in columns:
            desk.check(column, [source.trained for source in sources])
        found: dict[tuple[str, str], list[Episode]] = {}
        rows: dict[str, Path | None] = {BASE: None, **{source.name: source.trained for source in sources}}
        for row, model in rows.items():  # each trained model is loaded once, then each base model
            for column in columns:
                found[row, column.name] = desk.reflections(row, column, model=str(model or column.base))
        for column in columns:
            for row in rows:
                found[row, column.name] = desk.retries(row, column, found[row, column.name])
    cells = [
        _cell(row, column.name, found[row, column.name], found[BASE, column.name]) for row in rows for column in columns
    ]
    members = [
        Member(name=one.name, run=str(one.folder), task=one.config.task, seed=one.config.seed) for one in sources
    ]
    same = {column.name: [one.name for one in sources if one.fingerprint == column.fingerprint] for column in columns}
    return Matrix(members=members, same_failures=same, cells=_adjusted(cells))


def identity(sources: Sequence[Source]) -> dict[str, JsonValue]:
    """Return what the rows of a matrix depend on: the runs, the failures of their base models, the trained models."""
    return {
        "matrix": [
            {
                "run": str(one.folder.resolve()),
                "failures": one.fingerprint,
                "model": _contents(one.trained),
                "config": one.config.record(),
            }
            for one in sources
        ]
    }


class _Desk:
    """Generates the reflections and the retries of a matrix; the executors of its columns share the model in memory."""

    def __init__(self, run: Run, tick: Callable[[], None], stack: ExitStack) -> None:
        self.run = run
        self.tick = tick
        self.stack = stack
        self._judges: dict[str, Judge] = {}
        self._executors: dict[str, Executor] = {}

    def check(self, column: Source, models: Sequence[Path]) -> None:
        """Raise an error, before any work, for a model whose chat template does not suit the column's task."""
        checked_engine(column.config)
        for model in models:
            notes = check_template(column.task, column.config.model_copy(update={"model": str(model)}))
            print_notes([f"{column.name}, {visible(str(model), longest=60)}: {note}" for note in notes])

    def reflections(self, row: str, column: Source, *, model: str) -> list[Episode]:
        """Return the column's failures with reflections by the model of a row."""
        function = partial(reflected, name="matrix-reflections")
        return self._stage("reflections", row, column, column.failed, model=model, function=function)

    def retries(self, row: str, column: Source, episodes: Sequence[Episode]) -> list[Episode]:
        """Return failures with retries by the column's base model, after the reflections of a row."""
        function = partial(retried, name="matrix-retries")
        return self._stage("retries", row, column, episodes, model=column.base, function=function)

    def _stage(
        self, what: str, row: str, column: Source, episodes: Sequence[Episode], *, model: str, function: Function
    ) -> list[Episode]:
        return episodes_of(
            self.run,
            self._executor(column),
            function,
            episodes,
            name=f"{what}-{row}-{column.name}",
            label=f"{what} {row} on {column.name}",
            unit="failures",
            model=model,
            size=column.config.batch_size,
            tally=tally({"leaks": _leaked} if what == "reflections" else {"fixed": _fixed}),
            tick=self.tick,
        )

    def _executor(self, column: Source) -> Executor:
        """Return an executor for a column; columns that load models alike share the model that is in memory."""
        judge = self._judges.setdefault(column.name, Judge(column.task, column.config.judge))
        self.stack.callback(judge.close)
        protocol = Protocol(column.task, judge, column.config)
        shared = self._executors.get(alike := _loading(column.config))
        if shared is None:
            shared = executor_of(engine_of(column.config), protocol, self.run)
            self.stack.callback(shared.close)
            self._executors[alike] = shared
        if isinstance(shared, LocalExecutor):
            return LocalExecutor(protocol, shared.generator)  # never closed: the model is that of `shared`
        return shared


def _read(folder: Path, *, name: str) -> Source:
    run, config = open_record(folder), config_of(folder)
    stored = run.read_json("config").get("trained")
    trained = Path(stored) if isinstance(stored, str) else folder / "model"
    finished = run.done("train") is not None or isinstance(stored, str)
    if not finished or not trained.is_dir():
        raise UsageError(f"`{folder}` has no trained model", f"finish it: r3 run --output-dir {folder}")
    episodes = list(each_value(Episode, run.rows(_ROWS), _ROWS))
    if run.done("evaluate") is None or not episodes:
        raise UsageError(f"`{folder}` has no evaluation of its base model", f"finish it: r3 eval --output-dir {folder}")
    task = get_task(config.task, **config.task_options)
    day = (run.read_json("template") or {}).get("date")
    base = local_model(config, task, done="trained")
    dated = config.model_copy(update={"model": base, "template_date": date.fromisoformat(day) if day else None})
    failed = [episode for episode in episodes if episode.failed]
    protocol = {key: value for key, value in config.record().items() if key not in _NOT_RETRYING}
    content = "\n".join(
        [
            config.evaluate.decoding,
            json.dumps(protocol, sort_keys=True),
            *(episode.model_dump_json(include={"example", "sample", "attempt"}) for episode in failed),
        ]
    )
    fingerprint = digest(content, length=16)
    return Source(name, folder, dated, task, base, trained.resolve(), failed, fingerprint)


def _columns(sources: Sequence[Source]) -> list[Source]:
    """Return the first run of each failure dataset: runs with one base model and one seed have the same failures."""
    found: dict[str, Source] = {}
    for one in sources:
        found.setdefault(one.fingerprint, one)
    return list(found.values())


def _loading(config: Config) -> str:
    """Return the settings on which it depends how a model is loaded and prompted."""
    names = ("engine", "engine_options", "dtype", "quantization", "trust_remote_code", "revision", "template")
    more = ("chat_template", "template_date", "history")
    loading = {name: getattr(config, name) for name in (*names, *more)}
    elsewhere = {} if engine_of(config).in_process else config.record()  # the actors of a cluster have a configuration
    return json.dumps(loading | elsewhere, sort_keys=True, default=str)


def _cell(row: str, column: str, episodes: Sequence[Episode], base: Sequence[Episode]) -> Cell:
    return Cell(
        reflections=row,
        failures=column,
        fix=fix_rate(episodes, "reflect"),
        leaks=rate((episode, _leaked(episode)) for episode in episodes),
        difference=None if row == BASE else difference(base, episodes, _fixed),
    )


def _adjusted(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells with the p-values of all differences adjusted together by Holm's method."""
    adjusted = iter(holm([cell.difference.p for cell in cells if cell.difference]))
    return [
        cell.model_copy(update={"difference": cell.difference.model_copy(update={"p_holm": next(adjusted)})})
        if cell.difference
        else cell
        for cell in cells
    ]


def _contents(model: Path) -> str:
    """Return a short hash of the weights of a model, by the sizes of the files and a part of each."""
    parts = []
    for file in sorted(model.glob("*.safetensors")):
        with file.open("rb") as opened:
            opened.seek(-min(file.stat().st_size, 1 << 16), 2)
            parts.append((file.name, file.stat().st_size, digest(opened.read(), length=16)))
    return digest(repr(parts), length=16)


def _fixed(episode: Episode) -> bool | None:
    return passed(episode.retries.get("reflect"))


def _leaked(episode: Episode) -> bool | None:
    return episode.reflection.leaked if episode.reflection else None
