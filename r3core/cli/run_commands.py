"""The commands that work on a run: each collects what was asked for, calls one function and prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r3core.cli.arguments import Asked, Json, Overrides, TaskOptions, of_a_folder, options_given, trained_in
from r3core.training.launch import started_by_run

if TYPE_CHECKING:
    from r3core.config import Config
    from r3core.evaluate import Result
    from r3core.pipeline import Pipeline
    from r3core.task import Task

TaskName = Annotated[
    str | None, typer.Option("--task", help="An installed task, path/to/file.py:Class or module:Class.")
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="A folder or a model of the hub; the task's built-in one by default.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for work in (run, mine, train, evaluate, report):
        app.command("eval" if work is evaluate else work.__name__)(_with_options(work))
    app.command()(show)
    app.command()(rescore)


def run(asked: Asked) -> None:
    """Mine failures, train the reflections, evaluate and report.

    Goes on where it was stopped. The verifier has to pass `r3 check` first.
    """
    task, config = asked.resolve()
    _check_training(task, config)
    if asked.dry_run:
        return _explain(task, config)
    _check_machine(config)
    with _stages(task, config) as stages:
        stages.certify()
        stages.check_model()
        stages.mine()
        stages.train()
        stages.evaluate()
        _print_result(stages, stages.report(), as_json=asked.as_json)


def mine(asked: Asked) -> None:
    """Attempt the task's problems, and keep the failures.

    It forecasts what training on them may bring, too.
    """
    task, config = asked.resolve()
    if asked.dry_run:
        return _explain(task, config)
    with _stages(task, config) as stages:
        stages.mine()
        facts = stages.run.done("mine") or {}
        _print_facts({"failures": str(stages.run.path / "failures"), "counts": facts}, as_json=asked.as_json)


def train(asked: Asked) -> None:
    """Train the reflections on the run's failures.

    The verifier has to pass `r3 check` first. `accelerate launch -m r3core train` does it in several processes.
    """
    from r3core.distributed import main_process_first, rank
    from r3core.report import shares_of_a_step
    from r3core.training import launch

    task, config = asked.resolve()
    _check_training(task, config)
    if asked.dry_run:
        return _explain(task, config)
    _check_machine(config)
    launch.join_training()
    with _shared_stages(task, config) as stages:
        leads = rank() == 0 and not launch.started_by_run()
        with main_process_first():
            if leads and config.mine.failures is not None:
                stages.mine()
            if leads and stages.run.done("mine") is not None:  # without, there is nothing to train on: said first
                stages.certify()
        model = str(stages.train())
        if leads:
            _print_facts({"model": model, "shares_of_a_step": shares_of_a_step(stages.run)}, as_json=asked.as_json)


def evaluate(asked: Asked) -> None:
    """Evaluate a run's base and trained model.

    With --model, it is the model of a folder against what that was trained from, or any model alone.
    """
    folder = asked.flags["model"]
    if folder is None or not Path(folder).is_dir():
        task, config = asked.resolve()
        trained = trained_in(config)
    else:
        asked, task, config, trained = of_a_folder(asked, Path(folder))
    if asked.dry_run:
        return _explain(task, config)
    with _stages(task, config, trained=trained) as stages:
        result = stages.compare(trained) if trained else stages.evaluate()
        _print_result(stages, result, as_json=asked.as_json)


def report(asked: Asked) -> None:
    """Print the table of an evaluated run, and write its model card."""
    task, config = asked.resolve()
    with _stages(task, config, trained=trained_in(config)) as stages:
        _print_result(stages, stages.report(), as_json=asked.as_json)


def show(
    task: TaskName = None,
    task_option: TaskOptions = None,
    model: ModelName = None,
    count: Annotated[int, typer.Option("-n", help="How many failures.", min=1)] = 3,
    overrides: Overrides = None,
    seed: Annotated[int | None, typer.Option(help="The one seed that everything random follows from.")] = None,
) -> None:
    """Print attempt, reflection and retry as the model sees them.

    The trained tokens are marked.
    """
    from r3core.show import print_conversations

    asked = Asked(
        task, task_option or [], None, overrides or [], {"model": model, "seed": seed, "output_dir": None}, False, False
    )
    _quiet()
    print_conversations(*asked.resolve(), count=count)


def rescore(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A run directory or a set of failures.")],
    task: Annotated[
        str | None, typer.Option(help="The task, where it is not to be found by the name that was recorded.")
    ] = None,
    task_option: TaskOptions = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Where the failures that still fail are written, as a set; nowhere by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge again all that was recorded, and show what changed.

    The run, or the set of failures, stays as it is.
    """
    from r3core import rescore as rescoring
    from r3core.report import print_rescored

    rescored = rescoring.rescore(source, spec=task, options=options_given(task_option or []), output=output_dir)
    if as_json:
        typer.echo(json.dumps(rescored.model_dump(mode="json"), indent=2))
    else:
        print_rescored(rescored, sys.stdout)


