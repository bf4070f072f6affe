"""What a chat template does with the conversations of a run, found before any work by rendering a few short ones.

No model is needed and no table of models: each fact is read off the rendered texts, in which every turn is a word of
its own. What a template loses is an error. Where it has its own way, `encode` adapts, and the user sees a note.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import date
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from r3core.errors import UsageError
from r3core.generation.rendering import (
    AGAIN,
    ATTEMPT,
    FAILED,
    REFLECTION,
    SYSTEM,
    TASK,
    THOUGHT,
    VALUE,
    Refusal,
    assistant,
    rendering,
    turns,
    user,
)
from r3core.generation.template import PLAIN, names_read, on, original, reads_clock, using
from r3core.generation.thinking import marks_of
from r3core.task import Frozen, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NAMES = {
    TASK: "the task",
    ATTEMPT: "the attempt",
    FAILED: "the request to reflect",
    REFLECTION: "the reflection",
    AGAIN: "the request to retry",
}
_DAYS = (date(2001, 2, 3), date(2031, 11, 30))
_cache: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, TemplateFacts]] = WeakKeyDictionary()


class TemplateFacts(Frozen):
    """What a chat template does with the conversations of a run."""

    refused: str = ""
    """Why the template does not accept one of the requests to attempt, to reflect and to retry; empty if it does."""
    lost: tuple[str, ...] = ()
    """Turns that are missing in one of these requests."""
    plain: bool = False
    """Whether the model has no chat template, and the plain one of r3 is used."""
    system: Literal["accepted", "raises", "dropped"] = "accepted"
    """What happens to a system message at the beginning."""
    preamble: str = ""
    """What the template writes before the first turn although there is no system message, without the BOS token."""
    dated: bool = False
    """Whether a request contains today's date."""
    alternates: bool = False
    """Whether two turns of the user in a row raise."""
    trims: bool = False
    """Whether white space at the edges of the user's or the assistant's turns is removed."""
    tools: bool = False
    """Whether tools that are offered arrive."""
    calls: bool = False
    """Whether a call in an assistant's `tool_calls` arrives."""
    breaks_calls: bool = False
    """Whether a call that the user's turn follows leaves the assistant's turn open, or raises."""
    prefix_request: bool = True
    """Whether the finished reflection begins with the request to reflect; all turns without thoughts."""
    prefix_turn: bool = True
    """Whether the request to retry begins with the finished reflection; all turns without thoughts."""
    thinking: bool = False
    """Whether the template has marks of a thought."""
    opens_thought: bool = False
    """Whether a request ends inside a thought that it has opened."""
    closes_thought: bool = False
    """Whether a request contains an empty thought, so that the model does not think."""
    shows_thought: bool = False
    """Whether the thought of a reflection is in its own turn, as long as that is the last one."""
    retry_reads_thought: bool = False
    """Whether the thought of a reflection is in the request to retry."""
    keeps_thought: tuple[str, ...] = ()
    """Arguments of the template, as `name=value`, each of which puts that thought into the request to retry."""
    end_token: int | None = None
    """The first token that the template writes behind an answer; None if that is not one of the added tokens."""


def facts(tokenizer: PreTrainedTokenizerBase) -> TemplateFacts:
    """Return the facts about a tokenizer's chat template, cached until the template changes."""
    state = (str(tokenizer.chat_template), len(tokenizer), tokenizer.bos_token, tokenizer.eos_token)
    cached = _cache.get(tokenizer)
    if cached is None or cached[0] != state:
        cached = _cache[tokenizer] = (state, _facts(tokenizer))
    return cached[1]


def checked_facts(tokenizer: PreTrainedTokenizerBase, *, tools: bool = False) -> TemplateFacts:
    """Return the facts about a chat template that has every turn of a run, and its tools.

    Raises:
        UsageError: the template does not accept the turns of a run, or loses one of them, or the tools.
    """
    found, name = facts(tokenizer), tokenizer.name_or_path
    hint = "choose another model, or a chat template that contains every turn: --chat-template FILE"
    if found.refused:
        raise UsageError(f"the chat template of `{name}` does not accept the turns of a run: {found.refused}", hint)
    if found.lost:
        raise UsageError(f"the chat template of `{name}` leaves out {', '.join(found.lost)}", hint)
    if tools:
        require_tools(found)
    return found


def require_tools(template: TemplateFacts) -> None:
    """Raise UsageError when a chat template has no place for tools."""
    if not template.tools:
        raise UsageError(
            "the task's prompts have tools, and this model's chat template has no place for tools",
            "put the tools into the text of the prompt (apigen: leave `template` out), or choose a model that was "
            "trained to call tools",
        )


def merged_system(messages: Sequence[Message], template: TemplateFacts) -> list[Message]:
    r"""Return messages whose system message is in the first turn of the user, if the template has no place for it.

    As in the templates that do so themselves: the system message, an empty line, the text of the user.

    >>> merged_system([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say 7."}],
    ...               TemplateFacts(system="raises"))
    [{'role': 'user', 'content': 'Be brief.\n\nSay 7.'}]
    """
    if template.system == "accepted" or [one["role"] for one in messages[:2]] != ["system", "user"]:
        return list(messages)
    system, user, *rest = messages
    return [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]


