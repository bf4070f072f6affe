"""What one generation of training samples: for each failure of the batch, G samples of the turns of the objective.

A sample begins with the objective's first turn, which TRL's trainer requests. It and the turns after it are generated
here, with the current policy, and all of them are judged by the protocol. Notation as in trainer.py: B samples are
those of this process, and k is `train.retries`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from accelerate.utils import gather_object

from r3core.activity import ENGINE, PROCESS, waiting_for
from r3core.episode import Episode
from r3core.generation.chat import Take, completion, converse, encode, fault_of_length
from r3core.generation.generator import Completion, Continued, Ended, Sampling, overlong
from r3core.objective import Segment, Turn
from r3core.protocol import no_leak, with_leak
from r3core.reward import judged
from r3core.task import Prompt
from r3core.training.policy import Policy

if TYPE_CHECKING:
    from r3core.training.trainer import ReflectionTrainer


class Row(NamedTuple):
    """The tokens of one turn, as TRL trains them."""

    prompt: list[int]
    ids: list[int]
    """The turn, with its end-of-turn token where it has one."""
    logprobs: list[float] | None = None
    """The log-probabilities that vLLM sampled `ids` with."""
    start: int = 0
    """Index in `ids` of the first trained token."""

    @property
    def mask(self) -> list[int]:
        """1 per trained token, 0 per other token."""
        return [0] * self.start + [1] * (len(self.ids) - self.start)


class Recorder:
    """The policy of a trainer as a generator that also records the tokens it has sampled."""

    collective = Policy.collective

    def __init__(self, trainer: ReflectionTrainer) -> None:
        self.trainer = trainer
        self.rows: list[Row | None] = []
        """The rows of the last call, one per conversation; None for one that does not fit the model's context."""
        self._sampled: list[Row] = []

    @property
    def context(self) -> int | None:
        """The maximum length of prompt and completion together, in tokens; None when the model has none."""
        return self.trainer.policy.context

    def generate(
        self, conversations: Sequence[Prompt], sampling: Sampling, *, ended: Ended | None = None
    ) -> list[Completion]:
        """Return one completion per conversation, in the same order."""
        completions = converse(self, self.trainer.processing_class, conversations, sampling, ended=ended)
        sampled = iter(self._sampled)
        self.rows = [None if one.stopped == "overlong" else next(sampled) for one in completions]
        return completions

    def continue_ids(
        self, prompts: Sequence[list[int]], sampling: Sampling, *, take: Take | None = None
    ) -> list[Continued]:
        """Return the continuations of prompts of token ids, in the same order."""
        served = bool(self.trainer.use_vllm)
        results = self.trainer.policy.continue_ids(prompts, sampling, logprobs=served, take=take)
        self._sampled = [
            Row(prompt, one.ids, one.logprobs if served else None) for prompt, one in zip(prompts, results, strict=True)
        ]
        self.trainer.usage.count_generated(self._sampled)
        return results

    def close(self) -> None:
        """Do nothing: the weights belong to the trainer."""


class _Written:
    """A generator of completions that exist already: by it, the protocol judges what TRL's trainer has sampled."""

    def __init__(self, completions: Sequence[Completion]) -> None:
        self.completions = list(completions)

    def generate(
        self, conversations: Sequence[Prompt], sampling: Sampling, *, ended: Ended | None = None
    ) -> list[Completion]:
        if ended:
            ended(list(enumerate(self.completions)))
        return self.completions

    def close(self) -> None:
        pass


