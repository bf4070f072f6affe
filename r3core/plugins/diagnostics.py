"""Readable errors for plugin bugs: what is wrong with a task class, and the line of its code that raised."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import PydanticUndefinedAnnotation, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from r3core.errors import R3Error, TaskError
from r3core.task import Task

_ATTRIBUTES = {name: get_args(hint)[0] for name, hint in get_type_hints(Task).items() if name in Task.__class_vars__}
_METHODS = {
    name: list(inspect.signature(method).parameters)[1:]
    for name, method in vars(Task).items()
    if inspect.isfunction(method) and not name.startswith("_")
}  # method -> its parameters without `self`
_ADVICE = {
    "model-field-missing-annotation": "an option needs a type, as in `size: int = 3`, and a method a `def`",
    "schema-for-unknown-type": "the type of an option may be str, int, float, bool, Path, Literal or a list of them",
}  # code of an error that pydantic raises while a class is created -> what to do


def fault_of(task: object) -> str | None:
    """Return why an object is not a usable task class, or None when it is one."""
    if isinstance(task, Task):
        return f"{task!r} is an instance and not a subclass of `r3core.Task`; leave out the parentheses after its name"
    if not isinstance(task, type) or not issubclass(task, Task):
        return f"{task!r} is not a subclass of `r3core.Task`"
    return next(
        (f"`{task.__qualname__}` {fault}" for check in (_faults, _wrong_methods) for fault in check(task)), None
    )


@contextmanager
def as_task_error(task: Task | type[Task], call: str) -> Iterator[None]:
    """Turn what a task's code raises in the block into a TaskError with file and line; `call` is what was called."""
    try:
        yield
    except R3Error:
        raise
    except (Exception, SystemExit) as error:
        where = _line_of(error, task if isinstance(task, type) else type(task))
        raise TaskError(f"task `{task.name}`: {call} raised {describe(error)}{where}") from error


def describe(error: BaseException) -> str:
    """Return an exception as one line."""
    kind = type(error).__name__
    if isinstance(error, ValidationError):
        details = error.errors(include_url=False)
        faults = (f"`{'.'.join(map(str, d['loc']))}` is {d['input']!r:.60}: {message_of(d)}" for d in details)
        return f"{kind} of {error.title}: {'; '.join(faults)}"
    if isinstance(error, PydanticUserError):
        text = f"{kind}: {str(error.message).splitlines()[0]}"
        return f"{_ADVICE[error.code]} ({text})" if error.code in _ADVICE else text
    try:
        text = " ".join(str(error).split())
    except Exception:  # the message of an exception class of the task is computed by the task's code
        return f"{kind} (its message cannot be shown)"
    return f"{kind}: {text}" if text else kind


def message_of(detail: ErrorDetails) -> str:
    """Return the message of a validation error without a capital, to be put after a name."""
    text = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else detail["msg"]
    return text[:1].lower() + text[1:]


def _faults(task: type[Task]) -> Iterator[str]:
    if missing := sorted(getattr(task, "__abstractmethods__", ())):
        yield f"does not define {', '.join(f'`{method}`' for method in missing)}"
    for name in task.model_fields:
        if name in _ATTRIBUTES or hasattr(Task, name):
            yield f"has an option `{name}`, an attribute of every task; set it without annotation, or rename it"
    for name, kind in _ATTRIBUTES.items():
        value = getattr(task, name, None)
        try:
            TypeAdapter(kind).validate_python(value, strict=True)
        except ValidationError:
            yield f"has the attribute `{name}` = {value!r:.60}; its type must be {getattr(kind, '__name__', kind)}"
    if not re.fullmatch(r"[\w.-]+", task.name):
        yield f"has the name {task.name!r}; letters, digits, `-`, `_` and `.` are allowed"
    try:
        task.model_rebuild()  # types that are defined below the class are known by now
    except PydanticUndefinedAnnotation as error:
        yield f"has an option of the unknown type `{error.name}`; an import under `TYPE_CHECKING` is not enough"


def _wrong_methods(task: type[Task]) -> Iterator[str]:
    for name, wanted in _METHODS.items():
        found = inspect.getattr_static(task, name)
        try:
            method: Any = found.__get__(object(), task) if callable(getattr(task, name)) else None
            parameters = list(inspect.signature(method).parameters)
            inspect.signature(method).bind(*wanted)
            swapped = parameters != wanted and sorted(parameters) == sorted(wanted)
        except TypeError:  # not callable, as a property is not, or with other parameters
            swapped = True
        if swapped or inspect.iscoroutinefunction(method):
            yield f"must define `{name}` as `def {name}({', '.join(['self', *wanted])})`"
    inherited = [name for name in _METHODS if getattr(task, name) is getattr(Task, name)]
    for name in (name for kind in task.__mro__[: task.__mro__.index(Task)] for name in vars(kind)):
        if name[0] != "_" and name not in _METHODS and inspect.isfunction(getattr(task, name)):
            for near in get_close_matches(name, inherited, n=1, cutoff=0.85):
                yield f"has a method `{name}` that nothing calls; did you mean `{near}`? If not, name it `_{name}`"


def _line_of(error: BaseException, task: type[Task]) -> str:
    """Return the last line in the files of the task's classes that an exception passed, or an empty text."""
    modules: list[Any] = [sys.modules.get(kind.__module__) for kind in task.__mro__ if issubclass(kind, Task)]
    files = {getattr(module, "__file__", None) for module in modules if module is not sys.modules[Task.__module__]}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
