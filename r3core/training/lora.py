"""Adapters of low rank: peft's LoRA on a model, on weights in 4 bits if asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from r3core.config import Config
from r3core.errors import ConfigError, UsageError, did_you_mean

if TYPE_CHECKING:
    from peft import LoraConfig

OWNED = ("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping")
"""Options of LoraConfig that follow from the run."""


def lora_of(options: Mapping[str, Any]) -> LoraConfig:
    """Return peft's configuration; every linear layer gets an adapter, unless `target_modules` says otherwise.

    Raises ConfigError for an option that peft does not know or take, UsageError when peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise UsageError("`lora` needs the library peft", "pip install 'r3core[peft]'") from None
    known = sorted(set(LoraConfig.__dataclass_fields__) - set(OWNED))
    for name in options:
        if name not in known:
            raise ConfigError(f"peft's LoraConfig has no option `{name}` to be set here", *did_you_mean(name, known))
    rank = options.get("r", 8)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ConfigError(f"`lora.r` cannot be {rank!r}: it should be a whole number of at least 1")
    try:
        return LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": "all-linear"} | dict(options))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"peft does not take these options under `lora`: {error}") from error


def merged(model: Any, weights: Mapping[str, Any]) -> Any:
    """Return the plain model that comes of a PeftModel with these weights, which may be divided in the model itself."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # else ZeRO-3 would divide the new model too
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(model.config)
        whole = type(model)(base, model.peft_config["default"])
    whole.load_state_dict(weights, assign=True)
    return whole.merge_and_unload()


def check_adapter(config: Config, *, sharded: bool = False) -> None:
    """Raise ConfigError when training could not begin with the configuration's `lora` and `quantization`.

    `sharded` tells that several processes divide the weights.
    """
    if config.quantization and sharded:
        raise ConfigError(
            f"`quantization` is {config.quantization}, and such weights are not divided among processes",
            "train in one process, or leave `quantization` out",
        )
    if config.lora is not None:
        lora_of(config.lora)
    elif config.quantization:
        raise ConfigError(
            f"`quantization` is {config.quantization}, and all weights are to be trained",
            "train an adapter: --lora r=32",
        )
    if config.lora is not None and config.quantization and config.train.merge:
        raise ConfigError(
            "an adapter on weights of 4 bits cannot be merged without a loss",
            "keep it apart: --set train.merge=false, or leave `quantization` out",
        )
