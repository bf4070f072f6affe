"""Measure which optimizers move weights at small learning rates, in bfloat16 and in float32, and their memory.

`python benchmarks/optimizers.py` prints one Markdown table. The weights are the seven matrices of one layer of
SmolLM2-135M's shape, sampled from N(0, 0.02); each gets the same gradient in all steps, which is the case in which the
most weights change. Columns: the share of the weights that changed, the mean distance that a weight moved in units of
`steps x learning rate` (AdamW in float32: 1.00), and the bytes of optimizer state per weight. transformers creates the
optimizers from `grpo.optim` and `grpo.optim_args`, as in training. Those whose library is missing are listed:
torchao for adamw_torch_8bit and _4bit, torch-optimi for stable_adamw, bitsandbytes for adamw_8bit and lion_8bit.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from typing import Any, NamedTuple

import torch
from transformers import Trainer
from trl.trainer.grpo_config import GRPOConfig

SHAPES = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
RATES = (5e-7, 1e-6)


class Choice(NamedTuple):
    """One row of the table."""

    dtype: torch.dtype
    optim: str
    optim_args: str | None = None


CHOICES = [
    Choice(torch.bfloat16, "adamw_torch_fused"),
    Choice(torch.bfloat16, "adafactor"),
    Choice(torch.bfloat16, "adamw_8bit"),
    Choice(torch.bfloat16, "lion_8bit"),
    Choice(torch.bfloat16, "adamw_torch_8bit"),
    Choice(torch.bfloat16, "adamw_torch_8bit", "bf16_stochastic_round=True"),
    Choice(torch.bfloat16, "stable_adamw"),
    Choice(torch.float32, "adamw_torch_fused"),
    Choice(torch.float32, "adafactor"),
    Choice(torch.float32, "adamw_8bit"),
    Choice(torch.float32, "lion_8bit"),
    Choice(torch.float32, "adamw_torch_8bit"),
    Choice(torch.float32, "adamw_torch_4bit"),
    Choice(torch.float32, "stable_adamw"),
]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    count = sum(rows * columns for rows, columns in SHAPES)
    print(f"{count:,} weights, {arguments.steps} steps, seed {arguments.seed}\n")
    cells = [cell for rate in RATES for cell in (f"changed at {rate:g}", "distance")]
    head = ("weights", "`grpo.optim`", "`grpo.optim_args`", *cells, "bytes of state per weight")
    print(f"| {' | '.join(head)} |\n| {' | '.join(['---'] * len(head))} |")
    missing = []
    for choice in CHOICES:
        try:
            measured = [moved(choice, rate, steps=arguments.steps, seed=arguments.seed) for rate in RATES]
        except (ImportError, ValueError) as error:
            missing.append(f"{choice.optim}: {str(error).splitlines()[0]}")
            continue
        dtype, args = str(choice.dtype).removeprefix("torch."), f"`{choice.optim_args}`" if choice.optim_args else ""
        cells = [cell for share, distance, _ in measured for cell in (f"{share:.2%}", f"{distance:.3f}")]
        print(f"| {' | '.join([dtype, f'`{choice.optim}`', args, *cells, f'{measured[0][2]:.2f}'])} |")
    for line in dict.fromkeys(missing):
        print(f"\nnot measured: {line}")


def moved(choice: Choice, rate: float, *, steps: int, seed: int) -> tuple[float, float, float]:
    """Return the share of the weights that changed, the mean distance / (steps x rate), and state bytes per weight."""
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # the generator of stochastic rounding
    weights = [torch.nn.Parameter(_sampled(shape, random, choice.dtype, 0.02)) for shape in SHAPES]
    gradients = [_sampled(shape, random, choice.dtype, 1e-3) for shape in SHAPES]
    before = [weight.detach().clone() for weight in weights]
    optimizer = _optimizer(weights, choice, rate)
    for _ in range(steps):
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
    count = sum(weight.numel() for weight in weights)
    pairs = list(zip(weights, before, strict=True))
    changed = sum(int((now != then).sum()) for now, then in pairs)
    distance = sum(float((now.detach().double() - then.double()).abs().sum()) for now, then in pairs)
    stored = sum(_bytes(value) for state in optimizer.state.values() for value in state.values())
    return changed / count, distance / count / (steps * rate), stored / count


def _sampled(shape: tuple[int, int], random: torch.Generator, dtype: torch.dtype, scale: float) -> torch.Tensor:
    return (torch.randn(shape, generator=random) * scale).to(dtype)


def _optimizer(weights: list[torch.nn.Parameter], choice: Choice, rate: float) -> Any:
    """Return the optimizer that transformers creates from TRL's options."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = GRPOConfig(
            output_dir=folder,
            optim=choice.optim,
            optim_args=choice.optim_args,
            learning_rate=rate,
            use_cpu=True,
            bf16=False,
            report_to="none",
        )
        optimizer, options = Trainer.get_optimizer_cls_and_kwargs(args)
        return optimizer(weights, **options)


def _bytes(value: Any) -> int:
    """Return the bytes of a tensor; one of torchao's quantized states consists of several."""
    if not isinstance(value, torch.Tensor):
        return 0
    if hasattr(value, "__tensor_flatten__"):
        names, _ = value.__tensor_flatten__()
        return sum(_bytes(getattr(value, name)) for name in names)
    return value.nbytes


if __name__ == "__main__":
    main()
