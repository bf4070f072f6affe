"""The command line `r3`.

Commands import slow libraries inside their functions, so that `r3 --help` and `r3 tasks` stay fast.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from r3core.cli import (
    compare_command,
    explain_commands,
    run_commands,
    show_command,
    sweep_command,
    task_commands,
    tasks_command,
    view_command,
)
from r3core.console import escape_unencodable
from r3core.distributed import wait_before_reporting
from r3core.errors import R3Error
from r3core.threads import let_threads_sleep

app = typer.Typer(
    name="r3",
    help="Train models to reflect on their failures, with nothing but a pass/fail signal.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; an R3Error is printed without a traceback and sets the exit code."""
    escape_unencodable()
    let_threads_sleep()
    try:
        app()
    except R3Error as error:
        wait_before_reporting(error)
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


def _print_version(given: bool) -> None:
    if given:
        from r3core import __version__

        typer.echo(f"r3core {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take the options before the command."""


tasks_command.register(app)
run_commands.register(app)
sweep_command.register(app)
explain_commands.register(app)
compare_command.register(app)
task_commands.register(app)
show_command.register(app)
view_command.register(app)
