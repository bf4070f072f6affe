"""A search with hypothesis for texts that a verifier cannot judge, or judges differently the second time."""

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
from r3core.task import Example, Limit, Verdict
from r3core.verification.judge import Judge

_SYMBOLS = "0123456789+-*/()[]{}<>.,:;=\"'\\^%#@!?&|~`$ \n\teE"
_BATCH = 12  # maximum number of texts that are judged together


class Failing(NamedTuple):
    """Texts that a verifier could not judge, or judged in two ways; hypothesis makes them few and short."""

    texts: list[tuple[Example, str]]
    verdict: Verdict
    """The error, or the second of two different verdicts."""


class _Found(Exception):
    def __init__(self, failing: Failing) -> None:
        self.failing = failing


def search(
    judge: Judge, examples: Sequence[Example], rights: Sequence[str], *, frame: Frame, number: int, count: int
) -> tuple[int, Failing | None]:
    """Return how many texts were judged, about `count` of them, and what was found; `number` is the seed.

    Texts that exceed the time limit are not shrunk: each try would take as long again.
    """
    # hypothesis stores tables of Unicode characters, by default in the working directory.
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(cache_folder() / "hypothesis"))
    judged = 0
    last: Failing | None = None

    def judge_twice(texts: list[tuple[int, str]]) -> None:
        nonlocal judged, last
        if last is not None and last.verdict.limit is Limit.TIME:  # hypothesis repeats what failed, to confirm it
            raise _Found(last)
        pairs = [(examples[index % len(examples)], text) for index, text in texts]
        judged += len(pairs)
        first = judge.judge(pairs)
        for pair, one in zip(pairs, first, strict=True):
            if one.outcome == "error":
                last = Failing([pair], one)
                raise _Found(last)
        second = judge.judge(pairs[::-1])[::-1]
        for one, other in zip(first, second, strict=True):
            if one.outcome != other.outcome:
                last = Failing(pairs, other)
                raise _Found(last)

    batches = st.lists(st.tuples(st.integers(0, 999), _texts(rights, frame)), min_size=1, max_size=_BATCH)
    phases = [Phase.generate]
    for phases in ([Phase.generate], [Phase.generate, Phase.shrink]):
        run = settings(
            max_examples=max(1, 2 * count // _BATCH),
            phases=phases,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.quiet,
        )(seed(number)(given(batches)(judge_twice)))
        try:
            run()
        except _Found as found:
            last = found.failing
        except Flaky:  # not reproduced: a verdict that changes, and `last` has its texts
            return judged, last
        if last is None or last.verdict.limit is Limit.TIME:
            break
    return judged, last


def _texts(rights: Sequence[str], frame: Frame) -> st.SearchStrategy[str]:
    anything = st.text(max_size=300)
    symbols = st.text(alphabet=_SYMBOLS, max_size=200)
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    values = st.recursive(
        scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=10), inner), max_leaves=10
    )
    known = st.sampled_from(list(rights) or [""])
    edited = st.builds(_edited, known, st.integers(0, 400), st.integers(0, 20), st.text(max_size=5) | symbols)
    inside = (anything | symbols | values.map(json.dumps)).map(frame.around)
    surrogates = st.text(alphabet=st.characters(categories=["Cs", "Cf", "Cc", "Nd"]), max_size=20)
    return anything | symbols | values.map(json.dumps) | edited | inside | surrogates | surrogates.map(frame.around)


def _edited(right: str, start: int, length: int, new: str) -> str:
    start %= len(right) + 1
    return right[:start] + new + right[start + length :]
