"""Which engine a run generates with, and the one model that it holds at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from r3core.config import Config
from r3core.distributed import world_size
from r3core.errors import UsageError, one_line
from r3core.generation.cache import apply_time_step_limit, check_cache
from r3core.generation.engine import Generator

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

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
    from r3core.generation.transformers import TransformersGenerator

    return TransformersGenerator(*load(config, model), batch_size=config.batch_size)


def saved_dtype(config: Config, model: str) -> torch.dtype:
    """Return the dtype of a model outside of training: the configuration's, or the one it was saved in."""
    import torch
    from transformers import AutoConfig

    from r3core.generation.models import base_of

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
    from r3core.generation.models import load_model

    return load_model(
        model,
        revision=config.revision,
        dtype=dtype or config.dtype,
        generates=generates,
        trust_remote_code=config.trust_remote_code,
        quantization=config.quantization,
    )


ADAPTER = "adapter_config"
"""The file, without its ending, that makes a folder one of an adapter."""


def adapter_in(folder: str | Path) -> dict[str, Any] | None:
    """Return the configuration of the adapter in a folder, None when there is none."""
    path = Path(folder, f"{ADAPTER}.json")
    read: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return read


def base_of(model: str | Path) -> str:
    """Return the model that an adapter in a folder belongs to; the model itself where there is no adapter."""
    adapter = adapter_in(model)
    return str(adapter["base_model_name_or_path"]) if adapter else str(model)


def context_of(config: PretrainedConfig) -> int | None:
    """Return the longest sequence of a model in tokens; None where its configuration names none."""
    # a composite configuration (Gemma 3 with images, say) has it in the part for text
    limit: int | None = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return limit


def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    quantization: str | None = None,
    generates: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and the tokenizer of a local folder or of the hub; UsageError when they cannot be had.

    A folder with an adapter is loaded with the model that it belongs to. A model whose probabilities depend on the
    cache or on padding is refused here, before hours of work: see `check_cache`.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            **({"quantization_config": _four_bits()} if quantization else {}),
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise _unloadable(name, error) from error
    module: Any
    for module in model.modules() if quantization else ():
        if hasattr(
            module, "support_avx512bf16_for_cpu"
        ):  # weights that bitsandbytes has packed for it pass no gradient
            module.support_avx512bf16_for_cpu = False
    if torch.cuda.is_available() and not quantization and world_size() == 1:
        # in 4 bits it is on the GPU already; among several processes it is divided first
        torch.nn.Module.cuda(model)  # transformers' own signature of it is wrong
    apply_time_step_limit(model)
    if generates and world_size() == 1:  # the processes of a training load what one process has mined with before
        check_cache(model, tokenizer, name=str(name))
    return model, tokenizer


def _four_bits() -> Any:
    """Return how QLoRA keeps weights (Dettmers et al. 2023, arXiv 2305.14314): NF4, its constants quantized too."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def load_tokenizer(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a local folder or of the hub; UsageError when it cannot be had, or has no template."""
    from transformers import AutoTokenizer

    if Path(name).is_absolute() and not any(Path(name, f"{kind}.json").exists() for kind in ("config", ADAPTER)):
        raise UsageError(
            f"`{name}` holds no model: there is no config.json in it", "name a folder or a model of the hub"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _unloadable(name, error) from error
    if tokenizer.chat_template is None:
        raise UsageError(
            f"the tokenizer of `{name}` has no chat template, so a conversation cannot be put to it",
            "take an instruction-tuned model, or add a chat_template.jinja to the folder",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _unloadable(name: str | Path, error: Exception) -> UsageError:
    return UsageError(
        f"the model `{name}` cannot be loaded: {one_line(error, first=True)}",
        "check the name, the connection to the hub, and HF_TOKEN for a gated model; a local folder works too",
    )
