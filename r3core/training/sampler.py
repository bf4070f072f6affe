"""The order in which failures are trained on: each once per epoch, or those first whose group is likely to teach.

With `train.order: posterior` the failures of a generation are a random sample without replacement, in proportion to the
probability that the rewards of their group differ (`posterior.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from trl.trainer.utils import RepeatSampler

from r3core.protocol import seed_of
from r3core.training.posterior import Verdicts

if TYPE_CHECKING:
    from trl.trainer.grpo_config import GRPOConfig


class EpochSampler(RepeatSampler):
    """TRL's order of the failures, made a function of seed and epoch alone, so that training can resume anywhere."""

    seed: int

    def set_epoch(self, epoch: int) -> None:
        """Seed the order of an epoch, counted from 0; the order of the first is TRL's."""
        self.generator.manual_seed(seed_of(self.seed, "epoch", epoch) if epoch else self.seed)


class PosteriorSampler(RepeatSampler):
    """Draws the failures of each generation without replacement, in proportion to the weights of the posterior.

    The draw of generation number i uses the verdicts of those before i - lag + 1: data loaders read ahead, and a
    training that resumes draws all generations of its epoch again. So it depends on seed and recorded rows alone.
    """

    seed: int
    epoch = 0

    def __init__(self, *arguments: Any, verdicts: Verdicts, lag: int) -> None:
        super().__init__(*arguments)
        self.verdicts = verdicts
        self.lag = lag

    def set_epoch(self, epoch: int) -> None:
        """Continue with the generations of an epoch, counted from 0: as many as in one pass over the failures."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yield indices of failures in TRL's layout: G of each in a row, and all again for each use of a generation."""
        per_epoch = self.num_samples // self.batch_size
        for number in range(self.epoch * per_epoch, (self.epoch + 1) * per_epoch):
            chosen = self.draw(number)
            for _ in range(self.repeat_count):
                for index in chosen:
                    yield from [index] * self.mini_repeat_count

    def draw(self, number: int) -> list[int]:
        """Return the indices of the P failures of a generation, counted from 0."""
        known = max(0, number - self.lag + 1)
        if known > len(self.verdicts.generations):
            raise RuntimeError(f"generation {number} was sampled before the verdicts of generation {known - 1} arrived")
        weights = self.verdicts.weights(known, group=self.mini_repeat_count)
        noise = np.random.default_rng(seed_of(self.seed, "draw", number)).gumbel(size=self.num_samples)
        keys = np.log(np.maximum(weights, 1e-9)) + noise  # the largest keys: a draw without replacement (Yellott 1977)
        return [int(index) for index in np.argsort(-keys, kind="stable")[: self.batch_size]]


def lag_of(args: GRPOConfig) -> int:
    """Return how many generations before a draw its latest verdicts are, at least.

    A step reads all of its batches before it trains on the first, accelerate one more, and workers of the data loader
    more of them. A batch is one use of a generation.
    """
    ahead = args.gradient_accumulation_steps + args.dataloader_num_workers * (args.dataloader_prefetch_factor or 2)
    uses = args.num_iterations * (args.steps_per_generation or 1)
    return -(-ahead // uses) + 1


def sampler_of(trl: Any, args: GRPOConfig, verdicts: Verdicts | None) -> RepeatSampler:
    """Return the sampler that takes the place of TRL's; `verdicts` is None for a random order."""
    layout = trl.data_source, trl.mini_repeat_count, trl.batch_size, trl.repeat_count, trl.shuffle, trl.seed
    if verdicts is None:
        return EpochSampler(*layout)
    return PosteriorSampler(*layout, verdicts=verdicts, lag=lag_of(args))
