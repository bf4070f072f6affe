"""Run `r3` in a subprocess, on the toy task for training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import password
import yaml

TASK = f"{password.__file__}:Halls"
SETTINGS: dict[str, Any] = {
    "task": TASK,
    "uncertified": True,  # its splits share their problems
    "sampling": {
        "attempt": {"max_tokens": 4},
        "reflection": {"max_tokens": 4},
        "retry": {"max_tokens": 4, "temperature": 0},
    },
    "mine": {"probe": 0},
    "grpo": {
        "max_steps": 60,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "per_device_train_batch_size": 32,
        "gradient_accumulation_steps": 1,
        "num_generations": 16,
        "save_steps": 20,
    },
}


def settings(folder: Path, model: Path, *, task: str = TASK, **grpo: Any) -> Path:
    file = folder / "settings.yaml"
    changed = SETTINGS | {"task": task, "model": str(model), "grpo": SETTINGS["grpo"] | grpo}
    file.write_text(yaml.safe_dump(changed), encoding="utf-8")
    return file


def program(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Start `r3` in a subprocess, with further environment variables."""
    places = os.pathsep.join([str(Path(password.__file__).parent), os.environ.get("PYTHONPATH", "")])
    # A shell starts background jobs with SIGINT ignored, and children inherit that; a handler is reset in the child.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "r3core", *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err
