"""The problems of a split that a stage works on: all of them, a random sample, or the first ones."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from heapq import nsmallest
from itertools import islice
from time import monotonic
from typing import Any, Literal, NamedTuple

from r3core.config import Config, Evaluate, Mine
from r3core.errors import TaskError
from r3core.plugins.diagnostics import as_task_error
from r3core.task import Example, Frozen, Split, Task

MOST_READ = 1_000_000
"""A random sample is taken from at most this many problems, so that a split may be endless."""
_SLOW = 10.0  # seconds of reading after which a line on stderr names what takes long


class Taken(Frozen):
    """Which problems of a split were taken."""

    order: Literal["random", "head"]
    taken: int
    read: int
    """Problems of the split that were read."""
    whole: bool
    """Whether these are all problems of the split."""

    def describe(self, suffix: str = "") -> str:
        """Return the choice explained, for example `a random sample of 500 of 1,200 problems` and `suffix`."""
        if self.whole and self.taken == self.read:
            return f"all {self.taken:,} problems"
        if self.order == "head":
            return f"the first {self.taken:,} problems"
        among = f"{self.read:,}" if self.whole else f"the first {self.read:,}"
        return f"a random sample of {self.taken:,} of {among} problems{suffix}"


class Problems(NamedTuple):
    """Problems of a split, and how they were chosen."""

    examples: list[Example]
    taken: Taken


def problems_to_mine(task: Task, config: Config) -> Problems:
    """Return the problems that mining attempts; with `mine.order: random`, another seed takes other ones."""
    return examples_of(task, config.mine, salt=f"mine {config.seed}")


def problems_to_evaluate(task: Task, config: Config) -> Problems:
    """Return the problems of an evaluation: the same ones for every seed and every model."""
    return examples_of(task, config.evaluate, salt="evaluate")


def examples_of(task: Task, settings: Mine | Evaluate, *, salt: str, most: int = MOST_READ) -> Problems:
    """Return at most `limit` problems of a split, in the order `random` or `head`.

    A random sample holds the problems whose SHA-256 of (salt, id) is smallest, in the order of these. So it does not
    depend on the order in which the task yields its problems, a smaller sample is the beginning of a larger one, and no
    more than `limit` problems are in memory. The whole split is read for it, or its first `most` problems.

    Raises:
        TaskError: no problems, `load` raises or yields something else, two problems with one id.
    """
    limit = settings.limit
    key = "mine" if isinstance(settings, Mine) else "evaluate"
    loaded = load_examples(task, settings.split)
    counted = _Counted(loaded, f"the split `{settings.split}`", hint=f"{key}.order=head takes the first ones")
    if settings.order == "head":
        examples = list(islice(counted, limit))
    elif limit is None:
        examples = sorted(counted, key=lambda example: _rank(salt, example.id))
    else:
        examples = nsmallest(limit, islice(counted, max(most, limit)), key=lambda example: _rank(salt, example.id))
    if not examples:
        call = f"`load({settings.split!r})`"
        raise TaskError(f"task `{task.name}` has no problem in its split `{settings.split}`: {call} yielded nothing")
    whole = next(loaded, None) is None
    return Problems(examples, Taken(order=settings.order, taken=len(examples), read=counted.count, whole=whole))


def _rank(salt: str, identity: str) -> bytes:
    return hashlib.sha256(f"{salt}\n{identity}".encode("utf-8", "surrogatepass")).digest()


class _Counted(Iterator[Example]):
    """Problems that are counted as they pass; prints a note when that takes long."""

    def __init__(self, loaded: Iterator[Any], what: str, *, hint: str) -> None:
        self.loaded, self.what, self.hint = loaded, what, hint
        self.count = 0
        self.slow_at: float | None = monotonic() + _SLOW

    def __next__(self) -> Example:
        example: Example = next(self.loaded)
        self.count += 1
        if self.slow_at is not None and self.count % 256 == 0 and monotonic() > self.slow_at:
            self.slow_at = None
            print(f"reading {self.what} takes long: {self.count:,} problems so far; {self.hint}", file=sys.stderr)
        return example


def load_examples(task: Task, split: Split) -> Iterator[Example]:
    """Yield the problems of a split; TaskError when `load` breaks, yields anything else, or one id twice."""
    call = f"`load({split!r})`"
    seen: set[str] = set()
    with as_task_error(task, call):
        loaded: Any = task.load(split)
        if isinstance(loaded, (str, bytes, Mapping, Example)) or not isinstance(loaded, Iterable):
            said = f"task `{task.name}`: {call} returned {loaded!r:.100}"
            raise TaskError(said, "yield Examples, or return a list of them; an empty one where a split has none")
        for example in loaded:
            if not isinstance(example, Example):
                said = f"task `{task.name}`: {call} yielded {example!r:.100}"
                raise TaskError(said, "yield Examples: `Example(id=..., prompt=...)`")
            if example.id in seen:
                said = f"task `{task.name}`: two problems of the split `{split}` have the id {example.id!r}"
                raise TaskError(said, "let the id follow from the problem, or number the problems")
            seen.add(example.id)
            yield example
