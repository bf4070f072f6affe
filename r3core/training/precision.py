"""The dtype that a model is trained in: 32 bits when all weights are, or small updates would be rounded away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from r3core.config import Config
from r3core.training.launch import current_world

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def training_dtype(config: Config) -> str:
    """Return the dtype to load the model in for training, a value of `Config.dtype`.

    It is float32 when all weights are trained. A number w in bfloat16 has 8 significant bits, so its neighbours are
    2^(floor(log2 |w|) - 7) away: 1.2e-4 near |w| = 0.02. An update of less than half of that is rounded away, and AdamW
    (Loshchilov & Hutter 2019, arXiv 1711.05101) moves a weight by about the learning rate, usually 5e-7. Autocast still
    computes in 16 bits on a GPU.

    Other weights need no wider dtype: peft creates LoRA adapters in 32 bits (in 16 on a base of 4 bits), and FSDP2 and
    DeepSpeed keep 32-bit master weights under mixed precision.
    """
    if config.lora is not None:
        return config.dtype
    if config.train.dtype != "float32":
        return config.train.dtype
    return config.dtype if has_master_weights(config) else "float32"


def has_master_weights(config: Config) -> bool:
    """Return whether FSDP2 or DeepSpeed will keep 32-bit copies of the trained weights, and update those.

    They do so under mixed precision: `fp16`, or `bf16`, which TRL turns on by default where there is a GPU.
    """
    options = config.grpo_options()
    default = torch.cuda.is_available() and not options.get("fp16")
    mixed = options.get("fp16") or (default if options.get("bf16") is None else options["bf16"])
    return current_world().sharded and bool(mixed)


def rounding_warning(model: PreTrainedModel, learning_rate: float) -> str:
    """Return a warning when rounding cancels an update of the learning rate's size for over 5% of the trained weights.

    Empty otherwise. It adds the learning rate to each 16-bit weight, and counts those that stay the same.
    """
    total, unchanged, dtype = 0, 0, None
    for weight in model.parameters():
        if weight.requires_grad and weight.dtype in (torch.bfloat16, torch.float16):
            unchanged += int((weight.detach() + learning_rate == weight).sum())
            dtype = str(weight.dtype).removeprefix("torch.")
        total += weight.numel() if weight.requires_grad else 0
    if unchanged <= 0.05 * total:
        return ""
    adapter = any(not weight.requires_grad for weight in model.parameters())
    alternatives = "" if adapter else "set train.dtype=float32, train an adapter (--lora r=16), or "
    return (
        f"warning: {unchanged / total:.0%} of the trained weights are in {dtype}, where an update of the size of the "
        f"learning rate ({learning_rate:g}) is rounded away: they will hardly change\n"
        f"hint: {alternatives}raise grpo.learning_rate\n"
    )
