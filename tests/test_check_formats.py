"""Right answers in other formats: what is written, and what a certificate makes of a refusal."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import ClassVar

import pytest
import verifiers

from r3core import Example, Split, Task, TaskError, Verdict
from r3core.check import check_task
from r3core.check.certificate import Finding
from r3core.check.context import Checking
from r3core.check.formats import NAMES, Answer, check_formats, formats_of
from r3core.check.probes import Frame
from r3core.sections import Limits
from r3core.verification.judge import Judge

BARE = Frame("", "")
TAG = Frame("<answer>", "</answer>")
JSON = Frame('{"sum": "', '"}')


class Reader(Task):
    """A sum in a tag; bold and a label are refused, in capitals the verifier breaks."""

    name = "reader"
    refuses: ClassVar[dict[str, str]] = {"bold inside": "the tag holds the number alone", "a label before": "no label"}

    def load(self, split: Split) -> Iterator[Example]:
        return iter(())

    def verify(self, example: Example, response: str) -> Verdict | bool:
        if "A SUM" in response:
            raise ValueError("capitals")
        return "**" not in response


def formats(core: str, frame: Frame, result: object = None) -> dict[str, list[str]]:
    return formats_of(Answer(frame.around(core), frame, result))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a thought before", "</think>\n\n<answer>9 * 5 - 7</answer>"),
        ("a thought with the answer before", "<answer>9 * 5 - 7</answer>?\n</think>\n\n<answer>9 * 5 - 7</answer>"),
        ("a sentence before", "So the answer is <answer>9 * 5 - 7</answer>"),
        ("a sentence after", "<answer>9 * 5 - 7</answer>\n\nThis is my final answer."),
        ("a label before", "**Final answer:** <answer>9 * 5 - 7</answer>"),
        ("the tags mentioned before", "I will put it in `<answer></answer>` tags.\n\n<answer>9 * 5 - 7</answer>"),
        ("in a code fence", "```\n<answer>9 * 5 - 7</answer>\n```"),
        ("in a code fence inside", "<answer>```text\n9 * 5 - 7\n```</answer>"),
        ("bold inside", "<answer>**9 * 5 - 7**</answer>"),
        ("on a line of its own inside", "<answer>\n9 * 5 - 7\n</answer>"),
        ("in a LaTeX box inside", r"<answer>$\boxed{9 * 5 - 7}$</answer>"),
        ("a period behind inside", "<answer>9 * 5 - 7.</answer>"),
        ("other signs", "<answer>9 \u00d7 5 \u2212 7</answer>"),
        ("LaTeX signs", r"<answer>9 \times 5 - 7</answer>"),
        ("= and the result behind", "<answer>9 * 5 - 7 = 38</answer>"),
    ],
)
def test_an_expression_in_a_tag_is_written_in_many_formats(name: str, text: str) -> None:
    assert any(written.endswith(text) for written in formats("9 * 5 - 7", TAG, 38)[name])


def test_every_format_fits_some_answer_and_none_is_the_answer() -> None:
    seen = set()
    for core, result in (("9 * 5 - 7", 38), ("Fifty-one", "fifty-one"), ("51000", 51000)):
        for frame in (BARE, TAG):
            written = formats(core, frame, result)
            seen |= set(written)
            for texts in written.values():
                assert texts
                assert frame.around(core) not in texts
    assert seen == set(NAMES)


@pytest.mark.parametrize(
    ("core", "frame", "result", "absent"),
    [
        ("51", BARE, 51, {"bold inside", "the tags mentioned before", "other signs", "= and the result behind"}),
        ("9 * 5 - 7", BARE, "38", {"= and the result behind"}),
        ("9 * 5 - 7", BARE, True, {"= and the result behind"}),
        ("a * b", TAG, 3, {"other signs", "LaTeX signs", "= and the result behind"}),
        ("9 * 5", JSON, None, {"bold inside", "in a LaTeX box", "in quotes"}),
        ("word", Frame("The word is ", "."), None, {"bold inside", "the tags mentioned before"}),
        ("x" * 101, TAG, None, {"in quotes inside", "in dollar signs inside", "in a LaTeX box inside"}),
        ("0051", BARE, None, {"digits in groups"}),
        ("510", BARE, None, {"digits in groups"}),
    ],
)
def test_formats_that_do_not_fit_are_left_out(core: str, frame: Frame, result: object, absent: set[str]) -> None:
    assert absent.isdisjoint(formats(core, frame, result))
    assert absent <= set(NAMES)


def test_a_label_is_a_frame_that_marks_may_stand_in() -> None:
    assert formats("51", Frame("Answer: ", ""))["bold inside"] == ["Answer: **51**"]


@pytest.mark.parametrize("text", ["(" * 1_000_000, "9*" * 500_000, "[" * 1_000_000, "<" * 1_000_000])
def test_long_references_take_bounded_time(text: str) -> None:
    for frame in (BARE, TAG):
        assert formats(text, frame, 1)["bold"]


@pytest.fixture(scope="module")
def found() -> dict[str, Finding]:
    task = Reader()
    limits = Limits(workers=1, max_errors=1)
    with Judge(task, limits) as judge:
        checking = Checking(task, judge, fresh=judge, random=random.Random(0))
        check_formats(checking, [(Example(id="one", answer="a sum"), "<answer>a sum</answer>")], frame=TAG)
    assert [finding.group for finding in checking.findings] == ["formats"] * len(checking.findings)
    return {finding.name: finding for finding in checking.findings}


@pytest.mark.processes
def test_an_accepted_format_is_ok_and_a_refused_one_is_noted_with_a_response(found: dict[str, Finding]) -> None:
    assert (found["a sentence after"].status, found["a sentence after"].why) == ("ok", "")
    bold = found["bold"]
    assert (bold.status, bold.held.passed, bold.held.total) == ("noted", 0, 1)
    assert "state the rule in the prompt" in bold.why
    assert [one.response for one in bold.counterexamples] == ["**<answer>a sum</answer>**"]


@pytest.mark.processes
def test_a_format_that_the_task_rules_out_is_refused_with_its_rule(found: dict[str, Finding]) -> None:
    assert (found["bold inside"].status, found["bold inside"].why) == ("refused", "the tag holds the number alone")
    label = found["a label before"]
    assert (label.status, label.held.passed, label.held.total) == ("refused", 1, 2)


@pytest.mark.processes
def test_a_verifier_that_breaks_on_a_format_is_broken(found: dict[str, Finding]) -> None:
    assert found["in capitals"].status == "broken"


@pytest.mark.processes
def test_a_refusal_leaves_the_verifier_certified() -> None:
    certificate = check_task(verifiers.Sound(), limits=Limits(workers=1))
    assert certificate.outcome == "pass"
    noted = [
        finding.name for finding in certificate.findings if (finding.group, finding.status) == ("formats", "noted")
    ]
    assert {"a sentence before", "bold", "in a LaTeX box"} <= set(noted)


def test_a_rule_for_an_unknown_format_is_an_error() -> None:
    class Unknown(verifiers.Sound):
        refuses: ClassVar[dict[str, str]] = {"bald": "so"}

    with pytest.raises(TaskError, match=r"refuses `bald`, which is not a format\nhint: did you mean `bold`\?"):
        check_task(Unknown())
