"""What the plan states about the cost of an evaluation."""

from __future__ import annotations

import pytest
from toy import Toy

from r3core.config import resolve
from r3core.estimate.evaluation import explain_evaluation, most_per_problem

SIZES = [f"sampling.{turn}.max_tokens={size}" for turn, size in (("attempt", 100), ("reflection", 10), ("retry", 20))]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["controls=false"], (130, 0, 0, 0)),
        ([], (130, 4 * 20 + 100, 0, 0)),
        (["resamples=3", "samples=2"], (260, 2 * (80 + 300), 0, 0)),
        (["decoding=both", "cross=true", "controls=false"], (130, 0, 130, 10 + 60)),
        (["decoding=greedy"], (130, 80, 0, 0)),
    ],
)
def test_the_tokens_at_most_are_those_of_every_turn(overrides: list[str], expected: tuple[int, ...]) -> None:
    config = resolve(Toy(), overrides=[*SIZES, *(f"evaluate.{one}" for one in overrides)])
    assert most_per_problem(config) == expected


def test_the_plan_has_the_share_of_the_controls_and_of_greedy_tries() -> None:
    overrides = [*SIZES, "evaluate.limit=50", "evaluate.decoding=both", "evaluate.cross=true"]
    assert explain_evaluation(resolve(Toy(), overrides=overrides)) == [
        "50 problems x 1, with controls, and greedily",
        "each model generates at most 22,000 tokens, 41% for the controls and 30% for greedy tries; the cross table at "
        "most 3,500 more",
    ]
    alone = resolve(Toy(), overrides=[*SIZES, "evaluate.limit=null", "evaluate.controls=false"])
    assert explain_evaluation(alone) == [
        "all problems x 1, without controls",
        "each model generates at most 130 tokens per problem",
    ]
