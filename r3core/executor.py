"""Where the batches of a stage are run: in this process, or on the machines of an engine's cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

from r3core.activity import ENGINE, waiting_for
from r3core.engine import Engine
from r3core.episode import Episode
from r3core.generation.generator import Generator
from r3core.progress import progress
from r3core.protocol import Protocol as TaskProtocol
from r3core.runs import Run, values_of

Function: TypeAlias = Callable[[TaskProtocol, Generator, int, Sequence[Any]], list[Episode]]
"""Returns the episodes of one batch, which has a number. A function of a module, or a `partial` of one: it is sent to
other machines."""
Tally: TypeAlias = Callable[[Iterable[Episode]], str]
"""Adds episodes to those of a stage so far, and returns the stage's main figure, for people."""
Batches: TypeAlias = Iterable[tuple[int, Sequence[Any]]]
"""Numbered batches; the number decides the batch's random seed, wherever and in whatever order it is run."""


class Executor(Protocol):
    """Runs a function on batches, with one model at a time."""

    def map(self, function: Function, batches: Batches, *, model: str) -> Iterator[list[Episode]]:
        """Yield what the function returns for each batch, in the order of the batches."""
        ...

    def close(self) -> None:
        """Free what is held: the model's memory, the connection to a cluster."""
        ...


class LocalExecutor:
    """Runs batches in this process. A model is loaded for its first batch, after closing the previous one."""

    def __init__(self, protocol: TaskProtocol, open_model: Callable[[str], Generator]) -> None:
        self.protocol = protocol
        self.open_model = open_model
        self._loaded: tuple[str, Generator] | None = None
        """The only model in memory: base and trained model of a large size do not fit beside each other."""

    def generator(self, model: str) -> Generator:
        """Return the generator of a model; it is loaded unless it is the one in memory."""
        if self._loaded is None or self._loaded[0] != model:
            self.close()
            with waiting_for(ENGINE, f"loading {model}"):
                self._loaded = model, self.open_model(model)
        return self._loaded[1]

    def map(self, function: Function, batches: Batches, *, model: str) -> Iterator[list[Episode]]:
        """Yield what the function returns for each batch, one after the other."""
        for number, batch in batches:
            yield function(self.protocol, self.generator(model), number, batch)

    def close(self) -> None:
        """Free the memory of the model that is loaded, if any."""
        if self._loaded is not None:
            self._loaded[1].close()
            self._loaded = None


def executor_of(engine: Engine, protocol: TaskProtocol, run: Run) -> Executor:
    """Return the executor that an engine brings; by default its generators are opened in this process."""
    return engine.executor(protocol) or LocalExecutor(protocol, partial(engine.open, run=run))


def episodes_of(
    run: Run,
    executor: Executor,
    function: Function,
    items: Sequence[Any],
    *,
    name: str,
    label: str,
    unit: str,
    model: str,
    size: int,
    each: int = 1,
    tally: Tally,
    tick: Callable[[], None],
) -> list[Episode]:
    """Return the episodes of `NAME.jsonl`, `each` per item, after making the missing ones in batches of `size` items.

    The progress is shown under `label`; `tick` is called when a batch's episodes are on disk.
    """
    before = values_of(Episode, run.read(name), name)
    have = len(before)
    with progress(label, len(items), done=have // each, unit=unit) as stage:
        stage.reach(stage.done, figure=tally(before) if before else "")
        del before  # there may be gigabytes of them

        def done(new: Sequence[Episode]) -> None:
            nonlocal have
            have += len(new)
            stage.reach(have // each, figure=tally(new))
            tick()

        run_batches = partial(executor.map, function, model=model)
        rows = run.extend(name, items, run_batches, size=size, each=each, done=done)
    return values_of(Episode, rows, name)
