from typing import Any

import pytest
from toy import Toy

from r3core import Example, TaskError, Verdict, Wording, prompts
from r3core.episode import Text

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
    ("said", "fault"),
    [
        (None, "is None; that is neither a text nor a list of chat messages"),
        (7, "is 7; that is neither"),
        ({"role": "user"}, "is {'role': 'user'}; that is neither"),
        ((*ASKED,), "is ({'role': 'user', 'content': 'Say 7.'},); that is neither"),
        (["Say 7."], "has 'Say 7.' as message 1; that is no dict of `role` and `content`"),
        ([*ASKED, {"role": "user"}], "has {'role': 'user'} as message 2; that is no dict"),
        ([{"role": "user", "content": 7}], "has 7 as the content of message 1; that is no text"),
        ([{"role": "user", "content": ["Say 7."]}], "has ['Say 7.'] as the content of message 1; that is no text"),
        ([{"role": None, "content": "7"}], "has None as the role of message 1; that is no text"),
        ([*ASKED, {"role": "assistant", "content": "7"}], "ends with the turn of 'assistant'; it should end with"),
        ("", "is empty"),
        (" \n", "is empty"),
        ([], "is empty"),
        (
            [{"role": "tools", "content": "wrench"}, *ASKED],
            "has 'wrench' as its tools; that is no JSON list of objects",
        ),
        ([{"role": "tools", "content": '["wrench"]'}, *ASKED], "has '[\"wrench\"]' as its tools"),
        ([*ASKED, {"role": "tools", "content": "[]"}, *ASKED], "has tools as message 2; only the first message may"),
        ([{"role": "user", "content": " "}], "is empty"),
    ],
)
def test_a_prompt_that_no_model_can_continue_is_the_tasks_fault(said: Any, fault: str) -> None:
    with pytest.raises(TaskError) as raised:
        prompts.attempt(Chatty(said=said), EXAMPLE)
    assert raised.value.message.startswith(f"task `chatty`: the prompt of example 'n7' {fault}")
    assert "return a str, or [{" in raised.value.hints[0]


def test_a_prompt_that_raises_is_told_with_its_line() -> None:
    class Lost(Toy):
        def prompt(self, example: Example) -> str:
            return str(example.info["words"])

    with pytest.raises(TaskError) as raised:
        prompts.attempt(Lost(), EXAMPLE)
    line = Lost.prompt.__code__.co_firstlineno + 1
    said = f"task `toy`: `prompt` of example 'n7' raised KeyError: 'words' (test_prompts.py, line {line})"
    assert raised.value.message == said


def test_an_example_without_a_prompt_needs_a_task_that_makes_one() -> None:
    with pytest.raises(TaskError, match="task `toy`: example 'n7' has no prompt, and `Toy` defines none"):
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


def test_turns_of_the_model_bring_the_tokens_that_were_sampled_where_these_are_known() -> None:
    attempt = Text(text="8", tokens=1, token_ids=[3])
    reflection = Text(text="Too high.", tokens=2, token_ids=[5, 6])
    again = prompts.retry(ASKED, attempt, "No.", reflection, Wording())
    assert again[:2] == prompts.reflect(ASKED, attempt, "No.", Wording())[:2]
    assert [message.get("token_ids") for message in again] == [None, [3], None, [5, 6], None]
    plain = prompts.retry(ASKED, Text(text="8", tokens=1), "No.", "Too high.", Wording())
    assert plain == prompts.retry(ASKED, "8", "No.", "Too high.", Wording())
    assert all(message.keys() == {"role", "content"} for message in plain)
