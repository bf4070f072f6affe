"""A task that every model passes half of the time, so that groups of reflections are mixed and weights move."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from r3core import Example, Split, Task

_FIRST: dict[Split, int] = {"train": 0, "validation": 10_000, "test": 20_000}


class Coin(Task):
    """Write a sentence; half of all texts pass, whatever they say."""

    name = "coin"

    def load(self, split: Split) -> Iterable[Example]:
        for number in range(_FIRST[split], _FIRST[split] + 2_000):
            yield Example(id=str(number), prompt=f"Write one short sentence about the number {number}.")

    def verify(self, example: Example, response: str) -> bool:
        return sha256(f"{example.id} {response}".encode(errors="replace")).digest()[0] % 2 == 0
