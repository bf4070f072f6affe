"""The runs of a sweep: the configuration of each cell and seed, and what is checked before any work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from r3core.cli.arguments import configured_task
from r3core.cli.plan import check_plan
from r3core.cli.seeds import runs_of
from r3core.cli.series import MINING, explained
from r3core.cli.stages import check_training
from r3core.cli.sweep_file import Cell, Sweep, cells_of, seeds_of, settings_of, text_of
from r3core.console import visible
from r3core.errors import ConfigError, R3Error, UsageError
from r3core.settings import leaves

if TYPE_CHECKING:
    from r3core.config import Config
    from r3core.task import Task

_NOT_MINING = ("train", "grpo", "lora", "evaluate", "seed", "uncertified", "feedback", "wording", "history")
"""Sections and keys of a configuration on which mining does not depend."""


class Planned(NamedTuple):
    """A cell with its task and the configuration of each seed."""

    cell: Cell
    task: Task
    configs: dict[int, Config]


class Plan(NamedTuple):
    """All runs of a sweep."""

    folder: Path
    cells: list[Planned]
    mining: Config | None
    """With shared mining, the run that mines for all of them; it has the task of the first cell."""

    @property
    def runs(self) -> list[tuple[Planned, int, Config]]:
        """Every run, with its cell and its seed, in the order in which they are made."""
        return [(planned, seed, config) for planned in self.cells for seed, config in planned.configs.items()]


def planned_runs(sweep: Sweep, folder: Path) -> Plan:
    """Return all runs of a sweep.

    Raises:
        UsageError: a cell is not a valid configuration, two have equal settings, or they cannot share their mining.
    """
    if (folder / "config.json").exists():
        raise UsageError(
            f"`{folder}` is a run directory; a sweep creates its run directories in a folder", "name another"
        )
    seeds, cells = seeds_of(sweep), []
    for cell in cells_of(sweep):
        with explained(f"this is the cell {cell.name}: {visible(text_of(cell), longest=200)}"):
            task, config = _configured(cell, folder, seeds[0])
        cells.append(Planned(cell, task, runs_of(config, seeds, folder=folder / cell.name, share_mining=False).configs))
    _check_distinct(cells)
    if not sweep.share_mining:
        return Plan(folder, cells, None)
    _check_mining(cells)
    mining = _mining(sweep, cells, folder)
    shared = [
        one._replace(configs={seed: _training_on(config, mining.directory) for seed, config in one.configs.items()})
        for one in cells
    ]
    return Plan(folder, shared, mining)


def _mining(sweep: Sweep, cells: Sequence[Planned], folder: Path) -> Config:
    """Return the configuration that mines for all cells: that of `base`, if it mines as they do, else the first cell's.

    That of `base` stays the same when cells are added to the file or taken out of it.
    """
    first = next(iter(cells[0].configs.values()))
    try:
        base = _configured(Cell(MINING, {}, settings_of(sweep.base, "base")), folder, first.seed)[1]
    except R3Error:  # `base` alone has, for example, no task
        base = first
    found = base if _mining_settings(base) == _mining_settings(first) else first
    return found.model_copy(update={"output_dir": folder / MINING})


def _configured(cell: Cell, folder: Path, seed: int) -> tuple[Task, Config]:
    from r3core.config import chosen_preset, chosen_task, configure

    settings = cell.tree | {"seed": seed, "output_dir": folder / cell.name / f"seed-{seed}"}
    task = configured_task(*chosen_task(settings), preset=chosen_preset(settings))
    return task, configure(task, settings)


def _training_on(config: Config, failures: Path) -> Config:
    return config.model_copy(update={"mine": config.mine.model_copy(update={"failures": failures})})


def _check_distinct(cells: Sequence[Planned]) -> None:
    """Raise ConfigError when two cells have the same settings; a default that is written out is no difference."""
    seen: dict[str, str] = {}
    for planned in cells:
        record = next(iter(planned.configs.values())).record()
        key, name = json.dumps(record, sort_keys=True), planned.cell.name
        if key in seen:
            raise ConfigError(
                f"the cells `{seen[key]}` and `{name}` have the same settings", "leave one of them out of the sweep"
            )
        seen[key] = name


def _check_mining(cells: Sequence[Planned]) -> None:
    """Raise ConfigError when the cells cannot train on the same failures."""
    first = dict(leaves(_mining_settings(next(iter(cells[0].configs.values())))))
    for planned in cells:
        config = next(iter(planned.configs.values()))
        if config.mine.failures is not None:
            raise ConfigError(
                f"`share_mining` cannot be combined with the failure dataset `{config.mine.failures}`",
                "leave share_mining out: the runs train on that dataset",
            )
        other = dict(leaves(_mining_settings(config)))
        if changed := sorted(key for key in first | other if first.get(key) != other.get(key)):
            raise ConfigError(
                f"the cells `{cells[0].cell.name}` and `{planned.cell.name}` cannot share their mining, which depends "
                f"on `{changed[0]}`",
                "leave share_mining out: each run then mines for itself",
            )


def _mining_settings(config: Config) -> dict[str, Any]:
    record = config.record()
    sampling = {"attempt": record["sampling"]["attempt"]}
    return {key: value for key, value in record.items() if key not in _NOT_MINING} | {"sampling": sampling}


def check_runs(plan: Plan) -> None:
    """Raise an error if a run cannot start, before the first one does; seeds differ in nothing that is checked."""
    for planned in plan.cells:
        config = next(iter(planned.configs.values()))
        before = config if plan.mining is None else config.model_copy(update={"mine": plan.mining.mine})
        with explained(f"this is the cell {planned.cell.name}"):
            check_training(planned.task, before)
            check_plan(planned.task, before)
