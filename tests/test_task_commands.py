"""The commands for task authors, in the process of the test: their output and error messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import R3

TOY = f"{Path(__file__).with_name('support') / 'toy.py'}:Toy"
ODD = '''
from r3core import Example, Prompt, Task, Verdict


class Odd(Task):
    """A task whose problems and verdicts are odd."""

    name = "odd"
    empty: bool = False
    broken: bool = False

    def load(self, split):
        if self.broken:
            raise OSError("the file is gone")
        if split == "validation" and not self.empty:
            messages = [{"role": "system", "content": "Be\\nodd."}, {"role": "user", "content": "Go"}]
            yield Example(id="one\\x1b[2J", prompt=messages)
            yield Example(id="two", prompt=Prompt(messages=messages, tools=[{"name": "wren\\x1bch"}]))

    def verify(self, example, response):
        if response == "string":
            return "right"
        return Verdict.failed(f"`{response}` is wrong")
'''


@pytest.fixture
def odd(tmp_path: Path) -> str:
    (tmp_path / "odd.py").write_text(ODD)
    return "odd.py:Odd"


def test_the_hint_for_a_new_package_names_the_next_commands(r3: R3) -> None:
    said = r3("new", "my-task", "--output-dir", "my plugins")
    assert said == (
        0,
        "created my plugins/r3-plugin-my-task; "
        "the task is in my plugins/r3-plugin-my-task/r3_plugin_my_task/__init__.py\n"
        "next:\n"
        "  pip install -e 'my plugins/r3-plugin-my-task'\n"
        "  r3 check my-task\n"
        "  r3 show --task my-task --model Qwen/Qwen2.5-1.5B-Instruct -n 1\n"
        "  r3 run --task my-task --model Qwen/Qwen2.5-1.5B-Instruct --set grpo.max_steps=100\n",
        "",
    )
    assert Path("my plugins/r3-plugin-my-task/pyproject.toml").is_file()


def test_the_hint_for_a_new_file_names_the_value_of_task(r3: R3) -> None:
    said = r3("new", "my-task", "--bare")
    assert said.code == 0
    assert "  r3 check my_task.py:MyTask\n" in said.out
    assert "  r3 run --task my_task.py:MyTask --model " in said.out
    assert "pip install" not in said.out
    assert r3("verify", "my_task.py:MyTask", "--example", "7x12-3", "--response", "81").out.endswith("verdict: pass\n")


def test_the_run_that_is_planned_can_start(r3: R3) -> None:
    lines = r3("new", "my-task", "--bare").out.splitlines()
    [asked] = [line.split() for line in lines if line.startswith("  r3 run ")]
    assert r3(*asked[1:], "--dry-run").code == 0


def test_a_name_that_is_taken_is_an_error_for_people(r3: R3) -> None:
    said = r3("new", "countdown")
    assert said.code == 2
    assert said.err.startswith(
        "error: the name `countdown` is taken: r3-plugin-countdown brings the task `countdown`\n"
    )
    assert not Path("r3-plugin-countdown").exists()


@pytest.mark.parametrize(
    ("arguments", "split", "verdict", "code"),
    [
        (["--example", "n3", "--response", "3"], "train", "pass", 0),
        (["--example", "n1003", "--response", "3"], "validation", "fail: it should be 1003", 0),
        (["--response", "2000"], "test", "pass", 0),
        (["--example", "n2003", "--response", "unclear"], "test", "error: ValueError: cannot read that", 1),
        (["--example", "n2003", "--response", ""], "test", "fail: it should be 2003", 0),
    ],
)
def test_a_verdict_is_printed_with_its_reason(
    r3: R3, arguments: list[str], split: str, verdict: str, code: int
) -> None:
    said = r3("verify", TOY, *arguments)
    assert said.code == code
    number = arguments[1].removeprefix("n") if arguments[0] == "--example" else "2000"
    assert said.out == (
        f"example: n{number} ({split})\nuser: Say {number}.\nresponse: {arguments[-1]}\nverdict: {verdict}\n"
    )
    assert said.err == ""


def test_a_verdict_as_one_json_object(r3: R3) -> None:
    told = json.loads(r3("verify", TOY, "--example", "n3", "--response", "4", "--json").out)
    assert told == {
        "task": "toy",
        "split": "train",
        "example": {"id": "n3", "prompt": "Say 3.", "answer": "3", "info": {}},
        "prompt": [{"role": "user", "content": "Say 3."}],
        "tools": [],
        "response": "4",
        "outcome": "fail",
        "reason": "it should be 3",
        "kind": "",
        "limit": None,
    }


@pytest.mark.parametrize(
    ("stdin", "response"),
    [(b"3", "3"), (b"3\n", "3\n"), ("3 \u00e9\r\n".encode(), "3 é\r\n"), (b"3\xff", "3\ufffd"), (b"", "")],
)
def test_standard_input_is_judged_as_it_is(r3: R3, stdin: bytes, response: str) -> None:
    told = json.loads(r3("verify", TOY, "--example", "n3", "--response", "-", "--json", stdin=stdin).out)
    assert told["response"] == response
    assert told["outcome"] == ("pass" if response == "3" else "fail")


def test_what_is_printed_cannot_control_a_terminal(r3: R3, odd: str) -> None:
    said = r3("verify", odd, "--response", "a\x1b[31m\nb\u200b\u202e")
    assert said.out == (
        "example: one\\x1b[2J (validation)\n"
        "system: Be\\nodd.\n"
        "user: Go\n"
        "response: a\\x1b[31m\\nb\\u200b\\u202e\n"
        "verdict: fail: `a\\x1b[31m\\nb\\u200b\\u202e` is wrong\n"
    )


def test_the_tools_of_a_prompt_are_shown(r3: R3, odd: str) -> None:
    said = r3("verify", odd, "--example", "two", "--response", "a")
    assert said.out.splitlines()[1:3] == ['tools: [{"name": "wren\\u001bch"}]', "system: Be\\nodd."]
    facts = json.loads(r3("verify", odd, "--example", "two", "--response", "a", "--json").out)
    assert facts["tools"] == facts["example"]["prompt"]["tools"] == [{"name": "wren\x1bch"}]


def test_long_texts_are_cut_in_words_and_whole_as_json(r3: R3, odd: str) -> None:
    said = r3("verify", odd, "--response", "-", stdin=b"x" * 5000)
    assert f"response: {'x' * 300}… (5,000 characters)\n" in said.out
    assert max(map(len, said.out.splitlines())) < 400
    told = json.loads(r3("verify", odd, "--response", "-", "--json", stdin=b"x" * 5000).out)
    assert told["response"] == "x" * 5000


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ([TOY, "--example", "2001"], "task `toy` has no example `2001` among 72\n", "hint: similar ids: n2001, "),
        (
            ["odd.py:Odd", "--example", "one[2J"],
            "task `odd` has no example `one[2J` among 2\n",
            "similar ids: one\\x1b[2J\n",
        ),
        ([TOY, "--example", "???"], "task `toy` has no example `???`", "hint: an id looks like this: n2000"),
        ([TOY, "--task-option", "problem=3"], "task `toy` has no option `problem`", "hint: did you mean `problems`?"),
        ([TOY, "--task-option", "problems=0"], "task `toy` has no problem in any of its splits", ""),
        (["odd.py:Odd", "--task-option", "broken=true"], "task `odd`: `load('test')` raised OSError: ", ""),
        (["odd.py:Odd", "--task-option", "empty=true"], "task `odd` has no problem in any of its splits", ""),
        (["countdwn"], "no task is called `countdwn`", "hint: did you mean `countdown`?"),
    ],
)
def test_what_cannot_be_judged_is_reported(r3: R3, odd: str, arguments: list[str], message: str, hint: str) -> None:
    said = r3("verify", *arguments, "--response", "1")
    assert said.code == 2
    assert said.err.startswith(f"error: {message}")
    assert hint in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_a_verifier_that_returns_no_verdict_is_its_authors_mistake(r3: R3, odd: str) -> None:
    said = r3("verify", odd, "--response", "string")
    assert said.code == 2
    assert "`verify` returned 'right'; it must return a Verdict or a bool" in said.err


def test_a_verdict_has_the_limits_that_are_set(r3: R3) -> None:
    said = r3("verify", TOY, "--response", "12345", "--set", "judge.characters=4")
    assert said.code == 0
    assert "verdict: fail: response of 5 characters is longer than the limit of 4" in said.out


def test_a_response_must_be_given(r3: R3) -> None:
    said = r3("verify", TOY)
    assert said.code == 2
    assert "--response" in said.err
