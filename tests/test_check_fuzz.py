"""The search for texts that a verifier cannot judge, or judges differently the second time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from r3core import Example, Split, Task, Verdict
from r3core.check.fuzz import Failing, search
from r3core.check.probes import Frame
from r3core.sections import Limits
from r3core.task import Limit
from r3core.verification.judge import Judge

pytestmark = [pytest.mark.slow, pytest.mark.processes]

TAG = Frame("<answer>", "</answer>")
EXAMPLES = [Example(id="n1", answer="51"), Example(id="n2", answer="59")]
_seen: set[str] = set()


def reject(response: str) -> bool:
    raise ValueError(f"cannot read {len(response)} characters")


def hang(response: str) -> bool:
    while True:
        pass


def only_once(response: str) -> bool:
    known = response in _seen
    _seen.add(response)
    return not known


VERIFIERS: dict[str, Callable[[str], bool]] = {
    "sound": lambda text: text == "<answer>51</answer>",
    "symbol": lambda text: "\\" in text and reject(text),
    "long": lambda text: len(text) > 100 and reject(text),
    "inside": lambda text: text.startswith("<answer>") and "[" in text and reject(text),
    "encoded": lambda text: text.encode() == b"51",
    "only once": only_once,
    "slow": lambda text: len(text) > 150 and hang(text),
}


class Toy(Task):
    """A verifier that is chosen by an option."""

    name = "toy"

    kind: str

    def load(self, split: Split) -> Iterator[Example]:
        return iter(())

    def verify(self, example: Example, response: str) -> bool:
        return VERIFIERS[self.kind](response)


def found(kind: str, *, seconds: float = 5.0) -> tuple[int, Failing | None]:
    with Judge(Toy(kind=kind), Limits(workers=1, seconds=seconds, max_errors=1)) as judge:
        rights = [TAG.around(str(example.answer)) for example in EXAMPLES]
        return search(judge, EXAMPLES, rights, frame=TAG, number=0, count=300)


def test_nothing_is_found_in_a_sound_verifier() -> None:
    judged, failing = found("sound")
    assert failing is None
    assert judged >= 150


@pytest.mark.parametrize(("kind", "shortest"), [("symbol", 1), ("long", 101), ("inside", 20)])
def test_a_text_that_raises_is_found_and_shrunk(kind: str, shortest: int) -> None:
    _, failing = found(kind)
    assert failing is not None
    [(example, text)] = failing.texts
    assert example == EXAMPLES[0]
    assert len(text) <= shortest
    assert failing.verdict == Verdict.error(f"ValueError: cannot read {len(text)} characters")


def test_a_lone_surrogate_is_found() -> None:
    _, failing = found("encoded")
    assert failing is not None
    assert "surrogates not allowed" in failing.verdict.reason
    assert len(failing.texts[0][1]) == 1


def test_a_verdict_that_changes_is_found() -> None:
    _, failing = found("only once")
    assert failing is not None
    assert failing.verdict == Verdict.failed()


def test_a_slow_text_is_not_shrunk() -> None:
    judged, failing = found("slow", seconds=0.2)
    assert failing is not None
    assert failing.verdict == Verdict(outcome="error", reason="it gave no verdict within 0.2 s", limit=Limit.TIME)
    assert len(failing.texts[0][1]) > 150
    assert judged < 300


def test_the_same_seed_finds_the_same() -> None:
    assert found("encoded") == found("encoded")
