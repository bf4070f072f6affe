"""LoRA adapters by peft, on a base model in 16 or 32 bits or, as in QLoRA, in 4."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r3core.config import Config
from r3core.errors import ConfigError, UsageError, did_you_mean
from r3core.training.interpolation import check_interpolation

if TYPE_CHECKING:
    from peft import LoraConfig

OWNED = ("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping")
"""Options of LoraConfig that r3 sets itself."""


def lora_config(options: Mapping[str, Any]) -> LoraConfig:
    """Return peft's configuration; every linear layer gets an adapter, unless `target_modules` names others.

    Raises:
        ConfigError: an option is unknown to peft, set by r3, or has a value that peft rejects.
        UsageError: peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise UsageError("`lora` requires the library peft", "pip install 'r3core[peft]'") from None
    known = sorted(set(LoraConfig.__dataclass_fields__) - set(OWNED))
    for name in options:
        if name not in known:
            raise ConfigError(f"`lora` has no option `{name}`", *did_you_mean(name, known))
    rank = options.get("r", 8)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ConfigError(f"`lora.r` cannot be {rank!r}: it should be a positive integer")
    try:
        return LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": "all-linear"} | dict(options))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"peft rejects the options under `lora`: {error}") from error


def merge_adapter(model: Any, weights: Mapping[str, Any], *, adapter: Path | None = None) -> Any:
    """Return a plain model: the base of a PeftModel with its adapter, or the one in a folder, added to the weights.

    `weights` has the whole weights of base and adapter, under the PeftModel's names. Those in `model` may be shards: so
    the layers are built anew on the meta device, where tensors have shapes but no memory, and receive `weights` by
    assignment, without a copy.
    """
    import torch
    from peft import load_peft_weights, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # else ZeRO-3 would shard the new model too
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(model.config)
        whole = type(model)(base, model.peft_config["default"])
    whole.load_state_dict(weights, assign=True)
    if adapter is not None:
        set_peft_model_state_dict(whole, load_peft_weights(str(adapter), device="cpu"))
    return whole.merge_and_unload()


def check_adapter(config: Config, *, sharded: bool = False) -> None:
    """Raise ConfigError when training is impossible with the configuration's `lora` and `quantization`.

    `sharded` is whether several processes share the weights.
    """
    if config.quantization and sharded:
        raise ConfigError(
            f"`quantization` ({config.quantization}) cannot be combined with several processes: "
            "quantized weights cannot be sharded",
            "train in one process, or remove `quantization`",
        )
    check_interpolation(config)
    if config.lora is not None:
        lora_config(config.lora)
    elif config.quantization:
        raise ConfigError(
            f"`quantization` ({config.quantization}) requires `lora`: quantized weights cannot be trained",
            "train an adapter: --lora r=32",
        )
    if config.lora is not None and config.quantization and config.train.merge:
        raise ConfigError(
            "an adapter cannot be merged into weights of 4 bits without rounding it away",
            "save it separately: --set train.merge=false, or remove `quantization`",
        )
