"""The command that lists the installed tasks, and describes one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from r3core.cli.arguments import Json, TaskOptions
from r3core.errors import UsageError

if TYPE_CHECKING:
    from r3core.plugins.discovery import Discovery, Installed
    from r3core.plugins.options import Option


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(tasks)


def tasks(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[TASK]", help="Describe this task: a name, path/to/file.py:Class or module:Class."),
    ] = None,
    task_option: TaskOptions = None,
    as_json: Json = False,
) -> None:
    """List installed tasks with their options, and broken plugins; or describe one task.

    The description has the meaning of the options, an example with its reference, the certificate, and the settings of
    the built-in model.
    """
    if name is not None:
        return _describe(name, task_option, as_json=as_json)
    if task_option:
        raise UsageError("--task-option needs a task to describe", "name it: r3 tasks TASK --task-option NAME=VALUE")
    _list(as_json=as_json)


def _describe(spec: str, task_option: list[str] | None, *, as_json: bool) -> None:
    from r3core.describe import describe, lines
    from r3core.plugins.discovery import find_task
    from r3core.settings import assignments

    options = dict(assignments(task_option or [], flag="--task-option", example="numbers=4"))
    described = describe(find_task(spec), options)
    if as_json:
        typer.echo(json.dumps(described.model_dump(mode="json"), indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join(lines(described, spec)))


def _list(*, as_json: bool) -> None:
    from r3core.plugins.discovery import discover
    from r3core.plugins.engines import engines

    found = discover()
    unusable = [one for one in engines()[1] if one.name not in {other.name for other in found.broken}]
    found = found.model_copy(update={"broken": [*found.broken, *unusable]})
    if as_json:
        typer.echo(json.dumps(_as_json(found), indent=2, ensure_ascii=False))
        return
    for name, installed in found.tasks.items():
        typer.echo("\n".join(_lines(name, installed)))
    for broken in found.broken:
        typer.echo(f"broken: {broken.name} ({broken.distribution} {broken.version}): {broken.reason}", err=True)
    if not found.tasks and not found.broken:
        typer.echo("no task is installed\nhint: pip install r3-plugin-countdown", err=True)


def _as_json(found: Discovery) -> dict[str, object]:
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


def _lines(name: str, installed: Installed) -> list[str]:
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
