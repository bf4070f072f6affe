"""Prompts to token ids by the chat template, and generated token ids to completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

from r3core.episode import CALLS, THINKING, TOKENS, WHOLE, ToolCall
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
from r3core.generation.probe import facts, merged_system, require_tools
from r3core.generation.rendering import RAISED, with_thinking
from r3core.generation.thinking import Marks, Parts, answer_start, marks_of
from r3core.generation.tool_calls import MalformedCalls, canonical, form_of, read_calls
from r3core.task import Message, Prompt, Tool

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

_TAIL = 32  # tokens; more than any opening mark has

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
    text. A system message that the template has no place for is put before the first turn of the user. Turns that the
    model sampled keep their `token_ids`, so a prompt begins with exactly the tokens of the earlier one; except where
    they are another tokenizer's, or the template changes the earlier turn (trims it, or removes its thinking). A turn
    that is `generated` is continued with its own tokens, thinking included.

    Raises:
        UsageError: The template does not accept these messages, or has no place for the prompt's tools.
    """
    messages = [_with_calls(tokenizer, message) if CALLS in message else message for message in prompt.messages]
    if messages[0]["role"] == "system":
        messages = merged_system(messages, facts(tokenizer))
    whole = [index for index, message in enumerate(messages) if _extends(tokenizer, message.get(WHOLE))]
    if not whole:
        return _encoded(tokenizer, Prompt(messages=messages, tools=prompt.tools))
    before, after = messages[: whole[-1]], messages[whole[-1] + 1 :]
    request = encode(tokenizer, Prompt(messages=before, tools=prompt.tools))
    rest = Prompt(messages=[*before, {"role": "assistant", "content": "a"}, *after], tools=prompt.tools)
    return [*request, *messages[whole[-1]][WHOLE]["ids"], *_encoded(tokenizer, rest, after=whole[-1])]


def _extends(tokenizer: PreTrainedTokenizerBase, generated: Any) -> bool:
    """Return whether a generated turn can be a part of a prompt as it is: its tokens are this tokenizer's own.

    Tokens of turns must be those of the marks of its thought: others could forge a turn of the user.
    """
    control, marks = control_tokens(tokenizer), marks_of(tokenizer)
    if not generated or not control.spell(generated["ids"], generated["text"]):
        return False
    rest = generated["text"]
    for mark in (marks.close + marks.head, marks.close, marks.open, marks.head) if marks else ():
        rest = rest.replace(mark, "") if mark else rest
    return not any(token in rest for token in control.forging_texts)


