"""The command that prints conversations: new ones with a model, or the recorded ones of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r3core.cli.arguments import Arguments, ChatTemplateFile, Overrides, Seed, TaskName, TaskOptions
from r3core.console import quiet_libraries
from r3core.errors import UsageError

if TYPE_CHECKING:
    from r3core.conversations import Changed

_MODELS = ("base", "trained")


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(show)


def show(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="Run directory, to print its recorded episodes.")
    ] = None,
    run_option: Annotated[Path | None, typer.Option("--run", metavar="DIR", help="The same as RUN.")] = None,
    fixed: Annotated[
        bool | None, typer.Option("--fixed/--not-fixed", help="With RUN: failures that the retry fixed, or did not.")
    ] = None,
    newly_fixed: Annotated[
        bool, typer.Option("--newly-fixed", help="With RUN: problems that only the trained model solved.")
    ] = False,
    newly_broken: Annotated[
        bool, typer.Option("--newly-broken", help="With RUN: problems that only the base model solved.")
    ] = False,
    category: Annotated[
        str | None, typer.Option(help="With RUN: error category of the attempt or of the retry.")
    ] = None,
    leaked: Annotated[bool, typer.Option("--leaked", help="With RUN: reflections that contain the answer.")] = False,
    truncated: Annotated[
        bool, typer.Option("--truncated", help="With RUN: episodes with a turn that the token limit cut off.")
    ] = False,
    example: Annotated[str | None, typer.Option(metavar="ID", help="With RUN: episodes of this example.")] = None,
    task: TaskName = None,
    task_option: TaskOptions = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="With RUN: base or trained, whose evaluation is printed. Without: local folder or model id on the "
            "Hugging Face Hub; default: the built-in model."
        ),
    ] = None,
    chat_template: ChatTemplateFile = None,
    count: Annotated[int, typer.Option("-n", help="Number of episodes.", min=1)] = 3,
    overrides: Overrides = None,
    seed: Seed = None,
) -> None:
    """Print attempt, reflection and retry of new failures, or the recorded episodes of a run.

    New failures are printed as the model sees them. Of a run, the episodes of the evaluation are printed; before it,
    the groups of training, or else the failures that were mined. The tokens that are trained are marked.
    """
    if newly_fixed and newly_broken:
        raise UsageError("--newly-fixed and --newly-broken exclude each other")
    change: Changed | None = "newly fixed" if newly_fixed else "newly broken" if newly_broken else None
    filters = {"fixed": fixed, "change": change, "category": category, "leaked": leaked, "truncated": truncated}
    filters |= {"example": example}
    new: dict[str, Any] = {"task": task, "task_option": task_option, "chat_template": chat_template}
    new |= {"overrides": overrides, "seed": seed}
    if run is not None and run_option is not None and run != run_option:
        raise UsageError(f"two run directories are given: `{run}` and `{run_option}`")
    folder = run or run_option
    if folder is not None:
        if given := [name for name, value in new.items() if value is not None]:
            flags = ", ".join(_FLAGS.get(name, f"--{name.replace('_', '-')}") for name in given)
            raise UsageError(f"{flags} cannot be used with a run, whose episodes are recorded")
        return _show_recorded(folder, filters, model=model, count=count)
    if any(value not in (None, False) for value in filters.values()):
        raise UsageError("a filter needs a run, whose recorded episodes it selects", "name it: r3 show RUN --fixed")
    _show_new(Arguments.of(model=model, **new), count=count)


_FLAGS = {"overrides": "--set"}


def _show_recorded(folder: Path, filters: dict[str, Any], *, model: str | None, count: int) -> None:
    from r3core.conversations import Wanted, find
    from r3core.recorded import config_of, open_record
    from r3core.transcript import print_conversations

    if model is not None and model not in _MODELS:
        raise UsageError(f"--model of a run is {' or '.join(_MODELS)}, not `{model}`")
    record = open_record(folder)
    side: Any = model
    print_conversations(find(record, Wanted(**filters), count=count, model=side), config_of(folder), sys.stdout)


def _show_new(arguments: Arguments, *, count: int) -> None:
    from r3core.preflight import check_template, print_notes
    from r3core.show import print_conversations

    quiet_libraries()
    resolved, config = arguments.resolve()
    print_notes(check_template(resolved, config))
    print_conversations(resolved, config, count=count)
