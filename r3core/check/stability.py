"""Does the same hold for every text: a verdict, and the same one again, in any order, process and at any time?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from r3core.check.context import SEEDS, SHOWN, Checking, Judged, counterexample
from r3core.check.fuzz import Strange, search
from r3core.check.probes import Frame
from r3core.task import Example, Verdict
from r3core.verification.batch import Batch
from r3core.verification.judge import Judge
from r3core.verification.pool import portable

_AGAIN = 400  # responses that are judged once more, at most half of them with the verdict pass
_TEXTS = 1_000  # made by hypothesis
# Ahead, so that whatever day it is, one of them is an odd number of dates later, and one at a weekend or off it.
_DAYS = (1.62, 3.12, 404.12)


class _Again(NamedTuple):
    """Responses that are being judged once more."""

    name: str
    before: list[Judged]
    batch: Batch[Verdict]


def check_every_text(
    checking: Checking, right: Sequence[tuple[Example, str]], known: Sequence[Example], *, frame: Frame, seed: int
) -> None:
    """Check what must hold for every text, and add what was found; `seed` is hypothesis's."""
    drawn = checking.sample(right, SEEDS) or [(example, "") for example in known[:5]]
    examples, responses = [example for example, _ in drawn], [response for _, response in drawn]
    with ExitStack() as judges:
        again = _ask_again(checking, judges)
        tried, strange = search(checking.judge, examples, responses, frame=frame, number=seed, count=_TEXTS)
        unstable = strange is not None and strange.verdict.outcome != "error"
        _add_strange(checking, "a verdict for every text", tried, None if unstable else strange)
        _add_strange(checking, "the same verdict twice", tried, strange if unstable else None)
        counts: Counter[str] = Counter()
        differing: dict[str, list[Judged]] = defaultdict(list)
        for name, before, batch in again:
            pairs = zip(before, batch.result(), strict=True)
            counts[name] += len(before)
            differing[name] += [one._replace(verdict=now) for one, now in pairs if now.outcome != one.verdict.outcome]
    for name, count in counts.items():
        _add_differing(checking, name, count, differing[name])


def _ask_again(checking: Checking, judges: ExitStack) -> list[_Again]:
    """Have responses judged once more under other circumstances, all at the same time, and wait for nothing."""
    before, limits = _sample(checking), checking.judge.limits.alone()
    shuffled = checking.sample(before, len(before))
    asked = [
        ("the same verdict again", before, checking.judge),
        ("the same verdict in another order", shuffled, judges.enter_context(Judge(checking.task, limits))),
    ]
    if portable(checking.task):
        asked.append(("the same verdict in a fresh process", before, checking.fresh))
    else:
        checking.not_checked.append("verdicts in a fresh process: the task is defined in this process only")
    for days in _DAYS:
        ahead = judges.enter_context(Judge(checking.task, limits, days=days))
        asked.append(("the same verdict at another time", before, ahead))
    again = [_Again(name, judged, judge.verdicts()) for name, judged, judge in asked]
    for _, judged, batch in again:
        batch.add((index, one.example, one.response) for index, one in enumerate(judged))
    return again


def _sample(checking: Checking) -> list[Judged]:
    """Return responses that were judged, among them what passed: it is rare, and tells most."""
    judged = [one for one in checking.log if len(one.response) < 5_000 and one.verdict.outcome != "error"]
    passed = checking.sample([one for one in judged if one.verdict.outcome == "pass"], _AGAIN // 2)
    failed = checking.sample([one for one in judged if one.verdict.outcome == "fail"], _AGAIN - len(passed))
    return checking.sample([*passed, *failed], _AGAIN)


def _add_differing(checking: Checking, name: str, tried: int, differing: Sequence[Judged]) -> None:
    held = [True] * (tried - len(differing)) + [False] * len(differing)
    shown = [counterexample(one, None, name=name, before="now ") for one in differing[:SHOWN]]
    checking.add("every text", name, held, shown=shown)


def _add_strange(checking: Checking, name: str, tried: int, strange: Strange | None) -> None:
    shown = []
    if strange is not None:
        unstable = strange.verdict.outcome != "error"
        said = "now " if unstable else ""
        for example, text in strange.texts[:SHOWN]:
            one = Judged(example, text, strange.verdict)
            shown.append(counterexample(one, None if unstable else "fail", name=name, before=said))
    checking.add("every text", name, [True] * (tried - bool(strange)) + [False] * bool(strange), shown=shown)
