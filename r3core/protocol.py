"""The protocol: attempt, verify, reflect, retry, verify, over batches of episodes.

Mining, training and evaluation all come through here, so none of them can differ from the others in what the model is
shown or how it is judged. Nothing here knows what generates the text.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from r3core import prompts
from r3core.config import Config, Turn
from r3core.episode import Answer, Arm, Episode, Reflection, Text
from r3core.errors import RunError
from r3core.generation.engine import Completion, Conversation, Generator, Sampling
from r3core.prompts import Feedback
from r3core.task import Example, Task, Verdict, Wording
from r3core.verification.batch import Batch
from r3core.verification.judge import Judge

T = TypeVar("T")


def seed_of(*parts: object) -> int:
    """Return a seed that follows from the parts alone: a run's seed, a stage, a batch."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


@dataclass
class Lengths:
    """How many conversations there were, and how many of them did not fit the model's context."""

    total: int = 0
    overlong: int = 0
    first: str = ""
    """What was wrong with the first of them."""

    def count(self, examples: Sequence[Example], written: Sequence[Completion], *, limit: float) -> None:
        """Add completions; RunError when a larger share than the limit did not fit, of at least 20."""
        self.total += len(written)
        for example, completion in zip(examples, written, strict=True):
            if completion.stopped == "overlong":
                self.overlong += 1
                self.first = self.first or f"example {example.id!r}: {completion.fault}"
        if self.total >= 20 and self.overlong > limit * self.total:
            raise RunError(
                f"{self.overlong} of {self.total} conversations do not fit the model's context; "
                f"at most {limit:.0%} are tolerated (`max_overlong`)",
                f"the first was {self.first}",
                "lower the max_tokens of the turns under `sampling`, take a model with a longer context, leave such "
                "problems out, or raise max_overlong",
            )