def _facts(tokenizer: PreTrainedTokenizerBase) -> TemplateFacts:
    requests = [rendering(tokenizer, turns()[:count]) for count in (1, 3, 5)]
    if refusal := next((one for one in requests if isinstance(one, Refusal)), None):
        return TemplateFacts(refused=str(refusal))
    first, reflect, retry = requests
    before, between = first.partition(TASK)[0], reflect.partition(ATTEMPT)[2].partition(FAILED)[0]
    end = _added_token(tokenizer, between)
    whole = rendering(tokenizer, turns()[:4], request=False)
    finished = whole.partition(REFLECTION)[2]
    return TemplateFacts(
        lost=_lost(requests),
        plain=original(tokenizer) == PLAIN,
        system=_system(tokenizer),
        preamble=_before_header(before, between).removeprefix(tokenizer.bos_token or "").strip(),
        dated=_dated(tokenizer),
        end_token=end if (token := _added_token(tokenizer, finished)) is None else token,
        prefix_request=whole.startswith(reflect),
        prefix_turn=retry.startswith(whole),
        alternates=isinstance(rendering(tokenizer, [user(TASK), user(FAILED)]), Refusal),
        trims=_trims(tokenizer),
        **_calls(tokenizer, between),
        **_thinking(tokenizer, first),
    )


def _lost(requests: Sequence[str]) -> tuple[str, ...]:
    words = list(_NAMES)
    missing = {
        word for text, count in zip(requests, (1, 3, 5), strict=True) for word in words[:count] if word not in text
    }
    return tuple(name for word, name in _NAMES.items() if word in missing)


def _system(tokenizer: PreTrainedTokenizerBase) -> Literal["accepted", "raises", "dropped"]:
    text = rendering(tokenizer, [{"role": "system", "content": SYSTEM}, *turns()[:3]])
    if isinstance(text, Refusal):
        return "raises"
    return "accepted" if SYSTEM in text else "dropped"


def _dated(tokenizer: PreTrainedTokenizerBase) -> bool:
    if not reads_clock(tokenizer):
        return False
    texts = []
    for day in _DAYS:
        with using(tokenizer, on(tokenizer, day)):
            texts.append([rendering(tokenizer, turns()[:1], tools=tools) for tools in (False, True)])
    return texts[0] != texts[1]


def _added_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """Return the first token of a text, apart from white space, if it is an added token."""
    ids = tokenizer(text.lstrip(), add_special_tokens=False)["input_ids"] if text.strip() else []
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None


def _before_header(before: str, between: str) -> str:
    """Return what stands before the header of the first turn; `between` ends with the header of a later one."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(before), reversed(between), strict=False))
    header = before[len(before) - len(list(same)) :]
    mark = re.search(r"[<\[]", header)  # the first mark that both have as a whole
    return before.removesuffix(header[mark.start() :] if mark else header)


def _trims(tokenizer: PreTrainedTokenizerBase) -> bool:
    spaced = [f"\t{word}\t" for word in (TASK, ATTEMPT)]
    text = rendering(tokenizer, [user(spaced[0]), assistant(spaced[1]), user(FAILED)])
    return not all(word in text for word in spaced)


def _calls(tokenizer: PreTrainedTokenizerBase, between: str) -> dict[str, Any]:
    """Return whether tools and calls arrive, and whether a call that no tool answers leaves its turn open.

    `between` is what the template writes between an answer and the user's text.
    """
    function = {"name": "qtoolq", "arguments": {"qargumentq": VALUE}}
    call = {"type": "function", "id": "abcdefghi", "function": function}
    talk = [user(TASK), {"role": "assistant", "content": "", "tool_calls": [call]}, user(FAILED)]
    called = rendering(tokenizer, talk[:2], request=False, tools=True)
    calls = not isinstance(called, Refusal) and "qtoolq" in called.partition(TASK)[2] and VALUE in called
    after, arrived, _ = rendering(tokenizer, talk, tools=True).partition(VALUE)[2].partition(FAILED)
    template = str(original(tokenizer))
    return {
        "tools": "qtoolq" in rendering(tokenizer, turns()[:1], tools=True),
        "calls": calls,
        "breaks_calls": calls and (not arrived or bool(_unclosed(after, template) - _unclosed(between, template))),
    }


def _unclosed(text: str, template: str) -> Counter[str]:
    """Return the marks in a text, such as `<|tool_response>`, that a later one in the template would close."""
    opened: Counter[str] = Counter()
    for mark in re.findall(r"<[|/]?\w+\|?>", text):
        name = mark.strip("<|/>")
        if mark == f"<|{name}>" and f"<{name}|>" in template:
            opened[name] += 1
        elif mark == f"<{name}|>":
            opened[name] -= 1
    return +opened


def _thinking(tokenizer: PreTrainedTokenizerBase, first: str) -> dict[str, Any]:
    marks = marks_of(tokenizer)
    if marks is None:
        return {}
    talk = turns(thoughts=True)
    tail = first.partition(TASK)[2].partition(marks.open)
    reads = THOUGHT in rendering(tokenizer, talk)
    names = sorted(names_read(original(tokenizer))) if not reads else []
    keeps = [
        f"{name}={str(value).lower()}"
        for name in names
        for value in (True, False)
        if THOUGHT in rendering(tokenizer, talk, **{name: value})
    ]
    opens = marks.opened_by(first)
    return {
        "thinking": True,
        "opens_thought": opens,
        "closes_thought": not opens and marks.close in tail[2],
        "shows_thought": THOUGHT in rendering(tokenizer, talk[:4], request=False),
        "retry_reads_thought": reads,
        "keeps_thought": tuple(keeps),
    }
