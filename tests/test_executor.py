"""Where batches are run: in this process, with one model in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from toy import Toy

from r3core import Example
from r3core.config import resolve
from r3core.episode import Episode
from r3core.executor import LocalExecutor
from r3core.generation.generator import Generator
from r3core.generation.scripted import ScriptedGenerator
from r3core.protocol import Protocol
from r3core.verification.judge import Judge

BATCHES = [(3, ["a", "b"]), (7, ["c"]), (0, [])]


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def executor(events: list[str]) -> Iterator[LocalExecutor]:
    class Closing(ScriptedGenerator):
        def __init__(self, model: str) -> None:
            super().__init__(lambda conversation, index: model)
            self.model = model
            events.append(f"load {model}")

        def close(self) -> None:
            events.append(f"close {self.model}")

    task = Toy()
    with Judge(task) as judge:
        yield LocalExecutor(Protocol(task, judge, resolve(task)), Closing)


def named(protocol: Protocol, generator: Generator, number: int, batch: Sequence[Any]) -> list[Episode]:
    """Return an attempt per member of a batch, whose text names the model and the batch."""
    examples = [Example(id=f"{number} {member}", prompt="Say 1.") for member in batch]
    return protocol.attempt(examples, generator, seed=number)


def test_results_come_in_the_order_of_the_batches(executor: LocalExecutor) -> None:
    results = list(executor.map(named, BATCHES, model="m"))
    assert [[episode.example.id for episode in batch] for batch in results] == [["3 a", "3 b"], ["7 c"], []]
    assert {episode.attempt.text for batch in results for episode in batch} == {"m"}


def test_a_batch_is_run_only_when_its_result_is_requested(executor: LocalExecutor) -> None:
    requested: list[int] = []

    def batches() -> Iterator[tuple[int, list[str]]]:
        for number, batch in BATCHES:
            requested.append(number)
            yield number, batch

    results = executor.map(named, batches(), model="m")
    assert requested == []
    next(results)
    assert requested == [3]


def test_a_model_is_loaded_for_its_first_batch_and_closed_before_another_one(
    executor: LocalExecutor, events: list[str]
) -> None:
    assert list(executor.map(named, [], model="unused")) == []
    for model in ("base", "base", "trained", "base"):
        list(executor.map(named, BATCHES, model=model))
    assert events == ["load base", "close base", "load trained", "close trained", "load base"]
    executor.close()
    executor.close()
    assert events[5:] == ["close base"]


def test_a_model_that_was_closed_is_loaded_again(executor: LocalExecutor, events: list[str]) -> None:
    first = executor.generator("m")
    assert executor.generator("m") is first
    executor.close()
    assert executor.generator("m") is not first
    assert events == ["load m", "close m", "load m"]
