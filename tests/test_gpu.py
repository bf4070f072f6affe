"""The benchmark for a GPU, on the CPU: what it measures, what it skips, and that a part that fails stops no other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from r3_plugin_countdown.demo import DEMO

ROOT = Path(__file__).parents[1]
SMALL = ("--problems", "24", "--tokens", "24", "--steps", "2", "--batch-size", "24")

pytestmark = [pytest.mark.slow, pytest.mark.processes]


def bench(
    folder: Path, *arguments: str, model: Path = DEMO.model, **environment: str
) -> tuple[int, dict[str, Any], str]:
    """Run the script; return its exit code, its results and its table."""
    file = folder / "found.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--model", str(model), *SMALL, "--json", str(file)]
    done = subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert file.exists(), done.stderr
    return done.returncode, json.loads(file.read_text(encoding="utf-8")), done.stdout


def test_the_pipeline_is_run_and_measured(tmp_path: Path) -> None:
    code, found, table = bench(tmp_path, "--parts", "machine,mine,train,evaluate,memory,processes")
    assert code == 0, table
    outcomes = {name: part["outcome"] for name, part in found.items()}
    done = dict.fromkeys(("machine", "mine", "train", "evaluate"), "ok")
    assert outcomes == done | {"memory": "skipped", "processes": "skipped"}
    assert found["machine"]["gpus"] == []
    assert found["mine"]["tokens/s"] > 0
    assert 0 < found["mine"]["failures"] < 24
    assert found["train"]["steps"] == 2
    assert found["train"]["weights_changed"] > 0.5
    assert found["train"]["grad_norm"] > 0
    parts = [found["train"][f"seconds/{part}"] for part in ("generation", "verification", "training")]
    assert found["train"]["seconds/step"] == pytest.approx(sum(parts))
    for name in ("mine", "train"):
        assert found[name]["peak"] > 0
        assert found[name]["estimate"] > 0
    assert found["evaluate"]["problems"] == 24
    for name in outcomes:
        assert any(line.startswith(name) for line in table.splitlines())
    assert "no GPU" in found["memory"]["reason"]


def test_a_part_that_fails_stops_no_other(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(DEMO.model, broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    code, found, table = bench(tmp_path, "--parts", "mine,train,memory,vllm train", model=broken)
    assert code == 1
    assert found["mine"]["outcome"] == "failed"
    assert "cannot be loaded" in found["mine"]["reason"]
    assert found["train"] == {"outcome": "skipped", "reason": "`mine` failed"}
    assert found["memory"]["outcome"] == "skipped", "without a GPU"
    assert found["vllm train"]["outcome"] == "skipped"
    assert "Traceback" in table, "the end of the part's output is shown"


def test_a_part_has_a_time_limit_and_a_missing_package_is_named(tmp_path: Path) -> None:
    # a package that cannot be imported stands for one that is not installed
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "pebble.py").write_text("raise ModuleNotFoundError('no pebble', name='pebble')\n", encoding="utf-8")
    _, found, _ = bench(tmp_path, "--parts", "mine", PYTHONPATH=str(hidden))
    assert found["mine"] | {"took": 0} == {"outcome": "skipped", "reason": "`pebble` is not installed", "took": 0}
    code, found, _ = bench(tmp_path, "--parts", "mine", "--minutes", "0.1")
    assert code == 1
    assert "not finished after 6 s" in found["mine"]["reason"]
