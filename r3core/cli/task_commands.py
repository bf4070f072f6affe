"""The commands for task authors: create a task, check its verifier, and verify one response."""

from __future__ import annotations

import json
import shlex
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r3core.cli.arguments import Arguments, Json, Overrides, TaskOptions
from r3core.console import visible
from r3core.errors import UsageError

if TYPE_CHECKING:
    from r3core.task import Example, Split, Task

TaskArgument = Annotated[
    str, typer.Argument(metavar="TASK", help="Installed task, path/to/file.py:Class or module:Class.")
]

_SPLITS: tuple[Split, ...] = ("test", "validation", "train")
_LONGEST_SHOWN = 300  # characters of a prompt or a response; --json prints all of it


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(new)
    app.command()(check)
    app.command()(verify)


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new task: letters, digits, `-` and `_`.")],
    bare: Annotated[bool, typer.Option("--bare", help="Create a single file, for --task file.py:Class.")] = False,
    output_dir: Annotated[Path, typer.Option(help="Parent directory.")] = Path("."),
) -> None:
    """Create a plugin package for a new task.

    The package works as created: it installs, and passes its own test and `r3 check`.
    """
    from r3core.plugins.scaffold import make_file, make_package

    created = make_file(name, output_dir) if bare else make_package(name, output_dir)
    task = shlex.quote(created.task)
    options = f"--task {task} --model Qwen/Qwen2.5-1.5B-Instruct"
    install = [] if bare else [f"pip install -e {shlex.quote(str(created.path))}"]
    train = [f"r3 show {options} -n 1", f"r3 run {options} --set grpo.max_steps=100"]
    typer.echo(f"created {created.path}; the task is in {created.source}\nnext:")
    for command in (*install, f"r3 check {task}", *train):
        typer.echo(f"  {command}")


def check(
    task: TaskArgument,
    task_option: TaskOptions = None,
    overrides: Overrides = None,
    seed: Annotated[int, typer.Option(help="Random seed of the examples and responses that are tried.", min=0)] = 0,
    save_fixtures: Annotated[
        Path | None, typer.Option(help="Add the responses with a wrong verdict to this fixtures file.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Also write the certificate to this file, as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Check without a model whether a verifier can be trusted.

    `r3 run` and `r3 train` require the certificate that it makes. The exit code is 1 if a check fails.
    """
    from r3core.check import check_task
    from r3core.check.certificate import cache_certificate, print_certificate
    from r3core.check.fixtures import add_fixtures

    chosen, config = Arguments.of(task=task, task_option=task_option, overrides=overrides).resolve()
    certificate = check_task(chosen, seed=seed, limits=config.judge)
    # Only seed 0 counts: a search for a seed that passes would prove nothing.
    place = cache_certificate(chosen, certificate) if seed == 0 else None
    if output is not None:
        try:
            output.write_text(certificate.text(), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"`{output}` cannot be written: {error.strerror}") from None
    if as_json:
        typer.echo(certificate.text(), nl=False)
    else:
        print_certificate(certificate, sys.stdout)
        typer.echo(f"certificate: {output or place or 'not saved (only seed 0 is); --output FILE writes it'}")
    if save_fixtures is not None:
        found = [one.fixture for finding in certificate.broken for one in finding.counterexamples if one.fixture]
        typer.echo(f"added {add_fixtures(save_fixtures, found)} fixtures to {save_fixtures}", err=True)
        if chosen.fixtures is None or chosen.fixtures.resolve() != save_fixtures.resolve():
            typer.echo("hint: set `fixtures` of the task class to this file, so that every check uses it", err=True)
    if certificate.broken:
        raise typer.Exit(1)


def verify(
    task: TaskArgument,
    response: Annotated[str, typer.Option(help="Response to verify; `-` reads standard input.")],
    example: Annotated[
        str | None, typer.Option(help="Id of the problem, in any split; default: the first one of `test`.")
    ] = None,
    task_option: TaskOptions = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Verify one response to one problem, and print the verdict with its reason.

    The exit code is 1 only if the verdict is an error.
    """
    from r3core import prompts
    from r3core.verification.judge import Judge

    chosen, config = Arguments.of(task=task, task_option=task_option, overrides=overrides).resolve()
    split, problem = _problem(chosen, example)
    prompt = prompts.attempt(chosen, problem)
    text = sys.stdin.buffer.read().decode(errors="replace") if response == "-" else response
    with Judge(chosen, config.judge.alone()) as judge:
        [verdict] = judge.judge([(problem, text)])
    if as_json:
        facts: dict[str, Any] = {"task": chosen.name, "split": split, "example": problem.model_dump(mode="json")}
        facts |= {"prompt": prompt.messages, "tools": prompt.tools, "response": text}
        typer.echo(json.dumps(facts | verdict.model_dump(mode="json"), indent=2))
    else:
        typer.echo(f"example: {visible(problem.id, longest=_LONGEST_SHOWN)} ({split})")
        if prompt.tools:
            typer.echo(f"tools: {visible(json.dumps(prompt.tools), longest=_LONGEST_SHOWN)}")
        for message in prompt.messages:
            typer.echo(f"{message['role']}: {visible(message['content'], longest=_LONGEST_SHOWN)}")
        typer.echo(f"response: {visible(text, longest=_LONGEST_SHOWN)}")
        typer.echo(f"verdict: {verdict.outcome}" + (f": {visible(verdict.reason)}" if verdict.reason else ""))
    if verdict.outcome == "error":
        raise typer.Exit(1)


def _problem(task: Task, example_id: str | None) -> tuple[Split, Example]:
    """Return the problem with an id, or the first problem, with its split; `test` is searched first."""
    from r3core.dataset import load_examples

    ids = []
    for split in _SPLITS:
        for example in load_examples(task, split):
            if example_id in (None, example.id):
                return split, example
            ids.append(example.id)
    if not ids:
        raise UsageError(f"task `{task.name}` has no problem in any of its splits: {', '.join(_SPLITS)}")
    near = get_close_matches(example_id or "", ids, n=3)
    shown = ", ".join(map(visible, near or ids[:1]))
    hint = f"similar ids: {shown}" if near else f"an id looks like this: {shown}"
    raise UsageError(f"task `{task.name}` has no example `{example_id}` among {len(ids):,}", hint)
