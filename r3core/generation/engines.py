"""Which engine a run generates with, and the one model that it holds at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from r3core.config import Config
from r3core.generation import Generator

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from r3core.generation.openai import Kept


class Engines:
    """Opens the engine of a configuration on one model or another; only one of them is in memory at a time.

    `kept` has the completions that a server was asked for before.
    """

    def __init__(self, config: Config, *, kept: Kept | None = None) -> None:
        self.config = config
        self.kept = kept
        self._open: tuple[str, Generator] | None = None

    def open(self, model: str | Path) -> Generator:
        """Return the generator for a model, after closing that for another one."""
        name = str(model)
        if self._open is None or self._open[0] != name:
            self.close()
            self._open = name, open_engine(self.config, name, kept=self.kept)
        return self._open[1]

    def close(self) -> None:
        """Let go of the model that is in memory, if any."""
        if self._open is not None:
            self._open[1].close()
            self._open = None


def check_engine(config: Config) -> None:
    """Raise ConfigError for engine_options that are not allowed, before they are printed or written anywhere."""
    if config.engine == "openai":
        from r3core.generation.server import server_of

        server_of(config)


def open_engine(config: Config, model: str, *, kept: Kept | None = None) -> Generator:
    """Return a generator for a model; UsageError when it cannot be had, or the engine is not installed."""
    if config.engine == "vllm":
        from r3core.generation.vllm import VllmGenerator

        return VllmGenerator.load(model, config)
    if config.engine == "openai":
        from r3core.generation.openai import OpenAIGenerator

        return OpenAIGenerator.connect(model, config, kept=kept)
    from r3core.generation.local import TransformersGenerator

    return TransformersGenerator(*load(config, model), batch_size=config.batch_size)


def saved_dtype(config: Config, model: str) -> torch.dtype:
    """Return the dtype of a model outside of training: the configuration's, or the one it was saved in."""
    import torch
    from transformers import AutoConfig

    from r3core.generation.local import base_of

    if config.dtype != "auto":
        return cast(torch.dtype, getattr(torch, config.dtype))
    read = AutoConfig.from_pretrained(
        base_of(model), revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    saved = read.dtype or read.get_text_config().dtype
    return saved if isinstance(saved, torch.dtype) else torch.float32


def folder_of(model: str, revision: str | None) -> Path:
    """Return the folder with a model's files, in the cache of the Hub where it is no folder itself.

    A model that is not there gives a folder that does not exist.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):
        return Path(model)


def load(
    config: Config, model: str, *, dtype: str | None = None, generates: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model and its tokenizer, loaded as a configuration says; UsageError when they cannot be loaded.

    `dtype` is used instead of the configuration's; `generates` tells that transformers will generate with the model.
    """
    from r3core.generation.local import load_model

    return load_model(
        model,
        revision=config.revision,
        dtype=dtype or config.dtype,
        generates=generates,
        trust_remote_code=config.trust_remote_code,
        quantization=config.quantization,
    )
