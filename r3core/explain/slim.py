"""Episodes without their texts: all that the rates of an evaluation are computed from, in little memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from r3core.episode import Answer, Episode, Reflection, Stopped
from r3core.task import Example, Outcome, Verdict

_SHARED = 100_000


def without_texts(episodes: Iterable[Episode]) -> Iterator[Episode]:
    """Yield episodes with the same rates and no texts, tokens or data of the problem; equal turns are one object."""
    for episode in episodes:
        yield Episode(
            example=Example(id=episode.example.id),
            sample=episode.sample,
            attempt=_answer(episode.attempt),
            reflection=episode.reflection and _reflection(episode.reflection),
            retries={arm: _answer(retry) for arm, retry in episode.retries.items()},
            resamples=tuple(map(_answer, episode.resamples)),
        )


def _answer(answer: Answer) -> Answer:
    verdict = answer.verdict
    return _shared_answer(answer.tokens, answer.stopped, answer.thought_closed, verdict.outcome, verdict.kind)


@lru_cache(_SHARED)
def _shared_answer(tokens: int, stopped: Stopped, closed: bool, outcome: Outcome, kind: str) -> Answer:
    verdict = Verdict(outcome=outcome, kind=kind)
    return Answer(text="", tokens=tokens, stopped=stopped, thought_closed=closed, verdict=verdict)


def _reflection(reflection: Reflection) -> Reflection:
    return _shared_reflection(reflection.tokens, reflection.stopped, reflection.thought_closed, reflection.leaked)


@lru_cache(_SHARED)
def _shared_reflection(tokens: int, stopped: Stopped, closed: bool, leaked: bool | None) -> Reflection:
    return Reflection(text="", tokens=tokens, stopped=stopped, thought_closed=closed, leaked=leaked)