@dataclass(frozen=True)
class Protocol:
    """One task's protocol: what is said to the model, how its tokens are drawn, who judges."""

    task: Task
    judge: Judge
    config: Config
    lengths: Lengths = field(default_factory=Lengths, compare=False)
    """How many conversations did not fit the model's context so far."""

    @property
    def wording(self) -> Wording:
        return self.config.wording_for(self.task)

    @property
    def feedback(self) -> Feedback:
        return self.config.feedback

    def attempt(
        self, examples: Sequence[Example], generator: Generator, *, seed: int, samples: int = 1
    ) -> list[Episode]:
        """Return `samples` judged attempts at each example, those of one example side by side."""
        asked = [(example, sample) for example in examples for sample in range(samples)]
        conversations = [prompts.attempt(self.task, example) for example, _ in asked]
        answers = self._answers([example for example, _ in asked], conversations, generator, "attempt", seed=seed)
        return [
            Episode(example=example, sample=sample, attempt=answer)
            for (example, sample), answer in zip(asked, answers, strict=True)
        ]

    def reflect(self, episodes: Sequence[Episode], generator: Generator, *, seed: int) -> list[Episode]:
        """Return the episodes with a reflection on every attempt that failed; the others are as they were."""
        failed = [episode for episode in episodes if episode.failed]
        sampling = _sampling(self.config.sampling.reflection, seed)
        requests = [self.reflection_request(episode) for episode in failed]
        leaks = self.judge.leaks()
        written = self._written(
            [e.example for e in failed], requests, generator, sampling, into=leaks, unjudged=_no_leak
        )
        tested = zip(self.with_reflections(failed, written), leaks.result(), strict=True)
        reflected = iter([with_leak(episode, leaked) for episode, leaked in tested])
        return [next(reflected) if episode.failed else episode for episode in episodes]

    def with_reflections(self, failed: Sequence[Episode], written: Sequence[Completion]) -> list[Episode]:
        """Return failed episodes with the reflections that were written on them, not yet tested for leaks."""
        return [
            episode.model_copy(update={"reflection": Reflection(**_text(completion)), "retries": {}})
            for episode, completion in zip(failed, written, strict=True)
        ]

    def retry(
        self, episodes: Sequence[Episode], generator: Generator, *, seed: int, arm: Arm = "reflect"
    ) -> list[Episode]:
        """Return the episodes with a judged retry after every failure; `arm` says what comes before the retry.

        A failure that the arm cannot serve (another problem's reflection, where there is no other) gets none. One whose
        request to reflect did not fit the model's context gets a retry that is overlong too.
        """
        requests = [self._retry_request(e, arm, other) for e, other in zip(episodes, _others(episodes), strict=True)]
        served = [(e.example, request) for e, request in zip(episodes, requests, strict=True) if request is not None]
        turn = "attempt" if arm == "resample" else "retry"  # plain resampling is a fresh attempt
        answers = iter(self._answers([e for e, _ in served], [r for _, r in served], generator, turn, seed=seed))
        retried = [
            _overlong_retry(episode) if request is None and arm == "reflect" else next(answers) if request else None
            for episode, request in zip(episodes, requests, strict=True)
        ]
        return [
            episode if answer is None else episode.model_copy(update={"retries": episode.retries | {arm: answer}})
            for episode, answer in zip(episodes, retried, strict=True)
        ]

    def attempt_request(self, example: Example) -> Conversation:
        """Return the conversation that an attempt continues."""
        return prompts.attempt(self.task, example)

    def reflection_request(self, episode: Episode) -> Conversation:
        """Return the conversation that a reflection continues."""
        said = prompts.failure(self.wording, episode.attempt.verdict, self.feedback)
        return prompts.reflect(prompts.attempt(self.task, episode.example), episode.attempt, said, self.wording)

    def retry_request(self, episode: Episode, reflection: Text | str | None) -> Conversation:
        """Return the conversation that a retry continues; without a reflection it follows the failure at once."""
        said = prompts.failure(self.wording, episode.attempt.verdict, self.feedback)
        asked = prompts.attempt(self.task, episode.example)
        return prompts.retry(asked, episode.attempt, said, reflection, self.wording)

    def _retry_request(self, episode: Episode, arm: Arm, other: Episode | None) -> Conversation | None:
        if not episode.failed:
            return None
        if arm == "resample":
            return self.attempt_request(episode.example)
        if arm == "none":
            return self.retry_request(episode, None)
        if arm == "generic":
            return self.retry_request(episode, self.wording.generic)
        source = episode if arm == "reflect" else other
        written = source.reflection if source else None
        return self.retry_request(episode, written) if written and written.stopped != "overlong" else None

    def _answers(
        self,
        examples: Sequence[Example],
        conversations: Sequence[Conversation],
        generator: Generator,
        turn: str,
        *,
        seed: int,
    ) -> list[Answer]:
        sampling = _sampling(getattr(self.config.sampling, turn), seed)
        verdicts = self.judge.verdicts()
        written = self._written(
            examples, conversations, generator, sampling, into=verdicts, unjudged=lambda one: Verdict.error(one.fault)
        )
        judged = zip(written, verdicts.result(), strict=True)
        answers = [Answer(**_text(completion), verdict=verdict) for completion, verdict in judged]
        self.judge.check_errors()
        return answers

    def _written(
        self,
        examples: Sequence[Example],
        conversations: Sequence[Conversation],
        generator: Generator,
        sampling: Sampling,
        *,
        into: Batch[T],
        unjudged: Callable[[Completion], T],
    ) -> list[Completion]:
        """Return a completion per conversation; each is handed over to be judged while others are being written.

        `unjudged` returns what stands for the verdict on a conversation that did not fit the model's context. Raises
        RunError when too large a share of them does not.
        """

        def ended(new: Sequence[tuple[int, Completion]]) -> None:
            fitting = [(index, completion) for index, completion in new if completion.stopped != "overlong"]
            into.add((index, examples[index], completion.text) for index, completion in fitting)
            for index, completion in new:
                if completion.stopped == "overlong":
                    into.set_result(index, unjudged(completion))

        written = generator.generate(conversations, sampling, ended=ended) if conversations else []
        self.lengths.count(examples, written, limit=self.config.max_overlong)
        return written


def with_leak(episode: Episode, leaked: bool | None) -> Episode:
    """Return an episode whose reflection was tested for a leak."""
    assert episode.reflection is not None
    return episode.model_copy(update={"reflection": episode.reflection.model_copy(update={"leaked": leaked})})


def _no_leak(_: Completion) -> bool | None:
    return None


def _overlong_retry(episode: Episode) -> Answer | None:
    """Return the retry that stands where the request to reflect did not fit the context; None where it did."""
    if episode.reflection is None or episode.reflection.stopped != "overlong":
        return None
    verdict = Verdict.error("the request to reflect exceeds the model's context")
    return Answer(text="", tokens=0, stopped="overlong", verdict=verdict)


def _sampling(turn: Turn, seed: int) -> Sampling:
    return Sampling(**turn.model_dump(), seed=seed)


def _text(completion: Completion) -> dict[str, Any]:
    return completion.model_dump(include={"text", "tokens", "stopped", "token_ids"})


def _others(episodes: Sequence[Episode]) -> list[Episode | None]:
    """Return, for each episode, the next failure in the list (from its end on, the first) about another problem."""
    failed = [(index, episode) for index, episode in enumerate(episodes) if episode.failed]
    found: list[Episode | None] = []
    for place, episode in enumerate(episodes):
        after = bisect_right(failed, place, key=lambda pair: pair[0])
        later = (other for _, other in failed[after:] + failed[:after])
        found.append(next((other for other in later if other.example.id != episode.example.id), None))
    return found
