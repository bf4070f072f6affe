"""Does the same hold for every text: a verdict, and the same one again, in any order, process and at any time?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from r3core.check.probes import Frame
from r3core.check.session import SEEDS, SHOWN, Checking, Judged, alone, counterexample
from r3core.check.texts import Strange, search
from r3core.pool import portable
from r3core.task import Example
from r3core.verification import Judge

_AGAIN = 400  # responses that are judged once more
_TEXTS = 1_000  # made by hypothesis
_DAYS = (1.62, 3.12, 404.12)  # ahead: one of them falls on an odd day more, one on a weekend or off it


def check_every_text(
    checking: Checking, right: Sequence[tuple[Example, str]], known: Sequence[Example], *, frame: Frame, seed: int
) -> None:
    """Check what must hold for every text, and add what was found; `seed` is hypothesis's."""
    drawn = checking.sample(right, SEEDS) or [(example, "") for example in known[:5]]
    examples, responses = [example for example, _ in drawn], [response for _, response in drawn]
    tried, strange = search(checking.judge, examples, responses, frame=frame, number=seed, count=_TEXTS)
    unstable = strange is not None and strange.verdict.outcome != "error"
    _add_strange(checking, "a verdict for every text", tried, None if unstable else strange)
    _add_strange(checking, "the same verdict twice", tried, strange if unstable else None)
    short = [one for one in checking.log if len(one.response) < 5_000 and one.verdict.outcome != "error"]
    _check_again(checking, checking.sample(short, _AGAIN))


def _check_again(checking: Checking, before: list[Judged]) -> None:
    """Ask for verdicts once more under all other circumstances, at the same time."""
    limits = alone(checking.judge.limits)
    shuffled = checking.sample(before, len(before))
    with ExitStack() as judges:
        again = [
            _Again("the same verdict again", before, checking.judge),
            _Again("the same verdict in another order", shuffled, judges.enter_context(Judge(checking.task, limits))),
        ]
        if portable(checking.task):
            again.append(_Again("the same verdict in a fresh process", before, checking.fresh))
        else:
            checking.not_checked.append("verdicts in a fresh process: the task is defined in this process only")
        for days in _DAYS:
            ahead = judges.enter_context(Judge(checking.task, limits, days=days))
            again.append(_Again("the same verdict at another time", before, ahead))
        batches = [judge.verdicts() for _, _, judge in again]
        for batch, (_, judged, _) in zip(batches, again, strict=True):
            batch.add((index, one.example, one.response) for index, one in enumerate(judged))
        tried: Counter[str] = Counter()
        differing: dict[str, list[Judged]] = defaultdict(list)
        for batch, (name, judged, _) in zip(batches, again, strict=True):
            tried[name] += len(judged)
            pairs = zip(judged, batch.result(), strict=True)
            differing[name] += [one._replace(verdict=now) for one, now in pairs if now.outcome != one.verdict.outcome]
    for name, count in tried.items():
        _add_differing(checking, name, count, differing[name])


class _Again(NamedTuple):
    name: str
    before: list[Judged]
    judge: Judge


def _add_differing(checking: Checking, name: str, tried: int, differing: Sequence[Judged]) -> None:
    held = [True] * (tried - len(differing)) + [False] * len(differing)
    checking.add("every text", name, held, shown=[counterexample(one, None, "now ") for one in differing[:SHOWN]])


def _add_strange(checking: Checking, name: str, tried: int, strange: Strange | None) -> None:
    shown = []
    if strange is not None:
        unstable = strange.verdict.outcome != "error"
        said = "now " if unstable else ""
        for example, text in strange.texts[:SHOWN]:
            shown.append(counterexample(Judged(example, text, strange.verdict), None if unstable else "fail", said))
    checking.add("every text", name, [True] * (tried - bool(strange)) + [False] * bool(strange), shown=shown)
