"""The groups of training, read from the recorded rows: the samples of one failure whose rewards are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from pydantic import ConfigDict

from r3core.episode import Answer, Reflection
from r3core.runs import RunRecord, each_value
from r3core.task import Frozen

TRAINED = "train-episodes"
"""Name of the rows in a run directory."""


class Trained(Frozen):
    """A row of train-episodes.jsonl: one sample, for example a reflection, its retries and its reward."""

    model_config = ConfigDict(extra="ignore")

    step: int
    id: str
    """The failure's id."""
    attempt: Answer | None = None
    """The new attempt, where the objective samples attempts."""
    reflection: Reflection | None
    retries: list[Answer]
    reward: float | None
    """That of the turn that is sampled in groups; None where it could not be judged."""


class Group(NamedTuple):
    """The samples of one failure that training compares with each other."""

    step: int
    id: str
    """The failure's id."""
    number: int
    """Its place among the groups of its step, from 1."""
    only: bool
    """Whether the step has no other group on the same failure."""
    rows: list[Trained]

    @property
    def ranked(self) -> list[Trained]:
        """The rows in the order of their rewards, the best first; those without a verdict are last."""
        return sorted(self.rows, key=lambda row: -1.0 if row.reward is None else row.reward, reverse=True)


def trained_rows(run: RunRecord) -> Iterator[Trained]:
    """Yield the rows of train-episodes.jsonl one by one; RunError with the line when one is invalid."""
    yield from each_value(Trained, run.rows(TRAINED), TRAINED)


def groups_of(rows: Iterable[Trained], size: int) -> Iterator[Group]:
    """Yield the groups of the rows, each of at most `size` rows, in their order.

    The rows of a group are adjacent. Two groups on one failure can be adjacent too: an epoch may end and begin with it.

    >>> turn = {"reflection": None, "retries": [], "reward": None}
    >>> rows = [Trained(step=2, id=name, **turn) for name in ("p1", "p1", "p1", "p1", "p0", "p0")]
    >>> [(group.id, group.number, group.only, len(group.rows)) for group in groups_of(rows, 2)]
    [('p1', 1, False, 2), ('p1', 2, False, 2), ('p0', 3, True, 2)]
    """
    for step, of_step in groupby(rows, key=lambda row: row.step):
        pieces = [
            (name, adjacent[start : start + size])
            for name, found in groupby(of_step, key=lambda row: row.id)
            for adjacent in (list(found),)
            for start in range(0, len(adjacent), size)
        ]
        times = Counter(name for name, _ in pieces)
        for number, (name, piece) in enumerate(pieces, start=1):
            yield Group(step, name, number, times[name] == 1, piece)
