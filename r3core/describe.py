"""Everything that an author or a user may want to know of one task: `r3 tasks NAME`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import JsonValue

from r3core.check.certificate import Certificate, cached_certificate
from r3core.console import visible
from r3core.dataset import load_examples
from r3core.errors import R3Error, one_line
from r3core.plugins.diagnostics import as_task_error
from r3core.plugins.discovery import discover
from r3core.plugins.options import Option, options_of, set_options
from r3core.presets import BUILT_IN
from r3core.prompts import attempt
from r3core.sections import Limits
from r3core.task import Example, Frozen, Message, Split, Task, Tool

_SPLITS: tuple[Split, ...] = ("test", "validation", "train")
_LONGEST = 2_000  # characters of a prompt or a reference in the terminal; --json prints all of it


class Shown(Frozen):
    """The first problem of a task, as a model receives it."""

    id: str
    split: Split
    prompt: list[Message]
    tools: list[Tool]
    reference: str | None
    """A response that must pass; None where the task has none."""
    answer: JsonValue
    info: dict[str, JsonValue]


class BuiltIn(Frozen):
    """The model that a task ships."""

    model: str
    settings: dict[str, JsonValue]
    made_for: dict[str, JsonValue]
    """Options that the model was trained for, with their defaults."""


class Description(Frozen):
    """One task, as `r3 tasks NAME --json` prints it."""

    name: str
    summary: str
    """The first line of its docstring."""
    text: str
    """The rest of its docstring."""
    version: str
    """The verifier's version."""
    distribution: str | None
    """Name and version of the distribution that installed it; None for a task in a file or a module."""
    location: str
    """Module and class, in the form that `--task` accepts."""
    reads: str
    options: list[Option]
    example: Shown | None
    example_fault: str | None
    """Why no example can be shown."""
    certificate: Certificate | None
    """The cached certificate of this state of the task."""
    waived: dict[str, str]
    refuses: dict[str, str]
    fixtures: str | None
    built_in: BuiltIn | None
    presets: dict[str, dict[str, JsonValue]]


def describe(kind: type[Task], options: Mapping[str, Any]) -> Description:
    """Return everything about a task with these options; loads one problem, and no model.

    Without an option that it requires, there is no example and no certificate.
    """
    missing = [option.name for option in options_of(kind) if option.required and option.name not in options]
    task = None if missing else set_options(kind, options)
    shown, fault = _example(task) if task else (None, f"needs the option {', '.join(missing)}")
    summary, _, text = inspect.cleandoc(kind.__dict__.get("__doc__") or "").partition("\n")
    return Description(
        name=kind.name,
        summary=summary,
        text=text.strip(),
        version=kind.version,
        distribution=_distribution(kind),
        location=f"{kind.__module__}:{kind.__qualname__}",
        reads=kind.reads,
        options=options_of(kind),
        example=shown,
        example_fault=fault,
        certificate=cached_certificate(task, Limits()) if task else None,
        waived=kind.waived,
        refuses=kind.refuses,
        fixtures=str(kind.fixtures) if kind.fixtures else None,
        built_in=_built_in(kind),
        presets=kind.presets,
    )


def lines(one: Description, spec: str) -> Iterator[str]:
    """Yield the description for the terminal, with unprintable characters escaped; `spec` is the value of `--task`."""
    yield f"{one.name}  ({one.distribution or one.location}; verifier version {one.version})"
    yield f"    {one.summary}" if one.summary else "    (no docstring)"
    yield from _indented(one.text)
    yield "\noptions (--task-option NAME=VALUE):" if one.options else "\nno options"
    for option in one.options:
        default = "required" if option.required else f"default {json.dumps(option.default, ensure_ascii=False)}"
        yield f"    {option.name}  ({option.type}, {default})"
        yield from _indented(option.meaning, by=8)
    yield from _example_lines(one)
    yield from _certificate_lines(one, spec)
    yield from _model_lines(one, spec)


