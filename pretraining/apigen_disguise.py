"""Tools in disguise: words that a tool shares with its queries are replaced by made-up ones.

A model that is trained on them has to read the offered tools; memorizing the tools of the train split is not enough.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from r3_plugin_apigen.catalog import Form, Tool, form_of, tools
from r3_plugin_apigen.values import AnyValue, Choice, Named, Several
from r3_plugin_apigen.words import MADE, Stated, choose, listed_words
from r3core import Split

_WORD = re.compile(r"\{[^}]*\}|[A-Za-z]+")
_COMMON = re.compile("the|for|and|with|from|get|are|you|not|use|one|what|how|which|when|where|does|this|that")
_KNOWN = 0.4  # share of the new words that are known words of other tools and lists, with `mixed`
_SYLLABLES = 0.5  # share of the others that are made of syllables
_ONSETS = [
    *"bcdfghjklmnprstvwyz",
    *("br", "ch", "cl", "cr", "dr", "fl", "gr", "pl", "pr", "qu", "sh", "sl", "st", "th", "tr"),
]
_VOWELS = [*"aeiou", "ai", "ea", "ee", "ie", "oo", "ou"]
_CODAS = [*"bdgklmnprstxy", "ck", "ct", "ft", "ld", "lt", "mp", "nd", "ng", "nk", "nt", "rd", "rk", "rt", "ss", "st"]
_STEM = 4  # words that begin with the same letters, this many, count as forms of one word
_SHARED, _NAME, _ARGUMENT, _LIKE_OTHERS, _ENUM, _VALUE = 0.85, 0.6, 0.6, 0.2, 0.5, 0.6
"""How often these are replaced: a word that a request shares with its tool, another word of a tool's name, the name of
an argument, the name of one whose schema another argument has too, the values of an enum, and an argument's kind of
value."""


class Coined(Named):
    """A name or a title of new words."""

    mixed: bool = False

    def draw(self, rng: random.Random) -> Stated:
        words = [coin(rng, mixed=self.mixed).capitalize() for _ in range(choose(rng, (1, 1, 2)))]
        return Stated(" ".join(words), " ".join(words))


def coin(rng: random.Random, *, mixed: bool) -> str:
    """Return a new word: of syllables, or of parts of two known words; with `mixed`, at times a known word."""
    if mixed and rng.random() < _KNOWN:
        return choose(rng, _known_words())
    if rng.random() < _SYLLABLES:
        sounds = [choose(rng, letters) for _ in range(choose(rng, (1, 2, 2, 3))) for letters in (_ONSETS, _VOWELS)]
        return "".join([*sounds, choose(rng, _CODAS)])
    known = _known_words()
    begin, end = choose(rng, (2, 3, 3, 4)), choose(rng, (2, 3, 3, 4))
    return choose(rng, known)[:begin] + choose(rng, known)[-end:]


def disguised(tool: Tool, rng: random.Random, *, mixed: bool) -> Tool:
    """Return a tool with some of its words replaced, consistently in its name, its description and its requests.

    With `mixed`, known words of other tools are among the new ones, and the arguments are shuffled.
    """
    about = {_stem(word) for text in (tool.name, *tool.also, tool.about) for word in _words(text)} - {""}
    asks = [ask for ask in tool.asks if about & {_stem(word) for word in _words(ask)}] or tool.asks
    shared = sorted(about & {_stem(word) for ask in asks for word in _words(ask)})
    new = {stem: coin(rng, mixed=mixed) for stem in shared if rng.random() < _SHARED}
    named = {
        word: coin(rng, mixed=mixed)
        for name in (tool.name, *tool.also)
        for word in name.split("_")
        if rng.random() < _NAME
    }

    def reworded(text: str) -> str:
        return _WORD.sub(lambda match: _like(match.group(), new.get(_stem(match.group()), match.group())), text)

    def identifier(name: str) -> str:
        parts = [(part, reworded(part)) for part in name.split("_")]
        return "_".join(named.get(part, part) if part == other else other for part, other in parts)

    shapes = [str(value.schema_of(terse=True)) for value in tool.takes.values()]
    chances = [_ARGUMENT if shapes.count(shape) == 1 else _LIKE_OTHERS for shape in shapes]
    called = {
        name: coin(rng, mixed=mixed) if rng.random() < chance else name
        for name, chance in zip(tool.takes, chances, strict=True)
    }
    if len(set(called.values())) < len(called):
        called = {name: name for name in called}

    def renamed(ask: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda match: "{" + called[match.group(1)] + "}", reworded(ask))

    takes = rng.sample(list(tool.takes.items()), len(tool.takes)) if mixed else list(tool.takes.items())
    return tool.model_copy(
        update={
            "name": identifier(tool.name),
            "also": [identifier(name) for name in tool.also],
            "about": reworded(tool.about),
            "asks": [renamed(ask) for ask in asks],
            "takes": {called[name]: _other(value, rng, mixed=mixed) for name, value in takes},
        }
    )


def forms(rng: random.Random, splits: Sequence[Split], *, disguise: float, mixed: bool) -> list[tuple[Form, ...]]:
    """Return a form of each small tool of the splits, some of them disguised, as `generate.draw` takes them."""
    chosen: list[tuple[Form, ...]] = []
    for known in [tool for split in splits for tool in tools(split)]:
        tool = disguised(known, rng, mixed=mixed) if rng.random() < disguise else known
        if form := form_of(tool, int(rng.random() * (2 * len(tool.also) + 2)), nested=False, terse=True):
            chosen.append((form,))
    return chosen


def _other(value: AnyValue, rng: random.Random, *, mixed: bool) -> AnyValue:
    """Return an argument's kind of value with other words."""
    if isinstance(value, Named) and value.kind not in MADE and rng.random() < _VALUE:
        return Coined.model_validate(value.model_dump() | {"mixed": mixed})
    if isinstance(value, Choice) and rng.random() < _ENUM:
        return value.model_copy(update=_other_enum(value, rng, mixed=mixed))
    if isinstance(value, Several):
        return value.model_copy(update={"several": _other(value.several, rng, mixed=mixed)})
    return value


def _other_enum(value: Choice, rng: random.Random, *, mixed: bool) -> dict[str, Any]:
    new = {one: coin(rng, mixed=mixed) for one in value.of}
    if len(set(new.values())) < len(new):
        return {}
    default = new.get(value.default) if isinstance(value.default, str) else None
    return {"of": list(new.values()), "default": default}


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.replace("_", " ")) if word[0] != "{"]


def _stem(word: str) -> str:
    """Return the first letters of a word, which its forms share; empty for a short or common word."""
    word = word.lower()
    return "" if len(word) < 3 or _COMMON.fullmatch(word) else word[:_STEM]


def _like(word: str, new: str) -> str:
    return new.capitalize() if word[0].isupper() else new


@cache
def _known_words() -> list[str]:
    texts = [text for tool in tools("train") for text in (tool.about, *tool.asks)]
    found = {word.lower() for text in (*texts, *listed_words()) for word in _words(text)}
    return sorted(word for word in found if len(word) > 3)
