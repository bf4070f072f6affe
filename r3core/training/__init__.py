"""Training: the GRPO trainer, what it samples from, its options, LoRA, checkpoints and processes."""
