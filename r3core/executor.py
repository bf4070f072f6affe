"""Who runs a batch: this process, or an engine's own cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from r3core.episode import Episode
from r3core.generation.engine import Generator
from r3core.protocol import Protocol

Work: TypeAlias = Callable[[Protocol, Generator, int, Sequence[Any]], list[Episode]]
"""Makes the episodes of one batch, which has a number. A function of a module, or a `partial` of one: it is sent to
other machines."""


Make: TypeAlias = Callable[[Work, Iterable[tuple[int, Sequence[Any]]]], Iterator[list[Episode]]]
"""Has work done on one batch after the other by one model, and yields what came of them in the same order."""


Load: TypeAlias = Callable[[], Generator]
"""Loads a model when it is needed, so that two large ones need not be in memory at once."""


def here(protocol: Protocol, load: Load) -> Make:
    """Return what has work done in this process; it loads the model for the first batch."""

    def make(work: Work, batches: Iterable[tuple[int, Sequence[Any]]]) -> Iterator[list[Episode]]:
        generator: Generator | None = None
        for number, batch in batches:
            if generator is None:
                generator = load()
            yield work(protocol, generator, number, batch)

    return make
