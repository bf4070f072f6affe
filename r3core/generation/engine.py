"""The seam between the protocol and whatever generates text: conversations and sampling in, completions out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from pydantic import Field

from r3core.episode import Stopped
from r3core.errors import UsageError
from r3core.task import Frozen, Message, Prompt


def without_token_ids(messages: Sequence[Message]) -> list[Message]:
    """Return messages as a chat template or a server takes them."""
    return [{key: value for key, value in message.items() if key != "token_ids"} for message in messages]


class Sampling(Frozen):
    """How tokens are drawn; the names are those of vLLM's and transformers' sampling options."""

    temperature: float = Field(default=1.0, ge=0)
    """0 decodes greedily."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """0 keeps every token."""
    max_tokens: int = Field(default=256, gt=0)
    seed: int = Field(default=0, ge=0)
    logprobs: bool = False
    """Whether completions come with the log-probabilities of their tokens."""


Samplings = Sampling | Sequence[Sampling]
"""One way of drawing tokens for all conversations, or one for each."""


class Completion(Frozen):
    """One generated turn.

    >>> Completion(text="It is 7.", token_ids=[412, 318, 22, 13], stopped="end").tokens
    4
    >>> cut_off = Completion(text="It is", token_ids=None, tokens=2, stopped="length")  # from a server
    """

    text: str
    token_ids: list[int] | None
    """The generated tokens, without the end-of-turn token; None where a server does not tell them."""
    tokens: int = Field(default_factory=lambda given: len(given["token_ids"] or ()), ge=0)
    """How many tokens were generated, without the end-of-turn token."""
    stopped: Stopped
    fault: str = ""
    """Why nothing was generated, where `stopped` is `overlong`."""
    logprobs: list[float] | None = None
    """The natural logarithm of each token's probability under the model itself, before temperature and truncation."""


class Continued(NamedTuple):
    """What was generated after one prompt of token ids."""

    ids: list[int]
    """With the end-of-turn token, where there is one."""
    ended: bool
    """Whether the last id ends the turn."""
    logprobs: list[float] | None = None
    """One an id; see `Completion.logprobs`."""


Ended = Callable[[Sequence[tuple[int, Completion]]], None]
"""Called with completions that have just ended, each with its conversation's index, while others are being written."""


class Generator(Protocol):
    """Anything that continues conversations: a local model, a server, a trainer's current policy, a script."""

    def generate(
        self, conversations: Sequence[Prompt], sampling: Samplings, *, ended: Ended | None = None
    ) -> list[Completion]:
        """Return one completion a conversation, in the same order; `ended` is called with each of them exactly once.

        The same conversations, sampling and seed give the same completions, where the engine can. A conversation that
        does not fit the model's context gets an empty completion that `stopped` as `overlong`. When `ended` raises, or
        the user interrupts, what is being written is given up.
        """
        ...

    def close(self) -> None:
        """Let go of the memory that a model takes; the generator is not used after that."""
        ...


class TooLong(UsageError):
    """A prompt and its completion together exceed the model's context; `index` tells which one."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message, "lower the max_tokens of this turn under `sampling`, or leave out such examples")
        self.index = index


def overlong(fault: str) -> Completion:
    """Return what stands for the completion of a conversation that does not fit the model's context."""
    return Completion(text="", token_ids=None, tokens=0, stopped="overlong", fault=fault)


def each(sampling: Samplings, count: int) -> Sequence[Sampling]:
    """Return the sampling of each of so many conversations."""
    return [sampling] * count if isinstance(sampling, Sampling) else sampling
