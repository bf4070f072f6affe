"""What a generation sampled: its rows in `train-episodes`, which turns were cut off, and what the retries read.

A sample is a list of episodes, one per retry, that share their attempt and their reflection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from r3core.config import Config
from r3core.episode import Episode, Reflection
from r3core.generation.probe import facts
from r3core.objective import Turn
from r3core.truncation import TruncationCounter


def rows_of(
    failures: Sequence[str],
    samples: Sequence[Sequence[Episode]],
    rewards: Sequence[float | None],
    *,
    step: int,
    first: Turn,
) -> list[dict[str, Any]]:
    """Return the rows of samples; `failures` has the id of each one's failure, `first` is the turn sampled first."""
    return [
        {
            "step": step,
            "id": failure,
            **({"attempt": sample[0].attempt} if first == "attempt" else {}),
            "reflection": sample[0].reflection,
            "retries": [episode.retries["reflect"] for episode in sample if "reflect" in episode.retries],
            "reward": reward,
        }
        for failure, sample, reward in zip(failures, samples, rewards, strict=True)
    ]


def count_truncated(counter: TruncationCounter, samples: Sequence[Sequence[Episode]], *, first: Turn) -> None:
    """Count the turns that the token limit cut off, which prints a warning where they are many."""
    if first == "attempt":
        counter.add("attempt", sum(sample[0].attempt.stopped == "length" for sample in samples), total=len(samples))
    reflections = _reflections(samples)
    counter.add("reflection", sum(one.stopped == "length" for one in reflections), total=len(reflections))
    answers = [e.retries["reflect"] for sample in samples for e in sample if "reflect" in e.retries]
    counter.add("retry", sum(answer.stopped == "length" for answer in answers), total=len(answers))


def read_by_retry(config: Config, tokenizer: Any, samples: Sequence[Sequence[Episode]]) -> float:
    """Return the share of the trained tokens of reflections that the retries read; 1 for a model without thinking."""
    only_answer = config.train.tokens == "answer-of-reflection"
    shown = config.history == "template" and facts(tokenizer).retry_reads_thought
    all_read = shown or config.history == "verbatim"
    read = trained = 0
    for reflection in _reflections(samples):
        answer = reflection.tokens - reflection.answer_start
        trained += answer if only_answer else reflection.tokens
        if not reflection.unanswered:  # no retry has read that
            read += reflection.tokens if all_read and not only_answer else answer
    return read / max(1, trained)


def _reflections(samples: Sequence[Sequence[Episode]]) -> list[Reflection]:
    return [sample[0].reflection for sample in samples if sample[0].reflection]
