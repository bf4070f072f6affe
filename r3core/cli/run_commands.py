"""The commands on runs: each one resolves its arguments, calls one function and prints the result."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from r3core.cli.arguments import (
    EVALUATE,
    FIND,
    GENERATE,
    MINE,
    SEEDS,
    TRAIN,
    Arguments,
    Json,
    Quiet,
    TaskOptions,
    model_to_compare,
    trained_from,
    with_flags,
)
from r3core.cli.plan import print_plan
from r3core.cli.seeds import run_seeds
from r3core.cli.stages import check_machine, check_training, open_pipeline, run_stages
from r3core.errors import R3Error

if TYPE_CHECKING:
    from r3core.config import Config
    from r3core.evaluation.result import Result
    from r3core.pipeline import Pipeline
    from r3core.runs import RunRecord


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (run, mine, train):
        app.command()(command)
    app.command("eval")(evaluate)
    for command in (report, rescore):
        app.command()(command)


@with_flags(*GENERATE, *MINE, *TRAIN, *EVALUATE, *SEEDS)
def run(arguments: Arguments) -> None:
    """Mine failures, train the reflections, evaluate and report.

    Run the same command to resume a run. The verifier must pass `r3 check`. With --seeds, one run per seed, one after
    the other, and a table over all seeds.
    """
    if arguments.seeds is not None or arguments.share_mining:
        return run_seeds(arguments)
    task, config = arguments.resolve()
    check_training(task, config)
    if arguments.dry_run:
        return print_plan(task, config)
    check_machine(task, config)
    with open_pipeline(task, config) as pipeline:
        result = run_stages(pipeline)
        _print_result(pipeline.run, pipeline.config, result, as_json=arguments.as_json)
        with _optional("explanation"):
            _print_explanation(pipeline, to=sys.stderr if arguments.as_json else sys.stdout)
        with _optional("page"):
            _write_page(pipeline.run.path)


@with_flags(*GENERATE, *MINE)
def mine(arguments: Arguments) -> None:
    """Attempt the problems of a task and collect the failures.

    A forecast estimates what training on them can achieve. If the run is to be trained too, set the options of training
    already here, with --set or --config: a run has one configuration.
    """
    task, config = arguments.resolve()
    if arguments.dry_run:
        return print_plan(task, config)
    with open_pipeline(task, config) as pipeline:
        pipeline.mine()
        facts = pipeline.run.done("mine") or {}
        failures = str(pipeline.run.path / "failures")
        _print_facts({"failures": failures, "counts": facts}, as_json=arguments.as_json)


@with_flags(*FIND, *TRAIN, "model", "chat_template", "preset", "engine", "seed", "dry_run", "quiet", "failures")
def train(arguments: Arguments) -> None:
    """Train the reflections on the failures of a run.

    The verifier must pass `r3 check`. For several processes: --processes, or `accelerate launch -m r3core train`.
    """
    from r3core.distributed import main_process_first, rank
    from r3core.evaluation.validation import describe_facts
    from r3core.report import shares_of_a_step
    from r3core.training import launch

    task, config = arguments.resolve()
    check_training(task, config)
    if arguments.dry_run:
        return print_plan(task, config)
    check_machine(task, config)
    launch.join_training()
    with open_pipeline(task, config, shared=True) as pipeline:
        leads = rank() == 0 and not launch.started_by_run()
        with main_process_first():
            if leads and config.mine.failures is not None:
                pipeline.mine()
            if leads and pipeline.run.done("mine") is not None:  # without failures, training stops with that error
                pipeline.certify()
        model = str(pipeline.train())
        if leads:
            facts = {"model": model, "shares_of_a_step": shares_of_a_step(pipeline.run)}
            done = pipeline.run.done("train") or {}
            notes = describe_facts(done)
            validation = {"validation": done["validation"] if arguments.as_json else "; ".join(notes)} if notes else {}
            _print_facts(facts | validation, as_json=arguments.as_json)


@with_flags(*GENERATE, *EVALUATE)
def evaluate(arguments: Arguments) -> None:
    """Evaluate the base model and the trained model of a run.

    With --model FOLDER, compare a model trained by r3 with its base model; any other model is evaluated alone.
    """
    folder = Path(arguments.flags.get("model", ""))
    found = trained_from(arguments, folder) if "model" in arguments.flags and folder.is_dir() else None
    task, config = found or arguments.resolve()
    trained = folder.resolve() if found else model_to_compare(config)
    if arguments.dry_run:
        return print_plan(task, config)
    with open_pipeline(task, config, trained=trained) as pipeline:
        result = pipeline.compare(trained) if trained else pipeline.evaluate()
        _finish(pipeline, result, as_json=arguments.as_json)


@with_flags("run", *FIND, "csv", "png")
def report(arguments: Arguments) -> None:
    """Print the results of a run, and write its page `report.html` and the model card.

    The run may be in progress, or not evaluated yet.
    """
    from r3core.page import write_csv, write_png
    from r3core.pipeline import result_of, write_card
    from r3core.recorded import config_of, open_record, status_of

    folder = arguments.directory()
    run, config = open_record(folder), config_of(folder)
    result = result_of(run) if (status := status_of(run)).evaluated else None
    if result is not None:
        write_card(run, config, result)
        _print_result(run, config, result, as_json=arguments.as_json)
    else:
        facts = {"finished": list(status.finished), "stage": status.stage}
        shown = {"finished": ", ".join(status.finished) or "no stage", "in progress": status.stage or "no stage"}
        _print_facts(facts if arguments.as_json else shown, as_json=arguments.as_json)
    _write_page(folder)
    for wanted, write, name in ((arguments.csv, write_csv, "tables"), (arguments.png, write_png, "charts")):
        if wanted:
            typer.echo(f"{len(write([folder], folder / name))} files in {folder / name}", err=True)


def rescore(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Run directory or failure dataset.")],
    task: Annotated[str | None, typer.Option(help="Task, if it cannot be found under its recorded name.")] = None,
    task_option: TaskOptions = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Write the failures that still fail to this failure dataset.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Verify all recorded answers again, and print which verdicts changed.

    The run directory or failure dataset itself is not changed.
    """
    from r3core import rescore as rescoring
    from r3core.progress import quiet as silenced
    from r3core.report import print_rescored
    from r3core.settings import assignments

    options = dict(assignments(task_option or [], flag="--task-option", example="numbers=4"))
    with silenced(quiet):
        rescored = rescoring.rescore(source, spec=task, options=options, output=output_dir)
    if as_json:
        typer.echo(json.dumps(rescored.model_dump(mode="json"), indent=2))
    else:
        print_rescored(rescored, sys.stdout)


