"""Several runs that differ in their random seed alone, one after the other, and one table over all of them."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from r3core.cli.arguments import Arguments
from r3core.cli.plan import print_plan
from r3core.cli.series import MINING, destination, explained, mine_once, progress_of, run_one
from r3core.cli.stages import check_machine, check_training
from r3core.errors import UsageError

if TYPE_CHECKING:
    from r3core.config import Config
    from r3core.task import Task

MAX_SEEDS = 100
"""Maximum number of seeds; more are a mistyped range."""
_SEEDS = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_RESUME = "run the same command to resume: finished seeds are not run again"


class Runs(NamedTuple):
    """The runs of one command."""

    configs: dict[int, Config]
    """The configuration of each seed, in the order of the runs."""
    mining: Config | None
    """With `--share-mining`, the run that mines for all of them: only its first stage is carried out."""

    @property
    def failures(self) -> str | None:
        """The run directory or failure dataset on whose failures all seeds train; None if each seed mines."""
        found = next(iter(self.configs.values())).mine.failures
        return str(found) if found else None


def run_seeds(arguments: Arguments) -> None:
    """Make one run per seed, one after the other; print a table over all seeds, or one JSON object.

    The same command resumes: finished seeds are not run again.
    """
    seeds = _seeds_of(arguments)
    task, config, folder = _resolve(arguments, first=seeds[0])
    runs = runs_of(config, seeds, folder=folder, share_mining=arguments.share_mining)
    for one in [runs.mining] if runs.mining else runs.configs.values():
        check_training(task, one)
    if arguments.dry_run:
        return _print_plan(task, runs)
    unfinished = [one for one in runs.configs.values() if progress_of(one) != "finished"]
    for one in unfinished[:1]:  # they differ in their seed alone
        check_machine(task, one)
    to = destination(as_json=arguments.as_json)
    if runs.mining is not None and unfinished:
        with explained("this was the mining for all seeds", _RESUME):
            mine_once(task, runs.mining, title="mining for all seeds", to=to)
    results: dict[str, Any] = {}
    for number, (seed, one) in enumerate(runs.configs.items(), start=1):
        with explained(_place(seed, seeds), _RESUME):
            title = f"seed {seed} ({number} of {len(seeds)})"
            results[str(seed)] = run_one(task, one, title=title, to=to)
    _finish(runs, results, folder=folder, as_json=arguments.as_json)


def parse_seeds(text: str, *, key: str = "--seeds") -> list[int]:
    """Return the seeds in a list of seeds and ranges, in its order; `key` is where it was given.

    Raises:
        UsageError: it is not such a list, or a seed occurs twice.

    >>> parse_seeds("0-2,7")
    [0, 1, 2, 7]
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = _SEEDS.fullmatch(part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise UsageError(
                f"`{key}` cannot be {text!r}: {part.strip()!r} is not a seed or a range of seeds",
                "give seeds of 0 or greater, such as 0,1,2, or a range with the smaller one first, such as 0-4",
            )
        if last - first >= MAX_SEEDS or len(seeds) + last - first >= MAX_SEEDS:
            raise UsageError(f"`{key}` cannot be {text!r}: these are more than {MAX_SEEDS} seeds")
        seeds += range(first, last + 1)
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        listed = ", ".join(map(str, twice))
        raise UsageError(
            f"`{key}` cannot be {text!r}: given more than once: {listed}", "a seed gives one run: give each once"
        )
    return seeds


def runs_of(config: Config, seeds: list[int], *, folder: Path | None, share_mining: bool) -> Runs:
    """Return the configurations of the runs, which differ in nothing but the seed.

    The run directories are `seed-0`, `seed-1`, ... in `folder`, and that of shared mining is `mining`; without a folder
    each has the name of its configuration.
    """

    def placed(seed: int, name: str, failures: Path | None) -> Config:
        mine = config.mine.model_copy(update={"failures": failures})
        place = folder / name if folder else None
        return config.model_copy(update={"seed": seed, "output_dir": place, "mine": mine})

    mining = placed(seeds[0], MINING, None) if share_mining else None
    failures = mining.directory if mining else config.mine.failures
    return Runs({seed: placed(seed, f"seed-{seed}", failures) for seed in seeds}, mining)


def _seeds_of(arguments: Arguments) -> list[int]:
    """Return the seeds; UsageError where another argument contradicts them."""
    if arguments.seeds is None:
        raise UsageError("`--share-mining` requires several seeds", "give them with --seeds, such as --seeds 0,1,2")
    single = "--seed" if "seed" in arguments.flags else "--set seed"
    if "seed" in arguments.flags or any(given.partition("=")[0].strip() == "seed" for given in arguments.overrides):
        raise UsageError(
            f"`--seeds` and `{single}` cannot be combined", f"leave {single} out, or add its seed to --seeds"
        )
    seeds = parse_seeds(arguments.seeds)
    if len(seeds) == 1:
        raise UsageError(
            f"`--seeds` cannot be {arguments.seeds!r}: a table over seeds requires at least two",
            f"for one run use --seed {seeds[0]}",
        )
    return seeds


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
    if arguments.share_mining and config.mine.failures not in (None, named / MINING if named else None):
        raise UsageError(
            f"`--share-mining` cannot be combined with the failure dataset `{config.mine.failures}`",
            "leave --share-mining out: all seeds train on that dataset",
        )
    return task, config, folder


def _place(seed: int, seeds: list[int]) -> str:
    """Return which of the seeds one is, and which are finished before it."""
    before = ", ".join(map(str, seeds[: seeds.index(seed)]))
    return f"this was seed {seed} of {', '.join(map(str, seeds))}" + (f"; finished: {before}" if before else "")


def _finish(runs: Runs, results: dict[str, Any], *, folder: Path | None, as_json: bool) -> None:
    """Print the table over all seeds, and name the page of all runs."""
    from r3core.compare import compare_runs, print_comparison
    from r3core.page import PAGE, write_page

    folders = [config.directory for config in runs.configs.values()]
    comparison = compare_runs(folders)
    if as_json:
        pooled = comparison.model_dump(mode="json")
        typer.echo(json.dumps({"seeds": results, "shared_failures": runs.failures, "pooled": pooled}, indent=2))
    else:
        print_comparison(comparison, sys.stdout)
    if folder is not None:
        typer.echo(f"page: {write_page(folders, folder / PAGE)}", err=True)


def _print_plan(task: Task, runs: Runs) -> None:
    """Print the plan of the first seed, and what the others have of their own."""
    print_plan(task, next(iter(runs.configs.values())))
    typer.echo(f"\nseeds: {len(runs.configs)} runs with this plan, one after the other, each with its own seed")
    for seed, config in runs.configs.items():
        typer.echo(f"  seed {seed}: {config.directory} ({progress_of(config)})")
    if runs.mining is not None:
        typer.echo(f"mining: once for all seeds, with seed {runs.mining.seed}, in {runs.mining.directory}")
    elif runs.failures is None:
        typer.echo("mining: each seed mines for itself")
