"""xlam's descriptions of arguments as JSON Schema; docs/apigen.md has the rules.

xlam describes an argument by {"description": ..., "type": "List[int], optional", "default": ...}. A type text is read
by Python's own parser, and nothing of it is ever evaluated.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from r3_plugin_apigen.calls import Wrong, parse
from r3_plugin_apigen.schema import Schema


class Converted(NamedTuple):
    """A schema that was made from xlam's description of some arguments."""

    schema: Schema
    unconverted: list[str]
    """Arguments whose type or default could not be converted. Of such a type the schema allows any value, and a default
    that is not of its type is left out of it."""


def parameters_of(described: dict[str, Any]) -> Converted:
    """Return the schema of the arguments that xlam describes."""
    return _converted(json.dumps(described))


@lru_cache(maxsize=4096)  # the same tools come again and again
def _converted(written: str) -> Converted:
    described: dict[str, Any] = json.loads(written)
    if described.get("type") == "object" and isinstance(described.get("properties", {}), dict):
        return Converted(described, [])  # it is a schema already: an argument called `type` would be described
    properties: Schema = {}
    required: list[str] = []
    unconverted: list[str] = []
    for name, argument_description in described.items():
        argument = _argument(argument_description if isinstance(argument_description, dict) else {})
        properties[name] = argument.schema
        if argument.required:
            required.append(name)
        if not argument.converted:
            unconverted.append(name)
    return Converted({"type": "object", "properties": properties, "required": required}, unconverted)


class _Argument(NamedTuple):
    schema: Schema
    required: bool
    converted: bool


def _argument(described: dict[str, Any]) -> _Argument:
    """Convert an argument's description; in its field `default`, "" is a default only of an optional text."""
    text = described.get("description")
    text = " ".join(text.split()) if isinstance(text, str) else ""
    converted = True
    try:
        schema, optional = _type(described.get("type"))
    except ValueError:
        schema, optional, converted = {}, "optional" in str(described.get("type")), False
    schema = _with_choices(schema, text)
    default = described.get("default", "")
    if default != "":
        schema = _with_default(schema, default)
        converted = converted and "default" in schema
    elif (stated := _stated_default(text, schema)) != "":
        schema = _with_default(schema, stated)
    elif optional and schema == _TEXT and "default" in described:
        schema = schema | {"default": ""}
    required = not optional and "default" not in schema
    return _Argument(schema | ({"description": text} if text else {}), required, converted)


# --- types


def schema_of_name(name: str) -> Schema:
    """Return what the name of a type means, in small letters; raises `KeyError` for another name."""
    return dict(_TYPES[name])


_TEXT = {"type": "string"}
_NULL = {"type": "null"}
_LIST = {"type": "array"}
_SET = {"type": "array", "uniqueItems": True}
_OBJECT = {"type": "object"}
_MEANINGS: list[tuple[Schema, str]] = [
    (_TEXT, "str string date datetime time"),
    ({"type": "integer"}, "int integer"),
    ({"type": "number"}, "float number"),
    ({"type": "boolean"}, "bool boolean"),
    (_LIST, "list array sequence iterable tuple"),
    (_SET, "set frozenset"),
    (_OBJECT, "dict mapping object"),
    (_NULL, "none null"),
    ({}, "any"),
]
_TYPES = {name: schema for schema, names in _MEANINGS for name in names.split()}
"""What a name means, in small letters."""
_READABLE = re.compile(
    r"(?!.*\b[0-9]+[A-Za-z_])[\w\s\[\]().,|'\"-]{1,200}"
)  # short, and nothing that the parser warns of


def _type(text: Any) -> tuple[Schema, bool]:
    """Return the schema of a type text, and whether the argument is optional; ValueError when it cannot be read."""
    if not isinstance(text, str) or not _READABLE.fullmatch(text.strip()):
        raise ValueError(text)
    try:
        read = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(text) from error
    first, *notes = read.elts if isinstance(read, ast.Tuple) else [read]
    notes_found = {note.id for note in notes if isinstance(note, ast.Name)}
    if len(notes_found) < len(notes) or notes_found - {"optional", "required"}:
        raise ValueError(text)
    base = first.value if isinstance(first, ast.Subscript) else None
    return _schema_of(first), "optional" in notes_found or (base is not None and _name_of(base) == "optional")


def _schema_of(node: ast.expr) -> Schema:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union([_schema_of(node.left), _schema_of(node.right)])
    if isinstance(node, ast.Constant) and node.value is None:
        return _NULL
    if not isinstance(node, ast.Subscript):
        if (name := _name_of(node)) not in _TYPES:
            raise ValueError(name)
        return _TYPES[name]
    name = _name_of(node.value)
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "literal":
        return {"enum": [_constant(one) for one in inner]}
    if name == "tuple":
        return _tuple(inner)
    within = [_schema_of(one) for one in inner]
    if name == "union":
        return _union(within)
    if name == "optional" and len(within) == 1:
        return _union([*within, _NULL])
    outer = _TYPES.get(name)
    if outer in (_LIST, _SET) and len(within) == 1:
        return outer | ({"items": within[0]} if within[0] else {})
    if outer is _OBJECT and len(within) == 2:  # the keys of a JSON object are texts, whatever the description has
        return outer | ({"additionalProperties": within[1]} if within[1] else {})
    raise ValueError(name)


