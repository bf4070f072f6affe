"""The reward of a reflection."""

from __future__ import annotations

import pytest

from r3core import Example, Verdict
from r3core.episode import Answer, Episode, Reflection, Stopped
from r3core.reward import judged, reward_of

VERDICTS = {"+": Verdict.passed(), "-": Verdict.failed("no"), "?": Verdict.error("broken")}


def answer(outcome: str, stopped: Stopped = "end") -> Answer:
    return Answer(text="", tokens=0, verdict=VERDICTS[outcome], stopped=stopped)


def retried(outcomes: str, *, leaked: bool | None = False) -> list[Episode]:
    """Return one reflection's episodes, one for each retry; behind `.` the limit cut the retry off, as in `-.`."""
    texts = outcomes.replace(" ", "")
    answers = [
        answer(outcome, "length" if texts[place + 1 : place + 2] == "." else "end")
        for place, outcome in enumerate(texts)
        if outcome != "."
    ]
    failed, reflection = answer("-"), Reflection(text="", tokens=0, leaked=leaked)
    return [
        Episode(example=Example(id="one"), attempt=failed, reflection=reflection, retries={"reflect": retry})
        for retry in answers
    ]


@pytest.mark.parametrize(
    ("outcome", "stopped", "expected"),
    [
        ("+", "end", True),
        ("-", "end", False),
        ("?", "end", None),
        ("+", "length", True),  # the answer was given before the cut
        ("-", "length", None),  # none was
        ("?", "length", None),
    ],
)
def test_an_answer_that_was_cut_off_before_it_was_given_is_not_judged(
    outcome: str, stopped: Stopped, expected: bool | None
) -> None:
    assert judged(answer(outcome, stopped)) is expected


@pytest.mark.parametrize(
    ("outcomes", "leaked", "reward_leaks", "reward"),
    [
        ("+", False, True, 1.0),
        ("-", False, True, 0.0),
        ("?", False, True, None),
        ("++-+", False, True, 0.75),
        ("+?-?", False, True, 0.5),
        ("??", False, True, None),
        ("+", True, True, 1.0),
        ("+", True, False, 0.0),
        ("-", True, False, 0.0),
        ("?", True, False, None),
        ("+", None, True, 1.0),
        ("+", None, False, None),
        ("+", False, False, 1.0),
        ("-.", False, True, None),  # never 0 for an answer that was not given
        ("+.", False, True, 1.0),
        ("+ -. - -.", False, True, 0.5),
        ("-. -.", False, True, None),
        ("-.", True, False, None),
    ],
)
def test_a_reflections_reward(outcomes: str, leaked: bool | None, reward_leaks: bool, reward: float | None) -> None:
    assert reward_of(retried(outcomes, leaked=leaked), reward_leaks=reward_leaks) == reward
