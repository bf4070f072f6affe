"""Fixtures that several modules share; torch is imported only by the tests that ask for a model."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import command
import pytest
import tiny
from engines import default_engines

if TYPE_CHECKING:
    from browser import Browser
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the engines be named that the contract is held against."""
    parser.addoption("--engines", default="", help="engines to test, see tests/support/engines.py; all installed ones")
    parser.addoption("--backends", default="fsdp2", help="what divides a training in tests/test_launch.py")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what needs vLLM, unless it is asked for; then it must be there."""
    return True if collection_path.name == "with_vllm" and "vllm" not in config.getoption("engines") else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Hold every test that asks for an engine, or for a backend of training, against each of those named."""
    for asked in ("engine", "backend"):
        if asked in metafunc.fixturenames:
            names = metafunc.config.getoption(f"{asked}s")
            metafunc.parametrize(asked, names.split(",") if names else default_engines(), scope="module")


def pytest_configure(config: pytest.Config) -> None:
    """Keep libraries off the network and out of the home directory; they read these variables when imported."""
    kept = TemporaryDirectory()
    config.add_cleanup(kept.cleanup)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ |= {"TRACKIO_DIR": kept.name, "R3_CACHE": kept.name}


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with a chat template."""
    return tiny.tiny_tokenizer()


@pytest.fixture
def tiny_model(tiny_tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A random Llama of 30,000 parameters, new for each test."""
    return tiny.tiny_model(tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Hugging Face format with the tiny model and its tokenizer; do not write to it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = tiny.tiny_tokenizer()
    tiny.tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def r3(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> command.R3:
    """A function that runs a command in the directory of the test."""
    return command.runner(monkeypatch, capfd, tmp_path)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium that the tests of a module share."""
    from browser import open_browser

    with open_browser(tmp_path_factory.mktemp("downloads")) as opened:
        yield opened


@pytest.fixture
def imports_restored(tmp_path: Path) -> Iterator[None]:
    """Forget the modules of the test's directory, and what was added to the import path."""
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imports_restored: None) -> Callable[..., None]:
    """A function that installs a plugin: its module, and the metadata that pip would write."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name: str, source: str, *, version: str = "1.0") -> None:
        module = f"r3_plugin_{name}"
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: r3-plugin-{name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[r3]\n{name} = {module}\n")
        importlib.invalidate_caches()

    return install
