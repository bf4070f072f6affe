"""Training with a vLLM server, all of it but the transfer of weights, which takes NCCL and so a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import doors
import pytest
from engines import vllm_server
from trl.generation.vllm_client import VLLMClient

from r3core.generation.local import load_model
from r3core.runs import Run
from r3core.train import train


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Return the names of the weights that were to be sent, update by update; the server keeps its own."""
    updates: list[set[str]] = []

    def update(client: Any, metadata: Iterable[tuple[str, str, list[int]]], weights: Iterable[Any]) -> None:
        names = [name for name, *_ in metadata]
        assert names == [name for name, _ in weights]
        updates.append(set(names))

    monkeypatch.setattr(VLLMClient, "init_communicator", lambda client, device=0: None)
    monkeypatch.setattr(VLLMClient, "update_named_params", update)
    monkeypatch.setattr(VLLMClient, "_start_weight_update", lambda client: None)
    monkeypatch.setattr(VLLMClient, "_finish_weight_update", lambda client: None)
    return updates


def test_reflections_and_retries_come_from_the_server(
    tmp_path: Path, sent: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    doors.beginner(heads=64).save_pretrained(base)
    doors.tokenizer().save_pretrained(base)
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    with vllm_server(base, "--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1") as url:
        port = urlsplit(url).port
        served = {"use_vllm": True, "vllm_mode": "server", "vllm_server_host": "127.0.0.1", "vllm_server_port": port}
        config = doors.config(steps=3, learning_rate=0.0, **served)  # so that the server's weights stay the trainer's
        model, tokenizer = load_model(base, dtype="float32")
        protocol = doors.protocol(config)
        with Run.open(tmp_path / "run", config.record()) as run, protocol.judge:
            train(run, protocol, doors.failures(), model=model, tokenizer=tokenizer)
    rows = run.read("train")
    assert len(rows) == len(sent) == 3
    assert sent[0] >= {name for name, _ in model.named_parameters()}
    assert all(row["sampling/sampling_logp_difference/mean"] < 1e-3 for row in rows)
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-2 for row in rows)
    episodes = run.read("train-episodes")
    said = [(row["reflection"]["text"], row["retries"][0]["text"]) for row in episodes]
    assert len(said) == 3 * 64
    assert len({reflection for reflection, _ in said} & set(doors.WORDS)) > 4
    assert sum(reflection == retry for reflection, retry in said) > 0.9 * len(said), "a retry repeats its reflection"
