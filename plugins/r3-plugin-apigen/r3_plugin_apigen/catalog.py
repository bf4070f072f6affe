"""The made-up tools: read from a file a split, and offered in several forms, with other names and other arguments."""

from __future__ import annotations

import tomllib
from functools import cache
from string import Formatter
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, JsonValue, model_validator

from r3_plugin_apigen.values import AnyValue
from r3_plugin_apigen.words import FOLDER
from r3core import Split


class Tool(BaseModel):
    """A tool, and how queries ask for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    domain: str
    name: str
    also: list[str] = []
    """Other names it goes by."""
    about: str
    asks: list[str]
    """Requests without a mark at the end; every required argument is in each of them, in braces."""
    takes: dict[str, AnyValue]
    """What its arguments hold."""

    @property
    def required(self) -> list[str]:
        """The arguments that every call has."""
        return [name for name, value in self.takes.items() if not value.optional]

    @model_validator(mode="after")
    def _agree(self) -> Tool:
        for ask in self.asks:
            named = sorted(field for _, field, _, _ in Formatter().parse(ask) if field is not None)
            if named != sorted(self.required):
                raise ValueError(f"{ask!r} should name {self.required}, once each")
        return self


class Form(NamedTuple):
    """One way to offer a tool."""

    tool: Tool
    offer: dict[str, JsonValue]
    """What a model sees: `name`, `description`, and `parameters`, a JSON Schema."""
    arguments: dict[str, str]
    """The tool's arguments that this form has, and what they are called in it."""

    @property
    def name(self) -> str:
        return str(self.offer["name"])


@cache
def tools(split: Split) -> tuple[Tool, ...]:
    """Return the tools of a split; no tool is in two."""
    domains = tomllib.loads((FOLDER / f"{split}.toml").read_text(encoding="utf-8"))
    return tuple(
        Tool.model_validate({"domain": domain, "name": name, **fields})
        for domain, named in domains.items()
        for name, fields in named.items()
    )


@cache
def forms(split: Split, *, nested: bool, terse: bool) -> tuple[tuple[Form, ...], ...]:
    """Return for each tool of a split the forms that it may be offered in.

    Without `nested`, tools that need an object are left out, and optional objects too. With `terse`, parameters have no
    descriptions and ranges, and of the optional ones only the first is there.
    """
    found = []
    for tool in tools(split):
        numbers = range(2 * len(tool.also) + 2)
        made = [form for number in numbers if (form := form_of(tool, number, nested=nested, terse=terse))]
        if made:
            found.append(tuple(made))
    return tuple(found)


def form_of(tool: Tool, number: int, *, nested: bool, terse: bool) -> Form | None:
    """Return the form of a number: odd ones write names in camel case, and every number takes other synonyms.

    `None` for a tool that cannot do without an object.
    """
    if not nested and any(tool.takes[name].nested for name in tool.required):
        return None
    optional = [name for name, value in tool.takes.items() if value.optional and (nested or not value.nested)]
    included = {*tool.required, *(optional[:1] if terse else optional)}
    style = _camel if number % 2 else str
    called: dict[str, str] = {}
    for name in [name for name in tool.takes if name in included]:
        names = [name, *_synonyms().get(name, [])]
        other = names[number % len(names)]
        called[name] = style(name if other in tool.takes else other)
    properties = {called[name]: tool.takes[name].schema_of(terse=terse) for name in called}
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    parameters["required"] = [called[name] for name in called if name in tool.required]
    name = style([tool.name, *tool.also][number // 2])
    return Form(tool, {"name": name, "description": tool.about, "parameters": parameters}, called)


@cache
def _synonyms() -> dict[str, list[str]]:
    found: dict[str, list[str]] = tomllib.loads((FOLDER / "words.toml").read_text(encoding="utf-8"))["synonyms"]
    return found


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)
