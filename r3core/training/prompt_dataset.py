"""The rows that TRL trains on: requests to reflect, of the failures on which a reflection fits the model's context."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trl.trainer.grpo_config import GRPOConfig

from r3core.distributed import rank
from r3core.errors import RunError
from r3core.failures import Failure
from r3core.generation.chat import encode, fault_of_length
from r3core.generation.generator import Sampling
from r3core.protocol import Protocol

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def failures_that_fit(
    protocol: Protocol,
    failures: Sequence[Failure],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int | None,
    args: GRPOConfig,
) -> list[Failure]:
    """Return the failures whose request leaves room for a reflection in the model's context, in tokens.

    Prints a warning when some are skipped. Raises RunError when their share exceeds `max_overlong`.
    """
    sampling = Sampling(max_tokens=args.max_completion_length or 256)
    prompts = [encode(tokenizer, protocol.reflection_request(failure.episode())) for failure in failures]
    faults = [fault_of_length(prompt, sampling, context) for prompt in prompts]
    too_long = [f"failure {failure.id!r}: {fault}" for failure, fault in zip(failures, faults, strict=True) if fault]
    if not too_long:
        return list(failures)
    limit = protocol.config.max_overlong
    summary = f"{len(too_long)} of {len(failures)} failures leave no room for a reflection in the model's context"
    if len(too_long) > limit * len(failures):
        raise RunError(
            f"{summary}; the maximum is {limit:.0%} (`max_overlong`)",
            f"the first is {too_long[0]}",
            "lower grpo.max_completion_length or sampling.reflection.max_tokens, or use a model with a longer context",
        )
    if rank() == 0:
        print(f"warning: {summary} and are skipped; the first is {too_long[0]}", file=sys.stderr)
    return [failure for failure, fault in zip(failures, faults, strict=True) if not fault]


def prompt_dataset(protocol: Protocol, failures: Sequence[Failure], at_a_time: int) -> Dataset:
    """Return the rows that TRL samples from: a request to reflect, and the index of its failure.

    Raises RunError when there are fewer rows than one generation uses: TRL would train no step, and report no error.
    """
    from datasets import Dataset

    if len(failures) < at_a_time:
        raise RunError(
            f"{len(failures)} failures are too few to train on: each generation uses {at_a_time} of them",
            "mine more problems (--set mine.limit=...), or lower grpo.per_device_train_batch_size",
        )
    requests = [protocol.reflection_request(failure.episode()).messages for failure in failures]
    return Dataset.from_dict({"prompt": requests, "failure": list(range(len(failures)))})
