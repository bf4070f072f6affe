"""Compare the calls of a response with the expected calls.

The reason of a failure never contains the expected answer, because a run may show the reason to the model.
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
    actual: Sequence[Call], expected: Sequence[Call], schemas: Mapping[str, Schema], *, ordered: bool, defaults: bool
) -> None:
    """Raise `Wrong` unless the actual calls are valid and equal the expected ones.

    `schemas` are those of the offered tools. With `defaults`, an argument that is left out equals its default there.
    """
    check_valid(actual, schemas)
    if list(map(key_of, actual)) == list(map(key_of, expected)):
        return
    if defaults:
        actual, expected = _filled(actual, schemas), _filled(expected, schemas)
    ours, theirs = [key_of(call) for call in actual], [key_of(call) for call in expected]
    if ours == theirs:
        return
    if Counter(ours) == Counter(theirs):
        if ordered:
            raise Wrong(Kind.WRONG_ORDER, "the calls are right, and their order is not")
        return
    _check_names(actual, expected)
    amiss = Counter(ours) - Counter(theirs)
    wanted = Counter(theirs) - Counter(ours)
    call = next(call for call, key in zip(actual, ours, strict=True) if key in amiss)
    near = [other for other, key in zip(expected, theirs, strict=True) if key in wanted and other.name == call.name]
    raise Wrong(Kind.WRONG_ARGUMENT, _difference(call, near))


def check_valid(calls: Sequence[Call], schemas: Mapping[str, Schema]) -> None:
    """Raise `Wrong` unless every call is of an offered tool, with arguments that its schema allows."""
    for call in calls:
        if call.name not in schemas:
            raise Wrong(Kind.UNKNOWN_TOOL, f"no tool is called {_shown(call.name)}")
    for call in calls:
        if fault := violation(schemas[call.name], call.arguments):
            raise Wrong(Kind.SCHEMA_VIOLATION, f"{call.name}: {_cut(fault)}")


def _filled(calls: Sequence[Call], schemas: Mapping[str, Schema]) -> list[Call]:
    return [Call(call.name, with_defaults(call.arguments, schemas.get(call.name))) for call in calls]


def _check_names(actual: Sequence[Call], expected: Sequence[Call]) -> None:
    ours, theirs = Counter(call.name for call in actual), Counter(call.name for call in expected)
    extra, missing = ours - theirs, theirs - ours
    if extra and missing:
        raise Wrong(Kind.WRONG_TOOL, f"{next(iter(extra))} is not to be called, or not so often")
    if missing:
        raise Wrong(Kind.MISSING_CALL, f"{len(actual)} of {len(expected)} calls")
    if extra:
        raise Wrong(Kind.EXTRA_CALL, f"{len(actual)} calls in place of {len(expected)}")


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
