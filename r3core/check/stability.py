"""Does the same hold for every text: a verdict, and the same one again, in any order, process and at any time?"""

from __future__ import annotations

from collections.abc import Sequence

from r3core.check.probes import Frame
from r3core.check.session import SEEDS, SHOWN, Checking, Judged, counterexample
from r3core.check.texts import Strange, search
from r3core.pool import portable
from r3core.task import Example
from r3core.verification import Judge

_AGAIN = 400  # responses that are judged once more
_TEXTS = 1_000  # made by hypothesis
_CLOCKS = (1.3137, 400.71)  # days ahead


def check_every_text(
    checking: Checking, right: Sequence[tuple[Example, str]], known: Sequence[Example], *, frame: Frame, seed: int
) -> None:
    """Check what must hold for every text, and add what was found; `seed` is hypothesis's."""
    drawn = checking.sample(right, SEEDS) or [(example, "") for example in known[:5]]
    examples, responses = [example for example, _ in drawn], [response for _, response in drawn]
    tried, strange = search(checking.judge, examples, responses, frame=frame, number=seed, count=_TEXTS)
    _add_strange(checking, "a verdict for every text", tried, strange)
    short = [one for one in checking.log if len(one.response) < 5_000 and one.verdict.outcome != "error"]
    kept = checking.sample(short, _AGAIN)
    limits = checking.judge.limits
    _compare(checking, "the same verdict again", kept, checking.judge)
    with Judge(checking.task, limits.model_copy(update={"workers": 1})) as other:
        shuffled = checking.sample(kept, len(kept))
        _compare(checking, "the same verdict in another order", shuffled, other)
    if portable(checking.task):
        with Judge(checking.task, limits, fresh=True) as other:
            _compare(checking, "the same verdict in a fresh process", kept, other)
    else:
        checking.not_checked.append("verdicts in a fresh process: the task is defined in this process only")
    differing: list[Judged] = []
    for days in _CLOCKS:
        with Judge(checking.task, limits, days=days) as other:
            differing += _differing(checking, kept, other)
    _add_differing(checking, "the same verdict at another time", len(_CLOCKS) * len(kept), differing)


def _compare(checking: Checking, name: str, before: Sequence[Judged], judge: Judge) -> None:
    _add_differing(checking, name, len(before), _differing(checking, before, judge))


def _differing(checking: Checking, before: Sequence[Judged], judge: Judge) -> list[Judged]:
    verdicts = judge.judge([(one.example, one.response) for one in before])
    pairs = zip(before, verdicts, strict=True)
    return [one._replace(verdict=now) for one, now in pairs if now.outcome != one.verdict.outcome]


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
