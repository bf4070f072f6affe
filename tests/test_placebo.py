"""The neutral text of the control `placebo`, at the length of a reflection."""

from __future__ import annotations

import re

import pytest
from tiny import tiny_tokenizer

from r3core.episode import Reflection
from r3core.generation.scripted import ScriptedGenerator
from r3core.prompts import PLACEBO, placebo


class WithTokenizer(ScriptedGenerator):
    """A generator that has the model's tokenizer, as local engines do."""

    def __init__(self) -> None:
        super().__init__(lambda conversation, index: "")
        self.tokenizer = tiny_tokenizer(words=["The lake lies", " between low hills."])


def reflection(tokens: int, *, thought: int = 0, text: str = "Hm.") -> Reflection:
    return Reflection(text=text, tokens=tokens, token_ids=list(range(tokens)), answer_start=thought)


@pytest.mark.parametrize(("tokens", "thought"), [(1, 0), (2, 0), (40, 0), (1_000, 0), (30, 12)])
def test_a_placebo_has_as_many_tokens_as_the_answer_of_the_reflection(tokens: int, thought: int) -> None:
    generator = WithTokenizer()
    text = placebo(reflection(tokens, thought=thought), generator)
    ids = generator.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == tokens - thought
    assert (text * 2).startswith(PLACEBO[: len(text)])


@pytest.mark.parametrize("length", [0, 1, 60, 1_000])
def test_without_a_tokenizer_a_placebo_has_as_many_characters(length: int) -> None:
    server = ScriptedGenerator(lambda conversation, index: "")
    text = placebo(reflection(3, text="x" * length), server)
    assert len(text) == length
    assert (PLACEBO * 5).startswith(text)


def test_the_neutral_text_has_no_number_and_no_word_about_tasks() -> None:
    words = set(re.findall(r"[a-z]+", PLACEBO.lower()))
    assert not words & {"answer", "check", "error", "mistake", "read", "task", "try", "wrong"}
    assert not re.search(r"\d", PLACEBO)
