"""Measure how much the groups without signal pull by the KL term, in a training of Countdown's built-in model.

`python benchmarks/kl.py` prints one Markdown table, for groups of 4 and 64 reflections per step. In some steps of a
training with `grpo.beta`, the gradient of the loss is computed once more for the groups whose rewards are all equal and
once for the others; the two add up to the gradient of the step. Without a KL term, that of the equal groups is 0, and
with one it is proportional to beta. Columns: the share of equal groups, the norms of both gradients, and the cosine
between them. `train.drop_equal_groups` leaves the equal groups out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from r3core import get_task
from r3core.config import model_of, resolve
from r3core.console import quiet_libraries
from r3core.failures import Failure
from r3core.generation.models import load
from r3core.pipeline import Pipeline
from r3core.train import grpo_config
from r3core.training.signal_mask import with_signal
from r3core.training.trainer import ReflectionTrainer

EVERY = 4
GROUPS = ["grpo.num_generations=4", "grpo.per_device_train_batch_size=64", "mine.limit=256", "mine.probe=0"]


class Measured(ReflectionTrainer):
    """A trainer that compares the gradients of groups with and without signal, every few steps."""

    measured: list[tuple[int, float, float, float, float]]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        scored = super()._generate_and_score_completions(inputs)
        signal = with_signal(self.rewards["reflection"], self.failure)
        return scored | {"mixed": torch.tensor(signal)}  # shuffled with the rest

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        mixed = inputs["mixed"]
        if (step := self.state.global_step + 1) % EVERY == 0 and 0 < mixed.sum() < len(mixed):
            pull, signal = (self._gradient(model, inputs, rows=rows) for rows in (~mixed, mixed))
            norms = float(pull.norm()), float(signal.norm())
            cosine = float(pull @ signal) / (norms[0] * norms[1])
            self.measured.append((step, float((~mixed).float().mean()), *norms, cosine))
        return super()._compute_loss(model, inputs)  # type: ignore[no-untyped-call]

    def _gradient(self, model: Any, inputs: dict[str, Any], *, rows: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the loss of some rows, as one vector."""
        mask = torch.ones_like(inputs["completion_mask"]) * rows.unsqueeze(1)
        loss = super()._compute_loss(model, inputs | {"tool_mask": mask})  # type: ignore[no-untyped-call]
        gradients = torch.autograd.grad(loss, [weight for weight in model.parameters() if weight.requires_grad])
        return torch.cat([gradient.flatten() for gradient in gradients])


def train(folder: Path, *, beta: float, steps: int) -> list[tuple[int, float, float, float, float]]:
    """Train, and return step, share of equal groups, both norms and the cosine."""
    task = get_task("countdown")
    options = [f"output_dir={folder}", f"grpo.beta={beta}", f"grpo.max_steps={steps}", "grpo.save_strategy=no"]
    config = resolve(task, overrides=[*GROUPS, *options])
    with Pipeline.open(task, config) as stages:
        found: list[Failure] = stages.mine()
        model, tokenizer = load(config, model_of(config, task), dtype="float32")
        args = grpo_config(stages.protocol, folder / "checkpoints", on_cpu=not torch.cuda.is_available())
        trainer = Measured(stages.run, stages.protocol, found, model=model, tokenizer=tokenizer, args=args)
        trainer.measured = []
        with redirect_stdout(sys.stderr):  # TRL prints its metrics
            trainer.train()
    return trainer.measured


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beta", type=float, default=0.04)
    parser.add_argument("--steps", type=int, default=24)
    arguments = parser.parse_args()
    quiet_libraries()
    print("| step | equal groups | norm of their gradient | norm of the others' gradient | cosine |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        for step, share, pull, signal, cosine in train(Path(name), beta=arguments.beta, steps=arguments.steps):
            print(f"| {step} | {share:.0%} | {pull:.2g} | {signal:.2g} | {cosine:+.2f} |")


if __name__ == "__main__":
    main()
