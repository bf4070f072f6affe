"""A check under way: what was found so far, and every response that was judged on the way."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar, cast

from pydantic import JsonValue

from r3core import prompts
from r3core.check.certificate import Counterexample, Finding, Group
from r3core.check.fixtures import Fixture
from r3core.stats import wilson
from r3core.task import Example, Task, Verdict
from r3core.verification.judge import Judge

T = TypeVar("T")
SEEDS = 24
"""Examples whose references other responses are made from."""
_WITH_PATHS = ("code", "code in a response is not run")  # findings whose responses hold a path of this check alone
SHOWN = 3
"""Counter-examples of each finding."""


class Judged(NamedTuple):
    """A response, with what the verifier said of it."""

    example: Example
    response: str
    verdict: Verdict


class Checking:
    """A check under way."""

    def __init__(self, task: Task, judge: Judge, *, fresh: Judge, random: random.Random) -> None:
        self.task = task
        self.judge = judge
        self.fresh = fresh  # its worker is a new interpreter, where sets and dicts of texts have another order
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
        self.add_judged("probes", name, judged, wanted="fail", note=note, waiver=waiver)

    def add_judged(
        self,
        group: Group,
        name: str,
        judged: Sequence[Judged],
        *,
        wanted: str,
        note: str = "",
        waiver: str | None = None,
    ) -> None:
        """Add a finding about verdicts; one that is an error is always against the verifier."""
        wrong = [one for one in judged if one.verdict.outcome != wanted]
        errors = [one for one in wrong if one.verdict.outcome == "error"]
        status, why = "broken" if wrong else "ok", ""
        if wrong and not errors and (waiver or note):
            status, why = ("waived", waiver) if waiver else ("noted", note)
        shown = [counterexample(one, wanted, name=name) for one in [*errors, *wrong][:SHOWN]]
        rate = wilson(len(judged) - len(wrong), len(judged))
        self.findings.append(
            Finding(group=group, name=name, held=rate, status=cast(Any, status), why=why or "", counterexamples=shown)
        )

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
        """Add a finding about anything else; `examples` are what each entry of `held` is about.

        With a `note` it is only noted when it does not hold; otherwise `advice` says what to do.
        """
        good = all(held)
        lost = [example for example, ok in zip(examples, held, strict=False) if not ok][:SHOWN]
        shown = list(shown) or [
            Counterexample(example=example.id, response=_storable(text_of(self.task, example)[:2_000]), said="not so")
            for example in lost
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

    def sample(self, drawn_from: Sequence[T], count: int) -> list[T]:
        """Return at most so many of a sequence, drawn by the check's seed."""
        return self.random.sample(list(drawn_from), min(count, len(drawn_from)))


def counterexample(judged: Judged, wanted: str | None, *, name: str, before: str = "") -> Counterexample:
    """Return a counter-example of the finding `name`, as a fixture too where it is known what the verdict should be."""
    verdict = judged.verdict
    said = f"{before}{verdict.outcome}" + (f": {verdict.reason}" if verdict.reason else "")
    fixture = None
    if (
        wanted is not None
        and name not in _WITH_PATHS
        and len(judged.response) <= 10_000
        and _storable(judged.response) == judged.response
    ):
        why = f"r3 check: {name}"
        fixture = Fixture(example=judged.example, response=judged.response, outcome=cast(Any, wanted), why=why)
    shown = _storable(judged.response[:2_000])
    return Counterexample(example=judged.example.id, response=shown, said=_storable(said), fixture=fixture)


def _storable(text: str) -> str:
    """Return a text with its lone surrogates spelled out, which no file can hold."""
    return text.encode(errors="backslashreplace").decode()


def text_of(task: Task, example: Example) -> str:
    """Return the prompt of an example as one text, its tools included."""
    prompt = prompts.attempt(task, example)
    tools = [json.dumps(prompt.tools)] if prompt.tools else []
    return "\n".join([*tools, *(message["content"] for message in prompt.messages)])


def plain(text: str) -> str:
    """Return a text without what makes no other problem of it: case and the amount of space."""
    return " ".join(text.casefold().split())
