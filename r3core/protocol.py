"""The protocol: attempt, verify, reflect, retry, verify, over batches of episodes.

Mining, training and evaluation all run through here, so they cannot differ in the model's prompts or in how its answers
are judged. Nothing here depends on the engine that generates the text.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import compress, repeat
from typing import Any, TypeVar

from r3core import prompts
from r3core.activity import ENGINE, waiting_for
from r3core.config import Config
from r3core.episode import Answer, Arm, Episode, Reflection, Round, Text
from r3core.errors import RunError
from r3core.generation.generator import Completion, Generator, Sampling
from r3core.prompts import Feedback
from r3core.sections import Turn
from r3core.task import Example, Prompt, Task, Verdict, Wording
from r3core.verification.batch import Batch
from r3core.verification.judge import Judge

T = TypeVar("T")


def seed_of(*parts: object) -> int:
    """Return a seed that depends on the parts alone, such as a run's seed, a stage and a batch; 56 bits."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


@dataclass
class Lengths:
    """Counts of prompts, and of those that do not fit the model's context."""

    total: int = 0
    overlong: int = 0
    first: str = ""
    """By how much the first of them exceeds it."""

    def count(self, completions: Sequence[tuple[Example, Completion]], *, limit: float) -> None:
        """Add completions; RunError when more than the share `limit` of at least 20 prompts is overlong."""
        self.total += len(completions)
        for example, completion in completions:
            if completion.stopped == "overlong":
                self.overlong += 1
                self.first = self.first or f"example {example.id!r}: {completion.fault}"
        if self.total >= 20 and self.overlong > limit * self.total:
            raise RunError(
                f"{self.overlong} of {self.total} conversations do not fit the model's context; "
                f"at most {limit:.0%} are tolerated (`max_overlong`)",
                f"the first was {self.first}",
                "lower the max_tokens of the turns under `sampling`, choose a model with a longer context, leave such "
                "problems out, or raise max_overlong",
            )


