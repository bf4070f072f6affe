"""Schemas whose types are named as in Python, such as BFCL's `dict`, `float`, `tuple` and `any`, as JSON Schema."""

from __future__ import annotations

from collections import Counter
from typing import Any

from r3_plugin_apigen.schema import Schema
from r3_plugin_apigen.xlam import schema_of_name

_TYPES = {"string", "number", "integer", "boolean", "array", "object", "null"}
_KEYWORDS = {"type", "properties", "required", "additionalProperties", "description", "title", "$defs", "definitions"}
_OTHER_NAMES = {"hashmap": "object", "arraylist": "array", "long": "integer", "bigint": "integer", "double": "number"}
"""Types of Java and JavaScript in BFCL, in small letters."""
_INSIDE = {"items", "additionalProperties", "not", "contains"}
_LISTS = {"anyOf", "oneOf", "allOf", "prefixItems"}
_NAMED = {"properties", "$defs", "definitions", "patternProperties"}


def is_schema(described: dict[str, Any]) -> bool:
    """Return whether the parameters of a tool are a schema, with or without a type, and no list of arguments."""
    properties = described.get("properties")
    if not isinstance(properties, dict) or not all(isinstance(one, dict) for one in properties.values()):
        return False
    return described.keys() <= _KEYWORDS and isinstance(described.get("type", ""), str)


def json_schema(schema: Schema) -> tuple[Schema, Counter[str], list[str]]:
    """Return a schema with JSON Schema's types, which names of types it had, and the properties of an unknown type.

    A property of an unknown type takes any value.
    """
    renamed: Counter[str] = Counter()
    unknown: list[str] = []
    converted = _converted(schema, "", renamed, unknown)
    return ({"type": "object"} | converted if isinstance(converted, dict) else schema), renamed, unknown


def _converted(schema: Any, place: str, renamed: Counter[str], unknown: list[str]) -> Any:
    if not isinstance(schema, dict):
        return schema
    made: Schema = {}
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            inner = {name: _converted(one, f"{place}.{name}", renamed, unknown) for name, one in value.items()}
            made[key] = inner
        elif key in _INSIDE:
            made[key] = _converted(value, place, renamed, unknown)
        elif key in _LISTS and isinstance(value, list):
            made[key] = [_converted(one, place, renamed, unknown) for one in value]
        elif key == "type" and isinstance(value, str) and value not in _TYPES:
            made |= _meaning(value, place, renamed, unknown)
        elif not (key == "required" and not isinstance(value, list)):  # `null`, or BFCL's true inside of a property
            made[key] = value
    return made


def _meaning(name: str, place: str, renamed: Counter[str], unknown: list[str]) -> Schema:
    small = name.lower()
    try:
        meaning = {"type": _OTHER_NAMES[small]} if small in _OTHER_NAMES else schema_of_name(small)
    except KeyError:
        unknown.append(place.removeprefix("."))
        return {}
    renamed[name] += 1
    return meaning
