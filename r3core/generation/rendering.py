"""Short conversations in a model's chat template, in which every text is a word of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from r3core.episode import THINKING
from r3core.errors import one_line
from r3core.task import Message, Tool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RAISED = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What a chat template raises: errors of its own, and those of the expressions in it."""
SYSTEM, TASK, ATTEMPT, FAILED, REFLECTION, AGAIN, IDEA, THOUGHT, VALUE = (
    f"Q{word}q" for word in ("system", "task", "attempt", "failed", "reflection", "again", "idea", "thought", "value")
)
_TOOL: Tool = {
    "type": "function",
    "function": {
        "name": "qtoolq",
        "description": "Return a value.",
        "parameters": {
            "type": "object",
            "properties": {"qargumentq": {"type": "string", "description": "A value."}},
            "required": ["qargumentq"],
        },
    },
}


_REASONING = (THINKING, "reasoning", "thinking")
"""The keys under which chat templates read a message's thought."""


class Refusal(str):
    """The message of a template that raised instead of rendering a conversation."""


def rendering(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    request: bool = True,
    tools: bool = False,
    **arguments: Any,
) -> str:
    """Return a conversation in the chat template, with these arguments; a `Refusal` when the template raises."""
    offered: Any = [_TOOL] if tools else None
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), tools=offered, tokenize=False, add_generation_prompt=request, **arguments
            )
        )
    except RAISED as error:
        return Refusal(one_line(error) or type(error).__name__)


def with_thinking(message: Message, thinking: str) -> Message:
    """Return an assistant's message with a thought, under every key that chat templates read."""
    return {**message, **dict.fromkeys(_REASONING, thinking)}


def user(text: str) -> Message:
    """Return a turn of the user."""
    return {"role": "user", "content": text}


def assistant(text: str, thinking: str | None = None) -> Message:
    """Return a turn of the assistant, with a thought or without."""
    turn: Message = {"role": "assistant", "content": text}
    return turn if thinking is None else with_thinking(turn, thinking)


def turns(*, thoughts: bool = False) -> list[Message]:
    """Return the turns of a request to retry: the first one, three and all five of them are the three requests."""
    idea, thought = (IDEA, THOUGHT) if thoughts else (None, None)
    answers = assistant(ATTEMPT, idea), assistant(REFLECTION, thought)
    return [user(TASK), answers[0], user(FAILED), answers[1], user(AGAIN)]
