"""The dtype that a model is trained in: 32 bits where all weights are trained, or updates would be rounded away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from r3core.config import Config
from r3core.training.launch import current_world

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def training_dtype(config: Config) -> str:
    """Return the dtype to load the model in for training, a value of `Config.dtype`.

    When all weights are trained, it is float32: near |w| = 0.02, bfloat16 values lie 1.2e-4 apart, and an AdamW step of
    the usual 5e-7 is rounded away. Autocast still computes in 16 bits on a GPU. peft makes LoRA's adapters in 32 bits
    (in 16 on a base of 4 bits); FSDP2 and DeepSpeed keep 32-bit master weights under mixed precision.
    """
    if config.lora is not None:
        return config.dtype
    if config.train.dtype != "float32":
        return config.train.dtype
    return config.dtype if has_masters(config) else "float32"


def has_masters(config: Config) -> bool:
    """Return whether FSDP2 or DeepSpeed will keep 32-bit copies of the trained weights."""
    options = config.grpo_options()
    default = torch.cuda.is_available() and not options.get("fp16")
    mixed = options.get("fp16") or (default if options.get("bf16") is None else options["bf16"])
    return current_world().sharded and bool(mixed)


def lost_updates(model: PreTrainedModel, learning_rate: float) -> str:
    """Return a warning when a good part of the trained weights cannot take an update of the learning rate's size.

    AdamW moves a weight by about the learning rate; in 16 bits most weights stay the same after so small an addition.
    Empty when that holds for less than 5% of the weights.
    """
    total, lost, dtype = 0, 0, None
    for weight in model.parameters():
        if weight.requires_grad and weight.dtype in (torch.bfloat16, torch.float16):
            lost += int((weight.detach() + learning_rate == weight).sum())
            dtype = str(weight.dtype).removeprefix("torch.")
        total += weight.numel() if weight.requires_grad else 0
    if lost <= 0.05 * total:
        return ""
    adapter = any(not weight.requires_grad for weight in model.parameters())
    instead = "" if adapter else "leave train.dtype at float32, train an adapter (--lora r=16), or "
    return (
        f"warning: {lost / total:.0%} of the trained weights are in {dtype}, where an update of the size of the "
        f"learning rate ({learning_rate:g}) is rounded away: they will hardly change\n"
        f"hint: {instead}raise grpo.learning_rate\n"
    )
