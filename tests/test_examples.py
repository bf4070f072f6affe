"""The examples: their references pass, their verifiers can be trusted, and the known traps fail for their reasons."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pluggy
import pytest

from r3core import Example, Split, Task, TaskError, Verdict, assert_certified, get_task, hookspecs
from r3core.plugins.discovery import GROUP
from r3core.task import Outcome

ROOT = Path(__file__).parent.parent
EXAMPLES: dict[str, dict[str, Any]] = {
    "sentence.py:Sentence": {},
    "keywords.py:Keywords": {},
    "order.py:Order": {},
    "output.py:Output": {"problems": 200},
    "questions.py:Questions": {"file": "questions.jsonl"},
}
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current directory with a file of questions, and an import path that is restored afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    rows = [{"question": f"What is {n} + {n}?", "answer": 2 * n} for n in range(1, 60)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def example_task(name: str, **options: Any) -> Task:
    return get_task(f"{ROOT / 'examples' / name}", **(EXAMPLES[name] | options))


def outcome(task: Task, example: Example, response: str | None) -> Outcome:
    assert response is not None
    verdict = task.verify(example, response)
    assert isinstance(verdict, Verdict)
    return verdict.outcome


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_references_of_examples_pass_and_wrong_answers_fail(name: str) -> None:
    task = example_task(name)
    prompts: set[str] = set()
    for split in SPLITS:
        examples = list(task.load(split))
        assert examples
        for example, other in zip(examples, [*examples[1:], examples[0]], strict=True):
            reference, another, prompt = task.reference(example), task.reference(other), task.prompt(example)
            assert isinstance(prompt, str)
            assert outcome(task, example, reference) == "pass"
            for wrong in ("", "no", "[" * 100_000, prompt, f"{reference}\n{reference}0"):
                assert outcome(task, example, wrong) == "fail"
            # two programs may print the same
            assert outcome(task, example, another) == ("pass" if another == reference else "fail")
            assert prompt not in prompts
            prompts.add(prompt)


@pytest.mark.processes
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_verifiers_of_the_examples_can_be_trusted(name: str) -> None:
    assert_certified(example_task(name))


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_provide_their_task_by_the_plugin_hook(name: str) -> None:
    task = type(example_task(name))
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    manager.register(sys.modules[task.__module__])
    assert manager.hook.r3_tasks() == [[task]]


ORDER = {"customer": "Ada", "items": {"apples": 1, "candles": 1}}
PRINTED = "12\n7\n-3"


@pytest.mark.parametrize(
    ("name", "wrong", "reason"),
    [
        ("sentence.py:Sentence", "The apple and bridge.", "it has 4 words, not 8"),
        ("sentence.py:Sentence", "An apple and a bridge and an island.", "a word is there twice"),
        ("sentence.py:Sentence", "Apple bridge. We saw it near the house.", "it is not one sentence"),
        ("sentence.py:Sentence", "apple bridge we saw it near the house", "it is not one sentence"),
        ("sentence.py:Sentence", "We saw an \u0430pple by the old bridge.", "it is not one sentence"),  # Cyrillic
        ("sentence.py:Sentence", "We saw an apple by the\u200b old bridge.", "it is not one sentence"),
        ("sentence.py:Sentence", "**We saw an apple by the old bridge.**", "it is not one sentence"),
        ("sentence.py:Sentence", "We saw it near the old garden house.", "`apple` is missing"),
        ("keywords.py:Keywords", "An apple lay there.", "`bridge` is missing"),
        ("keywords.py:Keywords", "apple, bridge", "it is not one sentence"),
        ("keywords.py:Keywords", "An apple fell. It was on a bridge.", "it is not one sentence"),
        ("keywords.py:Keywords", "An apple\nand a bridge.", "it is not one sentence"),
        ("keywords.py:Keywords", "An \u0430pple fell from the bridge.", "it is not one sentence"),  # Cyrillic
        ("keywords.py:Keywords", "Apples fell from the bridge.", "`apple` is missing"),
        (
            "keywords.py:Keywords",
            "An apple fell off a bridge" + " and a bridge" * 8 + ".",
            "it has 30 words, at most 25",
        ),
        ("keywords.py:Keywords", "Write one sentence with the words apple and bridge.", "it is about a sentence"),
        ("order.py:Order", '{"customer": "Ada", "items": {"apples": true, "candles": 1}}', "another customer"),
        ("order.py:Order", '{"customer": "Ada", "items": {"apples": 1.0, "candles": 1}}', "another customer"),
        ("order.py:Order", '{"customer": "Ada", "items": {"apples": "1", "candles": 1}}', "another customer"),
        ("order.py:Order", '{"customer": "Ada", "items": {"apples": NaN, "candles": 1}}', "another customer"),
        ("order.py:Order", '{"customer": "Ada\\ud800", "items": {"apples": 1, "candles": 1}}', "another customer"),
        ("order.py:Order", '{"customer": "Ada", "items": {"apples": 1, "apples": 1, "candles": 1}}', "a key is there"),
        ("order.py:Order", 'Here: {"customer": "Ada", "items": {"apples": 1, "candles": 1}}', "it is not JSON"),
        ("order.py:Order", "9" * 5000, "it is not JSON"),
        ("order.py:Order", "```json\n" + "\n" * 100_000, "it is not JSON"),
        ("order.py:Order", "[" * 900 + "]" * 900, "another customer"),
        ("output.py:Output", "12\n7", "it prints 3 lines, not 2"),
        ("output.py:Output", "12\n7\n-3\n-3", "it prints 3 lines, not 4"),
        ("output.py:Output", "It prints 12, 7 and -3", "it prints 3 lines, not 1"),
        ("output.py:Output", "12\n07\n-3", "line 2 is another"),
        ("output.py:Output", "12\n7.0\n-3", "line 2 is another"),
        ("output.py:Output", "12\n\u0667\n-3", "line 2 is another"),  # a seven of another script
        ("output.py:Output", "12\n7\n\u22123", "line 3 is another"),  # a minus sign of another code point
        ("questions.py:Questions", "2\nor 3", "'or 3' is not the answer"),
        ("questions.py:Questions", "2..", "'2..' is not the answer"),
        ("questions.py:Questions", "\uff12", "is not the answer"),
        ("questions.py:Questions", "\ud800", r"'\ud800' is not the answer"),
    ],
)
def test_traps_of_the_examples_fail_for_their_reason(name: str, wrong: str, reason: str) -> None:
    task = example_task(name)
    answer = {"questions.py:Questions": "2", "output.py:Output": PRINTED}.get(name, ORDER)
    example = Example.model_validate({"id": "x", "answer": answer, "info": {"words": ["apple", "bridge"], "length": 8}})
    verdict = task.verify(example, wrong)
    assert isinstance(verdict, Verdict)
    assert verdict.outcome == "fail"
    assert reason in verdict.reason


def test_a_program_prints_what_its_generator_computed() -> None:
    for example in islice(example_task("output.py:Output").load("test"), 20):
        program = str(example.prompt).split("\n\n")[1]  # generated by the task, not by a model: safe to run
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout == f"{example.answer}\n"


@pytest.mark.parametrize("right", ["2", "2.", "I count.\n2", " 2 \n"])
def test_the_last_line_answers_a_question(right: str) -> None:
    task = example_task("questions.py:Questions", file="missing.jsonl")
    assert outcome(task, Example(id="x", answer="2"), right) == "pass"
    with pytest.raises(TaskError, match="there is no file"):
        list(task.load("train"))


@pytest.mark.parametrize(
    ("answer", "right"), [("Oslo", "oslo"), ("Oslo", "OSLO"), ("new york", "New York"), ("St. Pölten", "ST. PÖLTEN.")]
)
def test_the_case_of_an_answer_does_not_matter(answer: str, right: str) -> None:
    task = example_task("questions.py:Questions", file="missing.jsonl")
    assert outcome(task, Example(id="x", answer=answer), right) == "pass"
    look_alike = right.replace("k", "\u212a").replace("o", "\u043e").replace("O", "\u041e").replace("S", "\u0405")
    assert outcome(task, Example(id="x", answer=answer), look_alike) == "fail"


@pytest.mark.parametrize("right", [PRINTED, f"```\n{PRINTED}\n```", f" {PRINTED}\n\n", PRINTED.replace("\n", " \r\n")])
def test_spaces_and_a_code_fence_do_not_change_an_output(right: str) -> None:
    assert outcome(example_task("output.py:Output"), Example(id="x", answer=PRINTED), right) == "pass"


def test_the_order_of_keys_and_a_code_fence_do_not_matter() -> None:
    gold = {"customer": "Ada", "items": {"apples": 1, "candles": 2}}
    response = '```json\n{"items": {"candles": 2, "apples": 1},\n "customer": "Ada"}\n```'
    example = Example.model_validate({"id": "x", "answer": gold})
    assert outcome(example_task("order.py:Order"), example, response) == "pass"
