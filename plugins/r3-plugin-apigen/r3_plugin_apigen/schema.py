"""The arguments that a tool takes, as a JSON Schema (Draft 2020-12): is the schema one, and what does it allow?

A tool is {"name": ..., "description": ..., "parameters": a schema of type object}. Arguments that the schema does not
name are refused, unless the schema allows them.
"""

from __future__ import annotations

import json
import marshal
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import Any

from r3_plugin_apigen.calls import MAX_DEPTH, key_of

Schema = dict[str, Any]

_TOOL_KEYS = {"name": str, "description": str, "parameters": dict}
_ELSEWHERE = {"$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas"}
"""Keywords by which a schema may name properties in other places than `properties`."""

_FLAT = {
    *("type", "enum", "const", "pattern", "minLength", "maxLength", "minItems", "maxItems", "uniqueItems"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("title", "description", "default", "examples", "format"),
}
"""Keywords without schemas inside them; by the last ones, nothing is checked."""
_SCHEMAS = {"allOf", "anyOf", "oneOf", "not", "if", "then", "else"}
"""Keywords whose schemas are about the same value."""


def check_tool(tool: Any) -> str | None:
    """Return why a tool is not usable, or `None` when it is."""
    if not isinstance(tool, dict) or not tool.keys() >= _TOOL_KEYS.keys():
        return "it is no object with `name`, `description` and `parameters`"
    for key, kind in _TOOL_KEYS.items():
        if not isinstance(tool[key], kind):
            return f"its {key} is {tool[key]!a:.60}"
    if not tool["name"].strip():
        return "its name is empty"
    if tool["parameters"].get("type") != "object":
        return "its parameters are no schema of type object"
    if _depth_of(tool["parameters"]) > MAX_DEPTH:
        return f"its parameters are nested more than {MAX_DEPTH} deep"
    try:
        return _fault_of(json.dumps(tool["parameters"], allow_nan=False))
    except ValueError:
        return "its parameters hold NaN or Infinity"


def violation(parameters: Schema, arguments: dict[str, Any]) -> str | None:
    """Return the first thing about the arguments that the schema does not allow, or `None` when it allows them."""
    written = marshal.dumps(parameters, 2)  # ten times as quick as JSON; this version's bytes follow from the values
    for error in _compiled(written).iter_errors(arguments):
        place = error.json_path.removeprefix("$").removeprefix(".")
        # As ASCII: the model's text may hold what no verdict can, such as half a surrogate pair.
        return ascii(f"{place}: {error.message}" if place else error.message)[1:-1]
    return None


def with_defaults(value: Any, schema: Any) -> Any:
    """Return a value with the defaults that its schema names for what it leaves out, also in objects inside it."""
    if not isinstance(schema, dict):
        return value
    if isinstance(value, list) and "items" in schema:
        return [with_defaults(item, schema["items"]) for item in value]
    properties = schema.get("properties")
    if not isinstance(value, dict) or not isinstance(properties, dict):
        return value
    filled = {name: with_defaults(item, properties.get(name)) for name, item in value.items()}
    for name, wanted in properties.items():
        if name not in filled and isinstance(wanted, dict) and "default" in wanted:
            filled[name] = with_defaults(wanted["default"], wanted)
    return filled


@lru_cache(maxsize=4096)
def _compiled(written: bytes) -> Any:
    """Return the validator of a schema that `marshal` wrote: the same tools come again and again."""
    from referencing import Registry

    schema = marshal.loads(written)
    schema.pop("$schema", None)  # every schema is read as Draft 2020-12
    if not {"additionalProperties", "unevaluatedProperties"} & schema.keys():
        schema["unevaluatedProperties" if _ELSEWHERE & schema.keys() else "additionalProperties"] = False
    return _validator_class()(schema, registry=Registry())  # an empty registry: nothing is fetched


@cache
def _validator_class() -> Any:
    """Return jsonschema's validator with fast checks of plain values; it gives the same verdict on every value."""
    from jsonschema import Draft202012Validator, ValidationError, validators  # not before an answer is judged

    def properties(validator: Any, wanted: Schema, instance: Any, schema: Any) -> Iterator[ValidationError]:
        # For most of them all that `descend` does for schemas inside schemas is in vain, and takes most of the time.
        for name, inner in wanted.items() if isinstance(instance, dict) else ():
            if name in instance and not _is_flat_and_valid(validator, instance[name], inner):
                yield from validator.descend(instance[name], inner, path=name, schema_path=name)

    def all_different(validator: Any, wanted: bool, instance: Any, schema: Any) -> Iterator[ValidationError]:
        # The library's own compares every pair when the items cannot be sorted.
        if wanted and isinstance(instance, list) and len(set(map(key_of, instance))) < len(instance):
            yield ValidationError("an item is there twice")

    return validators.extend(Draft202012Validator, {"properties": properties, "uniqueItems": all_different})


def _is_flat_and_valid(validator: Any, value: Any, schema: Any) -> bool:
    if not isinstance(schema, dict) or not schema.keys() <= _FLAT:
        return False
    checks = [(validator.VALIDATORS[key], wanted) for key, wanted in schema.items() if key in validator.VALIDATORS]
    return not any(error for check, wanted in checks for error in check(validator, wanted, value, schema) or ())


@lru_cache(maxsize=4096)
def _fault_of(written: str) -> str | None:
    """Return why a text is no schema that can be used; only references into its own definitions can be."""
    from jsonschema import Draft202012Validator, SchemaError

    schema = json.loads(written)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        return f"its parameters are no JSON Schema: {error.json_path}: {ascii(error.message)[1:-1]}"[:200]
    keys = ("$defs", "definitions")
    defined = {f"#/{key}/{name}": value for key in keys for name, value in schema.get(key, {}).items()}
    leads = {place: set(_references(value, in_place=True)) for place, value in defined.items()}
    for reference in _references(schema):
        if reference not in defined:
            return f"it refers to {reference!a:.60}, which is not among its own `$defs`"
        if _comes_back(reference, leads):
            return f"its definition {reference!a:.60} is defined by itself"
    return None


def _comes_back(start: str, leads: Mapping[str, set[str]]) -> bool:
    """Tell whether a definition is the same as itself and nothing else, on whatever way: no value ends that."""
    reached: set[str] = set()
    ahead = leads[start]
    while ahead:
        reached |= ahead
        ahead = {further for place in ahead for further in leads.get(place, set())} - reached
    return start in reached


def _depth_of(value: Any) -> int:
    """Return how deeply a JSON value is nested, without recursion."""
    level, depth = [value], 0
    while level:
        inner = [item for one in level for item in (one.values() if isinstance(one, dict) else one)]
        level = [item for item in inner if isinstance(item, dict | list)]
        depth += 1
    return depth


def _references(schema: Any, *, in_place: bool = False) -> Iterator[str]:
    """Yield the references of a schema; with `in_place`, only those that are about the same value."""
    items = schema.items() if isinstance(schema, dict) else enumerate(schema) if isinstance(schema, list) else ()
    for key, item in items:
        if key in ("$ref", "$dynamicRef") and isinstance(item, str):
            yield item
        elif not in_place or key in _SCHEMAS or isinstance(key, int):
            yield from _references(item, in_place=in_place)
