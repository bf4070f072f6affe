"""The command `r3 compare`: runs side by side, with training seeds pooled."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from r3core.cli.arguments import Json, Quiet, interruptible
from r3core.errors import UsageError
from r3core.progress import quiet as silenced


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(compare)


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories with a result.")],
    as_json: Json = False,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write every figure to this CSV file.")] = None,
    latex: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the tables to this file, for LaTeX with booktabs.")
    ] = None,
    matrix: Annotated[
        bool,
        typer.Option("--matrix", help="Generate the transfer matrix: reflections by each run on each run's failures."),
    ] = False,
    output_dir: Annotated[
        Path | None, typer.Option(help="With --matrix: folder of its rows; default: runs/matrix-HASH.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Compare runs on the same problems: training seeds pooled, settings side by side.

    Runs that differ in nothing but the seed are one training, repeated: their rates are averaged, with intervals that
    count problems and training seeds. Other runs are compared with the first one. Nothing is written to the runs; `r3
    view RUN...` makes a page of the same runs.

    With --matrix, the trained model of each run reflects on the failures of each run's base model, which retries. Run
    the same command to resume.
    """
    if matrix:
        if latex is not None:
            raise UsageError("`--latex` cannot be combined with `--matrix`", "use --csv or --json")
        with interruptible(), silenced(quiet):
            return _matrix(runs, output_dir, as_json=as_json, csv=csv)
    if output_dir is not None:
        raise UsageError("`--output-dir` requires `--matrix`: a comparison writes nothing to a folder", "use --csv")
    from r3core.compare import compare_runs, latex_of, print_comparison, rows_of_csv
    from r3core.files import atomic_write

    comparison = compare_runs(runs)
    if csv is not None:
        atomic_write(csv, as_csv(rows_of_csv(comparison)))
    if latex is not None:
        atomic_write(latex, latex_of(comparison))
    if as_json:
        typer.echo(json.dumps(comparison.model_dump(mode="json"), indent=2, ensure_ascii=False))
    else:
        print_comparison(comparison, sys.stdout)
    for file in (csv, latex):
        if file is not None:
            typer.echo(f"written: {file}", err=True)


def _matrix(runs: Sequence[Path], folder: Path | None, *, as_json: bool, csv: Path | None) -> None:
    """Generate the rows of a transfer matrix, or resume, and print it; it is also written to its folder."""
    from r3core.compare.matrix import identity, read_sources, transfer_matrix
    from r3core.compare.matrix_tables import print_matrix, rows_of_matrix
    from r3core.console import quiet_libraries
    from r3core.files import atomic_write, digest
    from r3core.runs import Run

    quiet_libraries()
    sources = read_sources(runs)
    record = identity(sources)
    folder = folder or Path("runs") / f"matrix-{digest(json.dumps(record, sort_keys=True), length=8)}"
    with Run.open(folder, record) as run:
        found = transfer_matrix(sources, run)
        run.write_json("matrix", found)
    for file in (folder / "matrix.csv", csv):
        if file is not None:
            atomic_write(file, as_csv(rows_of_matrix(found)))
            typer.echo(f"written: {file}", err=True)
    if as_json:
        typer.echo(json.dumps(found.model_dump(mode="json"), indent=2, ensure_ascii=False))
    else:
        print_matrix(found, sys.stdout)


def as_csv(rows: Sequence[Sequence[object]]) -> str:
    """Return rows as the text of a CSV file."""
    import csv
    import io

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
