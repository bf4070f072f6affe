"""The examples of a split, validated as they are loaded, and which of them a stage works on.

A stage takes all of them, a random sample, or the first ones.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from heapq import nsmallest
from itertools import islice
from time import monotonic
from typing import Any, Literal, NamedTuple

from r3core.config import Config
from r3core.errors import TaskError
from r3core.plugins.diagnostics import as_task_error
from r3core.sections import Evaluate, Mine
from r3core.task import Example, Frozen, Split, Task

MAX_READ = 1_000_000
"""The maximum number of examples that a random sample is taken from, so that a split may be endless."""
_SLOW = 10.0  # seconds of reading after which a note on stderr names the split


class Selection(Frozen):
    """Which examples of a split were selected."""

    order: Literal["random", "head"]
    taken: int
    """How many examples were selected."""
    read: int
    """How many examples of the split were read."""
    whole: bool
    """Whether these are all examples of the split."""

    def describe(self, suffix: str = "") -> str:
        """Return a description, for example `a random sample of 500 of 1,200 problems`, followed by `suffix`.

        The suffix is left out unless the examples were sampled.
        """
        if self.whole and self.taken == self.read:
            return f"all {self.taken:,} problems"
        if self.order == "head":
            return f"the first {self.taken:,} problems"
        among = f"{self.read:,}" if self.whole else f"the first {self.read:,}"
        return f"a random sample of {self.taken:,} of {among} problems{suffix}"


class Problems(NamedTuple):
    """Examples of a split, and how they were selected."""

    examples: list[Example]
    selection: Selection


def problems_to_mine(task: Task, config: Config) -> Problems:
    """Return the examples that mining attempts; with `mine.order: random`, they depend on the seed."""
    return select_examples(task, config.mine, salt=f"mine {config.seed}")


def problems_to_evaluate(task: Task, config: Config) -> Problems:
    """Return the examples of an evaluation: the same for every seed and every model."""
    return select_examples(task, config.evaluate, salt="evaluate")


def select_examples(task: Task, settings: Mine | Evaluate, *, salt: str, max_read: int = MAX_READ) -> Problems:
    """Return a maximum of `limit` examples of a split, in the order `random` or `head`.

    A random sample has the examples with the smallest SHA-256 of (salt, id), in the order of these hashes. So it does
    not depend on the order in which the task yields its examples, a smaller sample is the beginning of a larger one,
    and only `limit` examples are in memory. It reads the whole split, or its first `max_read` examples.

    Raises:
        TaskError: the split is empty, `load` raises or yields something else, or two examples have one id.
    """
    limit = settings.limit
    key = "mine" if isinstance(settings, Mine) else "evaluate"
    loaded = load_examples(task, settings.split)
    counted = _Counted(loaded, f"the split `{settings.split}`", hint=f"{key}.order=head takes the first ones")
    if settings.order == "head":
        examples = list(islice(counted, limit))
    elif limit is None:
        examples = sorted(counted, key=lambda example: _hash(salt, example.id))
    else:
        examples = nsmallest(limit, islice(counted, max(max_read, limit)), key=lambda example: _hash(salt, example.id))
    if not examples:
        call = f"`load({settings.split!r})`"
        raise TaskError(f"task `{task.name}` has no examples in its split `{settings.split}`: {call} yielded nothing")
    whole = next(loaded, None) is None
    return Problems(examples, Selection(order=settings.order, taken=len(examples), read=counted.count, whole=whole))


def _hash(salt: str, identity: str) -> bytes:
    return hashlib.sha256(f"{salt}\n{identity}".encode("utf-8", "surrogatepass")).digest()


class _Counted(Iterator[Example]):
    """Counts examples as they are read; prints a note when that takes long."""

    def __init__(self, loaded: Iterator[Any], source: str, *, hint: str) -> None:
        self.loaded, self.source, self.hint = loaded, source, hint
        self.count = 0
        self.slow_at: float | None = monotonic() + _SLOW

    def __next__(self) -> Example:
        example: Example = next(self.loaded)
        self.count += 1
        if self.slow_at is not None and self.count % 256 == 0 and monotonic() > self.slow_at:
            self.slow_at = None
            print(f"reading {self.source} takes long: {self.count:,} examples so far; {self.hint}", file=sys.stderr)
        return example


def load_examples(task: Task, split: Split) -> Iterator[Example]:
    """Yield the examples of a split; TaskError when `load` raises, yields anything else, or repeats an id."""
    call = f"`load({split!r})`"
    seen: set[str] = set()
    with as_task_error(task, call):
        loaded: Any = task.load(split)
        if isinstance(loaded, (str, bytes, Mapping, Example)) or not isinstance(loaded, Iterable):
            raise TaskError(
                f"task `{task.name}`: {call} returned {loaded!r:.100}",
                "yield Examples, or return a list of them; an empty list for a split that has none",
            )
        for example in loaded:
            if not isinstance(example, Example):
                raise TaskError(
                    f"task `{task.name}`: {call} yielded {example!r:.100}",
                    "yield Examples: `Example(id=..., prompt=...)`",
                )
            if example.id in seen:
                raise TaskError(
                    f"task `{task.name}`: two examples of the split `{split}` have the id {example.id!r}",
                    "derive the id from the example's content, or number the examples",
                )
            seen.add(example.id)
            yield example
