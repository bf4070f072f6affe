"""Several runs that differ in their random seed alone, one after the other, and one table over all of them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

from r3core.cli.arguments import Arguments
from r3core.cli.plan import print_plan
from r3core.cli.stages import check_machine, check_training, open_pipeline, run_stages
from r3core.errors import R3Error, UsageError

if TYPE_CHECKING:
    from r3core.config import Config
    from r3core.evaluate import Result
    from r3core.task import Task

MAX_SEEDS = 100
"""Maximum number of seeds; more are a mistyped range."""
_SEEDS = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_ROWS = ("first try", "second try", "fix rate")
"""The rows of the result table that are printed for each seed."""


def run_seeds(arguments: Arguments) -> None:
    """Make one run per seed, one after the other; print a table over all seeds, or one JSON object.

    The same command resumes: finished seeds are not run again.
    """
    seeds = _seeds_of(arguments)
    task, config, folder = _resolve(arguments, first=seeds[0])
    configs = configs_of(config, seeds, folder=folder, share_mining=arguments.share_mining)
    for one in configs.values():
        check_training(task, one)
    if arguments.dry_run:
        return _print_plan(task, configs)
    for one in configs.values():
        check_machine(one)
    to = sys.stderr if arguments.as_json else sys.stdout
    results: dict[str, Any] = {}
    for seed, one in configs.items():
        with _explained(seed, seeds):
            results[str(seed)] = _run(task, one, number=len(results) + 1, total=len(seeds), to=to)
    _finish(configs, results, folder=folder, as_json=arguments.as_json)


def parse_seeds(text: str) -> list[int]:
    """Return the seeds in a list of seeds and ranges, in its order.

    Raises:
        UsageError: it is not such a list, or a seed occurs twice, or there are fewer than two.

    >>> parse_seeds("0-2,7")
    [0, 1, 2, 7]
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = _SEEDS.fullmatch(part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise UsageError(
                f"`--seeds` cannot be {text!r}: {part.strip()!r} is not a seed or a range of seeds",
                "give seeds of 0 or greater, such as 0,1,2, or a range with the smaller one first, such as 0-4",
            )
        if last - first >= MAX_SEEDS or len(seeds) + last - first >= MAX_SEEDS:
            raise UsageError(f"`--seeds` cannot be {text!r}: these are more than {MAX_SEEDS} seeds")
        seeds += range(first, last + 1)
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        listed = ", ".join(map(str, twice))
        raise UsageError(
            f"`--seeds` cannot be {text!r}: given more than once: {listed}", "a seed gives one run: give each once"
        )
    if len(seeds) == 1:
        raise UsageError(
            f"`--seeds` cannot be {text!r}: a table over seeds requires at least two",
            f"for one run use --seed {seeds[0]}",
        )
    return seeds


def configs_of(config: Config, seeds: list[int], *, folder: Path | None, share_mining: bool) -> dict[int, Config]:
    """Return the configuration of each seed, in their order.

    The run directories are `seed-0`, `seed-1`, ... in `folder`; without one, each has the name of its configuration.
    With `share_mining`, the failure dataset of the others is that of the first.
    """
    configs: dict[int, Config] = {}
    for seed in seeds:
        changes: dict[str, Any] = {"seed": seed, "output_dir": folder / f"seed-{seed}" if folder else None}
        if share_mining and configs:
            changes["mine"] = config.mine.model_copy(update={"failures": configs[seeds[0]].directory})
        configs[seed] = config.model_copy(update=changes)
    return configs


def _seeds_of(arguments: Arguments) -> list[int]:
    """Return the seeds; UsageError where another argument contradicts them."""
    if arguments.seeds is None:
        raise UsageError("`--share-mining` requires several seeds", "give them with --seeds, such as --seeds 0,1,2")
    single = "--seed" if "seed" in arguments.flags else "--set seed"
    if "seed" in arguments.flags or any(given.partition("=")[0].strip() == "seed" for given in arguments.overrides):
        raise UsageError(
            f"`--seeds` and `{single}` cannot be combined", f"leave {single} out, or add its seed to --seeds"
        )
    return parse_seeds(arguments.seeds)


def _resolve(arguments: Arguments, *, first: int) -> tuple[Task, Config, Path | None]:
    """Return the task, the configuration of the first seed, and the folder of the run directories, None for `runs`.

    With only that folder given, they are those of the first seed's run in it.
    """
    named: Path | None = arguments.flags.get("output_dir")
    flags = dict(arguments.flags) | ({"output_dir": named / f"seed-{first}"} if named else {})
    task, config = replace(arguments, flags=flags).resolve()
    folder = named or config.output_dir
    if folder is not None and (folder / "config.json").exists():
        raise UsageError(
            f"`{folder}` is a run directory; with --seeds, the directories of the runs are created in --output-dir",
            "name another folder, or leave --output-dir out",
        )
    if arguments.share_mining and config.mine.failures is not None:
        raise UsageError(
            f"`--share-mining` cannot be combined with the failure dataset `{config.mine.failures}`",
            "leave --share-mining out: all seeds train on that dataset",
        )
    return task, config, folder


@contextmanager
def _explained(seed: int, seeds: list[int]) -> Iterator[None]:
    """Add to an error which seed has failed, and how to resume."""
    before = ", ".join(map(str, seeds[: seeds.index(seed)]))
    finished = f"; finished: {before}" if before else ""
    where = f"this was seed {seed} of {', '.join(map(str, seeds))}{finished}"
    resume = "run the same command to resume: finished seeds are not run again"
    try:
        yield
    except R3Error as error:
        error.hints = (*error.hints, where, resume)
        raise
    except Exception as error:
        error.add_note(f"{where}\n{resume}")
        raise


def _run(task: Task, config: Config, *, number: int, total: int, to: TextIO) -> dict[str, Any]:
    """Make the run of one seed, or resume it, and print its table; return its result as a JSON value."""
    from r3core.page import PAGE, write_page
    from r3core.report import as_json
    from r3core.training.trackers import end_runs

    finished = " is finished" if _progress(config) == "finished" else ""
    print(f"seed {config.seed} ({number} of {total}){finished}: {config.directory}", file=to, flush=True)
    try:
        with open_pipeline(task, config) as pipeline:
            result = run_stages(pipeline)
            _print_short(result, pipeline.config, to)
            write_page([config.directory], config.directory / PAGE)
            return {"directory": str(config.directory)} | as_json(result, pipeline.run)
    finally:
        end_runs()


def _print_short(result: Result, config: Config, to: TextIO) -> None:
    """Print the first rows of a run's table, and the names of what stands out in it."""
    from r3core.explain import diagnose
    from r3core.report import HEADINGS, rows
    from r3core.runs import RunRecord

    lines = [HEADINGS, *(row for row in rows(result) if row[0] in _ROWS)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  " + "  ".join(cells).rstrip(), file=to)
    if names := ", ".join(found.name for found in diagnose(RunRecord(config.directory), config)):
        print(f"  what stands out: {names} (`r3 explain {config.directory}`)", file=to)
    print(file=to)


def _finish(configs: Mapping[int, Config], results: dict[str, Any], *, folder: Path | None, as_json: bool) -> None:
    """Print the table over all seeds, and name the page of all runs."""
    from r3core.compare import compare, print_comparison
    from r3core.page import PAGE, write_page

    folders = [config.directory for config in configs.values()]
    comparison = compare(folders)
    shared = _shared_failures(configs)
    if as_json:
        pooled = comparison.model_dump(mode="json")
        typer.echo(json.dumps({"seeds": results, "shared_failures": shared, "pooled": pooled}, indent=2))
    else:
        print_comparison(comparison, sys.stdout)
    if shared is not None:
        typer.echo(
            f"note: all seeds trained on the failures in {shared}: the interval over seeds does not count what other "
            "failures would change",
            err=as_json,
        )
    if folder is not None:
        typer.echo(f"page: {write_page(folders, folder / PAGE)}", err=True)
    typer.echo(f"all seeds on one page: r3 view {' '.join(map(str, folders))}", err=True)


def _print_plan(task: Task, configs: Mapping[int, Config]) -> None:
    """Print the plan of the first seed, and what the others have of their own."""
    print_plan(task, next(iter(configs.values())))
    typer.echo(f"\nseeds: {len(configs)} runs with this plan, one after the other, each with its own seed")
    for seed, config in configs.items():
        typer.echo(f"  seed {seed}: {config.directory} ({_progress(config)})")
    shared = _shared_failures(configs)
    typer.echo(f"mining: {f'all seeds train on the failures in {shared}' if shared else 'each seed mines for itself'}")


def _shared_failures(configs: Mapping[int, Config]) -> str | None:
    """Return the failure dataset or run directory on whose failures all seeds train; None if each seed mines."""
    *_, last = configs.values()
    return str(last.mine.failures) if last.mine.failures else None


def _progress(config: Config) -> str:
    """Return how far the run of a configuration has come."""
    from r3core.runs import RunRecord

    run = RunRecord(config.directory)
    if run.done("train") is not None and (run.done("evaluate") or {}).get("trained"):
        return "finished"
    return "to be resumed" if run.read_json("config") is not None else "not started"