def _example_lines(one: Description) -> Iterator[str]:
    example = one.example
    if example is None:
        yield f"\nexample: {visible(one.example_fault or 'the task has no problem')}"
        return
    yield f"\nexample {visible(example.id, longest=100)} ({example.split} split):"
    for message in example.prompt:
        yield from _indented(f"{message['role']}: {_bounded(message['content'])}")
    if example.tools:
        yield from _indented(f"tools: {_bounded(json.dumps(example.tools, ensure_ascii=False))}")
    if example.reference is not None:
        yield from _indented(f"reference: {_bounded(example.reference)}")
    else:
        answer = json.dumps(example.answer, ensure_ascii=False)
        yield from _indented(f"no reference; the example's answer: {_bounded(answer)}")
    if one.reads == "everything":
        yield "    the verifier reads the thinking too"


def _certificate_lines(one: Description, spec: str) -> Iterator[str]:
    if one.certificate is None:
        yield f"\ncertificate: none of this version yet; `r3 check {spec}` makes it, and so does a run"
    else:
        yield f"\ncertificate: {one.certificate.summary()}"
        yield from (f"    not checked: {visible(gap)}" for gap in one.certificate.not_checked)
    for title, reasons in (("waived", one.waived), ("refused", one.refuses)):
        by_reason: dict[str, list[str]] = {}
        for name, reason in reasons.items():
            by_reason.setdefault(reason, []).append(name)
        yield from (f"    {title}: {', '.join(names)} ({visible(reason)})" for reason, names in by_reason.items())
    if one.fixtures:
        yield f"    fixtures: {one.fixtures}"


def _model_lines(one: Description, spec: str) -> Iterator[str]:
    if one.built_in is None:
        yield "\nno built-in model: name one with --model"
    else:
        yield f"\nbuilt-in model: {one.built_in.model}; `r3 run --task {spec}` trains it with these settings:"
        yield from (f"    {key}={json.dumps(value)}" for key, value in one.built_in.settings.items())
        if made_for := one.built_in.made_for:
            options = ", ".join(f"{name}={json.dumps(value)}" for name, value in made_for.items())
            yield f"    it was trained for {options}"
    for preset, options_set in one.presets.items():
        yield f"preset {preset}: {', '.join(f'{key}={json.dumps(value)}' for key, value in options_set.items())}"


def _example(task: Task) -> tuple[Shown | None, str | None]:
    """Return the first problem, or why it cannot be shown."""
    try:
        for split in _SPLITS:
            for example in load_examples(task, split):
                return _shown(task, example, split), None
    except R3Error as error:
        return None, one_line(error)
    return None, f"the task has no problem in any of its splits: {', '.join(_SPLITS)}"


def _shown(task: Task, example: Example, split: Split) -> Shown:
    prompt = attempt(task, example)
    with as_task_error(task, f"`reference` of example {example.id!r}"):
        reference = task.reference(example)
    return Shown(
        id=example.id,
        split=split,
        prompt=prompt.messages,
        tools=prompt.tools,
        reference=reference,
        answer=example.answer,
        info=example.info,
    )


def _built_in(kind: type[Task]) -> BuiltIn | None:
    if kind.demo is None:
        return None
    defaults = {option.name: option.default for option in options_of(kind)}
    made_for = {name: defaults[name] for name in kind.demo.made_for}
    return BuiltIn(model=str(kind.demo.model), settings=BUILT_IN | kind.demo.settings, made_for=made_for)


def _distribution(kind: type[Task]) -> str | None:
    found = (one for one in discover().tasks.values() if one.task is kind)
    return next((f"{one.distribution} {one.version}" for one in found), None)


def _indented(text: str, *, by: int = 4) -> Iterator[str]:
    yield from (f"{' ' * by}{visible(line)}".rstrip() for line in text.splitlines())


def _bounded(text: str) -> str:
    return visible(text, longest=_LONGEST, keep="\n")
