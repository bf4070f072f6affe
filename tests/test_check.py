"""The checks one by one; that each fails broken verifiers is tested in test_check_verifiers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import unstable_verifiers
import verifiers
from verifiers import Sound

from r3core import Example, RunError, Split, Task, TaskError, assert_certified
from r3core.check import certificate_of, data, require_passed
from r3core.check.certificate import Finding
from r3core.check.context import Checking, plain
from r3core.check.data import check_data
from r3core.check.fixtures import add_fixtures
from r3core.check.probes import Frame
from r3core.check.references import check_fixtures, check_references
from r3core.check.run_probes import check_probes
from r3core.sections import Limits
from r3core.verification.judge import Judge

pytestmark = pytest.mark.processes

ALONE = Limits(workers=1, max_errors=1)
BARE = Frame("", "")


class Endless(Sound):
    """An unlimited number of problems."""

    def load(self, split: Split) -> Iterator[Example]:
        if split != "validation":
            for number in itertools.count():
                yield Example(id=f"{split}-{number}", prompt=f"What is {number} + 1 ({split})?", answer=str(number + 1))


class Empty(Sound):
    """No problems."""

    def load(self, split: Split) -> Iterator[Example]:
        return iter(())


class Twins(Sound):
    """A problem that occurs twice in one split."""

    def load(self, split: Split) -> Iterator[Example]:
        for example in super().load(split):
            yield example
            if example.id == "n0":
                yield example.model_copy(update={"id": "twin"})


class AnswerInPrompt(Sound):
    """Some prompts contain the sum, the others a longer number that contains its digits."""

    def prompt(self, example: Example) -> str:
        return f"Say {example.answer}." if example.id in ("n0", "n1") else f"Say half of {example.answer}0."


class Several(Sound):
    """51 passes for every sum."""

    def verify(self, example: Example, response: str) -> bool:
        return response.strip() in (example.answer, "51")


class NumberAsReference(Sound):
    """A reference that is not a string."""

    def reference(self, example: Example) -> str | None:
        return int(str(example.answer))  # type: ignore[return-value]  # what is tested


class BreakingVariants(Sound):
    """An exception in `variants`."""

    def variants(self, example: Example) -> Iterable[str]:
        return [example.info["spelled"]]  # type: ignore[list-item]  # a missing key


@contextmanager
def checking(task: Task) -> Iterator[Checking]:
    with Judge(task, ALONE) as judge, Judge(task, ALONE, fresh=True) as fresh:
        yield Checking(task, judge, fresh=fresh, random=random.Random(0))


def by_name(one: Checking) -> dict[str, Finding]:
    return {finding.name: finding for finding in one.findings}


def examples(task: Task, split: Split = "train") -> list[Example]:
    return list(task.load(split))


def test_sound_data_are_described() -> None:
    with checking(Sound()) as one:
        splits = check_data(one)
    assert {split: len(found) for split, found in splits.items()} == {"train": 20, "validation": 20, "test": 20}
    assert {finding.status for finding in one.findings} == {"ok"}
    assert one.not_checked == []
    lengths = [len(str(example.prompt)) for example in examples(Sound())]
    assert one.facts["train"] == {
        "problems": 20,
        "prompt characters": {"shortest": min(lengths), "median": 47, "longest": max(lengths)},
    }


def test_no_more_of_endless_data_is_loaded_than_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "LOADED", 10)
    with checking(Endless()) as one:
        splits = check_data(one)
    assert [len(found) for found in splits.values()] == [10, 0, 10]
    assert "problems of the split `train` after the first 10" in one.not_checked
    assert "the split `validation`, which has no problems" in one.not_checked
    assert {finding.status for finding in one.findings} == {"ok"}


def test_a_fixed_hash_seed_is_listed_as_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    with checking(Sound()) as one:
        check_data(one)
    assert one.not_checked == ["other orders of sets: PYTHONHASHSEED is set for every process"]


def test_a_task_without_problems_is_an_error() -> None:
    with checking(Empty()) as one, pytest.raises(TaskError, match="has no problem in any of its splits"):
        check_data(one)


def test_a_prompt_that_occurs_twice_in_a_split_is_noted() -> None:
    with checking(Twins()) as one:
        check_data(one)
    found = by_name(one)["no two prompts are the same"]
    assert (found.status, found.held.passed, found.held.total) == ("noted", 60, 61)
    assert [shown.example for shown in found.counterexamples] == ["twin"]
    assert {finding.status for finding in one.findings if finding is not found} == {"ok"}


def test_a_prompt_that_contains_the_answer_is_noted() -> None:
    with checking(AnswerInPrompt()) as one:
        right = check_references(
            one, {"train": examples(AnswerInPrompt()), "test": examples(AnswerInPrompt(), "validation")}
        )
    assert len(right) == 40
    found = by_name(one)["prompts do not contain the answer"]
    assert (found.status, found.held.passed, found.held.total) == ("noted", 38, 40)
    assert {shown.example for shown in found.counterexamples} == {"n0", "n1"}


def test_missing_references_are_listed_as_not_checked() -> None:
    task = verifiers.NoReference()
    with checking(task) as one:
        assert check_references(one, {"train": examples(task), "validation": []}) == []
    assert one.findings == []
    assert one.not_checked == ["references of `train`: the task has none"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (NumberAsReference(), r"`reference` of example 'n\d+' returned 51\d*"),
        (BreakingVariants(), r"`variants` of example 'n\d+' raised KeyError: 'spelled' \(test_check.py, line \d+\)"),
    ],
)
def test_a_plugin_error_in_references_is_reported(task: Task, message: str) -> None:
    with checking(task) as one, pytest.raises(TaskError, match=message):
        check_references(one, {"train": examples(task)[:1]})


def test_a_counterexample_can_be_saved_as_a_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = verifiers.Substring()
    right = [(example, str(example.answer)) for example in examples(task)]
    with checking(task) as one:
        check_probes(one, right, [], frame=BARE)
        shown = by_name(one)["retracted"].counterexamples
        monkeypatch.setattr(verifiers.Substring, "fixtures", tmp_path / "fixtures.jsonl")
        assert add_fixtures(tmp_path / "fixtures.jsonl", [case.fixture for case in shown if case.fixture]) == 3
        assert check_fixtures(one, []) == []
    found = by_name(one)["what must fail"]
    assert (found.status, found.held.passed, found.held.total) == ("broken", 0, 3)


def test_fixtures_that_must_pass_stand_in_for_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sound, "fixtures", tmp_path / "fixtures.jsonl")
    (tmp_path / "fixtures.jsonl").write_text(
        '{"example": "n0", "response": "51", "outcome": "pass"}\n{"example": "n0", "response": "5", "outcome": "fail"}',
        encoding="utf-8",
    )
    with checking(Sound()) as one:
        assert check_fixtures(one, examples(Sound())) == [(examples(Sound())[0], "51")]
    assert [finding.status for finding in one.findings] == ["ok", "ok"]


def test_an_answer_that_is_right_for_some_others_is_noted() -> None:
    right = [(example, str(example.answer)) for example in examples(Several())]
    with checking(Several()) as one:
        check_probes(one, right, [], frame=BARE)
    found = by_name(one)["another's answer"]
    assert found.status == "noted"
    assert {shown.response for shown in found.counterexamples} == {"51"}
    assert {finding.status for finding in one.findings if finding is not found} == {"ok"}


def test_probes_without_a_wrong_answer_are_listed_as_not_checked() -> None:
    right = [(example, str(example.answer)) for example in examples(Sound())[:1]]
    with checking(Sound()) as one:
        check_probes(one, right, [], frame=BARE)
    assert one.not_checked == ["probes with a wrong answer: no other example's answer fails"]
    assert not {"another's answer", "right then wrong", "contradicting"} & set(by_name(one))


def test_a_probe_stops_after_a_few_errors() -> None:
    task = unstable_verifiers.Exits()
    right = [(example, str(example.answer)) for example in examples(task)]
    with checking(task) as one:
        check_probes(one, right, [], frame=BARE)
    held = by_name(one)["whitespace"].held
    assert held.passed == 0
    assert held.total < len(right) * 3


def test_plain_texts_differ_in_more_than_space_and_case() -> None:
    assert plain(" What  is\n1 + 1? ") == plain("what is 1 + 1?") != plain("what is 1+ 1?")


def test_one_call_asserts_that_a_task_is_certified() -> None:
    assert_certified(Sound())
    with pytest.raises(AssertionError, match="the verifier of task `sound` cannot be trusted") as caught:
        assert_certified(verifiers.Prefix())
    assert "- prefix of the answer does not hold:" in str(caught.value)


def test_a_certificate_is_made_once_and_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("R3_CACHE", str(tmp_path))
    first = certificate_of(verifiers.Prefix(), Limits())
    assert "checking the verifier of `sound`" in capsys.readouterr().err
    assert certificate_of(verifiers.Prefix(), Limits()) == first
    assert capsys.readouterr().err == ""
    with pytest.raises(RunError, match="does not hold: `prefix of the answer`") as caught:
        require_passed(first, first.task)
    finding, way_out = caught.value.hints
    assert finding.startswith("prefix of the answer: held ")
    assert way_out.startswith("`r3 check sound` shows all findings; fix the verifier, or train without")
