"""Countdown problems: splits, their examples, and a seeded generator of solvable ones."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from r3core import Example, Split

_T = TypeVar("_T")

SIZES: dict[Split, int] = {"train": 50_000, "validation": 5_000, "test": 5_000}
"""Maximum number of problems in a split, so that a large space need not be exhausted to take a random sample."""
_DRAWS_PER_PROBLEM = 2_000  # draws without a new problem after which the space counts as exhausted


class Space(NamedTuple):
    """The problems that the generator draws from."""

    numbers: tuple[int, ...]
    """The possible counts of numbers in a problem."""
    smallest: int
    largest: int
    target_min: int
    target_max: int


def fault(space: Space) -> str | None:
    """Return why a space has no problems, or None."""
    if space.smallest > space.largest:
        return f"smallest={space.smallest} is above largest={space.largest}"
    if space.target_min > space.target_max:
        return f"target_min={space.target_min} is above target_max={space.target_max}"
    return None


def split_of(numbers: Sequence[int], target: int) -> Split:
    """Return the one split that a problem belongs to: 80% train, 10% validation, 10% test.

    It follows from a hash of the sorted numbers and the target, so no problem is ever in two splits.
    """
    key = f"{sorted(numbers)}={target}".encode()
    bucket = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") % 100
    return "train" if bucket < 80 else "validation" if bucket < 90 else "test"


def problem(numbers: Sequence[int], target: int, solution: str | None = None) -> Example:
    """Return the example of one problem; its id names the numbers as given and the target."""
    info = {"numbers": list(numbers), "target": target} | ({"solution": solution} if solution else {})
    return Example.model_validate({"id": f"{'-'.join(map(str, numbers))}={target}", "answer": target, "info": info})


def generate(space: Space, split: Split, seed: int) -> Iterator[Example]:
    """Yield distinct solvable problems of one split until there are as many as `SIZES` allows or no new ones are found.

    Only `random()` of the generator is used: its sequence is the same on every machine and Python version.
    """
    rng = random.Random(f"{space}{split}{seed}")
    seen: set[tuple[tuple[int, ...], int]] = set()
    idle = 0
    while len(seen) < SIZES[split] and idle < _DRAWS_PER_PROBLEM:
        idle += 1
        count = _choose(rng, space.numbers)
        numbers = [_choose(rng, range(space.smallest, space.largest + 1)) for _ in range(count)]
        solved = _random_solution(rng, numbers)
        if solved is None or not space.target_min <= solved[0] <= space.target_max:
            continue
        key = (tuple(sorted(numbers)), solved[0])
        if key in seen or split_of(*key) != split:
            continue
        seen.add(key)
        idle = 0
        yield problem(numbers, *solved)


def _random_solution(rng: random.Random, numbers: Sequence[int]) -> tuple[int, str] | None:
    """Combine the numbers in a random order, with positive whole results at every step."""
    parts = [(number, str(number)) for number in numbers]
    while len(parts) > 1:
        left = parts.pop(int(rng.random() * len(parts)))
        right = parts.pop(int(rng.random() * len(parts)))
        operator = _choose(rng, "+-*/")
        value = _combine(left[0], operator, right[0])
        if value is None:
            return None
        text = f"{left[1]} {operator} {right[1]}"
        parts.append((value, f"({text})" if parts else text))
    return parts[0]


def _combine(left: int, operator: str, right: int) -> int | None:
    if operator == "+":
        return left + right
    if operator == "*":
        return left * right
    if operator == "-":
        return left - right if left > right else None
    return left // right if right and left % right == 0 else None


def _choose(rng: random.Random, among: Sequence[_T]) -> _T:
    return among[int(rng.random() * len(among))]
