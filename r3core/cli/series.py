"""Several runs, one after the other: mining for all of them, each single run, and how to resume."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from r3core.cli.stages import open_pipeline, run_stages
from r3core.errors import R3Error

if TYPE_CHECKING:
    from r3core.config import Config
    from r3core.evaluation.result import Result
    from r3core.task import Task

MINING = "mining"
"""The run directory of shared mining, beside those of the runs that train on its failures."""
_ROWS = ("first try", "second try", "fix rate")
"""The rows of the result table that are printed for each run."""


@contextmanager
def explained(*hints: str) -> Iterator[None]:
    """Add hints to an error: in which run it happened, and how to resume."""
    try:
        yield
    except R3Error as error:
        error.hints = (*error.hints, *hints)
        raise
    except Exception as error:
        error.add_note("\n".join(hints))
        raise


def progress_of(config: Config) -> str:
    """Return how far the run of a configuration has come: `finished`, `to be resumed` or `not started`."""
    from r3core.runs import RunRecord

    run = RunRecord(config.directory)
    if run.done("train") is not None and (run.done("evaluate") or {}).get("trained"):
        return "finished"
    return "to be resumed" if run.read_json("config") is not None else "not started"


def destination(*, as_json: bool) -> TextIO:
    """Return where the tables of the single runs are printed: with `--json`, standard output is for the JSON object."""
    return sys.stderr if as_json else sys.stdout


def mine_once(task: Task, config: Config, *, title: str, to: TextIO) -> None:
    """Mine the failures on which several runs train, or finish an interrupted mining."""
    print(f"{title}, with seed {config.seed}: {config.directory}\n", file=to, flush=True)
    with open_pipeline(task, config) as pipeline:
        if pipeline.run.done("mine") is None:
            pipeline.certify()
            pipeline.check_model()
        pipeline.mine()


def run_one(task: Task, config: Config, *, title: str, to: TextIO) -> dict[str, Any]:
    """Make one run, or resume it, and print the first rows of its table; return its result as a JSON value."""
    from r3core.page import PAGE, write_page
    from r3core.report import as_json
    from r3core.training.trackers import end_runs

    finished = progress_of(config) == "finished"
    print(f"{title}{' is finished' if finished else ''}: {config.directory}", file=to, flush=True)
    page = config.directory / PAGE
    try:
        with open_pipeline(task, config) as pipeline:
            result = run_stages(pipeline)
            _print_short(result, pipeline.config, to)
            if not finished or not page.exists():
                write_page([config.directory], page)
            return {"directory": str(config.directory)} | as_json(result, pipeline.run)
    finally:
        end_runs()


def _print_short(result: Result, config: Config, to: TextIO) -> None:
    """Print the first rows of a run's table, and the names of what stands out in it."""
    from r3core.evaluation.tables import HEADINGS, rows
    from r3core.explain import diagnose
    from r3core.runs import RunRecord

    lines = [HEADINGS, *(row for row in rows(result) if row[0] in _ROWS)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  " + "  ".join(cells).rstrip(), file=to)
    if names := ", ".join(found.name for found in diagnose(RunRecord(config.directory), config)):
        print(f"  what stands out: {names} (`r3 explain {config.directory}`)", file=to)
    print(file=to)
