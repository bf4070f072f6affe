"""The command `r3 sweep`: a small grid of settings with several seeds, and one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r3core.cli.arguments import DryRun, Json, Quiet, interruptible
from r3core.progress import quiet as silenced


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(sweep)


def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file with base, grid, runs and seeds.")],
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder of the run directories; default: runs/sweep-NAME, for NAME.yaml.")
    ] = None,
    share_mining: Annotated[
        bool, typer.Option("--share-mining", help="Mine once, with the first seed: all runs train on these failures.")
    ] = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a grid of settings with several seeds, and compare them.

    The runs are made one after the other, each in a directory of its own. Run the same command to resume: finished runs
    are not repeated. A run that fails is reported, and the others continue; the exit code is then 1. The table at the
    end is that of `r3 compare`: a group for each setting, seeds pooled.
    """
    from r3core.cli.sweep_runs import run_sweep

    with interruptible(), silenced(quiet):
        folder = output_dir or Path("runs") / f"sweep-{file.stem}"
        if not run_sweep(file, folder, share_mining=share_mining, dry_run=dry_run, as_json=as_json):
            raise typer.Exit(1)
