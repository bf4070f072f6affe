"""The engines that the contract is tested with, each on the same small random model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import tiny

from r3core.config import Config
from r3core.generation.generator import Generator
from r3core.plugins.engines import engine_of, engines

CONTEXT = 512
END_EVERY = 7
"""One in this number of tokens of the vocabulary ends a turn, so that turns end early and unevenly."""
SHAPE: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2, "context": CONTEXT}
"""Heads of size 64, which vLLM's CPU kernels can do."""


def model_in(folder: Path) -> Path:
    """Write a model whose text depends on all that came before, and return its folder."""
    tokenizer = tiny.tiny_tokenizer()
    model = tiny.tiny_model(tokenizer, spread=0.3, **SHAPE)
    model.generation_config.eos_token_id = list(range(0, len(tokenizer), END_EVERY))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def configured(engine: str, **options: Any) -> Config:
    return Config(task="toy", engine=engine, engine_options=options, batch_size=64)


def opened(engine: str, model: Path | str, **options: Any) -> Generator:
    return engine_of(configured(engine, **options)).open(str(model))


@contextmanager
def transformers(folder: Path) -> Iterator[Generator]:
    generator = opened("transformers", folder)
    yield generator
    generator.close()


@contextmanager
def openai(folder: Path) -> Iterator[Generator]:
    """The engine for servers, on one in this process with the engine of this process behind it."""
    from server import serving

    with transformers(folder) as behind, serving(behind) as server:
        server.context = CONTEXT
        generator = opened("openai", "tiny", base_url=server.url)
        yield generator
        generator.close()


@contextmanager
def vllm(folder: Path) -> Iterator[Generator]:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    generator = opened("vllm", folder, enforce_eager=True, max_num_seqs=64)
    yield generator
    generator.close()


@contextmanager
def served(folder: Path) -> Iterator[Generator]:
    """The engine for servers, on `vllm serve`."""
    with vllm_server(folder) as url:
        generator = opened("openai", "tiny", base_url=url)
        yield generator
        generator.close()


@contextmanager
def ray(folder: Path) -> Iterator[Generator]:
    """What each actor of the engine generates with; the cluster itself has tests of its own."""
    generator = opened("ray", folder)
    yield generator
    generator.close()


ENGINES: dict[str, Callable[[Path], Any]] = {
    "transformers": transformers,
    "openai": openai,
    "ray": ray,
    "vllm": vllm,
    "served": served,
}
"""How the contract opens an engine; `served` is `openai` on a real vLLM server."""


def default_engines() -> list[str]:
    """Return the engines that the contract is held against: all that are installed, but for vLLM's environment."""
    return [name for name in engines()[0] if name != "vllm"]


def logprobs_of(model: Any, prompt: list[int], ids: list[int]) -> list[float]:
    """Return the log-probability of each id after a prompt, by one pass without a cache."""
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return [float(value) for value in logits.log_softmax(-1)[range(len(ids)), ids]]


@contextmanager
def vllm_server(folder: Path, *options: str) -> Iterator[str]:
    """Run the server of `vllm serve` on a model, called `tiny`, for the block, and yield its URL.

    It is started as a module, as the command itself does not find its version where vLLM comes as vllm-cpu.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    named = ["--served-model-name", "tiny", "--port", str(port), "--host", "127.0.0.1"]
    small = ["--enforce-eager", "--max-num-seqs", "64", "--dtype", "float32", *options]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *named, *small]
    variables = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    with subprocess.Popen(command, env=variables, stdout=sys.stderr) as process:
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def _wait_for(url: str, process: subprocess.Popen[bytes], *, seconds: float = 240) -> None:
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        assert process.poll() is None, "the server has ended"
        try:
            with urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(json.dumps({"url": url, "seconds": seconds}))
