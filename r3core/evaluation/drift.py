"""How training shifted the probabilities of tokens in first attempts, on fixed attempts of the base model.

A small shift of the same tokens everywhere turns the most probable one wherever two are close: greedy first tries can
fall by it while sampled ones do not. It needs both models in this process.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from statistics import fmean
from typing import TYPE_CHECKING, Any

from r3core.episode import Episode
from r3core.generation.chat import encode
from r3core.generation.logprobs import logprobs_of
from r3core.protocol import Protocol
from r3core.runs import Run, each_value
from r3core.task import Frozen

if TYPE_CHECKING:
    from r3core.executor import LocalExecutor

NAME = "drift"
"""The file with the value, without its suffix."""
_ATTEMPTS = 256
_LEAST_SHARE = 0.01
_LISTED = 10


class Shift(Frozen):
    """The mean change of the log probability of one token, over its occurrences."""

    token: str
    count: int
    shift: float
    """log p(trained) - log p(base), in nats."""


class Drift(Frozen):
    """How the trained model's probabilities differ from the base's on the base's own attempts."""

    attempts: int
    """Number of attempts, the first ones of the evaluation."""
    tokens: int
    mean: float
    """Mean of log p(trained) - log p(base) over all tokens."""
    shifts: list[Shift]
    """The tokens with the largest mean shift, among those that are at least 1% of all tokens."""


def measure_drift(run: Run, protocol: Protocol, executor: LocalExecutor, *, base: str, trained: str) -> Drift | None:
    """Return the drift between two models on attempts that `evaluate-base.jsonl` has, and write it to the run.

    None without attempts whose tokens are recorded.
    """
    rows = each_value(Episode, run.rows("evaluate-base"), "evaluate-base")
    episodes = list(islice((one for one in rows if one.attempt.token_ids), _ATTEMPTS))
    if not episodes:
        return None
    continuations = [one.attempt.token_ids or [] for one in episodes]
    sides: list[list[list[float]]] = []
    tokenizer: Any = None
    for name in (base, trained):
        generator: Any = executor.generator(name)
        tokenizer = generator.tokenizer
        prompts = [encode(tokenizer, protocol.attempt_request(one.example)) for one in episodes]
        sides.append(logprobs_of(generator.model, prompts, continuations))
    found = drift_of(continuations, *sides, name_of=lambda token: str(tokenizer.decode([token])))
    run.write_json(NAME, found)
    return found


def drift_of(
    tokens: Sequence[Sequence[int]],
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    *,
    name_of: Any,
) -> Drift:
    """Return the drift from the log probabilities of the same tokens before and after training."""
    shifts: dict[int, list[float]] = defaultdict(list)
    for row, old, new in zip(tokens, before, after, strict=True):
        for token, one, other in zip(row, old, new, strict=True):
            shifts[token].append(other - one)
    total = sum(map(len, shifts.values()))
    common = [token for token, found in shifts.items() if len(found) >= _LEAST_SHARE * total]
    largest = sorted(common, key=lambda token: -abs(fmean(shifts[token])))[:_LISTED]
    return Drift(
        attempts=len(tokens),
        tokens=total,
        mean=fmean(one for found in shifts.values() for one in found),
        shifts=[Shift(token=name_of(one), count=len(shifts[one]), shift=fmean(shifts[one])) for one in largest],
    )
