"""Control tokens, such as `<|im_end|>`: only the chat template writes them, never what stands in a message."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary, proxy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
_PROBE = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
_PROBES = (_PROBE, [{"role": "system", "content": "a"}, *_PROBE])
# the private-use characters of Unicode, which no text contains by chance
_PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
_known: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, ControlTokens]] = WeakKeyDictionary()


class ControlTokens:
    """The control tokens of a tokenizer, and tokenization that reads none of them out of a message.

    A control token is a special token, or any other added token that the chat template writes around messages (the
    roles of DeepSeek are such). Thinking marks are not among them: models write them into their turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        written = _written_by_template(tokenizer)
        added = {
            index: token
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special or (token.content in written and "think" not in token.content.lower())
        }
        added = {index: token for index, token in added.items() if token.special or len(token.content.strip()) > 1}
        self.tokenizer = cast("PreTrainedTokenizerBase", proxy(tokenizer))  # the cache below holds no tokenizer
        self.ids = frozenset(added)
        self.pattern = re.compile(_beginning_of({token.content for token in added.values() if len(token.content) > 1}))
        """Matches the first character of every control token in a text, also where they overlap."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self.normalized = any(token.normalized for token in added.values()) and bool(backend and backend.normalizer)
        """Whether other spellings may be read as control tokens too, such as `<|USER|>` for `<|user|>`."""
        line, joined = self._plain("\n"), self._plain("\na")
        adds_prefix = joined[: len(line)] == line and joined[len(line) :] != self._plain("a")
        self.line = line if adds_prefix else []

    def in_text(self, text: str) -> bool:
        """Return whether a text contains a control token."""
        return self.pattern.search(text) is not None or (self.normalized and self._read_from(text))

    def cut(self, text: str, mark: str) -> str:
        """Return a text with `mark` in the middle of every control token, so that no part between marks has one."""
        cut = self.pattern.sub(rf"\g<0>{mark}", text)
        if self.normalized and any(map(self._read_from, cut.split(mark))):
            return mark.join(text)
        return cut

    def tokenize(self, text: str, mark: str | None = None, *, inside: bool = False) -> list[int]:
        """Return the token ids of a rendered text, each part between marks tokenized alone.

        `inside` tells that the text continues another: the first word gets no prefix then, where the tokenizer puts
        one (SentencePiece's `▁`).
        """
        parts = text.split(mark) if mark else [text]
        ids = [self._inside(part) if inside or place else self._plain(part) for place, part in enumerate(parts)]
        return list(chain.from_iterable(ids))

    def usable(self, ids: Any, text: str) -> bool:
        """Return whether `ids` are this tokenizer's for a text, and none of them is a control token."""
        if not isinstance(ids, list) or not all(isinstance(one, int) and 0 <= one < len(self.tokenizer) for one in ids):
            return False
        return self.ids.isdisjoint(ids) and self.tokenizer.decode(ids, skip_special_tokens=False) == text

    def _read_from(self, text: str) -> bool:
        return not self.ids.isdisjoint(self._plain(text))

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _inside(self, text: str) -> list[int]:
        if not self.line:
            return self._plain(text)
        ids = self._plain(f"\n{text}")
        return ids[len(self.line) :] if ids[: len(self.line)] == self.line else self._plain(text)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """Return the control tokens of a tokenizer, which are looked for again when it or its template has changed."""
    state = (tokenizer.chat_template, len(tokenizer))
    known = _known.get(tokenizer)
    if known is None or known[0] != state:
        known = _known[tokenizer] = (state, ControlTokens(tokenizer))
    return known[1]


def mapped(value: T, change: Callable[[str], str]) -> T:
    """Return a JSON value with every text in it changed, keys too."""
    changed: Any = value
    if isinstance(value, str):
        changed = change(value)
    elif isinstance(value, dict):
        changed = {mapped(key, change): mapped(item, change) for key, item in value.items()}
    elif isinstance(value, list):
        changed = [mapped(item, change) for item in value]
    return changed  # type: ignore[no-any-return]


def texts(value: object) -> Iterator[str]:
    """Yield every text in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts(key)
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def unused_character(written: Sequence[str]) -> str:
    """Return a private-use character that no text contains, neither as it is nor escaped."""
    candidates = map(chr, chain(*_PRIVATE))
    return next(one for one in candidates if not any(one in text or ascii(one)[1:-1] in text for text in written))


def _written_by_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what the chat template writes around plain conversations."""
    from jinja2 import TemplateError

    written = []
    for probe in _PROBES:
        try:
            written.append(tokenizer.apply_chat_template(probe, tokenize=False, add_generation_prompt=True))
        except TemplateError:  # a template may refuse the system message
            continue
    return "\n".join(map(str, written))


def _beginning_of(words: Iterable[str]) -> str:
    """Return a pattern for the first character of any of the words."""
    return "|".join(f"{re.escape(first)}(?={_any_of(tails)})" for first, tails in _by_first(words)) or "(?!)"


def _any_of(words: Sequence[str]) -> str:
    """Return a pattern for any of the words: a tree, as models may have a thousand tokens that begin alike."""
    if "" in words:
        return ""  # the others begin with this one
    branches = [re.escape(first) + _any_of(tails) for first, tails in _by_first(words)]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _by_first(words: Iterable[str]) -> list[tuple[str, list[str]]]:
    tails: dict[str, list[str]] = defaultdict(list)
    for word in words:
        tails[word[0]].append(word[1:])
    return sorted(tails.items())
