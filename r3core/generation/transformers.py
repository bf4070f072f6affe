"""The `transformers` engine: batched generation with a key-value cache, on a model in this process.

Shapes in comments: B rows of the batch, T tokens of a row, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

from r3core.engine import Engine
from r3core.generation.cache import CachedRows, common_prefixes
from r3core.generation.chat import Take, check_lengths, converse, end_ids
from r3core.generation.generator import Completion, Continued, Ended, Sampling
from r3core.generation.models import context_of, load
from r3core.generation.out_of_memory import generating, generating_hints, memory_errors
from r3core.task import Prompt

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from r3core.runs import Run

_SHRINK_AT = 0.7  # the batch is rebuilt without its ended rows when at most this share of it is still alive


class TransformersEngine(Engine):
    """Generates with a transformers model in this process."""

    name = "transformers"
    in_process = True

    def open(self, model: str, *, run: Run | None = None) -> TransformersGenerator:
        """Load a local folder or a Hub model; UsageError when it cannot be loaded."""
        return TransformersGenerator(*load(self.config, model), batch_size=self.config.batch_size)


class TransformersGenerator:
    """Continues conversations with a transformers model.

    Prompts are sorted by length, so that there is little padding; a prompt that occurs several times, and what several
    begin with, is computed once per batch. Rows that have ended leave the batch, and their part of the cache is freed,
    once enough of them have: copying the cache costs more than a few rows that are computed for nothing.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 128) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    @property
    def context(self) -> int | None:
        """Maximum number of tokens of prompt and completion together; None where the configuration has none."""
        return context_of(self.model.config)

    def generate(
        self, conversations: Sequence[Prompt], sampling: Sampling, *, ended: Ended | None = None
    ) -> list[Completion]:
        """Return one completion per conversation, in the same order; `ended` is called when rows leave the batch."""
        return converse(self, self.tokenizer, conversations, sampling, ended=ended)

    def continue_ids(
        self, prompts: Sequence[list[int]], sampling: Sampling, *, take: Take | None = None
    ) -> list[Continued]:
        """Return the continuation of each prompt of token ids.

        `take` is called with the rows that have just ended, each with its prompt's index.

        Raises:
            TooLong: a prompt and `max_tokens` together exceed the model's context.
            RunError: the device has too little memory for a batch.
        """
        import torch

        check_lengths(self.tokenizer, prompts, sampling, context=self.context)
        results = [Continued([], False)] * len(prompts)
        random = torch.Generator(self.model.device).manual_seed(sampling.seed)  # one for all batches
        was_training = self.model.training
        self.model.eval()
        try:
            for batch in self._batches(prompts):
                together = [prompts[index] for index in batch]
                with torch.no_grad(), self._memory_errors(together, sampling):
                    for rows in self._continue(together, sampling, random):
                        new = [(batch[row], continued) for row, continued in rows]
                        for index, continued in new:
                            results[index] = continued
                        if take:
                            take(new)
        finally:
            self.model.train(was_training)
        return results

    def close(self) -> None:
        """Free the model's memory."""
        import torch

        del self.model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _memory_errors(self, prompts: Sequence[list[int]], sampling: Sampling) -> AbstractContextManager[None]:
        doing = generating(prompts, max_tokens=sampling.max_tokens, batch_size=self.batch_size)
        return memory_errors(doing, partial(generating_hints, self.batch_size))

    def _batches(self, prompts: Sequence[list[int]]) -> Iterator[list[int]]:
        """Yield the indices of prompts that go through the model together: long ones first.

        Those with a common beginning are in a row, and so are equal ones.
        """
        first: dict[tuple[int, ...], int] = {}  # prompt -> its first index
        for index, prompt in enumerate(prompts):
            first.setdefault(tuple(prompt), index)
        _, beginning = common_prefixes(prompts)
        longest: Counter[int] = Counter()
        for prompt, place in zip(prompts, beginning, strict=True):
            longest[place] = max(longest[place], len(prompt))

        def place_of(index: int) -> tuple[int, ...]:
            place, prompt = beginning[index], prompts[index]
            return -longest[place], place, -len(prompt), first[tuple(prompt)]

        order = sorted(range(len(prompts)), key=place_of)
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def _continue(
        self, prompts: Sequence[list[int]], sampling: Sampling, random: torch.Generator
    ) -> Iterator[list[tuple[int, Continued]]]:
        """Yield the rows that have ended, with their places among the prompts: when the batch shrinks, and at the end.

        The batch begins with one row per distinct prompt, has one row per prompt after the first step, and shrinks from
        then on. `rows`, `alive` and the cache always describe the same B rows in the same order.
        """
        import torch

        device = self.model.device
        distinct = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        end = end_ids(self.tokenizer, self.model.generation_config)
        ends = torch.tensor(sorted(end), device=device)  # (number of end tokens,)
        cached = CachedRows(self.model, list(distinct), pad=self.tokenizer.pad_token_id or 0)
        rows = torch.arange(len(prompts), device=device)  # (B,): the prompt that each row continues
        alive = torch.ones(len(prompts), dtype=torch.bool, device=device)  # (B,): rows without an end token so far
        written = _Written(len(prompts), end)
        for step in range(sampling.max_tokens):
            logits = cached.next_logits()  # (B, V); in the first step (distinct prompts, V)
            if step == 0 and len(distinct) < len(prompts):
                # Equal prompts share their first logits; from here on each row has tokens of its own.
                copies = torch.tensor([distinct[tuple(prompt)] for prompt in prompts], device=device)  # (B,)
                cached.select(copies)
                logits = logits[copies]  # (B, V)
            tokens = _sample(logits, sampling, random)  # (B,); those of ended rows are thrown away
            written.add(rows[alive], tokens[alive])
            alive = alive & ~torch.isin(tokens, ends)
            living = int(alive.sum())
            if living == 0:
                break
            if living <= _SHRINK_AT * len(rows):
                yield written.take(rows[~alive])
                staying = alive.nonzero().squeeze(1)  # (living,)
                cached.select(staying)  # copies the keys and values of all layers: too dear for every ended row
                rows, tokens, alive = (t[staying] for t in (rows, tokens, alive))  # B is `living` now
            cached.append(tokens)
        yield written.take(rows)  # those that ended since the last time the batch shrank, and those at the limit


