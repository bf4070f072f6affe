import time

import pytest

from r3_plugin_countdown.data import problem
from r3_plugin_countdown.leaks import gives_away
from r3_plugin_countdown.task import Countdown


@pytest.mark.parametrize(
    "text",
    [
        "9 * 5 + 7",
        "I should try (9 * 5) + 7 = 52 next.",
        "Next time: (I could use 9 * 5 + 7).",
        "- 9 * 5 + 7",
        "**9 * 5 + 7**",
        "1. 9 * 5 + 7\n2. check it",
        "1) 9 * 5 + 7",
        "9 × 5 + 7 = 52",  # noqa: RUF001 - the sign that models like to write
        "9 x 5 + 7 is right",
        r"$9 \times 5 + 7$",
        "52 = 9*5+7",
        "7 + (9 * 5) = 51 was wrong",  # the expression is right, whatever is said of it
        "3 * 12 = 36, 36 + 7 = 43 no. 9 * 5 = 45, 45 + 7 = 52 yes.",
        "9 * 5 = 45. 45 - 7 = 38 no. 45 + 7 = 52 yes.",
        "9 * 5 = 45 + 7 = 52",
        "Let me test first steps: 9 - 5 = 4 no. 9 * 5 = 45 yes. Then 45 + 7 = 52.",
        "9 * 5 gives 45\nthen 45 + 7",
        "(9 * 5) = 45, then (7 + 45) = 52",
    ],
)
def test_a_text_that_leads_to_the_target_gives_it_away(text):
    assert gives_away(text, [9, 5, 7], 52)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I will check every step.",
        "My expression makes 38. I should begin with 9 * 5 = 45.",
        "9 * 5 - 7 = 38 is too small.",
        "9 * 5 = 45 and 7 is left over.",
        "Let me test first steps: 9 - 5 = 4 no. 9 + 7 = 16 no. 9 * 5 = 45 yes.",
        "45 + 7 = 52",  # 45 is not at hand
        "45 + 7 = 52, 9 * 5 = 45",  # in the wrong order
        "9 * 5 = 44, 45 + 7 = 52",  # the first step is wrong
        "9 * 5 = 45.5, 45 + 7 = 52",
        "9 * 5 = 45, 45 + 7 + 5 - 5 = 52",  # 5 is used up
        "50 + 2 = 52",
        "52",
        "9, 5, 7 and 52",
        "9 * 5 plus 7",  # words are not read
        "9 / 5 = 1, 1 * 52 = 52",
        "9 / 0 + 5 * 7",
        "__import__('os')",
    ],
)
def test_a_text_that_stops_short_gives_nothing_away(text):
    assert not gives_away(text, [9, 5, 7], 52)


@pytest.mark.parametrize(
    ("text", "leaked"),
    [
        ("3 * 8 = 24, 24 + 6 = 30, 30 - 1 = 29", True),
        ("3 * 8 + 6 = 30, then 30 - 1 = 29", True),
        ("8 - 1 = 7, 3 * 6 = 18, 18 + 7 = 25", False),
        ("3 * 8 = 24, 6 - 1 = 5, 24 + 5 = 29", True),
        ("3 * 8 = 24, 24 + 6 = 30", False),
        ("3 * 8 = 24, 24 + 6 = 30, 30 - 1 = 28", False),
    ],
)
def test_four_numbers_take_steps_of_any_size(text, leaked):
    assert gives_away(text, [8, 3, 6, 1], 29) is leaked


def test_a_repeated_number_is_at_hand_as_often_as_it_is_given():
    assert gives_away("6 + 6 = 12, 12 - 2 = 10", [6, 6, 2], 10)
    assert not gives_away("6 + 6 = 12, 12 - 2 = 10", [6, 2, 5], 10)


def test_the_task_asks_its_verifier_too():
    task, example = Countdown(), problem([9, 5, 7], 52)
    assert task.leaks(example, "I should have said <answer>9 * 5\n+ 7</answer>")  # no line of it is the whole
    assert not task.leaks(example, "<answer>9 * 5\n- 7</answer>")


def test_every_solution_of_the_generator_leaks():
    task = Countdown(numbers=(3, 4))
    for _, example in zip(range(200), task.load("train"), strict=False):
        assert task.leaks(example, f"Maybe {example.info['solution']} works")
        assert task.leaks(example, task.reference(example))


@pytest.mark.parametrize(
    "unit", ["1+1=2, ", "9*5 ", "(", "((", "9", "9 x ", " - ", "1) ", "\n1. ", "9/0,", "1+2,2*3,3+4,"]
)
def test_long_texts_take_bounded_time(unit):
    text = unit * (1_000_000 // len(unit))
    began = time.perf_counter()
    gives_away(text, [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4], 999_999)
    assert time.perf_counter() - began < 3


def test_a_text_with_many_ways_takes_bounded_time():
    text = ", ".join(f"{a} {op} {b}" for a in range(1, 13) for b in range(1, 13) for op in "+-*")
    began = time.perf_counter()
    assert not gives_away(text * 4, list(range(1, 13)), 999_999)
    assert time.perf_counter() - began < 3
