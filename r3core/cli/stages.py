"""The stages of a run, for the commands: what is checked before they start, the open pipeline, all of them in a row."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from r3core.console import quiet_libraries

if TYPE_CHECKING:
    from r3core.config import Config
    from r3core.evaluation.result import Result
    from r3core.pipeline import Pipeline
    from r3core.task import Task


def run_stages(pipeline: Pipeline) -> Result:
    """Return the result of a run after all its stages; finished ones return at once."""
    pipeline.certify()
    pipeline.check_model()
    pipeline.mine()
    pipeline.train()
    pipeline.evaluate()
    return pipeline.report()


def open_pipeline(
    task: Task, config: Config, *, trained: Path | None = None, shared: bool = False
) -> AbstractContextManager[Pipeline]:
    """Return the open pipeline of a run; unless it is `shared`, UsageError in one of several processes."""
    from r3core.pipeline import Pipeline
    from r3core.training.launch import check_one_process

    if not shared:
        check_one_process()
    quiet_libraries()
    return Pipeline.open(task, config, trained=trained)


def check_training(task: Task, config: Config) -> None:
    """Raise ConfigError if training cannot start with this configuration, before hours of mining."""
    from r3core.config import local_model
    from r3core.evaluation.validation import check_validation
    from r3core.mine import check_splits
    from r3core.runs import RunRecord
    from r3core.training import grpo_options
    from r3core.training.launch import world_of
    from r3core.training.lora import check_adapter

    quiet_libraries()
    local_model(config, task, done="trained")
    if RunRecord(config.directory).done("train") is None:
        check_splits(config)
        check_validation(config)
        world = world_of(config)
        grpo_options.check_training(config.grpo, config.grpo_options(), world.processes)
        check_adapter(config, sharded=world.sharded)


def check_machine(task: Task, config: Config) -> None:
    """Raise an error if training cannot run on this machine, or lacks problems; a dry run can plan for another one."""
    from r3core.evaluation.validation import check_validation_split
    from r3core.runs import RunRecord
    from r3core.training import launch
    from r3core.training.grpo_options import check_vllm

    if RunRecord(config.directory).done("train") is None:
        check_vllm(config.grpo_options())
        launch.check_machine(config)
        check_validation_split(task, config)