def _with_options(work: Callable[[Asked], None]) -> Callable[..., None]:
    """Return the command that collects the options which all stages share, and hands them to `work`."""

    def command(
        task: TaskName = None,
        task_option: TaskOptions = None,
        model: ModelName = None,
        preset: Annotated[str | None, typer.Option(help="A named set of values: paper.")] = None,
        config: Annotated[Path | None, typer.Option(help="A YAML file of configuration keys.")] = None,
        overrides: Overrides = None,
        samples: Annotated[int | None, typer.Option(help="Attempts at each problem in mining.")] = None,
        keep: Annotated[str | None, typer.Option(help="Which failures to keep: any-failed or all-failed.")] = None,
        failures: Annotated[Path | None, typer.Option(help="A set of failures to use instead of mining.")] = None,
        engine: Annotated[
            str | None, typer.Option(help="What generates text: transformers, vllm, openai or ray.")
        ] = None,
        ray_address: Annotated[
            str | None, typer.Option(help="The Ray cluster for --engine ray; by default one on this machine.")
        ] = None,
        lora: Annotated[
            list[str] | None,
            typer.Option(metavar="NAME=VALUE", help="Train an adapter, with an option of peft's LoraConfig: r=32."),
        ] = None,
        processes: Annotated[
            int | None,
            typer.Option(help="Train in so many processes, under FSDP2 unless accelerate is told otherwise."),
        ] = None,
        accelerate_config: Annotated[
            Path | None, typer.Option(help="Train as this configuration file of accelerate's says.")
        ] = None,
        limit: Annotated[int | None, typer.Option(help="At most so many problems in mining and evaluation.")] = None,
        seed: Annotated[int | None, typer.Option(help="The one seed that everything random follows from.")] = None,
        output_dir: Annotated[Path | None, typer.Option(help="The run directory.")] = None,
        uncertified: Annotated[
            bool, typer.Option("--uncertified", help="Train also when the verifier does not pass `r3 check`.")
        ] = False,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Only explain what would be done.")] = False,
        as_json: Json = False,
    ) -> None:
        flags = {
            "model": model,
            "preset": preset,
            "engine": engine,
            "engine_options.address": ray_address,
            "seed": seed,
            "processes": processes,
            "accelerate_config": accelerate_config,
            "output_dir": output_dir,
            "mine.samples": samples,
            "mine.keep": keep,
            "mine.failures": failures,
            "mine.limit": limit,
            "evaluate.limit": limit,
            "uncertified": uncertified or None,
        }
        try:
            adapter = {
                f"lora.{name}": value
                for name, value in options_given(lora or [], flag="--lora", example="r=32").items()
            }
            work(Asked(task, task_option or [], config, overrides or [], flags | adapter, dry_run, as_json))
        except KeyboardInterrupt:
            if not started_by_run():
                typer.echo("stopped; the same command goes on from here", err=True)
            raise

    command.__doc__ = work.__doc__
    return command


def _stages(task: Task, config: Config, *, trained: Path | None = None) -> Any:
    from r3core.training.launch import check_one_process

    check_one_process()
    return _shared_stages(task, config, trained=trained)


def _shared_stages(task: Task, config: Config, *, trained: Path | None = None) -> Any:
    from r3core.pipeline import Pipeline

    _quiet()
    return Pipeline.open(task, config, trained=trained)


