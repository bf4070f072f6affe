from __future__ import annotations

import pytest

from r3core.config import Config
from r3core.objective import Turn
from r3core.truncation import TruncationCounter, limit_of, warn_if_truncated

CONFIG = Config.model_validate({"task": "toy"})
OWN_LIMIT = CONFIG.model_copy(update={"grpo": {"max_completion_length": 96}})


def test_the_warning_has_the_share_the_turns_and_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert warn_if_truncated(CONFIG, "attempt", 63, total=512)
    warning = "warning: 12.3% of 512 attempts were cut off at sampling.attempt.max_tokens=512: raise it\n"
    assert capsys.readouterr().err == warning


@pytest.mark.parametrize(("cut", "total"), [(0, 0), (0, 20), (1, 20), (5, 100)])
def test_up_to_5_percent_gives_no_warning(cut: int, total: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert not warn_if_truncated(CONFIG, "retry", cut, total=total)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("config", "turn", "training", "limit"),
    [
        (CONFIG, "attempt", True, "sampling.attempt.max_tokens=512"),
        (CONFIG, "reflection", True, "sampling.reflection.max_tokens=256"),
        (OWN_LIMIT, "reflection", True, "grpo.max_completion_length=96"),
        (OWN_LIMIT, "reflection", False, "sampling.reflection.max_tokens=256"),
        (OWN_LIMIT, "retry", True, "sampling.retry.max_tokens=512"),
    ],
)
def test_the_limit_is_that_of_the_turn(config: Config, turn: Turn, training: bool, limit: str) -> None:
    assert limit_of(config, turn, training=training) == limit


def test_training_warns_once_per_kind_of_turn(capsys: pytest.CaptureFixture[str]) -> None:
    counter = TruncationCounter(OWN_LIMIT, min_turns=10)
    for _ in range(3):
        counter.add("reflection", 1, total=5)
        counter.add("retry", 0, total=5)
    warning = "warning: 20.0% of 10 reflections were cut off at grpo.max_completion_length=96: raise it\n"
    assert capsys.readouterr().err == warning
    counter.add("retry", 9, total=9)
    counter.add("retry", 9, total=9)
    warning = capsys.readouterr().err
    assert warning == "warning: 37.5% of 24 retries were cut off at sampling.retry.max_tokens=512: raise it\n"
