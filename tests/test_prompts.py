import re
from typing import Any

import pytest
from pydantic import ValidationError
from toy import Toy

from r3core import Example, Prompt, TaskError, Verdict, Wording, prompts
from r3core.episode import Text

EXAMPLE = Example(id="n7", prompt="Say 7.", answer="7")
USER = {"role": "user", "content": "Say 7."}
FIRST = Prompt(messages=[USER])
TOOL = {"type": "function", "function": {"name": "wrench"}}


class Chatty(Toy):
    """A task whose prompt is a value that a test chooses."""

    name = "chatty"
    value: Any

    def prompt(self, example: Example) -> Any:
        return self.value


def test_a_text_is_the_users_turn() -> None:
    assert prompts.attempt(Toy(), EXAMPLE) == FIRST


@pytest.mark.parametrize("value", [[USER], Prompt(messages=[USER]), Prompt(messages=[USER], tools=[TOOL])])
def test_an_example_may_have_any_form_of_prompt(value: Any) -> None:
    example = Example(id="n7", prompt=value)
    assert Example.model_validate_json(example.model_dump_json()) == example
    assert prompts.attempt(Toy(), example) == prompts.attempt(Chatty(value=value), example)


def test_chat_messages_are_used_as_they_are() -> None:
    messages = [{"role": "system", "content": "Be brief."}, USER]
    prompt = prompts.attempt(Chatty(value=messages), EXAMPLE)
    assert prompt == Prompt(messages=messages)
    prompt.messages.append({"role": "user", "content": "more"})
    assert prompts.attempt(Chatty(value=messages), EXAMPLE) == Prompt(messages=messages)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (None, "is None; it must be a str, a list of chat messages or a Prompt"),
        (7, "is 7; it must be"),
        ({"role": "user"}, "is {'role': 'user'}; it must be"),
        ((USER,), "is ({'role': 'user', 'content': 'Say 7.'},); it must be"),
        (["Say 7."], "has 'Say 7.' as message 1; it must be a dict with `role` and `content`"),
        ([USER, {"role": "user"}], "has {'role': 'user'} as message 2; it must be a dict"),
        ([{"role": "user", "content": 7}], "has 7 as the content of message 1; it must be a str"),
        ([{"role": "user", "content": ["Say 7."]}], "has ['Say 7.'] as the content of message 1; it must be a str"),
        ([{"role": None, "content": "7"}], "has None as the role of message 1; it must be a str"),
        (Prompt(messages=[{"role": "user", "content": 7}]), "has 7 as the content of message 1; it must be a str"),
        ([USER, {"role": "assistant", "content": "7"}], "ends with a turn of 'assistant'; it must end with the user's"),
        ("", "is empty"),
        (" \n", "is empty"),
        ([], "is empty"),
        (Prompt(messages=[]), "is empty"),
        ([{"role": "user", "content": " "}], "is empty"),
    ],
)
def test_a_prompt_that_no_model_can_continue_is_an_error_of_the_task(value: Any, fault: str) -> None:
    with pytest.raises(TaskError) as raised:
        prompts.attempt(Chatty(value=value), EXAMPLE)
    assert raised.value.message.startswith(f"task `chatty`: the prompt of example 'n7' {fault}")
    assert "return a str, [{" in raised.value.hints[0]


@pytest.mark.parametrize("tools", ["wrench", ["wrench"], {"name": "wrench"}])
def test_tools_are_a_list_of_objects(tools: Any) -> None:
    class Lost(Toy):
        def prompt(self, example: Example) -> Prompt:
            return Prompt(messages=[USER], tools=tools)

    with pytest.raises(ValidationError, match="tools"):
        Prompt(messages=[USER], tools=tools)
    with pytest.raises(TaskError, match=re.escape("`prompt` of example 'n7' raised ValidationError")):
        prompts.attempt(Lost(), EXAMPLE)


def test_a_prompt_that_raises_is_reported_with_its_line() -> None:
    class Lost(Toy):
        def prompt(self, example: Example) -> str:
            return str(example.info["words"])

    with pytest.raises(TaskError) as raised:
        prompts.attempt(Lost(), EXAMPLE)
    line = Lost.prompt.__code__.co_firstlineno + 1
    message = f"task `toy`: `prompt` of example 'n7' raised KeyError: 'words' (test_prompts.py, line {line})"
    assert raised.value.message == message


def test_an_example_without_a_prompt_requires_a_task_that_defines_one() -> None:
    with pytest.raises(TaskError, match="task `toy`: example 'n7' has no prompt, and `Toy` defines none"):
        prompts.attempt(Toy(), Example(id="n7"))


def test_the_model_sees_the_reason_only_under_feedback_reason() -> None:
    wording = Wording(failed="No.", failed_because="No, {reason}!")
    assert prompts.failure(wording, Verdict.failed("it is 7"), "binary") == "No."
    assert prompts.failure(wording, Verdict.failed("it is 7"), "reason") == "No, it is 7!"
    assert prompts.failure(wording, Verdict.failed(), "reason") == "No."


def test_a_reason_is_never_a_format_string() -> None:
    wording = Wording(failed_because="No: {reason}")
    assert prompts.failure(wording, Verdict.failed("{0.__class__} {reason}"), "reason") == (
        "No: {0.__class__} {reason}"
    )


def test_each_prompt_continues_the_earlier_one_unchanged() -> None:
    wording = Wording(reflect="Reflect.", retry="Again.")
    first = Prompt(messages=[USER], tools=[TOOL])
    reflect = prompts.reflect(first, "8", "No.", wording)
    assert reflect.messages == [
        USER,
        {"role": "assistant", "content": "8"},
        {"role": "user", "content": "No. Reflect."},
    ]
    retry = prompts.retry(first, "8", "No.", "Too high.", wording)
    assert retry.messages == [
        *reflect.messages,
        {"role": "assistant", "content": "Too high."},
        {"role": "user", "content": "Again."},
    ]
    plain = prompts.retry(first, "8", "No.", None, wording)
    assert plain.messages == [USER, {"role": "assistant", "content": "8"}, {"role": "user", "content": "No. Again."}]
    assert reflect.tools == retry.tools == plain.tools == [TOOL]
    assert first == Prompt(messages=[USER], tools=[TOOL])


def test_an_empty_reflection_is_still_a_reflection() -> None:
    again = prompts.retry(FIRST, "8", "No.", "", Wording())
    assert [message["role"] for message in again.messages] == ["user", "assistant", "user", "assistant", "user"]


def test_turns_of_the_model_have_their_sampled_tokens_where_these_are_known() -> None:
    attempt = Text(text="8", tokens=1, token_ids=[3])
    reflection = Text(text="Too high.", tokens=2, token_ids=[5, 6])
    again = prompts.retry(FIRST, attempt, "No.", reflection, Wording())
    assert again.messages[:2] == prompts.reflect(FIRST, attempt, "No.", Wording()).messages[:2]
    assert [message.get("token_ids") for message in again.messages] == [None, [3], None, [5, 6], None]
    plain = prompts.retry(FIRST, Text(text="8", tokens=1), "No.", "Too high.", Wording())
    assert plain == prompts.retry(FIRST, "8", "No.", "Too high.", Wording())
    assert all(message.keys() == {"role", "content"} for message in plain.messages)
