"""Between conversations and token ids: what a chat template makes of the one, and what is read from the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from r3core.errors import UsageError
from r3core.generation import Completion, Continued, Conversation, Ended, Sampling, Samplings, TooLong, with_tools

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

Take = Callable[[Sequence[tuple[int, Continued]]], None]
"""Called with what has just ended, each with its prompt's index."""


class Continues(Protocol):
    """An engine that takes token ids."""

    def continue_ids(
        self, prompts: Sequence[list[int]], sampling: Samplings, *, take: Take | None = None
    ) -> list[Continued]:
        """Return what is generated after each prompt, and call `take` with each of them once."""
        ...


def encode(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[int]:
    """Return the token ids of a conversation, up to where the assistant's turn begins.

    Raises UsageError when the conversation brings tools, and the chat template has no place for them.
    """
    return list(templated(tokenizer, conversation, add_generation_prompt=True, return_dict=False))


def converse(
    engine: Continues,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    sampling: Samplings,
    *,
    ended: Ended | None,
) -> list[Completion]:
    """Return a completion a conversation, by an engine that continues token ids; `ended` is called as they end."""
    completions: dict[int, Completion] = {}

    def take(rows: Sequence[tuple[int, Continued]]) -> None:
        new = [(index, completion(tokenizer, continued)) for index, continued in rows]
        completions.update(new)
        if ended:
            ended(new)

    engine.continue_ids([encode(tokenizer, conversation) for conversation in conversations], sampling, take=take)
    return [completions[index] for index in range(len(conversations))]


def completion(tokenizer: PreTrainedTokenizerBase, written: Continued) -> Completion:
    """Return what generated ids say."""
    count = len(written.ids) - written.ended
    said = written.ids[:count]
    return Completion(
        text=str(tokenizer.decode(said, skip_special_tokens=True)),
        token_ids=said,
        stopped="end" if written.ended else "length",
        logprobs=written.logprobs and written.logprobs[:count],
    )


def templated(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, **options: Any) -> Any:
    """Return a conversation in the model's chat template, as `apply_chat_template` does with these options.

    Raises UsageError when the conversation brings tools, and the chat template has no place for them.
    """
    messages, offered = with_tools(conversation)
    tools = cast("list[dict[Any, Any] | Callable[..., Any]] | None", offered)
    without = tokenizer.apply_chat_template(messages, tokenize=False) if tools else None
    if tools and tokenizer.apply_chat_template(messages, tools=tools, tokenize=False) == without:
        raise UsageError(
            "the task gives its tools to the chat template, and this model's has no place for tools",
            "put them into the prompt (apigen: leave `template` out), or name a model that was trained to call tools",
        )
    return tokenizer.apply_chat_template(messages, tools=tools, **options)


def end_ids(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None) -> set[int]:
    """Return the tokens that end a turn: those of the model's generation_config, and the tokenizer's."""
    configured: Any = generation.eos_token_id if generation else None
    listed = configured if isinstance(configured, list) else [configured]
    return {token for token in (*listed, tokenizer.eos_token_id) if token is not None}


def check_lengths(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    samplings: Sequence[Sampling],
    *,
    context: int | None,
) -> None:
    """Raise TooLong for the first prompt that exceeds the model's context together with its new tokens."""
    for index, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        if context is not None and len(prompt) + sampling.max_tokens > context:
            opening = str(tokenizer.decode(prompt, skip_special_tokens=True))
            raise TooLong(
                index,
                f"a prompt of {len(prompt)} tokens and {sampling.max_tokens} new ones exceed the model's context of "
                f"{context}: {opening[:80]!r}...",
            )
