"""Control tokens, such as `<|im_end|>`: they come from the chat template alone, never from the text of a message."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary, proxy

from r3core.generation.tool_calls import form_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
_PROBE = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
_PROBES = (_PROBE, [{"role": "system", "content": "a"}, *_PROBE])
# Unicode's private-use characters, which no text contains by chance
_PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
_cache: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, ControlTokens]] = WeakKeyDictionary()


class ControlTokens:
    """The control tokens of a tokenizer, and tokenization of text that yields none of them.

    A control token is a special token, or another added token that the chat template writes around messages, such as
    DeepSeek's roles. Marks of thinking are not control tokens: models write them into their turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        written = _written_by_template(tokenizer)
        added = {
            index: token
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special or (token.content in written and "think" not in token.content.lower())
        }
        added = {index: token for index, token in added.items() if token.special or len(token.content.strip()) > 1}
        self.tokenizer = cast(
            "PreTrainedTokenizerBase", proxy(tokenizer)
        )  # else `_cache` would keep its own keys alive
        self.ids = frozenset(added)
        self.special = frozenset(index for index, token in added.items() if token.special)
        form = form_of(tokenizer)
        marks = {mark for mark in form.marks if mark not in written} if form else set()
        self.forging = frozenset(index for index, token in added.items() if token.content not in marks)
        """Those that end turns or begin others, and so must not be in a turn of the model; marks of calls may be."""
        self.forging_texts = [token.content for index, token in added.items() if index in self.forging]
        self.pattern = re.compile(
            _first_character_of({token.content for token in added.values() if len(token.content) > 1})
        )
        """Matches the first character of every control token in a text, even where they overlap."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self.normalized = any(token.normalized for token in added.values()) and bool(backend and backend.normalizer)
        """Whether other spellings may be tokenized as control tokens, such as `<|USER|>` as `<|user|>`."""
        # SentencePiece adds a prefix to the first word of a text. Inside a text it is avoided by a line break before
        # the word, whose tokens (`self.line`) are removed again.
        line, joined = self._plain("\n"), self._plain("\na")
        adds_prefix = joined[: len(line)] == line and joined[len(line) :] != self._plain("a")
        self.line = line if adds_prefix else []

    def in_text(self, text: str) -> bool:
        """Return whether a text contains a control token."""
        return self.pattern.search(text) is not None or (self.normalized and self._has_control(text))

    def cut(self, text: str, mark: str) -> str:
        """Return a text with `mark` inside every control token, so that no part between marks contains one."""
        cut = self.pattern.sub(rf"\g<0>{mark}", text)
        # a normalizing tokenizer may still find one in other spellings: then every character is a part of its own
        if self.normalized and any(map(self._has_control, cut.split(mark))):
            return mark.join(text)
        return cut

    def tokenize(self, text: str, mark: str | None = None, *, inside: bool = False) -> list[int]:
        """Return the token ids of a rendered text; each part between marks is tokenized separately.

        With `inside`, the text continues another one: its first word gets no prefix (SentencePiece's `▁`).
        """
        parts = text.split(mark) if mark else [text]
        ids = [self._inside(part) if inside or index else self._plain(part) for index, part in enumerate(parts)]
        return list(chain.from_iterable(ids))

    def usable(self, ids: Any, text: str) -> bool:
        """Return whether `ids` are tokens of this tokenizer that decode to a text, and cannot forge a turn."""
        return self.spell(ids, text) and self.forging.isdisjoint(ids)

    def spell(self, ids: Any, text: str) -> bool:
        """Return whether `ids` are tokens of this tokenizer that decode to a text."""
        if not isinstance(ids, list) or not all(isinstance(one, int) and 0 <= one < len(self.tokenizer) for one in ids):
            return False
        return str(self.tokenizer.decode(ids, skip_special_tokens=False)) == text

    def _has_control(self, text: str) -> bool:
        return not self.ids.isdisjoint(self._plain(text))

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _inside(self, text: str) -> list[int]:
        if not self.line:
            return self._plain(text)
        ids = self._plain(f"\n{text}")
        return ids[len(self.line) :] if ids[: len(self.line)] == self.line else self._plain(text)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """Return the control tokens of a tokenizer, cached until its vocabulary or its chat template changes."""
    state = (tokenizer.chat_template, len(tokenizer))
    cached = _cache.get(tokenizer)
    if cached is None or cached[0] != state:
        cached = _cache[tokenizer] = (state, ControlTokens(tokenizer))
    return cached[1]


def mapped(value: T, change: Callable[[str], str]) -> T:
    """Return a JSON value with every string in it changed, keys included."""
    changed: Any = value
    if isinstance(value, str):
        changed = change(value)
    elif isinstance(value, dict):
        changed = {mapped(key, change): mapped(item, change) for key, item in value.items()}
    elif isinstance(value, list):
        changed = [mapped(item, change) for item in value]
    return changed  # type: ignore[no-any-return]


def texts(value: object) -> Iterator[str]:
    """Yield every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts(key)
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def unused_character(used: Sequence[str]) -> str:
    """Return a private-use character that none of the texts contains, neither as such nor escaped."""
    candidates = map(chr, chain(*_PRIVATE))
    return next(one for one in candidates if not any(one in text or ascii(one)[1:-1] in text for text in used))


def _written_by_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the chat template's rendering of short messages in every role."""
    from jinja2 import TemplateError

    written = []
    for probe in _PROBES:
        try:
            written.append(tokenizer.apply_chat_template(probe, tokenize=False, add_generation_prompt=True))
        except TemplateError:  # some templates accept no system message
            continue
    return "\n".join(map(str, written))


def _first_character_of(words: Iterable[str]) -> str:
    """Return a pattern that matches the first character of any of the words; the rest is a lookahead."""
    return "|".join(f"{re.escape(first)}(?={_any_of(tails)})" for first, tails in _by_first(words)) or "(?!)"


def _any_of(words: Sequence[str]) -> str:
    """Return a pattern that matches any of the words: a tree, as some models have 1,000 tokens with a common prefix."""
    if "" in words:
        return ""  # a prefix of the others
    branches = [re.escape(first) + _any_of(tails) for first, tails in _by_first(words)]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _by_first(words: Iterable[str]) -> list[tuple[str, list[str]]]:
    tails: dict[str, list[str]] = defaultdict(list)
    for word in words:
        tails[word[0]].append(word[1:])
    return sorted(tails.items())
