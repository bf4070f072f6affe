"""The command `r3 explain`: why a run did not learn, from what it has recorded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from r3core.cli.arguments import Json


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(explain)


def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, finished or not.")],
    as_json: Json = False,
) -> None:
    """Print why a run did not learn, and which setting to change.

    The findings come from recorded figures alone: no model is loaded, and nothing is written.
    """
    from r3core.explain import explain as explanation_of
    from r3core.explain import print_explanation
    from r3core.recorded import config_of, open_record

    explanation = explanation_of(open_record(run), config_of(run))
    if as_json:
        typer.echo(json.dumps({"run": str(run)} | explanation.model_dump(mode="json"), indent=2, ensure_ascii=False))
    else:
        print_explanation(explanation, sys.stdout)
