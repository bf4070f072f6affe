"""The calls of a response beside those that are asked for: the same, or what is wrong with them.

What is wrong is told without the right answer: a run may pass the reason on to the model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from r3_plugin_apigen.calls import Call, Kind, Wrong, key_of
from r3_plugin_apigen.schema import Schema, violation, with_defaults

_SHOWN = 120  # characters of what a model wrote


def check(
    said: Sequence[Call], asked: Sequence[Call], schemas: Mapping[str, Schema], *, ordered: bool, defaults: bool
) -> None:
    """Raise `Wrong` unless calls are valid and the ones that are asked for; `schemas` are those of the tools offered.

    With `defaults`, an argument that is left out equals the default that its schema names.
    """
    check_valid(said, schemas)
    if list(map(key_of, said)) == list(map(key_of, asked)):
        return
    if defaults:
        said, asked = _filled(said, schemas), _filled(asked, schemas)
    ours, theirs = [key_of(call) for call in said], [key_of(call) for call in asked]
    if ours == theirs:
        return
    if Counter(ours) == Counter(theirs):
        if ordered:
            raise Wrong(Kind.WRONG_ORDER, "the calls are right, and their order is not")
        return
    _check_names(said, asked)
    amiss = Counter(ours) - Counter(theirs)
    wanted = Counter(theirs) - Counter(ours)
    call = next(call for call, key in zip(said, ours, strict=True) if key in amiss)
    near = [other for other, key in zip(asked, theirs, strict=True) if key in wanted and other.name == call.name]
    raise Wrong(Kind.WRONG_ARGUMENT, _difference(call, near))


def check_valid(calls: Sequence[Call], schemas: Mapping[str, Schema]) -> None:
    """Raise `Wrong` unless every call is one of a tool that is offered, with arguments that its schema allows."""
    for call in calls:
        if call.name not in schemas:
            raise Wrong(Kind.UNKNOWN_TOOL, f"no tool is called {_shown(call.name)}")
    for call in calls:
        if fault := violation(schemas[call.name], call.arguments):
            raise Wrong(Kind.SCHEMA_VIOLATION, f"{call.name}: {_cut(fault)}")


def _filled(calls: Sequence[Call], schemas: Mapping[str, Schema]) -> list[Call]:
    return [Call(call.name, with_defaults(call.arguments, schemas.get(call.name))) for call in calls]


def _check_names(said: Sequence[Call], asked: Sequence[Call]) -> None:
    ours, theirs = Counter(call.name for call in said), Counter(call.name for call in asked)
    extra, missing = ours - theirs, theirs - ours
    if extra and missing:
        raise Wrong(Kind.WRONG_TOOL, f"{next(iter(extra))} is not to be called, or not so often")
    if missing:
        raise Wrong(Kind.MISSING_CALL, f"{len(said)} of {len(asked)} calls")
    if extra:
        raise Wrong(Kind.EXTRA_CALL, f"{len(said)} calls in place of {len(asked)}")


def _difference(call: Call, others: Sequence[Call]) -> str:
    """Return which argument of a call is wrong, beside the most similar of some calls of the same tool."""
    keys = {name: key_of(value) for name, value in call.arguments.items()}

    def wrong_ones(other: Call) -> list[str]:
        wanted = {name: key_of(value) for name, value in other.arguments.items()}
        return [
            name for name in {**wanted, **keys} if (name in keys, keys.get(name)) != (name in wanted, wanted.get(name))
        ]

    other = min(others, key=lambda other: len(wrong_ones(other)))
    name = wrong_ones(other)[0]
    if name not in call.arguments:
        return f"{call.name}: {name} is left out"
    if name not in other.arguments:
        return f"{call.name}: {_shown(name)} is not to be stated"
    return f"{call.name}: {name} should not be {_shown(call.arguments[name])}"


def _shown(value: Any) -> str:
    return _cut(json.dumps(value))  # as ASCII: the model's text may hold what no verdict can


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
