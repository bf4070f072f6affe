"""A search, by hypothesis, for texts that a verifier cannot judge or does not judge the same way twice."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from r3core.check.certificate import cache_folder
from r3core.check.probes import Frame
from r3core.task import Example, Verdict
from r3core.verification.judge import Judge

_SIGNS = "0123456789+-*/()[]{}<>.,:;=\"'\\^%#@!?&|~`$ \n\teE"
_AT_ONCE = 12  # texts that are judged together


class Strange(NamedTuple):
    """Texts that a verifier could not judge, or judged in two ways; as few and as short as could be found."""

    texts: list[tuple[Example, str]]
    verdict: Verdict
    """The first that is not as it should be."""


class _Found(Exception):
    def __init__(self, strange: Strange) -> None:
        self.strange = strange


def search(
    judge: Judge, examples: Sequence[Example], rights: Sequence[str], *, frame: Frame, number: int, count: int
) -> tuple[int, Strange | None]:
    """Return how many texts were judged, about `count` of them, and what was found; `number` is the seed.

    Texts that take too long are not made shorter: each try would take as long again.
    """
    # hypothesis keeps tables of its own: not in the directory that the user stands in
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(cache_folder() / "hypothesis"))
    judged = 0
    last: Strange | None = None

    def try_them(texts: list[tuple[int, str]]) -> None:
        nonlocal judged, last
        if last is not None and _slow(last):  # hypothesis wants to see it once more
            raise _Found(last)
        pairs = [(examples[place % len(examples)], text) for place, text in texts]
        judged += len(pairs)
        there = judge.judge(pairs)
        for pair, one in zip(pairs, there, strict=True):
            if one.outcome == "error":
                last = Strange([pair], one)
                raise _Found(last)
        back = judge.judge(pairs[::-1])[::-1]
        for one, other in zip(there, back, strict=True):
            if one.outcome != other.outcome:
                last = Strange(pairs, other)
                raise _Found(last)

    batches = st.lists(st.tuples(st.integers(0, 999), _texts(rights, frame)), min_size=1, max_size=_AT_ONCE)
    phases = [Phase.generate]
    for phases in ([Phase.generate], [Phase.generate, Phase.shrink]):
        hunt = settings(
            max_examples=max(1, 2 * count // _AT_ONCE),
            phases=phases,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.quiet,
        )(seed(number)(given(batches)(try_them)))
        try:
            hunt()
        except _Found as found:
            last = found.strange
        except Flaky:  # it did not do it again: a verdict that changes, and `last` is what it was about
            return judged, last
        if last is None or _slow(last):
            break
    return judged, last


def _slow(strange: Strange) -> bool:
    return "no verdict within" in strange.verdict.reason


def _texts(rights: Sequence[str], frame: Frame) -> st.SearchStrategy[str]:
    anything = st.text(max_size=300)
    signs = st.text(alphabet=_SIGNS, max_size=200)
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    values = st.recursive(
        scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=10), inner), max_leaves=10
    )
    known = st.sampled_from(list(rights) or [""])
    edited = st.builds(_edited, known, st.integers(0, 400), st.integers(0, 20), st.text(max_size=5) | signs)
    inside = (anything | signs | values.map(json.dumps)).map(frame.around)
    surrogates = st.text(alphabet=st.characters(categories=["Cs", "Cf", "Cc", "Nd"]), max_size=20)
    return anything | signs | values.map(json.dumps) | edited | inside | surrogates | surrogates.map(frame.around)


def _edited(right: str, start: int, length: int, new: str) -> str:
    start %= len(right) + 1
    return right[:start] + new + right[start + length :]
