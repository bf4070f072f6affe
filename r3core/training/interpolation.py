"""Weights between those of the base model and those of the trained one, in 32 bits: `train.interpolate`.

A share a of the update: base + a (trained - base), as in Wortsman et al. 2022 (arXiv 2109.01903). Where greedy first
tries fall as sampled retries improve, a small share can have most of the gain under greedy decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from r3core.config import Config
from r3core.errors import ConfigError, RunError

if TYPE_CHECKING:
    import torch

_SECOND_FACTORS = ("lora_B", "lora_embedding_B")
"""Parts of the names of an adapter's factors B: its update of a weight is B A, so scaling B scales the update."""
_ZERO_AT_FIRST = (True, False, "gaussian", "orthogonal")
"""Values of LoraConfig's `init_lora_weights` that leave the base's weights as they are."""


def check_interpolation(config: Config) -> None:
    """Raise ConfigError when an adapter has parts for which a share of the update cannot be formed."""
    options = config.lora or {}
    if config.train.interpolate == 1 or config.lora is None:
        return
    used = [name for name in ("use_dora", "modules_to_save", "trainable_token_indices") if options.get(name)]
    used += ["bias"] if options.get("bias", "none") != "none" else []
    used += ["init_lora_weights"] if options.get("init_lora_weights", True) not in _ZERO_AT_FIRST else []
    if used:
        raise ConfigError(
            f"`train.interpolate` cannot be {config.train.interpolate:g} with `lora.{used[0]}`: only the factors of a "
            "plain LoRA adapter are interpolated",
            f"remove lora.{used[0]}, or set train.interpolate=1",
        )


def with_scaled_adapter(weights: Mapping[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """Return weights in which an adapter has this share of its update; those of the base are unchanged."""
    return {
        name: (weight.float() * share).to(weight.dtype) if any(part in name for part in _SECOND_FACTORS) else weight
        for name, weight in weights.items()
    }


def toward(base: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], share: float) -> dict[str, Any]:
    """Return base + share (weights - base) for all floating-point weights, in 32 bits.

    Tied weights, two names for one tensor, stay tied: they are recognized by address and shape.

    Raises:
        RunError: the two do not have the same weights.
    """
    between: dict[tuple[Any, ...], torch.Tensor] = {}
    result = {}
    for name, weight in weights.items():
        if weight.is_floating_point():
            before = base.get(name)
            if before is None or before.shape != weight.shape:
                raise RunError(
                    f"the base model has no weight `{name}` of the shape {tuple(weight.shape)}, so that "
                    "`train.interpolate` cannot be applied",
                    "resume with the base model as it was, or use another --output-dir with train.interpolate=1",
                )
            key = (weight.data_ptr(), weight.shape) if weight.numel() else (name,)
            if key not in between:
                start = before.to(weight.device, dtype=_float32())
                between[key] = start.lerp(weight.to(start.dtype), share)
            weight = between[key]
        result[name] = weight
    return result


def base_weights(name: str, config: Config) -> Mapping[str, torch.Tensor]:
    """Return the weights of the base model, in 32 bits on the CPU."""
    from transformers import AutoModelForCausalLM
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # else ZeRO-3 would shard it
    model = AutoModelForCausalLM.from_pretrained(
        name, revision=config.revision, dtype=_float32(), trust_remote_code=config.trust_remote_code
    )
    weights: Mapping[str, torch.Tensor] = model.state_dict()
    return weights


def _float32() -> torch.dtype:
    import torch

    return torch.float32
