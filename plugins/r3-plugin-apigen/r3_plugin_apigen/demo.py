"""The built-in model and the settings it is run with; docs/results.md explains how they were chosen."""

from __future__ import annotations

from pathlib import Path

from r3core import Demo

DEMO = Demo(
    model=Path(__file__).with_name("model"),
    settings={
        "sampling.attempt.temperature": 0.8,
        "sampling.attempt.max_tokens": 96,
        "sampling.reflection.temperature": 0.8,
        "sampling.reflection.max_tokens": 80,
        "sampling.retry.temperature": 0.8,
        "sampling.retry.max_tokens": 96,
        "batch_size": 256,
        "mine.limit": 512,
        "train.anchor": 10.0,
        "grpo.temperature": 0.8,
        "grpo.learning_rate": 2e-4,
        "grpo.lr_scheduler_type": "constant_with_warmup",
        "grpo.warmup_steps": 3,
        "grpo.max_steps": 80,
        "grpo.per_device_train_batch_size": 64,
        "grpo.num_generations": 16,
        "grpo.num_iterations": 2,
        "grpo.beta": 0.0,
        "grpo.gradient_checkpointing": False,
        "evaluate.limit": 500,
        "evaluate.controls": True,
        "evaluate.cross": True,
    },
    made_for=("source", "ordered", "template", "calls", "distractors", "nested", "terse"),
)
