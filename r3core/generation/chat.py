"""Between conversations and token ids: what a chat template makes of the one, and what is read from the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

from r3core.errors import UsageError
from r3core.generation.control_tokens import control_tokens, mapped, texts, unused_character
from r3core.generation.engine import (
    Completion,
    Continued,
    Conversation,
    Ended,
    Sampling,
    TooLong,
    overlong,
    with_tools,
)
from r3core.task import Message

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

Tools = list[dict[str, Any]]
Take = Callable[[Sequence[tuple[int, Continued]]], None]
"""Called with what has just ended, each with its prompt's index."""


class Continues(Protocol):
    """An engine that takes token ids."""

    @property
    def context(self) -> int | None:
        """The longest sequence in tokens, prompt and completion together; None where it is not known."""
        ...

    def continue_ids(
        self, prompts: Sequence[list[int]], sampling: Sampling, *, take: Take | None = None
    ) -> list[Continued]:
        """Return what is generated after each prompt, and call `take` with each of them once."""
        ...


def encode(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[int]:
    """Return the token ids of a conversation, up to where the assistant's turn begins.

    Only the chat template writes control tokens: one that a message spells is tokenized as ordinary text. Turns that
    the model sampled keep their `token_ids`, so the prompt begins with the very tokens of the earlier one; not so where
    they are another tokenizer's, or the template shows the earlier turn otherwise than it was (trimmed, without its
    thought). Raises UsageError when the conversation brings tools, and the chat template has no place for them.
    """
    control = control_tokens(tokenizer)
    messages, tools = with_tools(conversation)
    _check_tools(tokenizer, messages, tools)
    sampled = {
        place: turn["token_ids"]
        for place, turn in enumerate(conversation[-len(messages) :])
        if place and turn["role"] == "assistant" and control.usable(turn.get("token_ids"), turn["content"])
    }
    written = list(texts([messages, tools]))
    mark = unused_character(written) if any(map(control.in_text, written)) else None
    if mark:
        cut = partial(control.cut, mark=mark)
        messages, tools = mapped(messages, cut), mapped(tools, cut)

    def render(shown: list[Message]) -> str:
        text = str(_rendered(tokenizer, shown, tools, tokenize=False, add_generation_prompt=True))
        # a template may print a tool as Python does, which escapes the character
        return text.replace(ascii(mark)[1:-1], mark) if mark else text

    rendered = render(messages)
    ids: list[int] = []
    done = 0  # so many characters of `rendered` are in `ids`
    for place, turn in sampled.items():
        before = render(messages[:place])
        after = len(before) + len(messages[place]["content"])
        if done <= len(before) and rendered[:after] == before + messages[place]["content"]:
            ids += control.tokenize(rendered[done : len(before)], mark, inside=done > 0) + turn
            done = after
    return ids + control.tokenize(rendered[done:], mark, inside=done > 0)


def converse(
    engine: Continues,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    sampling: Sampling,
    *,
    ended: Ended | None,
) -> list[Completion]:
    """Return one completion per conversation, by an engine that continues token ids; `ended` is called as they end.

    A conversation that does not fit the engine's context gets an empty completion that `stopped` as `overlong`.
    """
    completions: dict[int, Completion] = {}

    def finish(new: Sequence[tuple[int, Completion]]) -> None:
        completions.update(new)
        if ended and new:
            ended(new)

    prompts = [encode(tokenizer, conversation) for conversation in conversations]
    faults = [fault_of_length(prompt, sampling, engine.context) for prompt in prompts]
    finish([(index, overlong(fault)) for index, fault in enumerate(faults) if fault])
    fitting = [index for index, fault in enumerate(faults) if not fault]

    def take(rows: Sequence[tuple[int, Continued]]) -> None:
        finish([(fitting[place], completion(tokenizer, continued)) for place, continued in rows])

    engine.continue_ids([prompts[index] for index in fitting], sampling, take=take)
    return [completions[index] for index in range(len(conversations))]


def completion(tokenizer: PreTrainedTokenizerBase, written: Continued) -> Completion:
    """Return what generated ids say."""
    count = len(written.ids) - written.ended
    said = written.ids[:count]
    return Completion(
        text=str(tokenizer.decode(said, skip_special_tokens=True)),
        token_ids=said,
        stopped="end" if written.ended else "length",
    )


def templated(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, **options: Any) -> Any:
    """Return a conversation in the model's chat template, as `apply_chat_template` does with these options.

    Raises UsageError when the conversation brings tools, and the chat template has no place for them.
    """
    messages, tools = with_tools(conversation)
    _check_tools(tokenizer, messages, tools)
    return _rendered(tokenizer, messages, tools, **options)


def _check_tools(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: Tools | None) -> None:
    shown = [_rendered(tokenizer, messages, offered, tokenize=False) for offered in (tools, None)] if tools else []
    if tools and shown[0] == shown[1]:
        raise UsageError(
            "the task gives its tools to the chat template, and this model's has no place for tools",
            "put them into the prompt (apigen: leave `template` out), or name a model that was trained to call tools",
        )


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: Tools | None, **options: Any) -> Any:
    from jinja2 import TemplateError

    offered = cast("list[dict[Any, Any] | Callable[..., Any]] | None", tools)
    try:
        return tokenizer.apply_chat_template(messages, tools=offered, **options)
    except TemplateError as error:
        roles = ", ".join(str(message["role"]) for message in messages)
        raise UsageError(
            f"the chat template of `{tokenizer.name_or_path}` does not take a conversation of the turns {roles}: "
            f"{error}",
            "change the task's `prompt` (some templates take no system message), or put a chat_template.jinja that "
            "takes it into a copy of the model's folder",
        ) from error


def end_ids(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None) -> set[int]:
    """Return the tokens that end a turn: those of the model's generation_config, and the tokenizer's."""
    configured: Any = generation.eos_token_id if generation else None
    listed = configured if isinstance(configured, list) else [configured]
    return {token for token in (*listed, tokenizer.eos_token_id) if token is not None}


def check_lengths(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]], sampling: Sampling, *, context: int | None
) -> None:
    """Raise TooLong for the first prompt that exceeds the model's context together with its new tokens."""
    for index, prompt in enumerate(prompts):
        if fault := fault_of_length(prompt, sampling, context):
            opening = str(tokenizer.decode(prompt, skip_special_tokens=True))
            raise TooLong(index, f"{fault}: {opening[:80]!r}...")


def fault_of_length(prompt: Sequence[int], sampling: Sampling, context: int | None) -> str | None:
    """Return how a prompt and its new tokens exceed a context; None when they fit, or it is not known."""
    if context is None or len(prompt) + sampling.max_tokens <= context:
        return None
    return (
        f"a prompt of {len(prompt)} tokens and {sampling.max_tokens} new ones exceed the model's context of {context}"
    )
