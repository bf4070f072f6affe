"""The interface of text generation: conversations and sampling parameters in, completions out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from pydantic import Field

from r3core.episode import TOKENS, WHOLE, Stopped, Text
from r3core.errors import UsageError
from r3core.task import Frozen, Message, Prompt


def without_token_ids(messages: Sequence[Message]) -> list[Message]:
    """Return messages as a chat template or a server takes them."""
    return [{key: value for key, value in message.items() if key not in (TOKENS, WHOLE)} for message in messages]


class Sampling(Frozen):
    """Sampling parameters of one call; the names are those of vLLM and transformers."""

    temperature: float = Field(default=1.0, ge=0)
    """0 decodes greedily."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """0 turns it off."""
    max_tokens: int = Field(default=256, gt=0)
    """Maximum number of tokens per completion."""
    seed: int = Field(default=0, ge=0)
    """Random seed of the call; equal conversations in one call are continued differently."""


class Completion(Text):
    """One generated turn.

    >>> Completion(text="It is 7.", token_ids=[412, 318, 22, 13], stopped="end").tokens
    4
    >>> cut_off = Completion(text="It is", token_ids=None, tokens=2, stopped="length")  # from a server
    """

    token_ids: list[int] | None
    tokens: int = Field(default_factory=lambda given: len(given.get("token_ids") or ()), ge=0)
    stopped: Stopped
    fault: str = ""
    """Why nothing was generated, where `stopped` is `overlong`."""


class Continued(NamedTuple):
    """The continuation of one prompt of token ids."""

    ids: list[int]
    """With the end-of-turn token, where there is one."""
    ended: bool
    """Whether the last id ends the turn."""
    logprobs: list[float] | None = None
    """The natural logarithm of the probability of each of `ids`; only vLLM returns it, on request, for training."""


Ended = Callable[[Sequence[tuple[int, Completion]]], None]
"""Called with completions that have just ended, each with its conversation's index, while others are generated."""


class Generator(Protocol):
    """Anything that continues conversations: a local model, a server, a trainer's current policy, a script."""

    def generate(
        self, conversations: Sequence[Prompt], sampling: Sampling, *, ended: Ended | None = None
    ) -> list[Completion]:
        """Return one completion per conversation, in the same order; `ended` is called with each of them exactly once.

        The same conversations, sampling parameters and seed give the same completions, where the engine supports that.
        A conversation that does not fit the model's context gets an empty completion that `stopped` as `overlong`. When
        `ended` raises, or the user interrupts, generation is aborted.
        """
        ...

    def close(self) -> None:
        """Free the memory of the model; the generator is not used after that."""
        ...


class TooLong(UsageError):
    """A prompt and its maximum number of new tokens exceed the model's context; `index` is that of the prompt."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message, "lower the max_tokens of this turn under `sampling`, or leave out such examples")
        self.index = index


def overlong(fault: str) -> Completion:
    """Return the empty completion of a conversation that does not fit the model's context."""
    return Completion(text="", token_ids=None, tokens=0, stopped="overlong", fault=fault)
