"""Which examples of a split a stage works on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from toy import Toy

from r3core import Example, Split, TaskError
from r3core.config import resolve
from r3core.dataset import Selection, problems_to_evaluate, problems_to_mine, select_examples
from r3core.sections import Evaluate, Mine


class Rows(Toy):
    """A task with the rows that a test sets."""

    rows: tuple[Any, ...] = ()

    def load(self, split: Split) -> Iterator[Example]:
        yield from self.rows


class Endless(Toy):
    """A task that never runs out of examples."""

    def load(self, split: Split) -> Iterator[Example]:
        for number in count():
            yield Example(id=f"n{number}", prompt="?")


ONE = Example(id="n1", prompt="Say 1.", answer="1")


def ids(task: Toy, *overrides: str, stage: str = "mine") -> list[str]:
    problems = {"mine": problems_to_mine, "evaluate": problems_to_evaluate}[stage]
    return [example.id for example in problems(task, resolve(task, overrides=overrides)).examples]


@pytest.mark.parametrize("limit", [None, 1, 5])
@pytest.mark.parametrize("order", ["random", "head"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "task `toy` has no examples in its split `train`: `load('train')` yielded nothing"),
        ((ONE, ONE), "task `toy`: two examples of the split `train` have the id 'n1'"),
        ((ONE, {"id": "n2"}), "task `toy`: `load('train')` yielded {'id': 'n2'}"),
        ((None,), "task `toy`: `load('train')` yielded None"),
    ],
)
def test_invalid_examples_are_task_errors(rows: tuple[Any, ...], message: str, order: Any, limit: int | None) -> None:
    with pytest.raises(TaskError) as raised:
        select_examples(Rows(rows=rows), Mine(order=order, limit=limit), salt="")
    assert raised.value.message == message


@pytest.mark.parametrize("stage", ["mine", "evaluate"])
def test_a_sample_is_random_and_the_beginning_of_a_larger_one(stage: str) -> None:
    task = Toy(problems=200)
    five, fifty, all_of_them = (ids(task, f"{stage}.limit={limit}", stage=stage) for limit in (5, 50, "null"))
    assert five == fifty[:5] == all_of_them[:5]
    assert fifty == all_of_them[:50]
    assert len(set(all_of_them)) == 200
    places = sorted(int(identity.removeprefix("n")) % 1000 for identity in fifty)
    assert places != list(range(50))
    assert 70 < sum(places) / 50 < 130  # the mean of 0 to 199 is 99.5, its standard error 8


def test_a_sample_does_not_depend_on_the_order_of_the_file() -> None:
    rows = list(Toy(problems=100).load("train"))
    shuffled = random.Random(1).sample(rows, len(rows))
    assert ids(Rows(rows=tuple(rows)), "mine.limit=9") == ids(Rows(rows=tuple(shuffled)), "mine.limit=9")


def test_the_seed_changes_what_is_mined_but_not_what_is_evaluated() -> None:
    task = Toy(problems=100)
    mined = [set(ids(task, "mine.limit=20", f"seed={seed}")) for seed in (0, 1)]
    assert mined[0] != mined[1]
    tested = [ids(task, "evaluate.limit=20", f"seed={seed}", stage="evaluate") for seed in (0, 1)]
    assert tested[0] == tested[1]


def test_mining_and_evaluation_sample_one_split_differently() -> None:
    task = Toy(problems=100)
    tested = set(ids(task, "evaluate.limit=20", "evaluate.split=train", stage="evaluate"))
    assert tested != set(ids(task, "mine.limit=20"))


@pytest.mark.parametrize("stage", ["mine", "evaluate"])
def test_the_head_is_the_first_problems_in_their_order(stage: str) -> None:
    task = Toy(problems=100)
    expected = [example.id for example in task.load("train")][:7]
    assert ids(task, f"{stage}.split=train", f"{stage}.limit=7", f"{stage}.order=head", stage=stage) == expected


def test_the_head_of_an_endless_split_is_taken_without_reading_further() -> None:
    problems = select_examples(Endless(), Mine(limit=7, order="head"), salt="")
    assert problems.selection == Selection(order="head", taken=7, read=7, whole=False)


def test_a_sample_of_an_endless_split_is_one_of_its_beginning() -> None:
    problems = select_examples(Endless(), Evaluate(limit=7), salt="", max_read=1_000)
    assert problems.selection == Selection(order="random", taken=7, read=1_000, whole=False)
    assert problems.selection.describe() == "a random sample of 7 of the first 1,000 problems"


@pytest.mark.parametrize(
    ("order", "limit", "description"),
    [
        ("random", 500, "a random sample of 500 of 1,200 problems, the same for every seed"),
        ("head", 500, "the first 500 problems"),
        ("random", 1200, "all 1,200 problems"),
        ("head", 1200, "all 1,200 problems"),
        ("random", 5000, "all 1,200 problems"),
        ("head", None, "all 1,200 problems"),
        ("random", None, "all 1,200 problems"),
    ],
)
def test_the_description_of_a_selection(order: Any, limit: int | None, description: str) -> None:
    taken = select_examples(Toy(problems=1200), Evaluate(order=order, limit=limit), salt="").selection
    assert taken.describe(", the same for every seed") == description
