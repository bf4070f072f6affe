"""Training in two processes under FSDP2, each with a vLLM of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import password
import pytest
import yaml

from r3core.runs import RunRecord

pytestmark = pytest.mark.vllm


def test_each_process_generates_with_a_vllm_that_has_the_weights_of_all(tmp_path: Path) -> None:
    password.beginner(heads=64).save_pretrained(tmp_path / "base")
    password.tokenizer().save_pretrained(tmp_path / "base")
    settings = {
        "task": f"{password.__file__}:Halls",
        "model": str(tmp_path / "base"),
        "uncertified": True,  # its splits share their problems
        "sampling": {turn: {"max_tokens": 4} for turn in ("attempt", "reflection", "retry")},
        "mine": {"probe": 0},
        "grpo": {
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_max_model_length": 64,
            "vllm_gpu_memory_utilization": 0.1,
            "max_steps": 20,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 32,
            "num_generations": 16,
            "save_strategy": "no",
        },
        "evaluate": {"limit": 2},
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    own = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of a training in this process
    environment = {name: value for name, value in os.environ.items() if name not in own}
    places = os.pathsep.join([str(Path(password.__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "r3core", "run", "--config", str(tmp_path / "settings.yaml"), "--processes", "2"]
    done = subprocess.run(
        [*command, "--output-dir", str(tmp_path / "run")],
        env=environment | {"PYTHONPATH": places, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    rows = RunRecord(tmp_path / "run").read("train")
    assert sum(row["reward"] for row in rows[:3]) / 3 < 0.35
    assert sum(row["reward"] for row in rows[-3:]) / 3 > 0.5
    assert any(row["grad_norm"] > 0 for row in rows)
    assert all(row["sampling/sampling_logp_difference/mean"] < 1e-3 for row in rows)
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-2 for row in rows)
