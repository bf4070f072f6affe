"""Training: the GRPO trainer, its policy, options, dtype, LoRA, checkpoints and processes."""
