"""Rounding of 16-bit weights: how many of them a learning rate can move, and a warning where most of them stay."""

from __future__ import annotations

from math import erf, floor, log2, sqrt

from r3core.estimate.memory import trained_bytes
from r3core.estimate.plan import Plan
from r3core.estimate.shape import Shape

_SCALE = 0.02
"""The standard deviation of weights that a linear layer usually starts with."""


def share_moved(rate: float) -> float:
    """Return the share of bfloat16 weights drawn from N(0, 0.02) that one AdamW step of `rate` changes.

    AdamW moves a weight by about `rate`. bfloat16 has 8 significant bits, so that the values between 2^k and 2^(k+1)
    are 2^(k-7) apart, and less than half of that is rounded away: a weight moves when it is below 2^(floor(log2 rate)
    + 9). Measured (`benchmarks/optimizers.py`, 30 equal gradients): 0.98% at 5e-7 and 1.96% at 1e-6; this: 0.97, 1.95.
    """
    if rate <= 0:
        return 0.0
    return erf(2.0 ** (floor(log2(rate)) + 9) / (_SCALE * sqrt(2)))


def warning_of(shape: Shape, plan: Plan) -> list[str]:
    """Return a warning and a hint where all weights are trained in 16 bits, and most would be rounded back."""
    moved = share_moved(plan.rate)
    if shape.lora or plan.stochastic or trained_bytes(shape, plan) > 2 or moved > 0.95:
        return []
    return [
        f"warning: all weights are trained in 16 bits (train.dtype), and at grpo.learning_rate={plan.rate:g} most "
        "updates are rounded away: near 0.02, bfloat16 values are 1.2e-04 apart; of weights drawn from N(0, 0.02) "
        f"about {moved:.1%} can change",
        "hint: --set train.dtype=float32 trains all of them; --set grpo.optim=adamw_8bit or --lora r=16 save memory "
        "instead; --set grpo.optim=adamw_torch_8bit --set grpo.optim_args=bf16_stochastic_round=true (needs torchao) "
        "keeps 16 bits and rounds at random",
    ]
