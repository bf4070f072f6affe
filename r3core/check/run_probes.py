"""Do wrong responses fail: every probe, the answers to other examples, and code, which must not be run?"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from r3core.check import probes
from r3core.check.context import SEEDS, SHOWN, Checking, Judged, counterexample, plain, text_of
from r3core.task import Example

_HOSTILE_SEEDS = 3  # number of examples for the probes that do not depend on the example
_OTHERS = 6  # answers to other examples, per example
_FIRST_ROUND = 4  # responses of a probe that are judged before errors are counted; then twice as many


def check_probes(
    checking: Checking, right: Sequence[tuple[Example, str]], known: Sequence[Example], *, frame: probes.Frame
) -> None:
    """Check that the responses of all probes fail, and add the findings."""
    seeds = _seeds(checking, right, known, frame)
    if right and all(seed.wrong is None for _, seed in seeds):
        checking.not_checked.append("probes with a wrong answer: no other example's answer fails")
    tries: dict[str, list[tuple[Example, str]]] = {}
    for number, (example, seed) in enumerate(seeds):
        for name, texts in probes.probes_of(seed, frame).items():
            used = number < _HOSTILE_SEEDS if name in probes.HOSTILE else right or name in probes.WITHOUT_ANSWER
            if used and texts:
                tries.setdefault(name, []).extend((example, text) for text in texts)
    for name, pairs in tries.items():
        checking.add_probe(name, _judged(checking, pairs))
    _check_code(checking, seeds[:_HOSTILE_SEEDS], frame)


def _judged(checking: Checking, pairs: Sequence[tuple[Example, str]]) -> list[Judged]:
    """Return pairs with their verdicts, and stop after a few errors: each may take as long as the time limit."""
    judged: list[Judged] = []
    size = _FIRST_ROUND
    while len(judged) < len(pairs) and sum(one.verdict.outcome == "error" for one in judged) < SHOWN:
        judged += checking.judged(pairs[len(judged) : len(judged) + size])
        size *= 2
    return judged


def _check_code(checking: Checking, seeds: Sequence[tuple[Example, probes.Seed]], frame: probes.Frame) -> None:
    """Check that a response that is code fails, and is not run."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = []
        for number, (example, seed) in enumerate(seeds):
            pairs += [(example, text) for text in probes.code(seed, frame, Path(folder, f"{number}-"))]
        judged = checking.judged(pairs)
        checking.add_probe("code", judged)
        written = [re.compile(rf"{re.escape(str(path))}(?![0-9])") for path in Path(folder).iterdir()]
    ran = [one for one in judged if any(path.search(one.response) for path in written)]
    name = "code in a response is not run"
    shown = [counterexample(one, "fail", name=name, before="it was run; ") for one in ran[:SHOWN]]
    held = [True] * (len(judged) - len(ran)) + [False] * len(ran)
    checking.add("probes", name, held, shown=shown)


def _seeds(
    checking: Checking, right: Sequence[tuple[Example, str]], known: Sequence[Example], frame: probes.Frame
) -> list[tuple[Example, probes.Seed]]:
    """Return examples with the seeds of their probes, after checking that answers to other examples fail."""
    limit = checking.judge.limits.characters
    if not right:
        sampled = checking.sample(known, SEEDS)
        return [(e, probes.Seed(text_of(checking.task, e), "", None, [], limit)) for e in sampled]
    chosen = checking.sample(right, SEEDS)
    others = [_others(checking, response, right) for _, response in chosen]
    tries = [(example, other) for (example, _), row in zip(chosen, others, strict=True) for other in row.items()]
    # Each answer is judged right after it was judged on its own example: a verifier might remember that verdict.
    pairs = [pair for example, (other, owner) in tries for pair in ((owner, other), (example, other))]
    judged = checking.judged(pairs)[1::2]
    fails = {(one.example.id, one.response) for one in judged if one.verdict.outcome == "fail"}
    if judged:
        few = sum(one.verdict.outcome == "pass" for one in judged) <= len(judged) / 2
        checking.add_probe("another's answer", judged, "some answers are right here too" if few else "")
    seeds = []
    for (example, response), row in zip(chosen, others, strict=True):
        wrong = next((other for other in row if (example.id, other) in fails), None)
        seeds.append((example, probes.Seed(text_of(checking.task, example), response, wrong, [*row], limit)))
    return seeds


def _others(checking: Checking, response: str, right: Sequence[tuple[Example, str]]) -> dict[str, Example]:
    """Return a few answers to other examples with their examples; none is equal to, or a part of, this response."""
    sampled = checking.sample(right, 60)
    own = plain(response)
    others = {other: owner for owner, other in sampled if plain(other) not in own and own not in plain(other)}
    return dict(islice(others.items(), _OTHERS))
