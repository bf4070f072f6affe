"""Mistakes of a task's author, told in words: which class, which method, which line."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import PydanticUndefinedAnnotation, PydanticUserError, ValidationError
from pydantic_core import ErrorDetails

from r3core.errors import R3Error, TaskError
from r3core.task import Demo, Example, Task, Verdict, Wording

_ATTRIBUTES: dict[str, tuple[type, ...]] = {
    "version": (str,),
    "wording": (Wording,),
    "demo": (Demo, type(None)),
    "fixtures": (Path, type(None)),
    "waived": (dict,),
}  # what a task may set beside its name -> the types that are allowed
_VALUES = {kind.__name__: kind for kind in (Example, Verdict, Wording, Demo)}
_METHODS = {
    name: ", ".join(list(inspect.signature(method).parameters)[1:])
    for name, method in vars(Task).items()
    if inspect.isfunction(method) and not name.startswith("_")
}  # method -> what r3 calls it with
_WRITTEN = {
    "fixtures": 'as in `Path(__file__).with_name("fixtures.jsonl")`',
    "waived": "of probes and reasons",
}  # what a task may set -> how it is written, where the type alone does not tell
_UNTYPED = re.compile(r"`(\w+) = (.*?)`\. All model fields require", re.DOTALL)
_SHADOWS = re.compile(r"""Field (?:name )?["'](\w+)["'] (?:in .*? )?(?:shadows|conflicts with)""")
_UNKNOWN_TYPE = re.compile(r"Unable to generate pydantic-core schema for (.*?)\. Set")


def fault_of(task: object) -> str | None:
    """Return why something is not a usable task class, or None when it is one."""
    if not isinstance(task, type) or not issubclass(task, Task):
        return _no_class(task)
    if missing := sorted(getattr(task, "__abstractmethods__", ())):
        return f"`{task.__qualname__}` does not define {', '.join(f'`{method}`' for method in missing)}"
    faults = (_clash, _wrong_name, _wrong_attribute, _wrong_method, _misspelt_method, _unknown_type)
    return next((said for fault in faults if (said := fault(task))), None)


@contextmanager
def blamed(task: Task | type[Task], call: str) -> Iterator[None]:
    """Turn what a task's own code raises in the block into a TaskError: `call` says what was asked of it."""
    try:
        yield
    except R3Error:
        raise
    except (Exception, SystemExit) as error:
        where = _line_of(error, task if isinstance(task, type) else type(task))
        raise TaskError(f"task `{task.name}`: {call} raised {told(error)}{where}") from error


def told(error: BaseException) -> str:
    """Return an exception in one line; what pydantic has against a class is said in the words of this project."""
    kind = type(error).__name__
    if isinstance(error, ValidationError):
        faults = (_wrong_value(detail, error.title) for detail in error.errors(include_url=False))
        return f"{kind} of {error.title}: {'; '.join(faults)}"
    try:
        text = str(error)
    except Exception:  # the exception is the task's own, and its text is computed by the task's code
        return f"{kind} (its message cannot be shown)"
    if isinstance(error, (PydanticUserError, NameError, ValueError, UserWarning)) and (said := _of_a_class(text)):
        return said
    if isinstance(error, PydanticUserError):
        text = text.partition("\n\nFor further information")[0]
    text = " ".join(text.split())
    return f"{kind}: {text}" if text else kind


def _of_a_class(text: str) -> str | None:
    """Return what pydantic says of a class that it cannot make, in other words; None for any other text."""
    if match := _SHADOWS.match(text):
        return f"the option `{match[1]}` has the name of something that every task has; call it otherwise"
    if match := _UNKNOWN_TYPE.match(text):
        return f"an option has the type {match[1]}; allowed are str, int, float, bool, Path, Literal and lists of them"
    if not (match := _UNTYPED.search(text)):
        return None
    name, value = match.groups()
    if name in _METHODS:
        return f"`{name} = {value}` is no method; write `def {name}(self, {_METHODS[name]})`"
    if near := get_close_matches(name, [*_ATTRIBUTES, "name"], n=1, cutoff=0.75):
        return f"`{name} = {value}` is nothing that a task has; did you mean `{near[0]}`?"
    return f"`{name} = {value}` has no type; an option has one, as in `size: int = 3`, all else is a `ClassVar`"


def _no_class(found: object) -> str:
    if isinstance(found, Task):
        return f"{found!r} is not a subclass of `r3core.Task` but a task of one; leave out the brackets behind its name"
    if inspect.isroutine(found) or inspect.ismodule(found):
        kind = "module" if inspect.ismodule(found) else "function"
        return f"the {kind} `{found.__name__}` is not a subclass of `r3core.Task`"
    if isinstance(found, type) and any(hasattr(found, method) for method in ("load", "verify")):
        return f"{found!r} is not a subclass of `r3core.Task`; write `class {found.__name__}(Task):`"
    return f"{found!r} is not a subclass of `r3core.Task`"


def _clash(task: type[Task]) -> str | None:
    attributes = inspect.get_annotations(Task)
    for name, field in task.model_fields.items():
        if name in attributes:
            value = "..." if field.is_required() else repr(field.default)
            return f"`{task.__qualname__}` makes an option of `{name}`; write `{name} = {value}`, without annotation"
        if hasattr(Task, name):
            return f"the option `{name}` of `{task.__qualname__}` has the name of something that every task has"
    return None


def _wrong_name(task: type[Task]) -> str | None:
    name = getattr(task, "name", None)
    if name is None:
        return f"`{task.__qualname__}` has no class attribute `name`"
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        return f"the name of `{task.__qualname__}` is {name!r}; letters, digits, `-`, `_` and `.` are allowed"
    return None


def _wrong_attribute(task: type[Task]) -> str | None:
    for name, allowed in _ATTRIBUTES.items():
        value = getattr(task, name)
        if not isinstance(value, allowed):
            wanted = " ".join([allowed[0].__name__, *([_WRITTEN[name]] if name in _WRITTEN else [])])
            return f"`{name}` of `{task.__qualname__}` is {value!r:.60}; it should be a {wanted}"
    return None


def _wrong_method(task: type[Task]) -> str | None:
    for name, wanted in _METHODS.items():
        found = inspect.getattr_static(task, name)
        called = f"`{task.__qualname__}.{name}`"
        if not callable(getattr(task, name)):  # a property, for example
            return f"{called} is no method; write `def {name}(self, {wanted})`"
        method = found.__get__(object(), task) if hasattr(found, "__get__") else found
        if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
            return f"{called} is `async`; write it as a plain `def`"
        parameters = list(inspect.signature(method).parameters)
        names = wanted.split(", ") if wanted else []
        swapped = parameters != names and sorted(parameters) == sorted(names)
        try:
            inspect.signature(method).bind(*names)
        except TypeError:
            swapped = True
        if swapped:
            return f"{called} takes {', '.join(parameters) or 'nothing'}; it is called with {wanted or 'nothing'}"
    return None


def _misspelt_method(task: type[Task]) -> str | None:
    """Return which method nothing calls, though its name is nearly that of one that the task does not define."""
    kept = [name for name in _METHODS if getattr(task, name) is getattr(Task, name) and name != "options"]
    for kind in task.__mro__[: task.__mro__.index(Task)]:
        for name in (name for name, value in vars(kind).items() if inspect.isfunction(value)):
            if name not in _METHODS and name[0] != "_" and (near := get_close_matches(name, kept, n=1, cutoff=0.85)):
                said = f"r3 does not call `{kind.__qualname__}.{name}`; did you mean `{near[0]}`?"
                return f"{said} If not, call it `_{name}`"
    return None


def _unknown_type(task: type[Task]) -> str | None:
    """Return which type of an option is not known; those that are defined further down than the class are by now."""
    try:
        task.model_rebuild()
    except PydanticUndefinedAnnotation as error:
        where = f"in `{task.__module__}`, and not under `TYPE_CHECKING` alone"
        return f"an option of `{task.__qualname__}` has the type `{error.name}`, which is not known; import it {where}"
    return None


def _line_of(error: BaseException, task: type[Task]) -> str:
    """Return where in the files of the task's classes an exception came from; nothing when it passed none of them."""
    modules: list[Any] = [sys.modules.get(kind.__module__) for kind in task.__mro__ if issubclass(kind, Task)]
    files = {getattr(module, "__file__", None) for module in modules if module is not sys.modules[Task.__module__]}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _wrong_value(detail: ErrorDetails, title: str) -> str:
    field = ".".join(map(str, detail["loc"])) or "it"
    if detail["type"] == "extra_forbidden" and (kind := _VALUES.get(title)):
        return f"there is no `{field}`; there are {', '.join(f'`{name}`' for name in kind.model_fields)}"
    if detail["type"] == "frozen_instance":
        return f"`{field}` cannot be set: a task never changes; what it computes once is a `functools.cached_property`"
    message = detail["msg"].removeprefix("Value error, ")
    return f"`{field}` cannot be {detail['input']!r:.60}: {message[:1].lower() + message[1:]}"
