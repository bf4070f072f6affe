"""Training with a vLLM server; weights travel by a file in place of NCCL, which takes a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import password
import pytest
import torch
from engines import vllm_server
from safetensors.torch import save_file
from trl.generation.vllm_client import VLLMClient

from r3core.generation.models import load_model
from r3core.runs import Run
from r3core.train import train

pytestmark = pytest.mark.vllm


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A beginner whose output layer is its own: the server's kernels for the CPU reload no tied one."""
    model = password.beginner(heads=64)
    folder = tmp_path / "base"
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    password.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def updates(base: Path, monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Have weights saved where the server has its model, which then loads it anew; return the names of each update."""
    names: list[set[str]] = []

    def update(client: VLLMClient, metadata: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        sent = {name: weight.detach().clone().contiguous() for name, weight in weights}
        names.append(set(sent))
        save_file(sent, base / "model.safetensors", {"format": "pt"})
        client._post(f"{client.base_url}/collective_rpc", json={"method": "reload_weights"})

    monkeypatch.setattr(VLLMClient, "init_communicator", lambda client, device=0: None)
    monkeypatch.setattr(VLLMClient, "update_named_params", update)
    monkeypatch.setattr(VLLMClient, "_start_weight_update", lambda client: None)
    monkeypatch.setattr(VLLMClient, "_finish_weight_update", lambda client: None)
    return names


def test_what_is_learnt_is_what_the_server_generates(
    tmp_path: Path, base: Path, updates: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 40
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    model, tokenizer = load_model(base, dtype="float32")
    with vllm_server(base, "--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1") as url:
        port = urlsplit(url).port
        served = {"use_vllm": True, "vllm_mode": "server", "vllm_server_host": "127.0.0.1", "vllm_server_port": port}
        config = password.config(steps=steps, **served)
        protocol = password.protocol(config)
        with Run.open(tmp_path / "run", config.record()) as run, protocol.judge:
            train(run, protocol, password.failures(), model=model, tokenizer=tokenizer)
    rows = run.read("train")
    assert len(rows) == len(updates) == steps
    assert updates[0] == {name for name, _ in model.named_parameters()}
    assert sum(row["reward"] for row in rows[:3]) / 3 < 0.35, "the model should begin near chance, which is 1/8"
    assert sum(row["reward"] for row in rows[-10:]) / 10 > 0.9
    assert all(row["sampling/sampling_logp_difference/mean"] < 1e-3 for row in rows)
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-2 for row in rows)
