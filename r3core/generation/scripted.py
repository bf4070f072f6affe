"""A generator that follows a script: for tests, and to try a task without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from r3core.generation.engine import Completion, Ended, Samplings, each
from r3core.task import Prompt


class ScriptedGenerator:
    """Answers every conversation by calling `reply(conversation, rng_index)`, and remembers what it was asked.

    A reply's tokens are its words; one that is longer than `sampling.max_tokens` is cut and stops by length.
    """

    def __init__(self, reply: Callable[[Prompt, int], str]) -> None:
        self.reply = reply
        self.asked: list[Prompt] = []
        self.calls: list[int] = []
        """The number of conversations of each call: shows whether work came in batches."""

    def generate(
        self, conversations: Sequence[Prompt], sampling: Samplings, *, ended: Ended | None = None
    ) -> list[Completion]:
        """Return the script's replies; `rng_index` counts the conversations from 0, offset by the seed."""
        self.asked += conversations
        self.calls.append(len(conversations))
        completions = []
        samplings = each(sampling, len(conversations))
        for index, (conversation, one) in enumerate(zip(conversations, samplings, strict=True)):
            words = self.reply(conversation, one.seed + index).split(" ")
            kept = words[: one.max_tokens]
            completions.append(
                Completion(
                    text=" ".join(kept),
                    token_ids=None,
                    tokens=len(kept),
                    stopped="end" if len(kept) == len(words) else "length",
                )
            )
        if ended:
            ended(list(enumerate(completions)))
        return completions

    def close(self) -> None:
        """Do nothing: a script takes no memory."""