def _constant(node: ast.expr) -> Any:
    value = ast.literal_eval(node)
    if not isinstance(value, str | int | float | None):
        raise ValueError(value)
    return value


def _name_of(node: ast.expr) -> str:
    """Return a name in small letters; of `typing.List`, what is behind the dot."""
    found = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return found.lower()


def _tuple(inner: Sequence[ast.expr]) -> Schema:
    if len(inner) == 2 and isinstance(inner[1], ast.Constant) and inner[1].value is ...:
        return _LIST | {"items": _schema_of(inner[0])}
    within = [_schema_of(one) for one in inner]
    return _LIST | {"prefixItems": within, "items": False, "minItems": len(within)}


def _union(schemas: Sequence[Schema]) -> Schema:
    if {} in schemas:
        return {}
    if any(schema.keys() != {"type"} for schema in schemas):
        return {"anyOf": list(schemas)}
    listed = [kind if isinstance(kind, list) else [kind] for kind in (schema["type"] for schema in schemas)]
    kinds = list(dict.fromkeys(kind for kinds in listed for kind in kinds))
    return {"type": kinds if len(kinds) > 1 else kinds[0]}


# --- defaults and choices in the description and in the field `default`

_QUOTED = r"'[^']{1,60}'|\"[^\"]{1,60}\"|`[^`]{1,60}`"
_CHOICES = re.compile(
    r"\b(?:one of|either|(?:allowed|possible|valid|accepted|supported) values(?: are)?|options(?: are)?):? ?\(?"
    rf"((?:{_QUOTED})(?:(?:,? (?:or|and) |, ?| ?[/|] ?)(?:{_QUOTED}))+)(?!,? ?(?:etc|\.\.\.))",
    re.IGNORECASE,
)
_NAMED = r"\bdefault(?:s|ed)?(?: value)?"
_MARK = r"(?::| ?=) ?"
_ENDS = r"(?=[.,;)]|$)"
_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?(?![,.:/-]?[0-9])\b"
# What stands between "default" and its value ends with a space or a mark: else "default today" is "default to day".
_DEFAULT = re.compile(
    rf"{_NAMED}(?: to | is | |{_MARK})(?:({_QUOTED})|({_NUMBER}))"
    rf"|{_NAMED}(?: to | is |{_MARK})(true|false|none|null)\b"
    rf"|{_NAMED} (true|false|none|null){_ENDS}"
    rf"|{_NAMED}(?: to |{_MARK})([A-Za-z]\w*){_ENDS}",
    re.IGNORECASE,
)
"""The phrases that state a default: `default`, `defaults` or `defaulted`, perhaps ` value`, and then

| what follows | the value is |
|---|---|
| ` to `, ` is `, ` `, `:` or `=` | a text in quotes, or a number |
| ` to `, ` is `, `:` or `=`      | true, false, none or null |
| ` `                             | true, false, none or null, when the phrase ends there |
| ` to `, `:` or `=`              | a word, when the phrase ends there |

"The default is used" and "the default token" state none.
"""
_NULLS = (None, "None", "null")


def _with_choices(schema: Schema, text: str) -> Schema:
    """Return the schema of a text with the values that a description lists, each in quotes."""
    listed = _CHOICES.search(text) if schema == _TEXT else None
    if listed is None:
        return schema
    return schema | {"enum": [quoted[1:-1] for quoted in re.findall(_QUOTED, listed[1])]}


def _with_default(schema: Schema, default: Any) -> Schema:
    """Return a schema with a default, and without one when the default is not of its type."""
    if default in _NULLS:
        return _union([schema, _NULL]) | {"default": None}
    for value in (default, _read(default)):
        if _is_valid(value, {**schema, "enum": [value]}):
            listed = {"enum": [*schema["enum"], value]} if value not in schema.get("enum", [value]) else {}
            return schema | listed | {"default": value}
    return schema


def _stated_default(text: str, schema: Schema) -> Any:
    """Return the default that a description states, or "" when it states none."""
    found = _DEFAULT.search(text)
    if found is None:
        return ""
    quoted, number, linked, bare, word = found.groups()
    constant = linked or bare
    if number and schema.get("type") == "string" and text[found.end() :][:1] not in ("", ".", ",", ";", ")"):
        return ""  # "defaults to 10 minutes"
    if constant:
        return None if constant.lower() in ("none", "null") else constant.capitalize()
    return quoted[1:-1] if quoted else number or word


def _read(text: Any) -> Any:
    """Return the value that a text writes, or the text itself when it is not valid."""
    if not isinstance(text, str) or len(text) > 200:
        return text
    try:
        return parse(text.lower() if text in ("True", "False") else text)
    except (Wrong, RecursionError):
        return text


def _is_valid(value: Any, schema: Schema) -> bool:
    from jsonschema import Draft202012Validator

    return bool(Draft202012Validator(schema).is_valid(value))