@dataclass(frozen=True)
class Protocol:
    """One task's protocol: its prompts, its sampling parameters, and the judge of its answers."""

    task: Task
    judge: Judge
    config: Config
    lengths: Lengths = field(default_factory=Lengths, compare=False)
    """Prompts that did not fit the model's context so far."""

    @property
    def wording(self) -> Wording:
        return self.config.wording_for(self.task)

    @property
    def feedback(self) -> Feedback:
        return self.config.feedback

    def attempt(
        self, examples: Sequence[Example], generator: Generator, *, seed: int, samples: int = 1
    ) -> list[Episode]:
        """Return `samples` judged attempts at each example; those at the same example are adjacent."""
        repeated = [example for example in examples for _ in range(samples)]
        requests = [self.attempt_request(example) for example in repeated]
        answers = self._answers(repeated, requests, generator, "attempt", seed=seed)
        return [
            Episode(example=example, sample=index % samples, attempt=answer)
            for index, (example, answer) in enumerate(zip(repeated, answers, strict=True))
        ]

    def reflect(self, episodes: Sequence[Episode], generator: Generator, *, seed: int) -> list[Episode]:
        """Return the episodes with a reflection on every attempt that failed; the others are unchanged."""
        failed = [episode for episode in episodes if episode.failed]
        sampling = _sampling(self.config.sampling.reflection, seed)
        requests = [self.reflection_request(episode) for episode in failed]
        completions, leaks = self._reflections(failed, requests, generator, sampling)
        tested = zip(self.with_reflections(failed, completions), leaks, strict=True)
        reflected = iter([with_leak(episode, leaked) for episode, leaked in tested])
        return [next(reflected) if episode.failed else episode for episode in episodes]

    def with_reflections(self, failed: Sequence[Episode], completions: Sequence[Completion]) -> list[Episode]:
        """Return failed episodes with these reflections, not yet tested for leaks, and without earlier retries."""
        return [
            episode.model_copy(update={"reflection": Reflection(**_text(completion)), **_NOT_RETRIED})
            for episode, completion in zip(failed, completions, strict=True)
        ]

    def retry(
        self, episodes: Sequence[Episode], generator: Generator, *, seed: int, arm: Arm = "reflect"
    ) -> list[Episode]:
        """Return the episodes with a judged retry after every failure; `arm` is what precedes the retry."""
        if arm == "resample":
            return self.resample(episodes, generator, seed=seed, count=1)
        return self.retries(episodes, generator, seed=seed, arms=[arm])

    def retries(
        self, episodes: Sequence[Episode], generator: Generator, *, seed: int, arms: Sequence[Arm]
    ) -> list[Episode]:
        """Return the episodes with a judged retry after every failure for each arm but `resample`.

        The retries of all arms are generated together, so that an engine can share what their prompts begin with. A
        failure for which an arm has nothing (no other problem's reflection exists) gets no retry. One whose reflection
        is overlong gets a retry that is overlong too; one cut off in its thinking, a retry that is skipped.
        """
        requests = {
            (place, arm): request
            for place, (episode, other) in enumerate(zip(episodes, _others(episodes), strict=True))
            for arm in arms
            if (request := self._retry_request(episode, arm, other, generator)) is not None
        }
        examples = [episodes[place].example for place, _ in requests]
        counted = [arm == "reflect" for _, arm in requests]
        answers = self._answers(examples, list(requests.values()), generator, "retry", seed=seed, counted=counted)
        retries = [dict(episode.retries) for episode in episodes]
        for place, episode in enumerate(episodes):
            if "reflect" in arms and (skipped := _skipped_retry(episode)):
                retries[place]["reflect"] = skipped
        for (place, arm), answer in zip(requests, answers, strict=True):
            retries[place][arm] = answer
        return [episode.model_copy(update={"retries": after}) for episode, after in zip(episodes, retries, strict=True)]

    def resample(self, episodes: Sequence[Episode], generator: Generator, *, seed: int, count: int) -> list[Episode]:
        """Return the episodes with fresh attempts at every failure: the first is the arm `resample`."""
        again = [episode for episode in episodes if episode.failed for _ in range(count)]
        requests = [self.attempt_request(episode.example) for episode in again]
        examples = [episode.example for episode in again]
        uncounted = [False] * len(again)
        answers = iter(self._answers(examples, requests, generator, "attempt", seed=seed, counted=uncounted))
        found = []
        for episode in episodes:
            if episode.failed:
                first, *others = (next(answers) for _ in range(count))
                update = {"retries": episode.retries | {"resample": first}, "resamples": tuple(others)}
                found.append(episode.model_copy(update=update))
            else:
                found.append(episode)
        return found

    def another_round(self, episodes: Sequence[Episode], generator: Generator, *, seed: int) -> list[Episode]:
        """Return the episodes with one more round where the last retry failed: a reflection on it, and a retry.

        The conversation continues: the model sees its earlier answers and reflections.
        """
        failed = [e for e in episodes if "reflect" in e.retries and e.answers[-1].verdict.outcome == "fail"]
        before = [self._until_last(episode) for episode in failed]
        requests = [prompts.reflect(*one, self.wording, self.config.history) for one in before]
        sampling = _sampling(self.config.sampling.reflection, seed_of(seed, "reflection"))
        uncounted = [False] * len(failed)
        completions, leaks = self._reflections(failed, requests, generator, sampling, counted=uncounted)
        reflections = [Reflection(**_text(one), leaked=leaked) for one, leaked in zip(completions, leaks, strict=True)]
        answered = [place for place, reflection in enumerate(reflections) if not reflection.unanswered]
        again = [
            prompts.retry(*before[place], reflections[place], self.wording, self.config.history) for place in answered
        ]
        examples = [failed[place].example for place in answered]
        seed = seed_of(seed, "retry")
        retries = iter(self._answers(examples, again, generator, "retry", seed=seed, counted=uncounted[: len(again)]))
        rounds = iter(
            [Round(reflection=one, retry=_skipped(one) if one.unanswered else next(retries)) for one in reflections]
        )
        chosen = set(map(id, failed))
        return [
            episode.model_copy(update={"rounds": (*episode.rounds, next(rounds))}) if id(episode) in chosen else episode
            for episode in episodes
        ]

    def _until_last(self, episode: Episode) -> tuple[Prompt, Answer, str]:
        """Return the prompt of the last retry, that retry, and the sentence about its failure."""
        request, answer = self.retry_request(episode, episode.reflection), episode.retries["reflect"]
        for one in episode.rounds:
            failed = prompts.failure(self.wording, answer.verdict, self.feedback)
            request = prompts.retry(request, answer, failed, one.reflection, self.wording, self.config.history)
            answer = one.retry
        return request, answer, prompts.failure(self.wording, answer.verdict, self.feedback)

    def _reflections(
        self,
        failed: Sequence[Episode],
        requests: Sequence[Prompt],
        generator: Generator,
        sampling: Sampling,
        *,
        counted: Sequence[bool] | None = None,
    ) -> tuple[list[Completion], list[bool | None]]:
        """Return the reflections on some failures, and whether each reveals the answer."""
        leaks = self.judge.leaks()
        completions = self._generate(
            [e.example for e in failed],
            requests,
            generator,
            sampling,
            turns="reflections",
            into=leaks,
            unjudged=no_leak,
            counted=counted,
        )
        return completions, leaks.result()

    def attempt_request(self, example: Example) -> Prompt:
        """Return the prompt of an attempt."""
        return prompts.attempt(self.task, example)

    def reflection_request(self, episode: Episode) -> Prompt:
        """Return the prompt of a reflection on a failed attempt."""
        failed = prompts.failure(self.wording, episode.attempt.verdict, self.feedback)
        first = self.attempt_request(episode.example)
        return prompts.reflect(first, episode.attempt, failed, self.wording, self.config.history)

    def retry_request(self, episode: Episode, reflection: Text | str | None) -> Prompt:
        """Return the prompt of a retry; without a reflection, the retry is requested right after the failure."""
        failed = prompts.failure(self.wording, episode.attempt.verdict, self.feedback)
        first = self.attempt_request(episode.example)
        return prompts.retry(first, episode.attempt, failed, reflection, self.wording, self.config.history)

    def _retry_request(self, episode: Episode, arm: Arm, other: Episode | None, generator: Generator) -> Prompt | None:
        if not episode.failed:
            return None
        if arm == "none":
            return self.retry_request(episode, None)
        if arm == "generic":
            return self.retry_request(episode, self.wording.generic)
        source = other if arm == "shuffled" else episode
        reflection = source.reflection if source else None
        if reflection is None or reflection.unanswered:
            return None
        return self.retry_request(episode, prompts.placebo(reflection, generator) if arm == "placebo" else reflection)

    def _answers(
        self,
        examples: Sequence[Example],
        requests: Sequence[Prompt],
        generator: Generator,
        turn: str,
        *,
        seed: int,
        counted: Sequence[bool] | None = None,
    ) -> list[Answer]:
        """Return a judged answer to each request; see `_generate` for `counted`."""
        sampling = _sampling(getattr(self.config.sampling, turn), seed)
        verdicts = self.judge.verdicts()
        turns = "attempts" if turn == "attempt" else "retries"
        completions = self._generate(
            examples, requests, generator, sampling, turns=turns, into=verdicts, unjudged=_no_verdict, counted=counted
        )
        judged = zip(completions, verdicts.result(), strict=True)
        answers = [
            Answer(**_text(completion), verdict=malformed_calls(completion) or verdict)
            for completion, verdict in judged
        ]
        self.judge.check_errors()
        return answers

    def submit(
        self,
        examples: Sequence[Example],
        new: Sequence[tuple[int, Completion]],
        *,
        into: Batch[T],
        unjudged: Callable[[Completion], T],
    ) -> None:
        """Give completions to a judge's batch, each with the index of its example; see `_generate` for `unjudged`."""
        answered = [(index, completion) for index, completion in new if not completion.unanswered]
        into.add((index, examples[index], response(self.task, completion)) for index, completion in answered)
        for index, completion in new:
            if completion.unanswered:
                into.set_result(index, unjudged(completion))

    def _generate(
        self,
        examples: Sequence[Example],
        requests: Sequence[Prompt],
        generator: Generator,
        sampling: Sampling,
        *,
        turns: str,
        into: Batch[T],
        unjudged: Callable[[Completion], T],
        counted: Sequence[bool] | None = None,
    ) -> list[Completion]:
        """Return one completion per prompt; each is judged, into `into`, while others are still being generated.

        `turns` names the completions for people. `unjudged` returns the result of a completion without an answer: its
        prompt does not fit the model's context, or it was cut off in its thinking.

        Raises RunError when too many of the prompts do not fit. Where `counted` is false, any number may be overlong:
        controls and further rounds have longer prompts than the turns of the method, and end no run of many hours.
        """
        # A policy of several processes generates in all of them, or waits forever for the one that has no prompts.
        joins = bool(requests) or getattr(generator, "collective", False)
        with waiting_for(ENGINE, turns, total=len(requests)) as activity:

            def ended(new: Sequence[tuple[int, Completion]]) -> None:
                activity.done += len(new)
                self.submit(examples, new, into=into, unjudged=unjudged)

            completions = generator.generate(requests, sampling, ended=ended) if joins else []
        essential = compress(zip(examples, completions, strict=True), repeat(True) if counted is None else counted)
        self.lengths.count(list(essential), limit=self.config.max_overlong)
        return completions


