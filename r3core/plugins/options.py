"""A task's options: the fields of its class, set by name, with a readable error when a value is not allowed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import JsonValue, ValidationError
from pydantic_core import ErrorDetails, to_jsonable_python

from r3core.errors import TaskError, did_you_mean
from r3core.plugins.diagnostics import as_task_error, message_of
from r3core.settings import typed
from r3core.task import Frozen, Task


class Option(Frozen):
    """One option of a task, as `--task-option NAME=VALUE` takes it."""

    name: str
    type: str
    default: JsonValue = None
    required: bool = False
    """A required option has no default."""
    meaning: str = ""
    """The string under the option in the class, or the `description` of its Field."""


def options_of(task: type[Task]) -> list[Option]:
    """Return the options of a task class, with defaults as JSON values."""
    options = []
    for name, field in task.model_fields.items():
        required = field.is_required()
        default = None if required else field.get_default(call_default_factory=True, validated_data={})
        value = to_jsonable_python(default, fallback=str)
        kind, meaning = type_text(field.annotation), field.description or ""
        options.append(Option(name=name, type=kind, default=value, required=required, meaning=meaning))
    return options


def set_options(task: type[Task], options: Mapping[str, Any]) -> Task:
    """Return a task with these options; a path is made absolute, so that a recorded run finds it from any folder.

    Raises:
        TaskError: it names every option that is unknown, missing or has a wrong value.
    """
    options = typed(dict(options), task)
    with as_task_error(task, f"`{task.__qualname__}(...)`"):
        try:
            return _with_absolute_paths(task(**options), options)
        except ValidationError as error:
            details = error.errors(include_url=False)
            if error.title != task.__name__ or any(detail["type"].startswith("frozen") for detail in details):
                raise  # it is about a value that the task's own code created
    faults = [_fault(task, options, detail) for detail in details]
    hints = [hint for _, near in faults for hint in near]
    raise TaskError("; ".join(message for message, _ in faults), *dict.fromkeys(hints))


def _with_absolute_paths(task: Task, options: Mapping[str, Any]) -> Task:
    paths = {name: value for name in options if isinstance(value := getattr(task, name), Path)}
    absolute = {name: path.expanduser().absolute() for name, path in paths.items()}
    return task if absolute == paths else task.model_copy(update=absolute)


def type_text(annotation: Any) -> str:
    """Return a type as it is written in source code, without the constraints on its values."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return " | ".join(json.dumps(value, default=str) for value in arguments)
    if origin in (Union, UnionType):
        return " | ".join(type_text(argument) for argument in arguments)
    if origin is not None:
        return f"{type_text(origin)}[{', '.join(type_text(argument) for argument in arguments)}]"
    if annotation in (Ellipsis, type(None)):
        return "..." if annotation is Ellipsis else "None"
    return str(getattr(annotation, "__name__", annotation))


def _fault(task: type[Task], options: Mapping[str, Any], detail: ErrorDetails) -> tuple[str, tuple[str, ...]]:
    """Return what is wrong with one option, and hints."""
    known = list(task.model_fields)
    message = message_of(detail)
    if not detail["loc"]:
        return f"task `{task.name}`: {message}", ()
    option = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        has = f"its options: {', '.join(known)}" if known else "it has no options"
        return f"task `{task.name}` has no option `{option}`; {has}", did_you_mean(option, known)
    if option not in known:
        return f"task `{task.name}`: `{option}` cannot be {detail['input']!r}: {message}", ()
    kind = type_text(task.model_fields[option].annotation)
    if detail["type"] == "missing" and len(detail["loc"]) == 1:
        return f"task `{task.name}` requires the option `{option}` ({kind})", (f"--task-option {option}=...",)
    what = "" if option in options else "the default of "
    return f"task `{task.name}`: {what}option `{option}` ({kind}) cannot be {detail['input']!r}: {message}", ()
