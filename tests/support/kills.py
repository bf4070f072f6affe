"""A training that kills itself, and what a run that resumed has in common with an undisturbed one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import password
from transformers import AutoModelForCausalLM

from r3core.runs import RunRecord


def killed(path: Path, step: int, **options: Any) -> str:
    """Train in the run directory `path`, in a process that kills itself in a step; return its standard error.

    With `options` it does so when the step is about to be logged; see `password.py`.
    """
    folder = path.with_name("base")
    password.beginner().save_pretrained(folder)
    command = [sys.executable, password.__file__, path, str(step), folder, *([json.dumps(options)] if options else [])]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    return process.stderr


def assert_same_training(run: RunRecord, other: RunRecord) -> None:
    """Assert that two runs sampled the same episodes in training, and ended with the same weights."""
    assert run.read("train-episodes") == other.read("train-episodes")
    assert_same_weights(run.path / "model", other.path / "model")


def weights(folder: Path) -> dict[str, Any]:
    """Return the weights of a saved model by their names."""
    state: dict[str, Any] = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return state


def assert_same_weights(one: Path, other: Path) -> None:
    """Assert that two folders have the same model."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not first[name].equal(second[name])] == []