class Rollout:
    """The B samples of this process in one generation; `failures` has the index of each sample's failure.

    First `prompts`, then `first_turns` or a sampling of TRL's own, then `complete` with what was sampled.
    """

    def __init__(self, trainer: ReflectionTrainer, failures: Sequence[int]) -> None:
        self.trainer = trainer
        self.failures = list(failures)
        self.config = trainer.protocol.config
        self.objective = self.config.objective
        self.protocol = replace(trainer.protocol, config=self.config.as_trained())
        self.recorder = Recorder(trainer)
        self.samples: list[list[Episode]] = []
        """The episodes of each sample: one per retry, or one alone without retries."""
        self.turn_rows: dict[Turn, list[Row | None]] = {}
        self.episodes = [trainer.failures[index].episode() for index in failures]
        self.faults: list[Completion | None] = []

    def prompts(self) -> list[list[int]]:
        """Return the B prompts of the first turn, as token ids."""
        if self.objective.first == "retry":
            return self._prompts_of_retries()
        requests = [
            self.protocol.attempt_request(episode.example)
            if self.objective.first == "attempt"
            else self.protocol.reflection_request(episode)
            for episode in self.episodes
        ]
        return [encode(self.trainer.processing_class, request) for request in requests]

    def first_turns(self, prompts: list[list[int]]) -> tuple[list[list[int]], list[Any] | None]:
        """Return the token ids of B first turns with their log-probabilities, which are None without vLLM."""
        trainer, args = self.trainer, self.trainer.args
        sampling = Sampling(
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k or 0,
            max_tokens=args.max_completion_length or 256,
            seed=self._seed("reflect" if self.objective.first == "reflection" else "first"),
        )
        served = bool(trainer.use_vllm)
        with waiting_for(ENGINE, f"{len(prompts):,} samples of the {self.objective.first}"):
            results = trainer.policy.continue_ids(prompts, sampling, group=trainer.num_generations, logprobs=served)
        return [result.ids for result in results], [result.logprobs for result in results] if served else None

    def complete(
        self, prompts: Sequence[list[int]], sampled: Sequence[list[int]], logprobs: Sequence[list[float]] | None
    ) -> None:
        """Judge B sampled turns, token ids after `prompts`, and generate and judge the turns after them."""
        tokenizer, ends, first = self.trainer.processing_class, self.trainer.eos_token_ids, self.objective.first
        completions = [
            completion(
                tokenizer,
                Continued(ids, bool(ids) and ids[-1] in ends),
                request=prompt,
                tools=self.trainer.failures[index].tools,
            )
            for ids, prompt, index in zip(sampled, prompts, self.failures, strict=True)
        ]
        self.turn_rows[first] = [
            Row(prompt, ids, one, self._start(written) if first == "reflection" else 0)
            for prompt, ids, one, written in zip(
                prompts, sampled, logprobs or repeat(None, len(sampled)), completions, strict=True
            )
        ]
        {"attempt": self._attempted, "reflection": self._reflected, "retry": self._retried_after_shared}[first](
            completions
        )

    def of_all_processes(self) -> tuple[list[int], list[list[Episode]]]:
        """Return the failures and the samples of all processes, P * G of them in the order of the ranks.

        Groups may span processes, so each process computes the rewards of all.
        """
        with waiting_for(PROCESS, "the verdicts of the other ranks"):
            gathered = gather_object(list(zip(self.failures, self.samples, strict=True)))
        return [index for index, _ in gathered], [sample for _, sample in gathered]

    def repeats(self, segment: Segment) -> int:
        """Return the number of rows that one sample has of a segment."""
        return self.config.train.retries if segment.turn == "retry" else 1

    def rows(self, segment: Segment) -> list[Row]:
        """Return the rows of a segment, B or B * k of them; one without a trained token where there is no such turn."""
        end = min(self.trainer.eos_token_ids)
        absent = Row([end], [end], [0.0], start=1)
        rows = [absent if row is None else row for row in self.turn_rows[segment.turn]]
        if segment.prompt == "own":
            return rows
        tasks = [
            encode(self.trainer.processing_class, self.protocol.attempt_request(episode.example))
            for sample in self.samples
            for episode in sample[: self.repeats(segment)]
        ]
        return [row if row is absent else row._replace(prompt=prompt) for row, prompt in zip(rows, tasks, strict=True)]

    def _start(self, written: Any) -> int:
        """Return the index of the first trained token of a reflection."""
        return int(written.answer_start) if self.config.train.tokens == "answer-of-reflection" else 0

    def _attempted(self, completions: Sequence[Completion]) -> None:
        examples = [episode.example for episode in self.episodes]
        attempted = self.protocol.attempt(examples, _Written(completions), seed=0)
        if not self.objective.retries:
            self.samples = [[episode] for episode in attempted]
            return
        learned = [e.failed and (self.config.mine.keep_truncated or judged(e.attempt) is False) for e in attempted]
        failed = [episode for episode, use in zip(attempted, learned, strict=True) if use]
        new = iter(self.protocol.reflect(failed, self.recorder, seed=self._seed("reflect")))
        reflected = [next(new) if use else episode for episode, use in zip(attempted, learned, strict=True)]
        rows = iter(self.recorder.rows)
        self.turn_rows["reflection"] = []
        for episode in reflected:
            row = next(rows) if episode.reflection is not None else None
            self.turn_rows["reflection"].append(row and row._replace(start=self._start(episode.reflection)))
        self._retry(reflected)

    def _reflected(self, completions: Sequence[Completion]) -> None:
        episodes = self.protocol.with_reflections(self.episodes, completions)
        leaks = self.protocol.judge.leaks()  # tested by worker processes while the retries are generated
        examples = [episode.example for episode in episodes]
        self.protocol.submit(examples, list(enumerate(completions)), into=leaks, unjudged=no_leak)
        self._retry(episodes)
        self.samples = [
            [with_leak(episode, leak) for episode in sample]
            for sample, leak in zip(self.samples, leaks.result(), strict=True)
        ]

    def _retry(self, episodes: Sequence[Episode]) -> None:
        """Generate k retries after each reflection; an episode without a reflection gets none."""
        per_reflection = self.config.train.retries
        repeated = [episode for episode in episodes for _ in range(per_reflection)]
        retried = self.protocol.retry(repeated, self.recorder, seed=self._seed("retry"))
        rows = iter(self.recorder.rows)
        self.turn_rows["retry"] = [
            next(rows) if episode.reflection is not None and not episode.reflection.unanswered else None
            for episode in repeated
        ]
        self.samples = [retried[start : start + per_reflection] for start in range(0, len(retried), per_reflection)]

    def _prompts_of_retries(self) -> list[list[int]]:
        """Return the prompts of B retries, after one new reflection per group.

        A row that cannot be retried, as its reflection has no answer or the prompt does not fit the context, gets a
        prompt of one token, and what is sampled after it is dropped.
        """
        self.episodes = self._with_shared_reflections()
        tokenizer, sampling = self.trainer.processing_class, self.protocol.config.sampling.retry
        longest = Sampling(max_tokens=sampling.max_tokens)
        prompts = []
        for episode in self.episodes:
            reflection, fault, prompt = episode.reflection, None, None
            if reflection is not None and not reflection.unanswered:
                prompt = encode(tokenizer, self.protocol.retry_request(episode, reflection))
                fault = fault_of_length(prompt, longest, self.trainer.policy.context)
            self.faults.append(overlong(fault) if fault else None)
            usable = prompt is not None and not fault
            prompts.append(prompt if usable and prompt else [min(self.trainer.eos_token_ids)])
        return prompts

    def _with_shared_reflections(self) -> list[Episode]:
        """Return the B episodes with one new reflection per group; the process with its first row generates it."""
        size, process = self.trainer.num_generations, self.trainer.accelerator.process_index
        numbers = range(process * len(self.failures), (process + 1) * len(self.failures))
        first = {number // size: e for number, e in zip(numbers, self.episodes, strict=True) if number % size == 0}
        reflected = self.protocol.reflect(list(first.values()), self.recorder, seed=self._seed("reflect"))
        with waiting_for(PROCESS, "the reflections of the other ranks"):
            found: dict[int, Episode] = dict(gather_object(list(zip(first, reflected, strict=True))))
        return [found[number // size] for number in numbers]

    def _retried_after_shared(self, completions: Sequence[Completion]) -> None:
        requested = [e.reflection is not None and not e.reflection.unanswered for e in self.episodes]
        rows = zip(requested, self.faults, completions, strict=True)
        written = [fault or sampled for asks, fault, sampled in rows if asks]
        retried = self.protocol.retry(self.episodes, _Written(written), seed=0)
        self.samples = [[episode] for episode in retried]
        self.turn_rows["retry"] = [
            row if asks and fault is None else None
            for row, asks, fault in zip(self.turn_rows["retry"], requested, self.faults, strict=True)
        ]

    def _seed(self, purpose: str) -> int:
        return self.trainer.seed_for(purpose, self.trainer.accelerator.process_index)
