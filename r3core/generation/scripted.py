"""A generator that follows a script: for the tests of tasks and plugins, and to try a task without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from r3core.generation.generator import Completion, Ended, Sampling
from r3core.task import Prompt


class ScriptedGenerator:
    """Answers every conversation by calling `reply(conversation, rng_index)`, and records the conversations.

    The tokens of a reply are its words; one longer than `sampling.max_tokens` is cut and stops by length.
    """

    def __init__(self, reply: Callable[[Prompt, int], str]) -> None:
        self.reply = reply
        self.conversations: list[Prompt] = []
        self.calls: list[int] = []
        """The number of conversations of each call: shows the sizes of the batches."""

    def generate(
        self, conversations: Sequence[Prompt], sampling: Sampling, *, ended: Ended | None = None
    ) -> list[Completion]:
        """Return the script's replies; `rng_index` counts the conversations from 0, offset by the seed."""
        self.conversations += conversations
        self.calls.append(len(conversations))
        completions = []
        for index, conversation in enumerate(conversations):
            words = self.reply(conversation, sampling.seed + index).split(" ")
            cut = words[: sampling.max_tokens]
            completions.append(
                Completion(
                    text=" ".join(cut),
                    token_ids=None,
                    tokens=len(cut),
                    stopped="end" if len(cut) == len(words) else "length",
                )
            )
        if ended:
            ended(list(enumerate(completions)))
        return completions

    def close(self) -> None:
        """Do nothing: a script needs no memory."""
