"""The command line `r3`.

Commands import slow libraries inside their functions, so that `r3 --help` and `r3 tasks` stay fast.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from r3core.cli import explain_commands, run_commands, task_commands, view_command
from r3core.cli.arguments import Json
from r3core.distributed import wait_before_reporting
from r3core.errors import R3Error

if TYPE_CHECKING:
    from r3core.plugins.discovery import Discovery, Installed
    from r3core.plugins.options import Option

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


@app.command()
def tasks(as_json: Json = False) -> None:
    """List installed tasks with their options, and broken plugins."""
    from r3core.plugins.discovery import discover
    from r3core.plugins.engines import engines

    found = discover()
    unusable = [one for one in engines()[1] if one.name not in {other.name for other in found.broken}]
    found = found.model_copy(update={"broken": [*found.broken, *unusable]})
    if as_json:
        typer.echo(json.dumps(_tasks_as_json(found), indent=2, ensure_ascii=False))
        return
    for name, installed in found.tasks.items():
        typer.echo("\n".join(_task_lines(name, installed)))
    for broken in found.broken:
        typer.echo(f"broken: {broken.name} ({broken.distribution} {broken.version}): {broken.reason}", err=True)
    if not found.tasks and not found.broken:
        typer.echo("no task is installed\nhint: pip install r3-plugin-countdown", err=True)


def _tasks_as_json(found: Discovery) -> dict[str, object]:
    from r3core.plugins.options import options_of

    listed = [
        {
            "name": name,
            "summary": _summary(installed),
            "distribution": installed.distribution,
            "version": installed.version,
            "options": [option.model_dump(mode="json") for option in options_of(installed.task)],
        }
        for name, installed in found.tasks.items()
    ]
    return {"tasks": listed, "broken": [broken.model_dump(mode="json") for broken in found.broken]}


def _task_lines(name: str, installed: Installed) -> list[str]:
    from r3core.plugins.options import options_of

    lines = [f"{name}  ({installed.distribution} {installed.version})", f"    {_summary(installed)}"]
    return lines + [f"    --task-option {_option_text(option)}" for option in options_of(installed.task)]


def _option_text(option: Option) -> str:
    if option.required:
        return f"{option.name}=...  ({option.type}, required)"
    return f"{option.name}={json.dumps(option.default, ensure_ascii=False)}  ({option.type})"


def _summary(installed: Installed) -> str:
    """Return the first line of the docstring of the task class itself, not of a base class."""
    return (installed.task.__dict__.get("__doc__") or "").strip().partition("\n")[0]


run_commands.register(app)
explain_commands.register(app)
task_commands.register(app)
view_command.register(app)
