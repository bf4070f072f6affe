"""Settings as people write them: YAML files, `KEY=VALUE` arguments and dotted keys, read by the type of their field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from r3core.errors import ConfigError, one_line


class Text(str):
    """A value as it was typed on the command line; the type of its field decides how it is read."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """YAML in which `1e-3` is a number, a date is text, and a repeated key is an error; `${...}` is plain text."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := {name for name in names if names.count(name) > 1}:
            problem = f"repeated key: {', '.join(sorted(repeated))}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_EXPONENT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def read_file(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML file; ConfigError when it cannot be read or does not map keys to values."""
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"the configuration file {path} cannot be read: {one_line(error)}") from None
    if not isinstance(settings, dict | NoneType):
        raise ConfigError(f"the configuration file {path} should map keys to values, for example `seed: 1`")
    return settings or {}


def assignments(given: Sequence[str], *, flag: str, example: str) -> list[tuple[str, Any]]:
    """Return names and values of the `name=value` arguments of a flag; the values are `Text`, as they were typed."""
    values = []
    for argument in given:
        found = re.match(r"([^=\s]+)=(.*)", argument, re.DOTALL)
        if found is None:
            form = "key=value" if flag == "--set" else "name=value"
            raise ConfigError(f"`{flag} {argument}` is not of the form {form}", f"for example {flag} {example}")
        values.append((found[1], Text(found[2])))
    return values


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree of dicts for dotted keys: `{"mine.limit": 3}` gives `{"mine": {"limit": 3}}`."""
    trees = []
    for key, value in dotted.items():
        for name in reversed(key.split(".")):
            value = {name: value}
        trees.append(value)
    return merged(*trees)


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return layers of settings as one; later ones are stronger, and dicts are merged key by key."""
    tree: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = tree.get(key)
            tree[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return tree


def typed(value: Any, annotation: Any, *, key: str = "") -> Any:
    """Return a value, or a dict of them, in which every `Text` is read by the type of its field.

    For a text field it stays exactly as typed, and `null` unsets an optional one. Everything else is YAML.
    """
    if isinstance(value, dict):
        prefix = f"{key}." if key else ""
        return {name: typed(one, _type_of(annotation, name), key=f"{prefix}{name}") for name, one in value.items()}
    if not isinstance(value, Text):
        return value
    kinds = _alternatives(annotation)
    if NoneType in kinds and value == "null":
        return None
    if all(kind is NoneType or _is_text(kind) for kind in kinds):
        return str(value)
    try:
        return yaml.load(value, Loader=_Loader)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"`{key}={value}` cannot be read: {one_line(error)}") from None


def _type_of(annotation: Any, name: Any) -> Any:
    """Return the type of one key of a section or a dict; Any where nothing is known of it."""
    for kind in _alternatives(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel) and name in kind.model_fields:
            return kind.model_fields[name].annotation
        if get_origin(kind) is dict:
            return get_args(kind)[1]
    return Any


def _alternatives(annotation: Any) -> list[Any]:
    """Return the types that a value may have: the members of a union, without their constraints."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _alternatives(arguments[0])
    if origin in (Union, UnionType):
        return [kind for argument in arguments for kind in _alternatives(argument)]
    return [annotation]


def _is_text(kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return all(isinstance(value, str) for value in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return all(isinstance(member.value, str) for member in kind)
    return isinstance(kind, type) and issubclass(kind, str | PurePath)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of every leaf of a tree; an empty section is a leaf."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
