"""Errors of an exhausted memory in training: what was computed, and which settings to lower."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

from r3core.generation.out_of_memory import memory_errors

if TYPE_CHECKING:
    from trl.trainer.grpo_config import GRPOConfig

    from r3core.config import Config


def training_memory_errors(config: Config, args: GRPOConfig) -> AbstractContextManager[None]:
    """Return a context that raises RunError in place of torch's errors about memory in training."""
    rows, longest = args.per_device_train_batch_size, args.max_completion_length or 0
    doing = (
        f"training on {rows} reflections at once (grpo.per_device_train_batch_size), each of up to {longest:,} tokens "
        f"after a prompt with a failed attempt of up to {config.sampling.attempt.max_tokens:,}"
    )
    return memory_errors(doing, partial(training_hints, config, args))


def training_hints(config: Config, args: GRPOConfig) -> list[str]:
    """Return the settings with which training needs less memory, the least harmful first."""
    hints = []
    rows, passes = args.per_device_train_batch_size, args.gradient_accumulation_steps
    if rows % 2 == 0:
        fewer = (
            f"--set grpo.per_device_train_batch_size={rows // 2} --set grpo.gradient_accumulation_steps={2 * passes}"
        )
        hints.append(f"{fewer} computes the same batch in smaller parts")
    if not args.gradient_checkpointing:
        hints.append("--set grpo.gradient_checkpointing=true stores fewer activations, for a third more time")
    if args.use_vllm and args.vllm_mode == "colocate":
        share = f"{args.vllm_gpu_memory_utilization:g}"
        hints.append(f"lower the share of the GPU that vLLM reserves: grpo.vllm_gpu_memory_utilization, now {share}")
    if config.lora is None:
        hints.append(
            "--lora r=16 trains a small adapter, and --set grpo.optim=adamw_8bit needs a quarter of the states"
        )
    hints.append(
        "shorter turns: sampling.attempt.max_tokens, sampling.reflection.max_tokens; `--dry-run` estimates all"
    )
    return hints
