"""The runs of a sweep, one after the other, and the comparison at their end."""

from __future__ import annotations

import json
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import typer

from r3core.cli.compare_command import as_csv
from r3core.cli.plan import print_plan
from r3core.cli.series import destination, explained, mine_once, progress_of, run_one
from r3core.cli.stages import check_machine
from r3core.cli.sweep_file import read_sweep, text_of
from r3core.cli.sweep_plan import Plan, Planned, check_runs, planned_runs
from r3core.console import visible
from r3core.errors import R3Error, one_line
from r3core.files import atomic_write

if TYPE_CHECKING:
    from r3core.compare import Comparison
    from r3core.config import Config

_RESUME = "run the same command to resume: finished runs are not repeated"
_BASE = "evaluate-base"
"""What the names of the files with the base model's episodes begin with."""
_TRAINING = ("mine", "train", "grpo", "lora")
_TRAINED_ALONE = ("cross", "also", "every", "every_limit")
"""Sections, and keys of `evaluate`, on which the evaluation of the base model does not depend."""
_PROBLEMS = ("task", "evaluate.split", "evaluate.order", "evaluate.limit")
"""Beginnings of the keys that decide which problems are evaluated: runs are compared where these are equal."""


class Outcome(NamedTuple):
    """What became of a run."""

    cell: str
    seed: int
    directory: Path
    error: str | None
    """Why it failed; None for a finished run."""


def run_sweep(file: Path, folder: Path, *, share_mining: bool, dry_run: bool, as_json: bool) -> bool:
    """Make the runs of a sweep's file in a folder, and print their comparison; return whether all of them finished.

    Raises:
        UsageError: the file is no sweep, or one of its cells is not valid; then nothing is written.
    """
    read = read_sweep(file)
    plan = planned_runs(read.model_copy(update={"share_mining": share_mining or read.share_mining}), folder)
    check_runs(plan)
    if dry_run:
        _print_plan(plan, as_json=as_json)
        return True
    outcomes = _run_all(plan, to=destination(as_json=as_json))
    _finish(plan, outcomes, as_json=as_json)
    return all(one.error is None for one in outcomes)


def _run_all(plan: Plan, *, to: TextIO) -> list[Outcome]:
    """Make all runs that are not finished, and return what became of each."""
    unfinished = [(planned, config) for planned, _, config in plan.runs if progress_of(config) != "finished"]
    for planned, config in {planned.cell.name: (planned, config) for planned, config in unfinished}.values():
        with explained(f"this is the cell {planned.cell.name}"):
            check_machine(planned.task, config)
    if plan.mining is not None and unfinished:
        with explained("this was the mining for all runs", _RESUME):
            mine_once(plan.cells[0].task, plan.mining, title="mining for all runs", to=to)
    return [
        _outcome(plan, planned, seed, config, place=f"run {number} of {len(plan.runs)}", to=to)
        for number, (planned, seed, config) in enumerate(plan.runs, start=1)
    ]


def _outcome(plan: Plan, planned: Planned, seed: int, config: Config, *, place: str, to: TextIO) -> Outcome:
    """Make one run, and return what became of it: no error of a run stops the others."""
    error = None
    try:
        if (other := _copy_base(plan, config)) is not None:
            print(f"the base model was evaluated in {other}", file=to, flush=True)
        run_one(planned.task, config, title=f"{planned.cell.name}, seed {seed} ({place})", to=to)
    except R3Error as failed:
        error = one_line(failed, first=True)
        print(f"error: {failed}\n", file=sys.stderr, flush=True)
    except Exception as failed:
        error = f"{type(failed).__name__}: {one_line(failed, first=True)}"
        traceback.print_exc()
    return Outcome(planned.cell.name, seed, config.directory, error)


def _copy_base(plan: Plan, config: Config) -> Path | None:
    """Copy the episodes of the base model from a finished run that differs in training only; return that run.

    The same model, problems and random seeds: the run would make the same episodes again.
    """
    if (config.directory / f"{_BASE}.jsonl").exists():
        return None
    settings = _base_settings(config)
    for _, _, other in plan.runs:
        if _base_settings(other) == settings and progress_of(other) == "finished":
            for source in sorted(other.directory.glob(f"{_BASE}*.jsonl"), reverse=True):  # the sampled ones last
                atomic_write(config.directory / source.name, source.read_bytes())
            return other.directory
    return None


