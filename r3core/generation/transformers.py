"""The `transformers` engine: batched generation with a key-value cache, on a model in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from r3core.generation.cache import CachedRows
from r3core.generation.chat import Take, check_lengths, converse, encode, end_ids
from r3core.generation.engine import Completion, Continued, Ended, Sampling, Samplings, each
from r3core.generation.models import context_of
from r3core.task import Prompt

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SHRINK_AT = 0.7  # the batch is rebuilt without its ended rows when only this share of it is still alive


class TransformersGenerator:
    """Continues conversations with a transformers model.

    Prompts are sorted by length, so that padding is small; a prompt that is there several times is computed once a
    batch. Rows that ended leave the batch, and their part of the cache is dropped, once enough of them have: rebuilding
    the cache for each would cost more than it saves.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 128) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    @property
    def context(self) -> int | None:
        """The longest sequence in tokens, prompt and completion together; None where the configuration names none."""
        return context_of(self.model.config)

    def generate(
        self, conversations: Sequence[Prompt], sampling: Samplings, *, ended: Ended | None = None
    ) -> list[Completion]:
        """Return one completion a conversation, in the same order; `ended` is called whenever rows leave the batch."""
        return converse(self, self.tokenizer, conversations, sampling, ended=ended)

    def encode(self, conversation: Prompt) -> list[int]:
        """Return the token ids of a conversation, up to where the assistant's turn begins; see `encode`."""
        return encode(self.tokenizer, conversation)

    def continue_ids(
        self, prompts: Sequence[list[int]], sampling: Samplings, *, take: Take | None = None
    ) -> list[Continued]:
        """Return what is generated after each prompt of token ids.

        `take` is called with the rows that have just ended, each with its prompt's index. Raises TooLong when a prompt
        and `max_tokens` together exceed the model's context.
        """
        import torch

        samplings = each(sampling, len(prompts))
        check_lengths(self.tokenizer, prompts, samplings, context=self.context)
        results = [Continued([], False)] * len(prompts)
        was_training = self.model.training
        self.model.eval()
        try:
            for kind, batch, random in self._batches(prompts, samplings):
                with torch.no_grad():
                    for rows in self._continue([prompts[index] for index in batch], kind, random):
                        new = [(batch[row], continued) for row, continued in rows]
                        for index, continued in new:
                            results[index] = continued
                        if take:
                            take(new)
        finally:
            self.model.train(was_training)
        return results

    def close(self) -> None:
        """Let go of the model's memory."""
        import torch

        del self.model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _batches(
        self, prompts: Sequence[list[int]], samplings: Sequence[Sampling]
    ) -> Iterator[tuple[Sampling, list[int], torch.Generator]]:
        """Yield indices of prompts that go through the model together: of one sampling, long ones first."""
        import torch

        kinds: dict[Sampling, list[int]] = {}
        first: dict[tuple[int, ...], int] = {}  # where each prompt stands first: equal ones are put side by side
        for index, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
            kinds.setdefault(sampling, []).append(index)
            first.setdefault(tuple(prompt), index)
        for sampling, members in kinds.items():
            random = torch.Generator(self.model.device).manual_seed(sampling.seed)
            order = sorted(members, key=lambda index: (-len(prompts[index]), first[tuple(prompts[index])]))
            for start in range(0, len(order), self.batch_size):
                yield sampling, order[start : start + self.batch_size], random

    def _continue(
        self, prompts: Sequence[list[int]], sampling: Sampling, random: torch.Generator
    ) -> Iterator[list[tuple[int, Continued]]]:
        """Yield rows that have ended, with their places among the prompts: when the batch shrinks, and at the end."""
        import torch

        device = self.model.device
        distinct = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        end = end_ids(self.tokenizer, self.model.generation_config)
        ends = torch.tensor(sorted(end), device=device)
        cached = CachedRows(self.model, list(distinct), pad=self.tokenizer.pad_token_id or 0)
        rows = torch.arange(len(prompts), device=device)  # which prompt each row of the batch continues
        alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
        written = _Written(len(prompts), end)
        for step in range(sampling.max_tokens):
            logits = cached.next_logits()
            if step == 0 and len(distinct) < len(prompts):  # from here on each row goes its own way
                copies = torch.tensor([distinct[tuple(prompt)] for prompt in prompts], device=device)
                cached.select(copies)
                logits = logits[copies]
            tokens = _draw(logits, sampling, random)  # (rows,)
            logprobs = _logprobs(logits, tokens)[alive] if sampling.logprobs else None
            written.add(rows[alive], tokens[alive], logprobs)
            alive = alive & ~torch.isin(tokens, ends)
            living = int(alive.sum())
            if living == 0:
                break
            if living <= _SHRINK_AT * len(rows):
                yield written.take(rows[~alive])
                kept = alive.nonzero().squeeze(1)
                cached.select(kept)
                rows, tokens, alive = (t[kept] for t in (rows, tokens, alive))
            cached.append(tokens)
        yield written.take(rows)


def _draw(logits: torch.Tensor, sampling: Sampling, random: torch.Generator) -> torch.Tensor:
    """Draw one token a row; logits are (rows, vocabulary)."""
    import torch
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    if sampling.temperature == 0:
        return logits.argmax(-1)
    scores = logits.float() / sampling.temperature
    unused = torch.empty(0, dtype=torch.long)  # the warpers look at scores alone
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(unused, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(unused, scores)
    return torch.multinomial(scores.softmax(-1), 1, generator=random).squeeze(1)


def _logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of one token a row, before temperature and truncation.

    Logits are (rows, vocabulary).
    """
    return logits.float().log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)


class _Written:
    """The tokens drawn so far, kept on the device until a row is taken."""

    def __init__(self, count: int, ends: set[int]) -> None:
        self.ends = ends
        self.ids: list[list[int]] = [[] for _ in range(count)]
        self.logprobs: list[list[float]] = [[] for _ in range(count)]
        self.drawn: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []  # each step's rows and tokens

    def add(self, rows: torch.Tensor, tokens: torch.Tensor, logprobs: torch.Tensor | None) -> None:
        self.drawn.append((rows, tokens, logprobs))

    def take(self, rows: torch.Tensor) -> list[tuple[int, Continued]]:
        """Return what was written in some rows."""
        for places, tokens, logprobs in self.drawn:
            drawn = places.tolist()
            for place, token in zip(drawn, tokens.tolist(), strict=True):
                self.ids[place].append(token)
            if logprobs is not None:
                for place, logprob in zip(drawn, logprobs.tolist(), strict=True):
                    self.logprobs[place].append(logprob)
        self.drawn.clear()
        return [(row, self._continued(row)) for row in rows.tolist()]

    def _continued(self, row: int) -> Continued:
        ids, logprobs = self.ids[row], self.logprobs[row]
        return Continued(ids, bool(ids) and ids[-1] in self.ends, logprobs if len(logprobs) == len(ids) else None)
