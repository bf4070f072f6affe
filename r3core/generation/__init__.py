"""The seam between the protocol and whatever generates text: conversations and sampling in, completions out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pydantic import Field

from r3core.episode import Stopped
from r3core.task import TOOLS, Frozen, Message

Conversation = Sequence[Message]
"""Chat messages; the first one may have the role `tools`: see `with_tools`."""


def with_tools(conversation: Conversation) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """Return the messages of a conversation, and the tools that its first message brings for the chat template.

    That message's content is a JSON list of tools in OpenAI's format.
    """
    messages = [dict(message) for message in conversation]
    if messages[0]["role"] != TOOLS:
        return messages, None
    return messages[1:], json.loads(messages[0]["content"])


class Sampling(Frozen):
    """How tokens are drawn; the names are those of vLLM's and transformers' sampling options."""

    temperature: float = Field(default=1.0, ge=0)
    """0 decodes greedily."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """0 keeps every token."""
    max_tokens: int = Field(default=256, gt=0)
    seed: int = Field(default=0, ge=0)


class Completion(Frozen):
    """One generated turn."""

    text: str
    token_ids: list[int]
    """The generated tokens, without the end-of-turn token."""
    stopped: Stopped


Ended = Callable[[Sequence[tuple[int, Completion]]], None]
"""Called with completions that have just ended, each with its conversation's index, while others are being written."""


class Generator(Protocol):
    """Anything that continues conversations: a local model, a server, a trainer's current policy, a script."""

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, *, ended: Ended | None = None
    ) -> list[Completion]:
        """Return one completion a conversation, in the same order; `ended` is called with each of them exactly once.

        The same conversations, sampling and seed give the same completions, where the engine can.
        """
        ...
