"""Prompts to token ids by the chat template, and generated token ids to completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

from r3core.errors import UsageError
from r3core.generation.control_tokens import control_tokens, mapped, texts, unused_character
from r3core.generation.generator import (
    Completion,
    Continued,
    Ended,
    Sampling,
    TooLong,
    overlong,
    without_token_ids,
)
from r3core.task import Message, Prompt, Tool

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

Take = Callable[[Sequence[tuple[int, Continued]]], None]
"""Called with completions that have just ended, each with the index of its prompt."""


class Continues(Protocol):
    """An engine that continues token ids."""

    @property
    def context(self) -> int | None:
        """The maximum length of prompt and completion together, in tokens; None where it is unknown."""
        ...

    def continue_ids(
        self, prompts: Sequence[list[int]], sampling: Sampling, *, take: Take | None = None
    ) -> list[Continued]:
        """Return what is generated after each prompt, and call `take` with each of them exactly once."""
        ...


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Return the token ids of a prompt, up to where the assistant's turn begins.

    Control tokens come from the chat template alone: one that is spelled out in a message is tokenized as ordinary
    text. Turns that the model sampled keep their `token_ids`, so a prompt begins with exactly the tokens of the earlier
    one; except where they are another tokenizer's, or the template changes the earlier turn (trims it, or removes its
    thinking).

    Raises:
        UsageError: The template does not accept these messages, or has no place for the prompt's tools.
    """
    control = control_tokens(tokenizer)
    messages, tools = without_token_ids(prompt.messages), prompt.tools
    _check_tools(tokenizer, messages, tools)
    sampled = {
        index: turn["token_ids"]
        for index, turn in enumerate(prompt.messages)
        if index and turn["role"] == "assistant" and control.usable(turn.get("token_ids"), turn["content"])
    }
    contents = list(texts([messages, tools]))
    # A mark inside every spelled control token; the rendered text is cut at the marks, so none is tokenized as one.
    mark = unused_character(contents) if any(map(control.in_text, contents)) else None
    if mark:
        cut = partial(control.cut, mark=mark)
        messages, tools = mapped(messages, cut), mapped(tools, cut)

    def render(shown: list[Message]) -> str:
        text = str(_rendered(tokenizer, shown, tools, tokenize=False, add_generation_prompt=True))
        # a template may print a tool as Python's repr, which escapes the mark
        return text.replace(ascii(mark)[1:-1], mark) if mark else text

    rendered = render(messages)
    ids: list[int] = []
    done = 0  # `ids` are the tokens of rendered[:done]
    for index, turn in sampled.items():
        before = render(messages[:index])
        after = len(before) + len(messages[index]["content"])
        if done <= len(before) and rendered[:after] == before + messages[index]["content"]:
            ids += control.tokenize(rendered[done : len(before)], mark, inside=done > 0) + turn
            done = after
    return ids + control.tokenize(rendered[done:], mark, inside=done > 0)


def converse(
    engine: Continues,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Prompt],
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


def completion(tokenizer: PreTrainedTokenizerBase, continued: Continued) -> Completion:
    """Return the completion of generated token ids: their text, without the end-of-turn token."""
    count = len(continued.ids) - continued.ended
    ids = continued.ids[:count]
    return Completion(
        text=str(tokenizer.decode(ids, skip_special_tokens=True)),
        token_ids=ids,
        stopped="end" if continued.ended else "length",
    )


def templated(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, **options: Any) -> Any:
    """Return a prompt in the model's chat template, as `apply_chat_template` does with these options.

    Raises:
        UsageError: The template does not accept these messages, or has no place for the prompt's tools.
    """
    messages = without_token_ids(prompt.messages)
    _check_tools(tokenizer, messages, prompt.tools)
    return _rendered(tokenizer, messages, prompt.tools, **options)


def _check_tools(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list[Tool]) -> None:
    if not tools:
        return
    with_tools, without = (_rendered(tokenizer, messages, offered, tokenize=False) for offered in (tools, []))
    if with_tools == without:
        raise UsageError(
            "the task's prompts have tools, and this model's chat template has no place for tools",
            "put the tools into the text of the prompt (apigen: leave `template` out), or choose a model that was "
            "trained to call tools",
        )


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list[Tool], **options: Any) -> Any:
    from jinja2 import TemplateError

    # None, not []: some templates write an empty section of tools for a list
    offered = cast("list[dict[Any, Any] | Callable[..., Any]] | None", tools or None)
    try:
        return tokenizer.apply_chat_template(messages, tools=offered, **options)
    except TemplateError as error:
        roles = ", ".join(str(message["role"]) for message in messages)
        raise UsageError(
            f"the chat template of `{tokenizer.name_or_path}` does not accept messages of the roles {roles}: {error}",
            "change the task's `prompt` (some templates accept no system message), or copy the model's folder and "
            "put a chat_template.jinja into it that accepts them",
        ) from error


def end_ids(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None) -> set[int]:
    """Return the end-of-turn tokens: those of the model's generation_config, and the tokenizer's."""
    configured: Any = generation.eos_token_id if generation else None
    listed = configured if isinstance(configured, list) else [configured]
    return {token for token in (*listed, tokenizer.eos_token_id) if token is not None}


def check_lengths(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]], sampling: Sampling, *, context: int | None
) -> None:
    """Raise TooLong for the first prompt that exceeds the model's context together with its new tokens."""
    for index, prompt in enumerate(prompts):
        if fault := fault_of_length(prompt, sampling, context):
            text = str(tokenizer.decode(prompt, skip_special_tokens=True))
            raise TooLong(index, f"{fault}: {text[:80]!r}...")


def fault_of_length(prompt: Sequence[int], sampling: Sampling, context: int | None) -> str | None:
    """Return by how much a prompt and its maximum of new tokens exceed the context; None when they fit."""
    if context is None or len(prompt) + sampling.max_tokens <= context:
        return None
    return (
        f"a prompt of {len(prompt)} tokens and {sampling.max_tokens} new ones exceed the model's context of {context}"
    )