def _base_settings(config: Config) -> dict[str, Any]:
    """Return the settings on which the episodes of the base model depend."""
    record = config.record()
    evaluate = {key: value for key, value in record["evaluate"].items() if key not in _TRAINED_ALONE}
    return {key: value for key, value in record.items() if key not in _TRAINING} | {"evaluate": evaluate}


def _finish(plan: Plan, outcomes: Sequence[Outcome], *, as_json: bool) -> None:
    """Print the tables and what has failed, and write them into the folder of the sweep."""
    from r3core.compare import print_comparison, rows_of_csv

    finished = {one.directory for one in outcomes if one.error is None}
    compared = dict(_comparisons(plan, finished))
    for name, comparison in compared.items():
        atomic_write(plan.folder / f"{name}.csv", as_csv(rows_of_csv(comparison)))
        if not as_json:
            print_comparison(comparison, sys.stdout)
    written = json.dumps(_as_json(plan, outcomes, list(compared.values())), indent=2, ensure_ascii=False)
    atomic_write(plan.folder / "compare.json", written + "\n")
    if as_json:
        typer.echo(written)
    failed = [one for one in outcomes if one.error is not None]
    for one in failed:
        typer.echo(f"failed: {one.cell}, seed {one.seed}: {visible(one.error or '', longest=300)}", err=True)
    if failed:
        typer.echo(f"{len(failed)} of {len(outcomes)} runs failed; {_RESUME}", err=True)
    files = ", ".join([*(f"{name}.csv" for name in compared), "compare.json"])
    typer.echo(f"written to {plan.folder}: {files}", err=True)


def _comparisons(plan: Plan, finished: set[Path]) -> Iterator[tuple[str, Comparison]]:
    """Yield a comparison of the finished runs, one for each set of problems, with a name for its files."""
    from r3core.compare import compare_runs

    sets: dict[str, list[Path]] = {}
    names: dict[str, str] = {}
    for _, _, config in plan.runs:
        if config.directory in finished:
            key = json.dumps(_problems(config), sort_keys=True)
            sets.setdefault(key, []).append(config.directory)
            names.setdefault(key, f"compare-{len(names) + 1}" if names else "compare")
    for key, folders in sets.items():
        yield names[key], compare_runs(folders)


def _problems(config: Config) -> dict[str, Any]:
    """Return the values of the keys that decide which problems are evaluated."""
    from r3core.settings import leaves

    found = {"task": config.task, "task_options": config.task_options, "evaluate": config.evaluate.model_dump()}
    return {key: value for key, value in leaves(found) if key.startswith(_PROBLEMS)}


def _as_json(plan: Plan, outcomes: Sequence[Outcome], comparisons: Sequence[Comparison]) -> dict[str, Any]:
    errors = {one.directory: one.error for one in outcomes}
    cells = {
        planned.cell.name: {
            "settings": planned.cell.settings,
            "runs": [
                {"seed": seed, "directory": str(config.directory), "state": progress_of(config)}
                | {"error": errors.get(config.directory)}
                for seed, config in planned.configs.items()
            ],
        }
        for planned in plan.cells
    }
    return {
        "folder": str(plan.folder),
        "shared_failures": str(plan.mining.directory) if plan.mining else None,
        "cells": cells,
        "comparisons": [one.model_dump(mode="json") for one in comparisons],
    }


def _print_plan(plan: Plan, *, as_json: bool) -> None:
    """Print the plan of the first run, and what the others have of their own."""
    if as_json:
        typer.echo(json.dumps(_as_json(plan, [], []), indent=2, ensure_ascii=False))
        return
    first = plan.cells[0]
    print_plan(first.task, next(iter(first.configs.values())))
    typer.echo(f"\nsweep: {len(plan.runs)} runs, one after the other; the plan above is that of the first cell")
    for planned in plan.cells:
        counts = Counter(progress_of(config) for config in planned.configs.values())
        progress = ", ".join(f"{count} {state}" for state, count in counts.items())
        seeds = ", ".join(map(str, planned.configs))
        typer.echo(f"  {planned.cell.name}, seed {seeds}: {visible(text_of(planned.cell), longest=200)} ({progress})")
    typer.echo(f"run directories: {plan.folder}/CELL/seed-SEED")
    if plan.mining is not None:
        typer.echo(f"mining: once for all runs, with seed {plan.mining.seed}, in {plan.mining.directory}")
    else:
        typer.echo("mining: each run mines for itself")