def _encoded(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, after: int | None = None) -> list[int]:
    """Return the token ids of a prompt, or only those behind the content of the message with index `after`."""
    control = control_tokens(tokenizer)
    messages, tools = _as_template_reads(tokenizer, prompt.messages), prompt.tools
    if tools:
        require_tools(facts(tokenizer))
    sampled = {
        index: turn[TOKENS]
        for index, turn in enumerate(prompt.messages)
        if index and turn["role"] == "assistant" and control.usable(turn.get(TOKENS), turn["content"])
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
    if after is not None:  # what stands behind an answer does not depend on the answer
        place = unused_character([*contents, mark or ""])
        answer = {**messages[after], "content": place}
        behind = render([*messages[:after], answer, *messages[after + 1 :]]).partition(place)[2]
        return control.tokenize(behind, mark, inside=True)
    ids: list[int] = []
    done = 0  # `ids` are the tokens of rendered[:done]
    for index, turn in sampled.items():
        before, content = render(messages[:index]), messages[index]["content"]
        end = len(before) + len(content)
        if done <= len(before) and rendered[:end] == before + content:
            ids += control.tokenize(rendered[done : len(before)], mark, inside=done > 0) + turn
            done = end
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
        finish(
            [
                (index, completion(tokenizer, one, request=prompts[index], tools=conversations[index].tools))
                for index, one in ((fitting[place], one) for place, one in rows)
            ]
        )

    engine.continue_ids([prompts[index] for index in fitting], sampling, take=take)
    return [completions[index] for index in range(len(conversations))]


def completion(
    tokenizer: PreTrainedTokenizerBase,
    continued: Continued,
    *,
    request: Sequence[int] = (),
    tools: Sequence[Tool] = (),
) -> Completion:
    """Return the completion of token ids that were generated after a request: its thinking, its answer, its calls.

    The answer is without special tokens, and all parts are without the end-of-turn token. Where `tools` were offered,
    calls in the form of the chat template are in the answer as JSON in <tool_call> tags.
    """
    ids = continued.ids[: len(continued.ids) - continued.ended]
    raw = str(tokenizer.decode(ids, skip_special_tokens=False))
    marks = marks_of(tokenizer)
    parts, start = Parts(None, raw, closed=True), 0
    if marks is not None:
        parts = marks.split(raw, opened=_opened(tokenizer, marks, request), calls=bool(tools))
        if parts.answer != raw:
            start = answer_start(tokenizer, ids, parts.answer)
    text, control = parts.answer, control_tokens(tokenizer)
    dropped = control.special & control.forging if tools else control.special  # marks of calls are part of the answer
    if start < len(ids) and not dropped.isdisjoint(ids[start:]):
        text = str(tokenizer.decode([one for one in ids[start:] if one not in dropped], skip_special_tokens=False))
    calls: list[ToolCall] = []
    malformed = ""
    form = form_of(tokenizer) if tools and parts.closed else None
    if form is not None and not form.canonical:
        end = str(tokenizer.decode(continued.ids[len(ids) :], skip_special_tokens=False))
        try:
            content, calls = read_calls(form, parts.answer + end, tools)
            text = canonical(content.strip().removesuffix(end).strip(), calls) if calls else text
        except MalformedCalls as error:
            malformed = str(error)
    return Completion(
        text=text,
        calls=tuple(calls),
        malformed=malformed,
        thinking=parts.thinking,
        thought_closed=parts.closed,
        raw=None if raw == text else raw,
        token_ids=ids,
        answer_start=start,
        stopped="end" if continued.ended else "length",
    )


def _opened(tokenizer: PreTrainedTokenizerBase, marks: Marks, request: Sequence[int]) -> bool:
    """Return whether a request ends inside a thought that the template has opened; its last tokens show it."""
    return bool(request) and marks.opened_by(str(tokenizer.decode(list(request[-_TAIL:]), skip_special_tokens=False)))


def _with_calls(tokenizer: PreTrainedTokenizerBase, message: Message) -> Message:
    """Return a turn of the model that has calls, with the calls as the chat template writes them.

    That is as the model wrote them, unless tokens of turns are among them, as in templates with channels: then they are
    left to the template, if it has a place for a call that no tool answers.
    """
    ids, plain = message.get(TOKENS) or [], {key: value for key, value in message.items() if key != CALLS}
    if ids and control_tokens(tokenizer).forging.isdisjoint(ids):
        return {**plain, "content": str(tokenizer.decode(ids, skip_special_tokens=False))}
    alone = len(message[CALLS]) == 1 and message["content"].startswith("<tool_call>")
    # templates with channels accept no text beside a call, or show the first of several calls alone
    if alone and (found := facts(tokenizer)).calls and not found.breaks_calls:
        return {**message, "content": ""}
    return plain


def _as_template_reads(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[Message]:
    """Return messages with the keys that chat templates read.

    An answer that names the closing mark of a thought gets an empty thought: without one, templates take what stands
    before the mark for the thought, and drop it.
    """
    marks = marks_of(tokenizer)
    read = []
    for message in without_token_ids(messages):
        if message["role"] == "assistant":
            thinking = message.get(THINKING)
            if thinking is None and marks is not None and marks.close in message["content"]:
                thinking = ""
            message = message if thinking is None else with_thinking(message, thinking)
        read.append(message)
    return read


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list[Tool], **options: Any) -> Any:
    # None, not []: some templates write an empty section of tools for a list
    offered = cast("list[dict[Any, Any] | Callable[..., Any]] | None", tools or None)
    try:
        return tokenizer.apply_chat_template(messages, tools=offered, **options)
    except RAISED as error:
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
