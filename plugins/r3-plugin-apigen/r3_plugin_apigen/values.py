"""Values of the arguments of generated tools: their JSON Schema, how they are sampled, and how a query states them."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, JsonValue

from r3_plugin_apigen.words import FORMATS, Stated, choose, plain, word

COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_EXPLAIN = ("description", "minimum", "maximum")  # what a terse schema leaves out
_IN_WORDS = 0.2  # of the small numbers
_WITH_COMMAS = 0.3  # of the numbers above a thousand
_UNEQUAL_DRAWS = 100  # more would mean that there are not enough different values


def draw_unlike(draw: Callable[[], Stated], others: Sequence[Stated]) -> Stated:
    """Sample a value that differs from all others."""
    for _ in range(_UNEQUAL_DRAWS):
        sampled = draw()
        if all(sampled.value != other.value and sampled.text != other.text for other in others):
            return sampled
    raise ValueError(f"there are no {len(others) + 1} different values like {sampled.text!r}")


def listed(texts: Sequence[str]) -> str:
    """Return texts as a list in a sentence: `a, b and c`."""
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


class Value(BaseModel, ABC):
    """The value of an argument; one with `say` is optional."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str = ""
    """The description in the schema."""
    default: JsonValue = None
    """What an argument that is left out stands for, if the schema names it."""
    say: str | None = None
    """How a query states an optional argument, with `{}` for the value."""

    @property
    def optional(self) -> bool:
        return self.say is not None

    @property
    def nested(self) -> bool:
        """Whether objects are in the value."""
        return False

    @abstractmethod
    def draw(self, rng: random.Random) -> Stated:
        """Return a random value in plain words."""

    @abstractmethod
    def bare_schema(self, *, terse: bool) -> dict[str, JsonValue]:
        """Return the JSON Schema without the default."""

    def ask(self, rng: random.Random) -> Stated:
        """Sample a value as a query states it: a small number may be written out."""
        return self.draw(rng)

    def schema_of(self, *, terse: bool) -> dict[str, JsonValue]:
        """Return the JSON Schema; without descriptions and ranges if `terse`."""
        schema = self.bare_schema(terse=terse)
        if self.about:
            schema["description"] = self.about
        if terse:
            schema = {key: value for key, value in schema.items() if key not in _EXPLAIN}
        return schema if self.default is None else schema | {"default": self.default}


class Named(Value):
    """A date, a time, an identifier, or a word from one of the lists of words.toml."""

    kind: str

    def draw(self, rng: random.Random) -> Stated:
        return word(rng, self.kind)

    def bare_schema(self, *, terse: bool) -> dict[str, JsonValue]:
        return {"type": "string", **FORMATS.get(self.kind, {})}


class Choice(Value):
    """One of a few values: an enum."""

    of: dict[str, str] | list[str]
    """The values, or value -> how a query states it."""

    def draw(self, rng: random.Random) -> Stated:
        value = choose(rng, list(self.of))
        return Stated(value, self.of[value] if isinstance(self.of, dict) else value)

    def bare_schema(self, *, terse: bool) -> dict[str, JsonValue]:
        return {"type": "string", "enum": list(self.of)}


class Whole(Value):
    """A whole number of a range."""

    whole: tuple[int, int]
    """Range of sampled values, both ends included."""
    step: int = 1
    minimum: int | None = None
    """Minimum in the schema, if it is not that of the sampled values."""

    def draw(self, rng: random.Random) -> Stated:
        low, high = self.whole
        return plain(choose(rng, range(low, high + 1, self.step)))

    def ask(self, rng: random.Random) -> Stated:
        return _reworded(rng, self.draw(rng))

    def bare_schema(self, *, terse: bool) -> dict[str, JsonValue]:
        low, high = self.whole
        return {"type": "integer", "minimum": low if self.minimum is None else self.minimum, "maximum": high}


class Number(Value):
    """A number of a range, whole or not."""

    number: tuple[float, float]
    """Range of sampled values, both ends included."""
    step: float = 0.5

    def draw(self, rng: random.Random) -> Stated:
        low, high = self.number
        sampled = round(low + choose(rng, range(int((high - low) / self.step) + 1)) * self.step, 2)
        return plain(int(sampled) if sampled.is_integer() else sampled)

    def ask(self, rng: random.Random) -> Stated:
        return _reworded(rng, self.draw(rng))

    def bare_schema(self, *, terse: bool) -> dict[str, JsonValue]:
        low, high = (int(end) if end.is_integer() else end for end in self.number)
        return {"type": "number", "minimum": low, "maximum": high}


class Flag(Value):
    """True or false, always optional; without `no`, a query only ever states that it is true."""

    yes: str
    no: str | None = None

    @property
    def optional(self) -> bool:
        return True

    def draw(self, rng: random.Random) -> Stated:
        return Stated(False, self.no) if self.no is not None and rng.random() < 0.5 else Stated(True, self.yes)

    def bare_schema(self, *, terse: bool) -> dict[str, JsonValue]:
        return {"type": "boolean"}


class Several(Value):
    """A list of different values."""

    several: AnyValue
    size: tuple[int, int] = (2, 3)
    """How many there are, both ends included."""

    @property
    def nested(self) -> bool:
        return self.several.nested

    def draw(self, rng: random.Random) -> Stated:
        parts: list[Stated] = []
        for _ in range(choose(rng, range(self.size[0], self.size[1] + 1))):
            parts.append(draw_unlike(lambda: self.several.draw(rng), parts))
        return Stated([value for value, _ in parts], listed([text for _, text in parts]))

    def bare_schema(self, *, terse: bool) -> dict[str, JsonValue]:
        return {"type": "array", "items": self.several.schema_of(terse=terse)}


class Fields(Value):
    """An object, all of whose fields are stated."""

    fields: dict[str, AnyValue]
    text: str
    """How a query states the object, with the fields' names in braces."""
    rising: bool = False
    """Whether each field is above the one before: the beginning of a period comes before its end."""

    @property
    def nested(self) -> bool:
        return True

    def draw(self, rng: random.Random) -> Stated:
        parts: list[Stated] = []
        for field in self.fields.values():
            parts.append(draw_unlike(lambda field=field: field.draw(rng), parts))  # type: ignore[misc]
        if self.rising:
            parts.sort(key=_order)
        values = {name: value for name, (value, _) in zip(self.fields, parts, strict=True)}
        texts = {name: text for name, (_, text) in zip(self.fields, parts, strict=True)}
        return Stated(values, self.text.format_map(texts))

    def bare_schema(self, *, terse: bool) -> dict[str, JsonValue]:
        properties: dict[str, JsonValue] = {name: field.schema_of(terse=terse) for name, field in self.fields.items()}
        return {"type": "object", "properties": properties, "required": list(properties)}


def _named(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


AnyValue = Annotated[
    Named | Choice | Whole | Number | Flag | Several | Fields,
    BeforeValidator(_named),
]
"""A value of any kind; the name of a kind alone stands for `Named`."""


def _order(stated: Stated) -> Any:
    return stated.value


def _reworded(rng: random.Random, stated: Stated) -> Stated:
    """Return a number in another form at times: `seven`, `1,200`."""
    value, chance = stated.value, rng.random()
    if isinstance(value, int) and value < len(COUNTED) and chance < _IN_WORDS:
        return Stated(value, COUNTED[value])
    if isinstance(value, int | float) and value >= 1_000 and chance < _WITH_COMMAS:
        return Stated(value, f"{value:,}")
    return stated
