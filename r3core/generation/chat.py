"""Between conversations and token ids: what a chat template makes of the one, and what is read from the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, cast

from r3core.errors import UsageError
from r3core.generation import Completion, Continued, Conversation, Ended, Sampling, Samplings, TooLong, with_tools
from r3core.generation.control import ControlTokens, control_tokens, mapped, texts, unused_characters
from r3core.task import Message

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

    Only the chat template writes control tokens: one that a message spells is tokenized as ordinary text. A turn that
    the model sampled keeps its `token_ids`, unless they are another tokenizer's or the template changes its content.
    Raises UsageError when the conversation brings tools, and the chat template has no place for them.
    """
    control = control_tokens(tokenizer)
    messages, tools = with_tools(conversation)
    sampled = {
        place: turn["token_ids"]
        for place, turn in enumerate(conversation[-len(messages) :])
        if turn["role"] == "assistant" and control.usable(turn.get("token_ids"), turn["content"])
    }
    written = list(texts([messages, tools]))
    spelled = any(map(control.in_text, written))
    if not spelled and not sampled:
        return control.tokenize(_prompt(tokenizer, messages, tools))
    mark, gap = islice(unused_characters(written), 2)
    if spelled:
        cut = partial(control.cut, mark=mark)
        messages, tools = mapped(messages, cut), mapped(tools, cut)

    def render(shown: list[Message]) -> str:
        text = _prompt(tokenizer, shown, tools)
        return text.replace(ascii(mark)[1:-1], mark)  # a template may print a tool as Python does, which escapes it

    return _spliced(control, messages, sampled, render, mark=mark, gap=gap)


def _spliced(
    control: ControlTokens,
    messages: list[Message],
    sampled: dict[int, list[int]],
    render: Callable[[list[Message]], str],
    *,
    mark: str,
    gap: str,
) -> list[int]:
    """Return the ids of a conversation, with those that were sampled where the template leaves a turn as it is.

    What the template writes around these turns is found by rendering a character in the place of each.
    """
    rendered = render(messages)
    while sampled:
        emptied = [{**turn, "content": gap} if at in sampled else turn for at, turn in enumerate(messages)]
        around = render(emptied).split(gap)
        changed = _changed(rendered, around, {place: messages[place]["content"] for place in sampled})
        if not changed:
            ids = control.tokenize(around[0], mark)
            for turn, after in zip(sampled.values(), around[1:], strict=True):
                ids += turn + control.tokenize(after, mark, inside=True)
            return ids
        sampled = {place: turn for place, turn in sampled.items() if place not in changed}
    return control.tokenize(rendered, mark)


def _changed(rendered: str, around: Sequence[str], contents: Mapping[int, str]) -> list[int]:
    """Return turns that do not stand as they are between what the template writes around them; all if none is at fault.

    For example, a template may trim a turn, or leave out the thought at its beginning.
    """
    everything = list(contents)
    if len(around) != len(contents) + 1 or not rendered.startswith(around[0]):
        return everything
    at = len(around[0])
    for (place, content), after in zip(contents.items(), around[1:], strict=True):
        if not rendered.startswith(content + after, at):
            return [place]
        at += len(content + after)
    return [] if at == len(rendered) else everything


def _prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list[dict[str, Any]] | None) -> str:
    return str(_rendered(tokenizer, messages, tools, tokenize=False, add_generation_prompt=True))


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
    return _rendered(tokenizer, *with_tools(conversation), **options)


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], offered: list[dict[str, Any]] | None, **options: Any
) -> Any:
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
