"""Loading of models and tokenizers, with their dtype, context length and LoRA adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from r3core.config import Config
from r3core.distributed import world_size
from r3core.errors import UsageError, one_line
from r3core.generation.cache_checks import apply_time_step_limit, check_cache
from r3core.generation.chat import end_ids
from r3core.generation.out_of_memory import loading_hints, memory_errors
from r3core.generation.template import PLAIN, apply

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

ADAPTER = "adapter_config"
"""The file, without its suffix, that marks a folder with a LoRA adapter."""


def saved_dtype(config: Config, model: str) -> torch.dtype:
    """Return the dtype of a model outside of training: the configured one, or the one its weights are saved in."""
    import torch
    from transformers import AutoConfig

    if config.dtype != "auto":
        return cast(torch.dtype, getattr(torch, config.dtype))
    read = AutoConfig.from_pretrained(
        base_of(model), revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    saved = read.dtype or read.get_text_config().dtype
    return saved if isinstance(saved, torch.dtype) else torch.float32


def folder_of(model: str, revision: str | None) -> Path:
    """Return the folder with a model's files: the model itself, or its snapshot in the local cache of the Hub.

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


def adapter_in(folder: str | Path) -> dict[str, Any] | None:
    """Return the configuration of the LoRA adapter in a folder, or None."""
    path = Path(folder, f"{ADAPTER}.json")
    read: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return read


def base_of(model: str | Path) -> str:
    """Return the base model of the LoRA adapter in a folder; the model itself where there is no adapter."""
    adapter = adapter_in(model)
    return str(adapter["base_model_name_or_path"]) if adapter else str(model)


def context_of(config: PretrainedConfig) -> int | None:
    """Return the maximum sequence length of a model in tokens; None where its configuration has none."""
    # a composite configuration (Gemma 3 with images, say) has it in the part for text
    limit: int | None = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return limit


def load(
    config: Config, model: str, *, dtype: str | None = None, generates: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model and its tokenizer, loaded with the options of a configuration; see `load_model`.

    `dtype` overrides the configured one.
    """
    loaded, tokenizer = load_model(
        model,
        revision=config.revision,
        dtype=dtype or config.dtype,
        generates=generates,
        trust_remote_code=config.trust_remote_code,
        quantization=config.quantization,
    )
    return loaded, _configured(tokenizer, config)


def tokenizer_of(config: Config, model: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model with the chat template of a run: its file, its arguments and its date."""
    tokenizer = load_tokenizer(model, revision=config.revision, trust_remote_code=config.trust_remote_code)
    return _configured(tokenizer, config)


def ends_of(model: str, config: Config, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the end-of-turn tokens of a model that is not loaded here."""
    from transformers import GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(model, revision=config.revision or "main")
    except OSError:  # the file is optional
        generation = None
    return end_ids(tokenizer, generation)


def _configured(tokenizer: PreTrainedTokenizerBase, config: Config) -> PreTrainedTokenizerBase:
    if config.chat_template is not None:
        tokenizer.chat_template = config.chat_template
    apply(tokenizer, config.template, day=config.template_date)
    return tokenizer


def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    quantization: str | None = None,
    generates: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and the tokenizer of a local folder or a Hub model.

    A folder with a LoRA adapter is loaded with its base model. `generates` is whether transformers will generate with
    the model: one whose probabilities depend on the cache or on padding is then refused here, before hours of work
    (see `check_cache`).

    Raises:
        UsageError: the model or the tokenizer cannot be loaded.
        RunError: the device has too little memory for the model.
    """
    tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    with memory_errors(f"loading `{name}`", loading_hints):
        model = _loaded(
            name, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code, quantization=quantization
        )
        if generates and world_size() == 1:  # training processes load what one process has mined with before
            check_cache(model, tokenizer, name=str(name))
    return model, tokenizer


def _loaded(name: str | Path, *, quantization: str | None, **options: Any) -> PreTrainedModel:
    """Return a model on the device of this process; `options` are those of `from_pretrained`."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            name, **options, **({"quantization_config": _four_bits()} if quantization else {})
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise _unloadable(name, error) from error
    module: Any
    for module in model.modules() if quantization else ():
        # bitsandbytes repacks weights for AVX-512 with bf16, and repacked weights pass no gradient
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if torch.cuda.is_available() and not quantization and world_size() == 1:
        # a 4-bit model is on the GPU already; with several processes it is sharded first
        torch.nn.Module.cuda(model)  # transformers' own signature of it is wrong
    apply_time_step_limit(model)
    return model


def _four_bits() -> Any:
    """Return the quantization of QLoRA (Dettmers et al. 2023, arXiv 2305.14314): NF4, its constants quantized too."""
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
    """Return the tokenizer of a local folder or a Hub model, with a plain chat template where it has none.

    Raises:
        UsageError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    if Path(name).is_absolute() and not any(Path(name, f"{kind}.json").exists() for kind in ("config", ADAPTER)):
        raise Unloadable(
            f"`{name}` contains no model: there is no config.json in it", "name a local folder or a Hub model"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _unloadable(name, error) from error
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class Unloadable(UsageError):
    """A model or a tokenizer cannot be loaded."""


def _unloadable(name: str | Path, error: Exception) -> UsageError:
    return Unloadable(
        f"the model `{name}` cannot be loaded: {one_line(error, first=True)}",
        "check the name, the connection to the Hub, and HF_TOKEN for a gated model; a local folder works too",
    )