def _check_training(task: Task, config: Config) -> None:
    """Raise ConfigError now, and not after hours of mining, when training could not begin."""
    from r3core.config import local_model
    from r3core.mine import check_splits
    from r3core.runs import RunRecord
    from r3core.training.grpo_options import check_training
    from r3core.training.launch import world_of
    from r3core.training.lora import check_adapter

    _quiet()
    local_model(config, task, done="trained")
    if RunRecord(config.directory).done("train") is None:
        check_splits(config)
        world = world_of(config)
        check_training(config.grpo, config.grpo_options(), world.processes)
        check_adapter(config, sharded=world.sharded)


def _check_machine(config: Config) -> None:
    """Raise an error now when this machine has not what the training needs; a dry run may plan for another one."""
    from r3core.runs import RunRecord
    from r3core.training.grpo_options import check_vllm
    from r3core.training.launch import check_machine

    if RunRecord(config.directory).done("train") is None:
        check_vllm(config.grpo_options())
        check_machine(config)


def _quiet() -> None:
    """Leave the screen to r3's own progress bars and messages."""
    import logging
    import os
    import warnings

    # TRL uses names that transformers has changed: nothing that a user could mend.
    warnings.filterwarnings("ignore", message=".(is_)?gradient_checkpointing.* is deprecated", category=FutureWarning)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    for name in ("accelerate", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _explain(task: Task, config: Config) -> None:
    import yaml

    from r3core.config import model_of
    from r3core.generation.models import check_engine
    from r3core.training.grpo_options import check_grpo, explain_batch, explain_checkpoints
    from r3core.training.launch import world_of

    check_grpo(config.grpo)
    check_engine(config)
    model = model_of(config, task)
    typer.echo(yaml.safe_dump(config.record(), sort_keys=False, allow_unicode=True).rstrip())
    typer.echo(f"\nrun directory: {config.directory}\nmodel: {model}")
    mining = f"{config.mine.limit or 'all'} problems x {config.mine.samples} attempts"
    mined = config.mine.failures if config.mine.failures else mining
    typer.echo(f"check: {_certified(task, config)}\nmine: {mined}")
    options, processes = config.grpo_options(), world_of(config).processes
    for line in [*explain_batch(options, processes), *explain_checkpoints(options, processes)]:
        typer.echo(f"train: {line}")
    controls = "with" if config.evaluate.controls else "without"
    typer.echo(f"evaluate: {config.evaluate.limit or 'all'} problems x {config.evaluate.samples}, {controls} controls")
    for line in _estimated(config, model):
        typer.echo(line)


def _estimated(config: Config, model: str) -> list[str]:
    """Say what memory and time the run will take, on so many processes as will train."""
    from r3core.estimate import explain
    from r3core.forecast import Forecast
    from r3core.runs import RunRecord, values_of
    from r3core.training.launch import world_of

    _quiet()
    stored = RunRecord(config.directory).read_json("forecast")
    forecast = values_of(Forecast, [stored], "forecast")[0] if stored is not None else None
    world = world_of(config)
    return explain(
        config,
        model,
        processes=world.processes,
        sharded=world.sharded,
        forecast={"tokens": forecast.tokens, "seconds": forecast.seconds} if forecast else None,
    )


def _certified(task: Task, config: Config) -> str:
    """Say what is known of the verifier before anything is done."""
    from r3core.check.certificate import kept

    certificate = kept(task, config.judge)
    known = certificate.summary() if certificate else "the verifier was not checked yet"
    return f"{known}; it need not pass (--uncertified)" if config.uncertified else f"{known}; training needs a pass"


def _print_result(stages: Pipeline, result: Result, *, as_json: bool) -> None:
    from r3core.report import as_json as as_object
    from r3core.report import print_table, shares_of_a_step

    if as_json:
        typer.echo(json.dumps(as_object(result, stages.run), indent=2))
        return
    print_table(result, stages.config, sys.stdout)
    seconds = ", ".join(f"{stage} {spent:.0f} s" for stage, spent in stages.run.seconds().items())
    shares = ", ".join(f"{part} {share:.1%}" for part, share in shares_of_a_step(stages.run).items())
    typer.echo(f"- {seconds}" + (f"; of a training step: {shares}" if shares else ""))
    typer.echo(f"- everything is in {stages.run.path}")


def _print_facts(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        shown = ", ".join(f"{k} {_rounded(v)}" for k, v in value.items()) if isinstance(value, dict) else value
        typer.echo(f"{name}: {shown}")


def _rounded(value: Any) -> Any:
    return f"{value:.3g}" if isinstance(value, float) else value
