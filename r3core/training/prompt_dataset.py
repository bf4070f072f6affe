"""The rows that TRL trains on: the failures whose first prompt fits the model's context; and their cost in mining."""

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
from r3core.objective import Objective
from r3core.protocol import Protocol
from r3core.runs import RunRecord
from r3core.task import Prompt

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
    """Return the failures whose prompt leaves room for the sampled turn in the model's context, in tokens.

    Prints a warning when some are skipped. Raises RunError when their share exceeds `max_overlong`.
    """
    sampling = Sampling(max_tokens=args.max_completion_length or 256)
    first = protocol.config.objective.first
    turn = "an attempt" if first == "attempt" else "a reflection"
    prompts = [encode(tokenizer, _request(protocol, failure)) for failure in failures]
    faults = [fault_of_length(prompt, sampling, context) for prompt in prompts]
    too_long = [f"failure {failure.id!r}: {fault}" for failure, fault in zip(failures, faults, strict=True) if fault]
    if not too_long:
        return list(failures)
    limit = protocol.config.max_overlong
    summary = f"{len(too_long)} of {len(failures)} failures leave no room for {turn} in the model's context"
    if len(too_long) > limit * len(failures):
        raise RunError(
            f"{summary}; the maximum is {limit:.0%} (`max_overlong`)",
            f"the first is {too_long[0]}",
            f"lower grpo.max_completion_length or sampling.{first}.max_tokens, or use a model with a longer context",
        )
    if rank() == 0:
        print(f"warning: {summary} and are skipped; the first is {too_long[0]}", file=sys.stderr)
    return [failure for failure, fault in zip(failures, faults, strict=True) if not fault]


def prompt_dataset(protocol: Protocol, failures: Sequence[Failure], at_a_time: int) -> Dataset:
    """Return the rows that TRL samples from: the messages of a prompt, and the index of its failure.

    Raises RunError when there are fewer rows than one generation uses: TRL would train no step, and report no error.
    """
    from datasets import Dataset

    if len(failures) < at_a_time:
        raise RunError(
            f"{len(failures)} failures are too few to train on: each generation uses {at_a_time} of them",
            "mine more problems (--set mine.limit=...), or lower grpo.per_device_train_batch_size",
        )
    requests = [_request(protocol, failure).messages for failure in failures]
    return Dataset.from_dict({"prompt": requests, "failure": list(range(len(failures)))})


def _request(protocol: Protocol, failure: Failure) -> Prompt:
    """Return the first prompt of a sample: of an attempt, or of a reflection."""
    if protocol.config.objective.first == "attempt":
        return protocol.attempt_request(failure.episode().example)
    return protocol.reflection_request(failure.episode())


def mining_charge(run: RunRecord, objective: Objective, failures: Sequence[Failure]) -> float:
    """Return the tokens of mining per failure; 0 for an objective that begins with an attempt.

    A dataset of an earlier version does not have their number: then all attempts at a problem count as long as the
    failed one, and problems without a failure are left out.
    """
    if objective.first == "attempt" or not failures:
        return 0.0
    counts = (run.read_json("failures/card") or {}).get("counts", {})
    attempts = sum(failure.attempt.tokens * failure.samples for failure in failures)
    return float(counts.get("tokens", attempts)) / int(counts.get("failures", len(failures)))
