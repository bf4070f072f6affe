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

Accepted = Mapping[str, Any]
"""`{"values": {argument: [...]}, "optional": [argument, ...]}`: what is right for a call, and what may be left out."""
_SHOWN = 120  # characters of what a model wrote


def check(
    actual: Sequence[Call],
    expected: Sequence[Call],
    schemas: Mapping[str, Schema],
    *,
    ordered: bool,
    defaults: bool,
    accepted: Sequence[Accepted] = (),
) -> None:
    """Raise `Wrong` unless the actual calls are valid and equal the expected ones.

    `schemas` are those of the offered tools. With `defaults`, an argument that is left out equals its default there.
    `accepted` has, for each expected call, the other values of its arguments that are right.
    """
    check_valid(actual, schemas)
    if accepted:
        actual = _settled(actual, expected, accepted, schemas if defaults else {}, ordered=ordered)
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


def _settled(
    actual: Sequence[Call],
    expected: Sequence[Call],
    accepted: Sequence[Accepted],
    schemas: Mapping[str, Schema],
    *,
    ordered: bool,
) -> list[Call]:
    """Return the actual calls; where one has accepted values alone, the expected call stands in its place.

    Each expected call stands for one actual call at most: the largest matching, by augmenting paths.
    """
    fits = [
        [
            place
            for place, other in enumerate(expected)
            if (place == number or not ordered) and _is_accepted(call, other.name, accepted[place], schemas)
        ]
        for number, call in enumerate(actual)
    ]
    taken: dict[int, int] = {}  # by expected call, the actual one

    def place_of(one: int, tried: set[int]) -> bool:
        for place in fits[one]:
            if place not in tried:
                tried.add(place)
                if place not in taken or place_of(taken[place], tried):
                    taken[place] = one
                    return True
        return False

    for one in range(len(actual)):
        place_of(one, set())
    settled = {one: expected[place] for place, one in taken.items()}
    return [settled.get(one, call) for one, call in enumerate(actual)]


def _is_accepted(call: Call, name: str, accepted: Accepted, schemas: Mapping[str, Schema]) -> bool:
    values, optional = accepted["values"], accepted["optional"]
    if call.name != name or not call.arguments.keys() <= values.keys():
        return False
    filled = with_defaults(call.arguments, schemas.get(name))

    def fits(key: str) -> bool:
        if key not in call.arguments and key in optional:
            return True
        written = [key_of(arguments[key]) for arguments in (call.arguments, filled) if key in arguments]
        return not set(map(key_of, values[key])).isdisjoint(written)

    return all(map(fits, values))


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