def _finish(pipeline: Pipeline, result: Result, *, as_json: bool) -> None:
    """Print the result of a run, and write its page."""
    _print_result(pipeline.run, pipeline.config, result, as_json=as_json)
    with _optional("page"):
        _write_page(pipeline.run.path)


def _write_page(folder: Path) -> None:
    """Write the page of a run, and name it on standard error: standard output may be a program's."""
    from r3core.page import PAGE, write_page

    typer.echo(f"page: {write_page([folder], folder / PAGE)}", err=True)


@contextmanager
def _optional(what: str) -> Iterator[None]:
    """Turn an error into a warning: a run whose results are stored has not failed for want of this."""
    try:
        yield
    except (R3Error, OSError) as error:
        typer.echo(f"warning: no {what}: {error}", err=True)


def _print_result(run: RunRecord, config: Config, result: Result, *, as_json: bool) -> None:
    from r3core.evaluation.validation import describe_facts
    from r3core.report import as_json as as_object
    from r3core.report import print_table, shares_of_a_step

    if as_json:
        typer.echo(json.dumps(as_object(result, run), indent=2))
        return
    print_table(result, config, sys.stdout)
    seconds = ", ".join(f"{stage} {spent:.0f} s" for stage, spent in run.seconds().items())
    shares = ", ".join(f"{part} {share:.1%}" for part, share in shares_of_a_step(run).items())
    typer.echo(f"- {seconds}" + (f"; of a training step: {shares}" if shares else ""))
    for line in describe_facts(run.done("train")):
        typer.echo(f"- {line}")
    typer.echo(f"- run directory: {run.path}")


def _print_explanation(pipeline: Pipeline, *, to: TextIO) -> None:
    from r3core.explain import explain, print_explanation

    print_explanation(explain(pipeline.run, pipeline.config), to)


def _print_facts(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        shown = ", ".join(f"{k} {_rounded(v)}" for k, v in value.items()) if isinstance(value, dict) else value
        typer.echo(f"{name}: {shown}")


def _rounded(value: Any) -> Any:
    return f"{value:.3g}" if isinstance(value, float) else value
