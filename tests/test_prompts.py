from typing import Any

import pytest
from toy import Toy

from r3core import Example, TaskError, Verdict, Wording, prompts

EXAMPLE = Example(id="n7", prompt="Say 7.", answer="7")
ASKED = [{"role": "user", "content": "Say 7."}]


class Chatty(Toy):
    """A task whose prompts are what a test makes them."""

    name = "chatty"
    said: Any

    def prompt(self, example: Example) -> Any:
        return self.said


def test_a_text_is_the_users_turn() -> None:
    assert prompts.attempt(Toy(), EXAMPLE) == ASKED


def test_chat_messages_are_taken_as_they_are() -> None:
    said = [{"role": "system", "content": "Be brief."}, *ASKED]
    asked = prompts.attempt(Chatty(said=said), EXAMPLE)
    assert asked == said
    asked.append({"role": "user", "content": "more"})
    assert prompts.attempt(Chatty(said=said), EXAMPLE) == said


@pytest.mark.parametrize(
    "said",
    [None, 7, [], [{"role": "assistant", "content": "7"}], ["Say 7."], [{"role": "user"}], {"role": "user"}, (*ASKED,)],
)
def test_a_prompt_that_no_model_can_continue_is_the_tasks_fault(said: Any) -> None:
    with pytest.raises(TaskError, match=r"task `chatty`: the prompt of example 'n7' is neither a text nor chat"):
        prompts.attempt(Chatty(said=said), EXAMPLE)


def test_an_example_without_a_prompt_needs_a_task_that_makes_one() -> None:
    with pytest.raises(ValueError, match="'n7' has no prompt, and Toy defines no `prompt`"):
        prompts.attempt(Toy(), Example(id="n7"))


def test_the_model_is_told_the_reason_only_when_the_run_asks_for_it() -> None:
    wording = Wording(failed="No.", failed_because="No, {reason}!")
    assert prompts.failure(wording, Verdict.failed("it is 7"), "binary") == "No."
    assert prompts.failure(wording, Verdict.failed("it is 7"), "reason") == "No, it is 7!"
    assert prompts.failure(wording, Verdict.failed(), "reason") == "No."


def test_a_reason_is_never_a_format_string() -> None:
    wording = Wording(failed_because="No: {reason}")
    assert prompts.failure(wording, Verdict.failed("{0.__class__} {reason}"), "reason") == (
        "No: {0.__class__} {reason}"
    )


def test_the_conversation_goes_on_and_nothing_before_it_changes() -> None:
    wording = Wording(reflect="Reflect.", retry="Again.")
    reflect = prompts.reflect(ASKED, "8", "No.", wording)
    assert reflect == [*ASKED, {"role": "assistant", "content": "8"}, {"role": "user", "content": "No. Reflect."}]
    assert prompts.retry(ASKED, "8", "No.", "Too high.", wording) == [
        *reflect,
        {"role": "assistant", "content": "Too high."},
        {"role": "user", "content": "Again."},
    ]
    assert prompts.retry(ASKED, "8", "No.", None, wording) == [
        *ASKED,
        {"role": "assistant", "content": "8"},
        {"role": "user", "content": "No. Again."},
    ]
    assert len(ASKED) == 1


def test_an_empty_reflection_is_still_a_reflection() -> None:
    again = prompts.retry(ASKED, "8", "No.", "", Wording())
    assert [message["role"] for message in again] == ["user", "assistant", "user", "assistant", "user"]
