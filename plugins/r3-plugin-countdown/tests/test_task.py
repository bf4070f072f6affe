from itertools import islice

import pytest

from r3_plugin_countdown.data import problem
from r3_plugin_countdown.task import Countdown
from r3core import TaskError, get_task


def test_the_task_is_found_by_its_name():
    assert type(get_task("countdown")) is Countdown
    assert get_task("countdown", numbers=4).numbers == (4,)


def test_a_bare_number_is_a_choice_of_one():
    assert Countdown(numbers=4) == Countdown(numbers=(4,)) == Countdown(numbers=[4]) == Countdown(numbers="4")


def test_options_survive_a_round_trip():
    task = Countdown(numbers=(3, 4), largest=50)
    assert Countdown(**task.options()) == task
    assert Countdown(**Countdown(source="hub").options()) == Countdown(source="hub")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smallest": 9, "largest": 8}, "smallest=9 is above largest=8"),
        ({"target_min": 50, "target_max": 49}, "target_min=50 is above target_max=49"),
        ({"source": "generatd"}, "source=generatd is neither `generated` nor `hub` nor a file"),
        ({"source": "hub", "numbers": 4, "largest": 9}, "numbers, largest has no effect unless source=generated"),
        ({"numbers": 0}, "greater than or equal to 1"),
        ({"numbers": 13}, "less than or equal to 12"),
        ({"numbers": ()}, "at least 1"),
        ({"largest": 10**9}, "less than or equal to 999999999"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(TaskError, match=message.replace("(", r"\(")):
        get_task("countdown", **options)


def test_the_prompt_names_the_numbers_and_the_target():
    assert Countdown().prompt(problem([9, 5, 7], 52)) == (
        "Make 52 from the numbers 9, 5, 7. Use every number exactly once, with + - * / and parentheses only. "
        "Write the expression inside <answer> and </answer>."
    )


def test_a_problem_without_a_known_solution_has_no_reference():
    assert Countdown().reference(problem([9, 5, 7], 52)) is None
    assert list(Countdown().variants(problem([9, 5, 7], 52))) == []


@pytest.mark.parametrize("numbers", [2, 3, 6, 12])
def test_references_and_other_forms_of_them_pass(numbers):
    task = Countdown(numbers=numbers, target_min=1, target_max=999)
    for example in islice(task.load("train"), 30):
        right = [task.reference(example), *task.variants(example)]
        assert len(set(right)) == len(right) == 5
        assert [task.verify(example, response).outcome for response in right] == ["pass"] * 5


def test_an_example_that_is_no_problem_is_an_error_and_not_a_wrong_answer():
    with pytest.raises(KeyError):
        Countdown().verify(problem([9, 5, 7], 52).model_copy(update={"info": {}}), "<answer>9 * 5 + 7</answer>")
