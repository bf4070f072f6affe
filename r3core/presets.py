"""Presets: named sets of values, each with its source."""

from __future__ import annotations

from typing import Any, NamedTuple


class Setting(NamedTuple):
    """A value of a preset, and where it comes from."""

    value: Any
    source: str


PRESETS: dict[str, dict[str, Setting]] = {
    # "Reflect, Retry, Reward" (arXiv 2505.24726). TRL's release of May 2025 is 0.17, and 0.18 at the end of the month.
    "paper": {
        "mine.samples": Setting(64, "paper: up to 64 responses to a prompt"),
        "grpo.beta": Setting(0.001, "paper"),
        "grpo.learning_rate": Setting(5e-7, "paper"),
        "grpo.lr_scheduler_type": Setting("cosine", "paper"),
        "grpo.warmup_steps": Setting(0.03, "paper; below 1 it is a share of all steps"),
        "grpo.max_steps": Setting(1750, "paper: the maximum"),
        "grpo.per_device_train_batch_size": Setting(8, "paper: 8 x 32 = the effective batch of 256, on one process"),
        "grpo.gradient_accumulation_steps": Setting(32, "paper: 8 x 32 = the effective batch of 256, on one process"),
        "evaluate.limit": Setting(None, "paper: all held-out problems"),
        "mine.limit": Setting(10_000, "not published; our choice"),
        "grpo.num_generations": Setting(8, "not published; TRL's default in May 2025"),
        "grpo.loss_type": Setting("bnpo", "not published; TRL's default in May 2025"),
        "grpo.scale_rewards": Setting("group", "not published; TRL's default in May 2025"),
        "grpo.epsilon": Setting(0.2, "not published; TRL's default in May 2025"),
        "grpo.num_iterations": Setting(1, "not published; TRL's default in May 2025"),
        "grpo.importance_sampling_level": Setting("token", "not published; the only one that TRL had in May 2025"),
        "grpo.mask_truncated_completions": Setting(False, "not published; TRL's default in May 2025"),
        "sampling.reflection.max_tokens": Setting(256, "not published; TRL's default in May 2025"),
        "sampling.attempt.temperature": Setting(1.0, "not published; our choice"),
        "sampling.reflection.temperature": Setting(1.0, "not published; TRL's default in May 2025 (0.18)"),
        "sampling.retry.temperature": Setting(1.0, "not published; our choice"),
        "evaluate.controls": Setting(True, "ours: the paper has no controls"),
    },
}
"""Preset -> dotted configuration key -> value. A task may add options of its own, see `Task.presets`."""

BUILT_IN: dict[str, Any] = {"evaluate.decoding": "both", "evaluate.resamples": 4}
"""Dotted configuration keys of a run with the built-in model of a task, below the settings of the task itself."""
