"""The commands of those who write tasks: a new task, the check of its verifier, and the verdict on one response."""

from __future__ import annotations

import json
import shlex
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r3core.cli.arguments import Asked, Json, Overrides, TaskOptions
from r3core.console import visible
from r3core.errors import UsageError

if TYPE_CHECKING:
    from r3core.task import Example, Split, Task

TaskArgument = Annotated[
    str, typer.Argument(metavar="TASK", help="An installed task, path/to/file.py:Class or module:Class.")
]

_SPLITS: tuple[Split, ...] = ("test", "validation", "train")
_LONGEST_SHOWN = 300  # characters of a prompt or a response, unless all of it is asked for by --json


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(new)
    app.command()(check)
    app.command()(verify)


def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What the task is to be called: letters, digits, `-` and `_`.")
    ],
    bare: Annotated[bool, typer.Option("--bare", help="Make a single file, for --task file.py:Class.")] = False,
    output_dir: Annotated[Path, typer.Option(help="The directory to make it in.")] = Path("."),
) -> None:
    """Make a plugin package that works, to be changed into yours.

    It installs, and passes its own test and `r3 check`, before anything is edited.
    """
    from r3core.plugins.scaffold import make_file, make_package

    made = make_file(name, output_dir) if bare else make_package(name, output_dir)
    task = shlex.quote(made.task)
    asked = f"--task {task} --model Qwen/Qwen2.5-1.5B-Instruct"
    install = [] if bare else [f"pip install -e {shlex.quote(str(made.path))}"]
    train = [f"r3 show {asked} -n 1", f"r3 run {asked} --set grpo.max_steps=100"]
    typer.echo(f"made {made.path}; the task is in {made.source}\nnext:")
    for command in (*install, f"r3 check {task}", *train):
        typer.echo(f"  {command}")


def check(
    task: TaskArgument,
    task_option: TaskOptions = None,
    overrides: Overrides = None,
    seed: Annotated[int, typer.Option(help="Another seed draws other examples and texts.", min=0)] = 0,
    save_fixtures: Annotated[
        Path | None, typer.Option(help="Add the responses that were judged wrongly to this file, as fixtures.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the certificate, as JSON, to this file too.")] = None,
    as_json: Json = False,
) -> None:
    """Find out whether a verifier can be trusted, without a model.

    The certificate that it makes is what `r3 run` and `r3 train` ask for. The exit code is 1 when something does not
    hold.
    """
    from r3core.check import check_task
    from r3core.check.certificate import keep, print_certificate
    from r3core.check.fixtures import add_fixtures

    flags = {"output_dir": None, "seed": None}
    chosen, config = Asked(task, task_option or [], None, overrides or [], flags, False, as_json).resolve()
    certificate = check_task(chosen, seed=seed, limits=config.judge)
    place = keep(chosen, certificate) if seed == 0 else None  # nobody should look for a seed that passes
    if output is not None:
        try:
            output.write_text(certificate.text(), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"`{output}` cannot be written: {error.strerror}") from None
    if as_json:
        typer.echo(certificate.text(), nl=False)
    else:
        print_certificate(certificate, sys.stdout)
        typer.echo(f"certificate: {output or place or 'only that of seed 0 is kept; --output FILE writes this one'}")
    if save_fixtures is not None:
        found = [one.fixture for finding in certificate.broken for one in finding.counterexamples if one.fixture]
        typer.echo(f"added {add_fixtures(save_fixtures, found)} fixtures to {save_fixtures}", err=True)
        if chosen.fixtures is None or chosen.fixtures.resolve() != save_fixtures.resolve():
            typer.echo("hint: name the file in the class, as `fixtures`, and every check tries them", err=True)
    if certificate.broken:
        raise typer.Exit(1)


def verify(
    task: TaskArgument,
    response: Annotated[str, typer.Option(help="The response to judge; `-` reads it from standard input.")],
    example: Annotated[
        str | None, typer.Option(help="The id of the problem, of any split; by default the first one of `test`.")
    ] = None,
    task_option: TaskOptions = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Judge one response to one problem, and say why.

    The exit code is 1 only when the verifier could not judge.
    """
    from r3core import prompts
    from r3core.verification.judge import Judge

    flags = {"output_dir": None}
    chosen, config = Asked(task, task_option or [], None, overrides or [], flags, False, as_json).resolve()
    split, problem = _problem(chosen, example)
    asked = prompts.attempt(chosen, problem)
    text = sys.stdin.buffer.read().decode(errors="replace") if response == "-" else response
    with Judge(chosen, config.judge.alone()) as judge:
        [verdict] = judge.judge([(problem, text)])
    if as_json:
        facts: dict[str, Any] = {"task": chosen.name, "split": split, "example": problem.model_dump(mode="json")}
        facts |= {"prompt": asked.messages, "tools": asked.tools, "response": text}
        typer.echo(json.dumps(facts | verdict.model_dump(mode="json"), indent=2))
    else:
        typer.echo(f"example: {visible(problem.id, longest=_LONGEST_SHOWN)} ({split})")
        if asked.tools:
            typer.echo(f"tools: {visible(json.dumps(asked.tools), longest=_LONGEST_SHOWN)}")
        for message in asked.messages:
            typer.echo(f"{message['role']}: {visible(message['content'], longest=_LONGEST_SHOWN)}")
        typer.echo(f"response: {visible(text, longest=_LONGEST_SHOWN)}")
        typer.echo(f"verdict: {verdict.outcome}" + (f": {visible(verdict.reason)}" if verdict.reason else ""))
    if verdict.outcome == "error":
        raise typer.Exit(1)


def _problem(task: Task, wanted: str | None) -> tuple[Split, Example]:
    """Return the problem with an id, or the first one of all, with its split: `test` is looked through first."""
    from r3core.dataset import load_examples

    ids = []
    for split in _SPLITS:
        for example in load_examples(task, split):
            if wanted in (None, example.id):
                return split, example
            ids.append(example.id)
    if not ids:
        raise UsageError(f"task `{task.name}` has no problem in any of its splits: {', '.join(_SPLITS)}")
    near = get_close_matches(wanted or "", ids, n=3)
    shown = ", ".join(map(visible, near or ids[:1]))
    hint = f"ids that are near: {shown}" if near else f"an id looks like this: {shown}"
    raise UsageError(f"task `{task.name}` has no example `{wanted}`; {len(ids):,} were looked through", hint)
