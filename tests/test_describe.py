"""`r3 tasks TASK`: what is printed about one task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toy
from command import R3

from r3core.check.certificate import cache_certificate
from r3core.describe import describe
from r3core.plugins.discovery import find_task
from r3core.sections import Limits

TASK = '''
from pathlib import Path
from typing import Annotated, ClassVar
from pydantic import Field
from r3core import Demo, Example, Prompt, Task


class Own(Task):
    """Say a word.

    The word is in the prompt.
    """

    name = "own"
    demo: ClassVar[Demo] = Demo(model=Path("/models/own"), settings={"grpo.max_steps": 3}, made_for=("size",))
    presets: ClassVar = {"paper": {"size": 9}}
    waived: ClassVar = {"negated": "text around it is not read", "retracted": "text around it is not read"}

    size: int = 3
    """Number of words.

    More are harder.
    """
    word: Annotated[str, Field(description="The first word.")] = "a"
    bare: bool = False

    def load(self, split):
        if self.size == 0:
            raise ValueError("no words")
        if split != "test":
            yield Example(id="w\\x1b[2J", prompt=f"Say {self.word}\\x1b.\\nNow.", answer=self.word)

    def reference(self, example):
        return str(example.answer)

    def verify(self, example, response):
        return response == example.answer


class Need(Own):
    """Needs a file."""

    name = "need"
    file: Path

    def reference(self, example):
        return None
'''


@pytest.fixture
def spec(tmp_path: Path, imports_restored: None) -> str:
    (tmp_path / "own.py").write_text(TASK)
    return f"{tmp_path / 'own.py'}:Own"


def test_a_task_is_described(spec: str, r3: R3) -> None:
    shown = r3("tasks", spec)
    assert (shown.code, shown.err) == (0, "")
    lines = shown.out.splitlines()
    assert lines[0].startswith("own  (r3_file_own_")
    assert lines[0].endswith(":Own; verifier version 1)")
    assert lines[1:3] == ["    Say a word.", "    The word is in the prompt."]
    for part in (
        "    size  (int, default 3)\n        Number of words.\n\n        More are harder.\n",
        '    word  (str, default "a")\n        The first word.\n    bare  (bool, default false)\n\n',
        "example w\\x1b[2J (validation split):\n    user: Say a\\x1b.\n    Now.\n    reference: a\n",
        f"certificate: none of this version yet; `r3 check {spec}` makes it",
        "    waived: negated, retracted (text around it is not read)\n",
        f"built-in model: /models/own; `r3 run --task {spec}` trains it with these settings:\n"
        '    evaluate.decoding="both"\n    evaluate.resamples=4\n    grpo.max_steps=3\n',
        "    it was trained for size=3\npreset paper: size=9\n",
    ):
        assert part in shown.out
    assert "\x1b" not in shown.out


def test_the_example_is_that_of_the_given_options(spec: str, r3: R3) -> None:
    assert "user: Say b" in r3("tasks", spec, "--task-option", "word=b").out


def test_a_task_is_described_as_json(spec: str, r3: R3) -> None:
    described = json.loads(r3("tasks", spec, "--json").out)
    assert described["options"][0]["meaning"] == "Number of words.\n\nMore are harder."
    assert described["example"]["prompt"] == [{"role": "user", "content": "Say a\x1b.\nNow."}]
    assert described["example"]["reference"] == "a"
    assert described["certificate"] is None
    assert described["built_in"]["made_for"] == {"size": 3}


def test_a_problem_that_cannot_be_loaded_is_no_error_of_the_description(spec: str, r3: R3) -> None:
    shown = r3("tasks", spec, "--task-option", "size=0")
    assert shown.code == 0
    assert "example: task `own`: `load('test')` raised ValueError: no words" in shown.out


def test_a_required_option_is_named(spec: str, r3: R3) -> None:
    need = spec.replace(":Own", ":Need")
    assert "\nexample: needs the option file\n" in r3("tasks", need).out
    shown = r3("tasks", need, "--task-option", "file=a.txt").out
    assert "    file  (Path, required)\n" in shown
    assert "        Number of words." in shown  # of the class that it inherits from
    assert 'no reference; the example\'s answer: "a"' in shown


@pytest.mark.usefixtures("certified")
def test_a_cached_certificate_is_summarized() -> None:
    described = describe(toy.Toy, {})
    assert described.certificate is not None
    assert described.certificate.outcome == "pass"
    assert described.built_in is None


@pytest.fixture
def certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate of the toy task, in a cache of its own."""
    from r3core.check.certificate import Certificate, state_of
    from r3core.environment import environment

    monkeypatch.setenv("R3_CACHE", str(tmp_path))
    task = toy.Toy()
    certificate = Certificate(
        task="toy",
        task_options={},
        task_version="1",
        state=state_of(task, Limits()),
        verifier_hash="0",
        fixtures_hash=None,
        outcome="pass",
        findings=[],
        not_checked=[],
        data={},
        limits={},
        seed=0,
        seconds=1.0,
        environment=environment(),
    )
    assert cache_certificate(task, certificate)


def test_an_unknown_name_is_an_error_with_a_suggestion(r3: R3) -> None:
    shown = r3("tasks", "countdwn")
    assert (shown.code, shown.out) == (2, "")
    assert "did you mean `countdown`?" in shown.err


def test_an_option_without_a_task_is_an_error(r3: R3) -> None:
    shown = r3("tasks", "--task-option", "numbers=4")
    assert shown.code == 2
    assert "--task-option needs a task" in shown.err


@pytest.mark.parametrize("name", ["countdown", "apigen"])
def test_installed_tasks_have_an_example_with_a_reference_and_a_model(name: str) -> None:
    described = describe(find_task(name), {})
    assert described.distribution
    assert described.distribution.startswith(f"r3-plugin-{name} ")
    assert described.example
    assert described.example.reference
    assert described.built_in
    assert described.built_in.settings
