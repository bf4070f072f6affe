"""Thinking: the marks that a chat template puts around a thought, and the split of a generated turn at them.

The marks are read off the chat template, so that no table of models is needed: an assistant's message with a thought is
rendered, and what stands around the thought are its marks. A block counts as a thought only at the beginning of a turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from r3core.generation.rendering import ATTEMPT, TASK, THOUGHT, Refusal, rendering, user, with_thinking
from r3core.task import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LAST_MARK = re.compile(r"(?:<[^<>\s]+>|\[[^\[\]\s]+\]|◁[^◁▷\s]+▷)$")
_LITERALS = (
    (re.compile(r"</?((?:\w+:)?think(?:ing)?)>"), ("<{}>", "</{}>")),
    (re.compile(r"\[/?(THINK)\]"), ("[{}]", "[/{}]")),
    (re.compile(r"◁/?(think)▷"), ("◁{}▷", "◁/{}▷")),
    (re.compile(r"<(channel)\|>"), ("<|{}>thought", "<{}|>")),
)
_BYTES = 8  # tokens; more than a character and a mark of its variant have
_cache: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, Marks | None]] = WeakKeyDictionary()


class Marks(NamedTuple):
    r"""What stands around a thought, without white space at the edges.

    >>> Marks("<think>", "</think>").split("<think>\nAdd them.\n</think>\n\nIt is 7.")
    Parts(thinking='Add them.', answer='It is 7.', closed=True)
    >>> Marks("<think>", "</think>").split("Add them", opened=True)
    Parts(thinking='Add them', answer='', closed=False)
    """

    open: str
    close: str
    head: str = ""
    """What stands before every answer: the header of its channel, in templates with channels."""

    def opened_by(self, request: str) -> bool:
        """Return whether a rendered request ends inside a thought that it has opened."""
        return request.rstrip().endswith(self.open)

    def split(self, text: str, *, opened: bool = False, calls: bool = False) -> Parts:
        """Split a generated text; `opened` is whether the request had opened the thought.

        With `calls`, channels other than those of thoughts and of the answer stay in the answer: they may hold calls.
        """
        thoughts: list[str] = []
        rest = text
        while opened or rest.lstrip().startswith(self.open):
            inside = rest.lstrip().removeprefix(self.open)
            thought, mark, rest = inside.partition(self.close)
            thoughts.append(thought.strip())
            if not mark:
                return Parts("\n".join(thoughts), "", closed=False)
            rest, opened = rest.lstrip(), False
            if not self.head:  # only channels hold several thoughts in a row
                break
        if self.head and not calls:  # a plan for the user, say, in a channel of its own
            other, mark, answer = rest.partition(self.close + self.head)
            thoughts, rest = ([*thoughts, other.strip()], answer) if mark else (thoughts, rest)
        return Parts("\n".join(thoughts) if thoughts else None, self._without_head(rest), closed=True)

    def _without_head(self, text: str) -> str:
        start = text.lstrip()
        return start[len(self.head) :] if self.head and start.startswith(self.head) else text


class Parts(NamedTuple):
    """The parts of a generated turn."""

    thinking: str | None
    """The thought, without its marks; None without a thought."""
    answer: str
    closed: bool
    """Whether the thought was closed; True without a thought."""


def marks_of(tokenizer: PreTrainedTokenizerBase) -> Marks | None:
    """Return the marks of a thought in a tokenizer's chat template; None for a template without thoughts.

    A template that shows an assistant's thought is rendered with one. Else the marks are those that the template
    itself contains, such as `</think>` in one that removes thoughts.
    """
    state = str(tokenizer.chat_template)
    cached = _cache.get(tokenizer)
    if cached is None or cached[0] != state:
        cached = _cache[tokenizer] = (state, _derived(tokenizer) or _literal(state))
    return cached[1]


def answer_start(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], answer: str) -> int:
    """Return the index of the first token of an answer at the end of generated tokens.

    Returns the number of tokens when there is no answer, or when a token holds both the end of the thought and the
    beginning of the answer: then the answer has no tokens of its own.
    """
    low, high = 0, len(ids)
    while low < high:  # the text of ids[k:] becomes shorter as k grows, ...
        middle = (low + high) // 2
        if len(_decoded(tokenizer, ids[middle:])) > len(answer):
            low = middle + 1
        else:
            high = middle
    # ... except inside a character of several tokens, of which each that is alone is one character, U+FFFD
    nearby = range(low, max(low - _BYTES, 0) - 1, -1) if answer else ()
    return next((start for start in nearby if _decoded(tokenizer, ids[start:]) == answer), len(ids))


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


def _derived(tokenizer: PreTrainedTokenizerBase) -> Marks | None:
    """Return what a template writes around the thought of its last turn; None when it does not show it."""
    answer: Message = {"role": "assistant", "content": ATTEMPT}
    request, plain = _rendered(tokenizer, request=True), _rendered(tokenizer, answer)
    whole = _rendered(tokenizer, with_thinking(answer, THOUGHT))
    before, found, after = whole.partition(THOUGHT)
    between, answered, _ = after.partition(ATTEMPT)
    close = between.strip()
    opening = before.removeprefix(request).strip() if before.startswith(request) else ""
    if not opening and (mark := _LAST_MARK.search(before.rstrip())):  # the request opens a thought, or closes one
        opening = mark.group()
    if not (found and answered and opening and close):
        return None
    head = plain.removeprefix(request).partition(ATTEMPT)[0].strip() if plain.startswith(request) else ""
    if head and close != head and close.endswith(head):
        return Marks(opening, close.removesuffix(head).strip(), head)
    return Marks(opening, close)


def _literal(template: str) -> Marks | None:
    """Return the marks that a template contains as they are, in a condition or in a sentence of its system prompt."""
    for pattern, form in _LITERALS:
        if found := pattern.search(template):
            return Marks(*(mark.format(found.group(1)) for mark in form))
    return None


def _rendered(tokenizer: PreTrainedTokenizerBase, *turns: Message, request: bool = False) -> str:
    """Return a short conversation in the chat template; empty when the template does not accept it."""
    text = rendering(tokenizer, [user(TASK), *turns], request=request)
    return "" if isinstance(text, Refusal) else text
