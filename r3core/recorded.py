"""What a run directory records about itself: its configuration, and how far the run has come."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from r3core import prompts
from r3core.config import NOT_SETTINGS, Config, explained
from r3core.errors import ConfigError, R3Error, UsageError
from r3core.plugins.discovery import get_task
from r3core.runs import RunRecord
from r3core.task import Example, Frozen, Message, Prompt, Task

Stage = Literal["mine", "train", "evaluate"]
STAGES: tuple[Stage, ...] = ("mine", "train", "evaluate")
Change = Literal["newly fixed", "newly broken", "solved by both", "solved by neither", "unjudged"]
CHANGES: tuple[Change, ...] = get_args(Change)
Key = tuple[str, int]
"""An example's id and the index of the attempt at it."""
_ROWS: dict[Stage, tuple[str, ...]] = {
    "mine": ("mine",),
    "train": ("train", "train-episodes"),
    "evaluate": ("evaluate-base",),
}


class Status(Frozen):
    """How far a run has come."""

    finished: tuple[Stage, ...]
    stage: Stage | None
    """The stage that has started and is not finished; None between two stages and after the last."""
    in_progress: bool
    """Whether the process that has locked the run directory is alive, on this machine."""

    @property
    def evaluated(self) -> bool:
        """Whether the run has a result."""
        return "evaluate" in self.finished


def status_of(run: RunRecord) -> Status:
    """Return how far a run has come."""
    finished = tuple(stage for stage in STAGES if run.done(stage) is not None)
    started = [stage for stage in STAGES if any((run.path / f"{name}.jsonl").exists() for name in _ROWS[stage])]
    unfinished = [stage for stage in started if stage not in finished]
    return Status(finished=finished, stage=unfinished[-1] if unfinished else None, in_progress=_locked(run.path))


def change(before: bool | None, after: bool | None) -> Change:
    """Return how training changed the outcome of both tries at a problem; None is one that could not be judged."""
    if before is None or after is None:
        return "unjudged"
    if before:
        return "solved by both" if after else "newly broken"
    return "newly fixed" if after else "solved by neither"


def open_record(folder: Path) -> RunRecord:
    """Return the record of a run; UsageError when the folder holds none."""
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"`{folder}` is not a run directory: it has no config.json",
            "name the folder that `r3 run` printed, for example runs/countdown-1a2b3c4d",
        )
    return RunRecord(folder)


def config_of(folder: Path, placement: Mapping[str, Any] | None = None) -> Config:
    """Return the configuration of the run in a directory, with another placement where one is given.

    Raises:
        ConfigError: this version of r3 cannot read it, or the placement is not valid.
    """
    stored, placement = RunRecord(folder).read_json("config"), placement or {}
    try:
        settings = {key: value for key, value in stored.items() if key not in NOT_SETTINGS}
        return Config.model_validate(settings | {"output_dir": folder, **placement})
    except (AttributeError, ValidationError) as error:
        if isinstance(error, ValidationError) and error.errors()[0]["loc"][0] in placement:
            raise explained(error) from None
        raise ConfigError(
            f"`{folder / 'config.json'}` is not a configuration of this version of r3",
            "give the task and its settings again, and another --output-dir",
        ) from None


def task_of(config: Config) -> Task | None:
    """Return the task of a run with its options; None where its plugin is missing, or does not have them any more."""
    try:
        return get_task(config.task, **config.task_options)
    except R3Error:
        return None


def messages_of(task: Task | None, example: Example) -> list[Message]:
    """Return the messages of a recorded problem, as the task builds them where it can, else as they were recorded."""
    try:
        if task is not None:
            return prompts.attempt(task, example).messages
    except R3Error:
        pass  # the task has changed since the run
    recorded = example.prompt
    if isinstance(recorded, Prompt):
        return recorded.messages
    return [{"role": "user", "content": recorded}] if isinstance(recorded, str) else recorded or []


def _locked(folder: Path) -> bool:
    """Return whether the process that has locked the directory last is still alive."""
    try:
        os.kill(int((folder / ".lock.pid").read_text()), 0)
    except PermissionError:  # it is another user's
        return True
    except (OSError, ValueError):
        return False
    return True
