"""Training with vLLM in the same process: what is learnt, and that vLLM's weights are the trainer's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import doors
import pytest

from r3core.config import Config
from r3core.generation.local import load_model
from r3core.runs import Run
from r3core.train import train

STEPS = 40
VLLM: dict[str, Any] = {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 64}


@pytest.fixture(scope="module")
def beginner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with heads of a size that vLLM's kernels for the CPU can do."""
    folder = tmp_path_factory.mktemp("models") / "beginner"
    doors.beginner(heads=64).save_pretrained(folder)
    doors.tokenizer().save_pretrained(folder)
    return folder


def trained(path: Path, config: Config, beginner: Path) -> Run:
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB
    model, tokenizer = load_model(beginner, dtype="float32")
    with Run.open(path, config.record()) as run, doors.protocol(config).judge:
        train(run, doors.protocol(config), doors.failures(), model=model, tokenizer=tokenizer)
    return run


@pytest.fixture(scope="module")
def by_vllm(tmp_path_factory: pytest.TempPathFactory, beginner: Path) -> Run:
    return trained(tmp_path_factory.mktemp("runs") / "vllm", doors.config(steps=STEPS, **VLLM), beginner)


def rewards(run: Run) -> tuple[float, float]:
    """Return the mean reward of the first three and the last ten steps."""
    rows = [row["reward"] for row in run.read("train")]
    assert len(rows) == STEPS
    return sum(rows[:3]) / 3, sum(rows[-10:]) / 10


def test_the_same_is_learnt_as_with_transformers(by_vllm: Run, beginner: Path, tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", doors.config(steps=STEPS), beginner)
    for run in (by_vllm, plain):
        before, after = rewards(run)
        assert before < 0.35, "the model should begin near chance, which is 1/8"
        assert after > 0.9


def test_vllm_has_the_weights_of_every_step(by_vllm: Run) -> None:
    rows = by_vllm.read("train")
    assert all(row["sampling/sampling_logp_difference/mean"] < 1e-3 for row in rows)
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-2 for row in rows)
    assert rows[-1]["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-2)


def test_the_hit_rate_of_the_prefix_cache_is_logged(by_vllm: Run) -> None:
    rates = [row["generation/prefix_cache_hit_rate"] for row in by_vllm.read("train")]
    assert all(0 <= rate < 1 for rate in rates)


def test_reflections_and_retries_are_recorded_and_judged(by_vllm: Run) -> None:
    rows = by_vllm.read("train-episodes")
    assert len(rows) == STEPS * 64
    assert {row["retries"][0]["verdict"]["outcome"] for row in rows} == {"pass", "fail"}