def no_leak(_: Completion) -> bool | None:
    """Return the result of the leak test for a reflection without an answer: unknown."""
    return None


def response(task: Task, turn: Text) -> str:
    """Return what a task's verifier reads of a turn; see `Task.reads`."""
    return turn.raw if task.reads == "everything" and turn.raw is not None else turn.text


def malformed_calls(turn: Text) -> Verdict | None:
    """Return the verdict on an answer whose function calls cannot be read; None for any other answer."""
    return Verdict.failed(f"malformed call: {turn.malformed}", kind="malformed call") if turn.malformed else None


def with_leak(episode: Episode, leaked: bool | None) -> Episode:
    """Return the episode with the result of its reflection's leak test."""
    assert episode.reflection is not None
    return episode.model_copy(update={"reflection": episode.reflection.model_copy(update={"leaked": leaked})})


_NOT_RETRIED: dict[str, Any] = {"retries": {}, "resamples": (), "rounds": ()}


def _no_verdict(completion: Completion) -> Verdict:
    return Verdict.error(completion.fault or "the token limit cut it off in its thinking")


def _skipped_retry(episode: Episode) -> Answer | None:
    """Return a retry that was not generated, if the episode's reflection has no answer, else None."""
    if episode.reflection is None or not episode.reflection.unanswered:
        return None
    return _skipped(episode.reflection)


def _skipped(reflection: Reflection) -> Answer:
    """Return the retry that was not generated, as the reflection before it has no answer."""
    if reflection.stopped == "overlong":
        verdict = Verdict.error("the request to reflect exceeds the model's context")
        return Answer(text="", tokens=0, stopped="overlong", verdict=verdict)
    verdict = Verdict.error("the token limit cut the reflection off in its thinking")
    return Answer(text="", tokens=0, stopped="skipped", verdict=verdict)


def _sampling(turn: Turn, seed: int) -> Sampling:
    return Sampling(**turn.model_dump(), seed=seed)


def _text(completion: Completion) -> dict[str, Any]:
    return completion.model_dump(exclude={"fault"})


def _others(episodes: Sequence[Episode]) -> list[Episode | None]:
    """Return, for each episode, the next failure about another problem; after the last failure comes the first."""
    failed = [(index, episode) for index, episode in enumerate(episodes) if episode.failed]
    found: list[Episode | None] = []
    for place, episode in enumerate(episodes):
        after = bisect_right(failed, place, key=lambda pair: pair[0])
        later = (other for _, other in failed[after:] + failed[:after])
        found.append(next((other for other in later if other.example.id != episode.example.id), None))
    return found
