"""Other tasks, on which a run evaluates its models too: their names and options, as `evaluate.also` has them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, model_validator

from r3core.errors import ConfigError, R3Error
from r3core.files import digest
from r3core.plugins.discovery import find_task, get_task
from r3core.plugins.options import options_of
from r3core.settings import assignments
from r3core.task import Frozen, Task

KEY = "evaluate.also"
_LONGEST = 60  # characters of a file name
_FORM = "a task's name, with options as in `countdown,numbers=[4]`, or {task: NAME, task_options: {...}}"


class OtherTask(Frozen):
    """An entry of `evaluate.also`; a text is read as `NAME`, or as `NAME,OPTION=VALUE,...`."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    task: str
    """Name of an installed task, `path/to/file.py:Class` or `module:Class`."""
    task_options: dict[str, Any] = {}
    """Options of the task."""

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        name, *options = re.split(r",(?=[A-Za-z_]\w*=)", given)
        return {
            "task": name,
            "task_options": dict(assignments(options, flag="--also", example="countdown,numbers=[4]")),
        }

    @property
    def name(self) -> str:
        """The task with the options that are not the default, for example `countdown,numbers=[4]`."""
        defaults = {option.name: option.default for option in options_of(find_task(self.task))}
        changed = {key: value for key, value in self.task_options.items() if value != defaults.get(key)}
        return ",".join([self.task, *(f"{key}={json.dumps(value)}" for key, value in changed.items())])

    def load(self) -> Task:
        """Return the task with its options; TaskError when there is no such task, or an option is not valid."""
        return get_task(self.task, **self.task_options)


def resolved(given: Any, *, task: str, task_options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return entries of `evaluate.also` with all options of their tasks; `task` and its options are the run's own.

    Raises:
        ConfigError: something is not an entry, a task cannot be loaded, or one is listed twice or is the run's own.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ConfigError(f"`{KEY}` cannot be {given!r}: it should be a list of tasks", f"each is {_FORM}")
    found: list[dict[str, Any]] = []
    for entry in given:
        one = _entry(entry)
        try:
            complete = {"task": one.task, "task_options": one.load().options()}
        except R3Error as error:
            error.hints = (*error.hints, f"it is one of the tasks of `{KEY}` (--also)")
            raise
        if complete == {"task": task, "task_options": dict(task_options)}:
            raise ConfigError(f"`{KEY}` cannot have `{one.task}`: it is the run's own task", "leave it out")
        if complete in found:
            raise ConfigError(f"`{KEY}` has `{one.task}` twice, with the same options", "leave one of them out")
        found.append(complete)
    return found


def file_name(name: str) -> str:
    """Return the name of another task as file names have it; one that was cut or changed ends with a hash."""
    safe = re.sub(r"[^A-Za-z0-9_.=-]+", "-", name.rpartition(":")[2])[:_LONGEST]
    return safe if safe == name else f"{safe.strip('-')}-{digest(name, length=6)}"


def _entry(given: Any) -> OtherTask:
    try:
        return given if isinstance(given, OtherTask) else OtherTask.model_validate(given)
    except ValueError:
        raise ConfigError(f"`{KEY}` cannot have {given!r}", f"each entry is {_FORM}") from None