def _sample(logits: torch.Tensor, sampling: Sampling, random: torch.Generator) -> torch.Tensor:
    """Sample one token per row; (B, V) -> (B,)."""
    import torch
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    if sampling.temperature == 0:
        return logits.argmax(-1)
    scores = logits.float() / sampling.temperature  # (B, V)
    unused = torch.empty(0, dtype=torch.long)  # in place of the tokens so far, which these warpers do not read
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(unused, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(unused, scores)
    return torch.multinomial(scores.softmax(-1), 1, generator=random).squeeze(1)


class _Written:
    """The tokens sampled so far; they stay on the device until rows are taken, as each copy waits for the GPU."""

    def __init__(self, count: int, ends: set[int]) -> None:
        self.ends = ends
        self.ids: list[list[int]] = [[] for _ in range(count)]
        self.steps: list[tuple[torch.Tensor, torch.Tensor]] = []  # rows and their tokens, both (living rows,)

    def add(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        self.steps.append((rows, tokens))

    def take(self, rows: torch.Tensor) -> list[tuple[int, Continued]]:
        """Return the continuations in some rows, which are complete."""
        for places, tokens in self.steps:
            for place, token in zip(places.tolist(), tokens.tolist(), strict=True):
                self.ids[place].append(token)
        self.steps.clear()
        return [(row, self._continued(self.ids[row])) for row in rows.tolist()]

    def _continued(self, ids: list[int]) -> Continued:
        return Continued(ids, bool(ids) and ids[-1] in self.ends)
