"""The plan that `--dry-run` prints: the resolved configuration, what each stage will do, and what it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from r3core.console import quiet_libraries

if TYPE_CHECKING:
    from r3core.config import Config
    from r3core.task import Task


def print_plan(task: Task, config: Config) -> None:
    """Print the resolved configuration, and what each stage of the run will do."""
    import yaml

    from r3core.config import PLACEMENT, objective_notes
    from r3core.estimate.evaluation import explain_evaluation
    from r3core.training.grpo_options import explain_batch, explain_checkpoints
    from r3core.training.launch import world_of

    model = check_plan(task, config)
    template = _template_notes(task, config)
    settings = config.model_dump(mode="json", exclude={"output_dir", "template_date", *PLACEMENT})
    typer.echo(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).rstrip())
    typer.echo(f"\nrun directory: {config.directory}\nmodel: {model}")
    mining = f"{config.mine.limit or 'all'} problems x {config.mine.samples} attempts"
    mined = config.mine.failures if config.mine.failures else mining
    typer.echo(f"check: {_describe_certificate(task, config)}\nmine: {mined}")
    options, processes = config.grpo_options(), world_of(config).processes
    batch, checkpoints = explain_batch(options, processes), explain_checkpoints(options, processes)
    for line in [*batch, *checkpoints, *objective_notes(config)]:
        typer.echo(f"train: {line}")
    for line in _validation_notes(task, config, processes):
        typer.echo(f"validation: {line}")
    for line in explain_evaluation(config):
        typer.echo(f"evaluate: {line}")
    for other in config.evaluate.also:
        typer.echo(f"evaluate also: {other.name}, both tries")
    for line in template:
        typer.echo(f"chat template: {line}")
    for line in _estimated(config, model):
        typer.echo(line)


def check_plan(task: Task, config: Config) -> str:
    """Return the model of a run; an error without one, and for invalid options of the engine or of TRL."""
    from r3core.config import model_of
    from r3core.plugins.engines import checked_engine
    from r3core.training.grpo_options import check_grpo

    quiet_libraries()
    checked_engine(config)
    check_grpo(config.grpo)
    return model_of(config, task)


def _template_notes(task: Task, config: Config) -> list[str]:
    """Return what is to know about the chat template; without the model or a problem, why it is not checked.

    Problems are not downloaded for it: a plan should take seconds.
    """
    from r3core.config import model_of
    from r3core.errors import TaskError
    from r3core.evaluation.transfer import check_others
    from r3core.generation.models import Unloadable
    from r3core.plugins.engines import engine_of
    from r3core.preflight import check_template

    if not engine_of(config).local:
        return ["that of the server, which is not checked"]
    try:
        others = check_others(config, model=model_of(config, task), downloads=False) if config.evaluate.also else []
        return [*check_template(task, config, downloads=False), *others] or ["nothing to note"]
    except Unloadable as error:
        return [f"not checked: {error.message}"]
    except TaskError as error:
        offline = " (--dry-run downloads no problems)" if isinstance(error.__cause__, OSError) else ""
        return [f"not checked: {error.message}{offline}"]


def _validation_notes(task: Task, config: Config, processes: int) -> list[str]:
    """Return what the evaluations during training do; ConfigError when the task has no problems for them.

    Problems are not downloaded for it.
    """
    from r3core.errors import TaskError
    from r3core.evaluation.validation import check_validation_split, explain_validation
    from r3core.preflight import no_downloads

    lines = explain_validation(config, processes)
    try:
        with no_downloads():
            check_validation_split(task, config)
    except TaskError as error:
        lines.append(f"the split is not checked: {error.message}")
    return lines


def _estimated(config: Config, model: str) -> list[str]:
    """Return lines about the memory that the run needs on each device."""
    from r3core.estimate.advice import explain
    from r3core.training.launch import world_of

    world = world_of(config)
    return explain(config, model, processes=world.processes, sharded=world.sharded)


def _describe_certificate(task: Task, config: Config) -> str:
    """Return what `r3 check` has found, and whether training requires a pass."""
    from r3core.check.certificate import cached_certificate

    certificate = cached_certificate(task, config.judge)
    found = certificate.summary() if certificate else "the verifier has not been checked yet"
    required = "a pass is not required (--uncertified)" if config.uncertified else "training requires a pass"
    return f"{found}; {required}"
