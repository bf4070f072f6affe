from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3_plugin_countdown.data import SIZES, split_of
from r3_plugin_countdown.task import Countdown

SPLITS = ("train", "validation", "test")


def key(example):
    return (tuple(sorted(example.info["numbers"])), example.info["target"])


@pytest.mark.parametrize(
    ("options", "split", "ids"),
    [
        ({}, "train", ["17-5-19=41", "6-5-15=81", "17-3-3=17", "6-17-2=25"]),
        ({}, "test", ["4-4-14=72", "15-5-20=55", "11-12-11=11", "20-9-7=22"]),
        ({"numbers": (3, 4)}, "train", ["19-1-2=19", "13-3-9=25", "1-14-18=32", "13-5-4-15=48"]),
        (
            {"numbers": 4, "largest": 50, "data_seed": 7},
            "test",
            ["31-20-29-3=83", "45-45-13-48=60", "23-1-18-38=79", "36-2-1-21=17"],
        ),
    ],
)
def test_the_first_problems_are_the_same_everywhere(options, split, ids):
    assert [example.id for example in islice(Countdown(**options).load(split), 4)] == ids


def test_a_split_is_loaded_twice_alike():
    task = Countdown(numbers=4)
    assert list(islice(task.load("test"), 300)) == list(islice(task.load("test"), 300))


def test_splits_share_no_problem_even_with_other_seeds():
    found = {
        split: {key(example) for seed in (0, 1) for example in islice(Countdown(data_seed=seed).load(split), 400)}
        for split in SPLITS
    }
    assert all(len(keys) > 400 for keys in found.values())
    assert found["train"].isdisjoint(found["test"] | found["validation"])
    assert found["test"].isdisjoint(found["validation"])


@given(st.lists(st.integers(0, 99), min_size=1, max_size=6), st.integers(), st.randoms())
def test_the_split_does_not_depend_on_the_order_of_the_numbers(numbers, target, random):
    shuffled = random.sample(numbers, len(numbers))
    assert split_of(numbers, target) == split_of(shuffled, target)


def test_splits_have_their_shares():
    splits = [split_of((a, b, c), 24) for a in range(1, 15) for b in range(a, 15) for c in range(b, 15)]
    assert 0.75 < splits.count("train") / len(splits) < 0.85
    assert 0.06 < splits.count("test") / len(splits) < 0.14


@pytest.mark.slow
def test_a_split_of_a_large_space_is_not_endless():
    problems = list(Countdown(numbers=(4,), largest=50).load("test"))
    assert len(problems) == SIZES["test"] == 5_000


def test_a_small_space_is_exhausted_without_repeats():
    task = Countdown(numbers=2, largest=4, target_min=1, target_max=16)
    examples = [example for split in SPLITS for example in task.load(split)]
    assert len({key(example) for example in examples}) == len({example.id for example in examples}) == len(examples)
    assert (4, 4) in {key(example)[0] for example in examples}


@pytest.mark.parametrize("numbers", [1, 2, 3, 4, 6, (3, 4)])
def test_every_reference_passes(numbers):
    task = Countdown(numbers=numbers, target_min=1)
    for split in SPLITS:
        for example in islice(task.load(split), 100):
            assert task.verify(example, task.reference(example)).outcome == "pass"
