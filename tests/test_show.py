from __future__ import annotations

import re
from pathlib import Path

import pytest
import templates
import tiny
from toy import Toy

from r3core import Example, Prompt, RunError, Split
from r3core.config import resolve
from r3core.episode import Text
from r3core.show import _ids, print_conversations
from r3core.transcript import CLOSE, OPEN

SHORT = [f"sampling.{turn}.max_tokens=4" for turn in ("attempt", "reflection", "retry")]


def shown(
    capsys: pytest.CaptureFixture[str], folder: Path, *overrides: str, task: Toy | None = None, count: int = 2
) -> str:
    task = task or Toy()
    print_conversations(task, resolve(task, overrides=[f"model={folder}", *SHORT, *overrides]), count=count)
    return capsys.readouterr().out


def test_the_three_conversations_are_shown_as_the_model_sees_them(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = shown(capsys, tiny_folder, "mine.order=head")
    assert [printed.count(f"-- {turn}") for turn in ("attempt: fail", "reflection (", "retry: fail")] == [2, 2, 2]
    first = printed.partition("2. n1")[0]
    attempt, reflection, retry = first.split("\n-- ")[1:]
    opening = attempt.partition("\n")[2]
    assert opening.startswith("<|user|>Say 0.<|end|><|assistant|>")
    request = (  # the template ends a turn that was cut off
        opening.strip().removesuffix("<|end|>")
        + "<|end|><|user|>Your answer is incorrect. Write a short reflection: what went wrong, and what will you do "
    )
    before, _, marked = reflection.partition("\n")[2].partition(OPEN)
    assert before == request + "differently?<|end|><|assistant|>"
    trained = marked.partition(CLOSE)[0].removesuffix("<|end|>")
    again = retry.partition("\n")[2]
    assert again.startswith(f"{before}{trained}<|end|><|user|>Now solve the task again.<|end|><|assistant|>")


def test_a_reflection_that_was_cut_off_has_no_trained_end(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = shown(capsys, tiny_folder, "sampling.reflection.temperature=0", count=1)
    assert "-- reflection (4 tokens, cut off at the limit: the trained tokens)" in printed
    assert f"<|end|>{CLOSE}" not in printed


def test_the_end_of_a_finished_reflection_is_trained(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ("sampling.reflection.max_tokens=1500", "sampling.reflection.temperature=1.5")
    printed = shown(capsys, tiny_folder, *overrides, count=1)
    assert "tokens, and the end-of-turn token: the trained tokens)" in printed
    assert f"<|end|>{CLOSE}" in printed


class WithTool(Toy):
    """A task with a tool for the chat template."""

    def prompt(self, example: Example) -> Prompt:
        return Prompt(messages=[{"role": "user", "content": "Turn it."}], tools=[{"name": "wrench"}])


def test_tools_are_shown_where_the_chat_template_puts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = tiny.TOOL_TEMPLATE
    tiny.tiny_model(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    printed = shown(capsys, tmp_path, task=WithTool(), count=1)
    assert printed.count('<|system|>Tools:{"name": "wrench"}<|end|><|user|>Turn it.<|end|>') == 3
    assert f"<|assistant|>{OPEN}" in printed


class Coloured(Toy):
    """A task that tries to control the terminal."""

    def load(self, split: Split) -> list[Example]:
        return [Example(id="[red]x[/red]", prompt="Say \x1b[31m[bold]7[/bold].", answer="7")]


def test_shown_text_cannot_control_the_terminal(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = shown(capsys, tiny_folder, task=Coloured(), count=1)
    assert "1. [red]x[/red]" in printed
    assert "Say \\x1b[31m[bold]7[/bold]." in printed
    assert "\x1b" not in printed


class AlwaysPasses(Toy):
    """A task on which every attempt passes."""

    def verify(self, example: Example, response: str) -> bool:
        return True


def test_without_a_failure_show_is_an_error(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match="none of 24 attempts failed"):
        shown(capsys, tiny_folder, task=AlwaysPasses())


def test_attempts_that_were_cut_off_in_their_thinking_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = templates.tokenizer_with(templates.trl_template("qwen3_6"))
    tiny.tiny_model(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    cut = r"none of 24 .*; 24 were cut off in their thinking, at sampling\.attempt\.max_tokens=4\nhint: raise sampling"
    with pytest.raises(RunError) as raised:
        shown(capsys, tmp_path, "sampling.attempt.temperature=0")
    assert re.search(cut, str(raised.value))


def test_a_reflection_that_does_not_fit_the_context_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny.tiny_tokenizer()
    tiny.tiny_model(tokenizer, context=64).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    printed = shown(capsys, tmp_path, count=1)
    assert "-- reflection (0 tokens, its prompt does not fit the context: " in printed
    assert printed.endswith("-- no retry: the reflection was not generated\n")


def test_a_tokenizer_without_an_end_token_adds_none() -> None:
    tokenizer = tiny.tiny_tokenizer()
    turn = Text(text="ab", token_ids=[5, 6], tokens=2)
    assert _ids(turn, tokenizer) == [5, 6, tokenizer.eos_token_id]
    tokenizer.eos_token = None
    assert _ids(turn, tokenizer) == [5, 6]
