"""Words, dates and identifiers that made-up queries are about."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import JsonValue

_T = TypeVar("_T")

FOLDER = Path(__file__).with_name("tools")
"""Where the words and the tools are."""
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


class Stated(NamedTuple):
    """A value, and the part of a query that states it."""

    value: JsonValue
    text: str


def choose(rng: random.Random, among: Sequence[_T]) -> _T:
    """Return one item; it uses `random()` alone, whose sequence is the same on every machine and Python version."""
    return among[int(rng.random() * len(among))]


def word(rng: random.Random, kind: str) -> Stated:
    """Return a date, a time, an identifier, or a word from the list of this name."""
    return MADE[kind](rng) if kind in MADE else plain(choose(rng, _lists()[kind]))


def plain(value: str | float) -> Stated:
    """Return a value that a query states unchanged."""
    return Stated(value, str(value))


def listed_words() -> list[str]:
    """Return all words, names and titles of words.toml."""
    return [text for texts in _lists().values() for text in texts]


@cache
def _lists() -> dict[str, list[str]]:
    """Return the lists of words.toml by name."""
    lists = tomllib.loads((FOLDER / "words.toml").read_text(encoding="utf-8"))
    return {name: " ".join(text.split()).split("; ") for name, text in lists.items() if isinstance(text, str)}


def _digits(rng: random.Random, count: int) -> str:
    return "".join(choose(rng, "123456789") for _ in range(count))


def _letters(rng: random.Random, count: int) -> str:
    return "".join(choose(rng, "ABCDEFGHKLMNPRSTUVWXY") for _ in range(count))


def _date(rng: random.Random) -> Stated:
    year, month, day = choose(rng, range(2025, 2029)), choose(rng, range(1, 13)), choose(rng, range(1, 29))
    iso, name = f"{year}-{month:02}-{day:02}", MONTHS[month - 1]
    return Stated(iso, choose(rng, (iso, f"{day} {name} {year}", f"{name} {day}, {year}")))


def _time(rng: random.Random) -> Stated:
    hour, minute = choose(rng, range(6, 23)), choose(rng, range(0, 60, 5))
    clock = f"{hour:02}:{minute:02}"
    if hour == 12 or rng.random() < 0.5:  # twelve is neither am nor pm to everyone
        return Stated(clock, clock)
    return Stated(clock, f"{hour % 12}{f':{minute:02}' if minute else ''} {'am' if hour < 12 else 'pm'}")


def _email(rng: random.Random) -> Stated:
    name = choose(rng, _lists()["person"]).lower().replace(" ", ".")
    return plain(f"{name}{_digits(rng, 2)}@{choose(rng, ('mail.com', 'post.org', 'inbox.net'))}")


MADE: dict[str, Callable[[random.Random], Stated]] = {
    "code": lambda rng: plain(f"{_letters(rng, 2)}-{_digits(rng, 4)}"),
    "date": _date,
    "email": _email,
    "flight": lambda rng: plain(f"{_letters(rng, 2)}{_digits(rng, 3)}"),
    "phone": lambda rng: plain(f"+{_digits(rng, 8)}"),
    "seat": lambda rng: plain(f"{_digits(rng, 2)}{choose(rng, 'ABCDEF')}"),
    "time": _time,
    "url": lambda rng: plain(f"https://{choose(rng, ('news', 'daily', 'times', 'post'))}.org/{_digits(rng, 4)}"),
}
FORMATS: dict[str, dict[str, JsonValue]] = {
    "currency": {"description": "ISO code"},
    "date": {"format": "date", "description": "YYYY-MM-DD"},
    "email": {"format": "email"},
    "time": {"pattern": "^[0-9]{2}:[0-9]{2}$", "description": "HH:MM, 24 hours"},
    "url": {"format": "uri"},
}
"""What a schema contains for some kinds."""
