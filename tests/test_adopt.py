"""What a run takes over from the one whose failures it trains on: the forecast, where it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import toy
from records import TASK, episode, write_run

from r3core.adopt import adopt_forecast
from r3core.config import Config, configure
from r3core.failures import read_failures
from r3core.forecast import Forecast
from r3core.runs import Run
from r3core.settings import nested
from r3core.stats import mean_reward, wilson

FORECAST = Forecast(
    failures=2,
    probed=2,
    retries=1,
    fix_rate=wilson(1, 4),
    reward=mean_reward([[0.0, 1.0], [0.0]]),
    signal={8: mean_reward([[1.0], [0.0]])},
    unrewarded=wilson(0, 4),
    reflections_truncated=wilson(0, 4),
    retries_truncated=wilson(0, 4),
    tokens=9.0,
    seconds=0.1,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A run that has mined two failures, with a forecast."""
    folder = write_run(tmp_path / "mining", mined=[episode("m1", "fail"), episode("m2", "fail")], finished=("mine",))
    (folder / "forecast.json").write_text(FORECAST.model_dump_json())
    return folder


def config(source: Path, **settings: Any) -> Config:
    given = {"task": TASK, "model": "tiny", "mine.failures": source, "output_dir": source.parent / "run"}
    return configure(toy.Toy(), nested(given | settings))


def adopted(one: Config) -> Forecast | None:
    assert one.mine.failures is not None
    failures = read_failures(one.mine.failures)[0]
    with Run.open(one.directory, one.record()) as run:
        found = adopt_forecast(run, one, failures)
        assert (run.read_json("forecast") is None) is (found is None)
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"seed": 5},
        {"train.shuffle_rewards": True, "train.anchor": 0.1, "train.interpolate": 0.5},
        {"grpo.learning_rate": 1e-4, "grpo.max_steps": 3, "lora.r": 8},
        {"evaluate.limit": 3, "uncertified": True},
    ],
    ids=str,
)
def test_the_forecast_is_shared_by_runs_that_would_make_the_same_one(source: Path, settings: dict[str, Any]) -> None:
    assert adopted(config(source, **settings)) == FORECAST


@pytest.mark.parametrize(
    "settings",
    [
        {"train.retries": 2},
        {"train.reward_leaks": False},
        {"train.objective": "retry"},
        {"grpo.num_generations": 4},
        {"grpo.temperature": 0.5},
        {"sampling.reflection.max_tokens": 3},
        {"sampling.retry.temperature": 0.0},
        {"mine.probe": 1},
        {"model": "another"},
        {"feedback": "reason"},
    ],
    ids=str,
)
def test_a_run_whose_forecast_would_differ_makes_its_own(source: Path, settings: dict[str, Any]) -> None:
    assert adopted(config(source, **settings)) is None


def test_a_failure_dataset_without_a_run_has_no_forecast(source: Path) -> None:
    assert adopted(config(source / "failures")) is None


def test_a_forecast_for_other_failures_is_not_shared(source: Path) -> None:
    (source / "forecast.json").write_text(FORECAST.model_copy(update={"failures": 3}).model_dump_json())
    assert adopted(config(source)) is None
