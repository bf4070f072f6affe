"""The command `r3 compare`: runs side by side, with training seeds pooled."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from r3core.cli.arguments import Json


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
) -> None:
    """Compare runs on the same problems: training seeds pooled, settings side by side.

    Runs that differ in nothing but the seed are one training, repeated: their rates are averaged, with intervals that
    count problems and training seeds. Other runs are compared with the first one. Nothing is written to the runs; `r3
    view RUN...` makes a page of the same runs.
    """
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


def as_csv(rows: Sequence[Sequence[object]]) -> str:
    """Return rows as the text of a CSV file."""
    import csv
    import io

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
