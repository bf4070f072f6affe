"""The state of a running check: its findings so far, and every response that was judged for them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar, cast

from pydantic import JsonValue

from r3core import prompts
from r3core.check.certificate import Counterexample, Finding, Group, Status
from r3core.check.fixtures import Fixture
from r3core.stats import wilson
from r3core.task import Example, Task, Verdict
from r3core.verification.judge import Judge

T = TypeVar("T")
SEEDS = 24
"""Number of examples whose references the other responses are derived from."""
_WITH_PATHS = ("code", "code in a response is not run")  # their responses contain paths that exist in this check only
_UNSTATED = "let the verifier accept this format, or state the rule in the prompt and list the format in `refuses`"
SHOWN = 3
"""Maximum number of counterexamples per finding."""


class Judged(NamedTuple):
    """A response with its example and its verdict."""

    example: Example
    response: str
    verdict: Verdict


class Checking:
    """A running check of one task."""

    def __init__(self, task: Task, judge: Judge, *, fresh: Judge, random: random.Random) -> None:
        self.task = task
        self.judge = judge
        self.fresh = fresh  # its worker is a new interpreter, where sets of strings have another order
        self.random = random
        self.findings: list[Finding] = []
        self.not_checked: list[str] = []
        self.facts: dict[str, JsonValue] = {}
        self.log: list[Judged] = []

    def judged(self, pairs: Sequence[tuple[Example, str]]) -> list[Judged]:
        verdicts = self.judge.judge(pairs)
        judged = [Judged(*pair, verdict) for pair, verdict in zip(pairs, verdicts, strict=True)]
        self.log += judged
        return judged

    def add_probe(self, name: str, judged: Sequence[Judged], note: str = "") -> None:
        waiver = self.task.waived.get(name)
        self.add_judged("probes", name, judged, expected="fail", note=note, waiver=waiver)

    def add_format(self, name: str, judged: Sequence[Judged]) -> None:
        """Add a finding about a format of right answers, which a task may refuse if its prompt rules the format out."""
        rule = self.task.refuses.get(name)
        self.add_judged("formats", name, judged, expected="pass", note=_UNSTATED, waiver=rule, waived="refused")

    def add_judged(
        self,
        group: Group,
        name: str,
        judged: Sequence[Judged],
        *,
        expected: str,
        note: str = "",
        waiver: str | None = None,
        waived: Status = "waived",
    ) -> None:
        """Add a finding about verdicts; neither a note nor a waiver excuses a verdict that is an error.

        A finding that does not hold has the status `waived` if there is a waiver, and else `noted` if there is a note.
        """
        wrong = [one for one in judged if one.verdict.outcome != expected]
        errors = [one for one in wrong if one.verdict.outcome == "error"]
        status: Status = "broken" if wrong else "ok"
        why = ""
        if wrong and not errors and (waiver or note):
            status, why = (waived, waiver) if waiver else ("noted", note)
        shown = [counterexample(one, expected, name=name) for one in [*errors, *wrong][:SHOWN]]
        rate = wilson(len(judged) - len(wrong), len(judged))
        self.findings.append(Finding(group=group, name=name, held=rate, status=status, why=why, counterexamples=shown))

    def add(
        self,
        group: Group,
        name: str,
        held: Sequence[bool],
        examples: Sequence[Example] = (),
        *,
        note: str = "",
        advice: str = "",
        shown: Sequence[Counterexample] = (),
    ) -> None:
        """Add a finding about anything else; `examples` has the example of each entry of `held`.

        A finding with a `note` that does not hold is noted; otherwise it is broken, and `advice` is what to do.
        """
        good = all(held)
        failing = [example for example, ok in zip(examples, held, strict=False) if not ok][:SHOWN]
        shown = list(shown) or [
            Counterexample(example=example.id, response=_storable(text_of(self.task, example)[:2_000]), verdict="")
            for example in failing
        ]
        self.findings.append(
            Finding(
                group=group,
                name=name,
                held=wilson(sum(held), len(held)),
                status="ok" if good else "noted" if note else "broken",
                why="" if good else note or advice,
                counterexamples=shown,
            )
        )

    def sample(self, population: Sequence[T], maximum: int) -> list[T]:
        """Return a random sample of at most `maximum` elements, by the check's seed."""
        return self.random.sample(list(population), min(maximum, len(population)))


def counterexample(judged: Judged, expected: str | None, *, name: str, before: str = "") -> Counterexample:
    """Return a counterexample of the finding `name`, with a fixture where the expected outcome is known."""
    verdict = judged.verdict
    shown_verdict = f"{before}{verdict.outcome}" + (f": {verdict.reason}" if verdict.reason else "")
    fixture = None
    if (
        expected is not None
        and name not in _WITH_PATHS
        and len(judged.response) <= 10_000
        and _storable(judged.response) == judged.response
    ):
        why = f"r3 check: {name}"
        fixture = Fixture(example=judged.example, response=judged.response, outcome=cast(Any, expected), why=why)
    shown = _storable(judged.response[:2_000])
    return Counterexample(example=judged.example.id, response=shown, verdict=_storable(shown_verdict), fixture=fixture)


def _storable(text: str) -> str:
    """Return a text with lone surrogates escaped: no file can hold them."""
    return text.encode(errors="backslashreplace").decode()


def text_of(task: Task, example: Example) -> str:
    """Return the prompt of an example as one text, its tools included."""
    prompt = prompts.attempt(task, example)
    tools = [json.dumps(prompt.tools)] if prompt.tools else []
    return "\n".join([*tools, *(message["content"] for message in prompt.messages)])


def plain(text: str) -> str:
    """Return a text without differences of case and whitespace, which do not make it another problem."""
    return " ".join(text.casefold().split())
