"""Training with vLLM in the same process: what is learnt, and that vLLM's weights are the trainer's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import password
import pytest

from r3core.config import Config
from r3core.generation.models import load_model
from r3core.runs import Run
from r3core.train import train

pytestmark = pytest.mark.vllm

STEPS = 40
VLLM: dict[str, Any] = {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 64}


@pytest.fixture(scope="module")
def beginner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with heads of a size that vLLM's kernels for the CPU can do."""
    folder = tmp_path_factory.mktemp("models") / "beginner"
    password.beginner(heads=64).save_pretrained(folder)
    password.tokenizer().save_pretrained(folder)
    return folder


def trained(path: Path, config: Config, beginner: Path) -> Run:
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB
    model, tokenizer = load_model(beginner, dtype="float32")
    with Run.open(path, config.record()) as run, password.protocol(config).judge:
        train(run, password.protocol(config), password.failures(), model=model, tokenizer=tokenizer)
    return run


@pytest.fixture(scope="module")
def by_vllm(tmp_path_factory: pytest.TempPathFactory, beginner: Path) -> Run:
    return trained(tmp_path_factory.mktemp("runs") / "vllm", password.config(steps=STEPS, **VLLM), beginner)


def rewards(run: Run) -> tuple[float, float]:
    """Return the mean reward of the first three and the last ten steps."""
    rows = [row["reward"] for row in run.read("train")]
    assert len(rows) == STEPS
    return sum(rows[:3]) / 3, sum(rows[-10:]) / 10


def test_the_same_is_learnt_as_with_transformers(by_vllm: Run, beginner: Path, tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", password.config(steps=STEPS), beginner)
    for run in (by_vllm, plain):
        before, after = rewards(run)
        assert before < 0.35, "the model should begin near chance, which is 1/8"
        assert after > 0.9


def test_vllm_has_the_weights_of_every_step(by_vllm: Run) -> None:
    rows = by_vllm.read("train")
    assert all(row["sampling/sampling_logp_difference/mean"] < 1e-3 for row in rows)
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-2 for row in rows)
    assert rows[-1]["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-2)


BLOCK = 32  # tokens, the smallest that vLLM's cache on the CPU can do


def with_long_prompts(path: Path, cache: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("long_prompts.py")), str(path), str(BLOCK), cache]
    places = os.pathsep.join([str(Path(password.__file__).parent), os.environ.get("PYTHONPATH", "")])
    own = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of the training in this process
    environment = {name: value for name, value in os.environ.items() if name not in own} | {"PYTHONPATH": places}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return with_long_prompts(tmp_path_factory.mktemp("cached"), "cached")


def test_the_prompts_of_a_group_come_from_the_cache_of_prefixes(cached: dict[str, Any]) -> None:
    shared = (min(cached["lengths"]) - 1) // BLOCK * BLOCK  # whole blocks; the last token is always computed
    assert shared >= 256
    longest = max(cached["lengths"]) + 50  # a retry's prompt goes on behind the reflection's
    assert len(cached["rows"]) == 5
    for row in cached["rows"]:
        assert row["generation/prefix_cache_hit_rate"] > 15 / 16 * shared / longest


def test_no_step_reads_what_the_weights_of_another_step_have_cached(cached: dict[str, Any]) -> None:
    rows = cached["rows"]
    assert all(row["grad_norm"] > 0 for row in rows), "no weight has changed: the test shows nothing"
    assert all(row["sampling/sampling_logp_difference/mean"] < 1e-3 for row in rows)
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-2 for row in rows)


def test_without_the_cache_of_prefixes_nothing_comes_from_it(tmp_path: Path) -> None:
    rows = with_long_prompts(tmp_path, "plain")["rows"]
    assert {row["generation/prefix_cache_hit_rate"] for row in rows} == {0.0}


def test_reflections_and_retries_are_recorded_and_judged(by_vllm: Run) -> None:
    rows = by_vllm.read("train-episodes")
    assert len(rows) == STEPS * 64
    assert {row["retries"][0]["verdict"]["outcome"] for row in rows} == {"pass", "fail"}


@pytest.mark.parametrize("objective", ["attempt", "reflection+retry", "erl"])
def test_other_objectives_are_trained_on_what_vllm_has_sampled(objective: str, tmp_path: Path, beginner: Path) -> None:
    config = password.config(steps=20, train={"objective": objective}, **VLLM)
    run = trained(tmp_path / objective, config, beginner)
    rows = run.read("train")
    assert all(row["sampling/sampling_logp_difference/mean"] < 1e-3 for row in rows)
    assert any(row["grad_norm"] > 0 for row in rows)
    assert sum(row["reward"] for row in rows[-3:]) > sum(row["reward"] for row in rows[:3])
