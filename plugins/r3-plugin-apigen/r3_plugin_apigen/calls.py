"""The calls that a response makes: found, bounded, parsed, and never executed.

The rules, for people:

- The answer is a JSON list of calls; each call is an object with the keys `name` (a text) and `arguments` (an object),
  and no other. An empty list means that no tool is to be called.
- It stands bare or in a code fence, and text may stand around it. Or it stands in <tool_call> tags: each pair of them
  holds a call or a list of calls, and all pairs together, in their order, are one list. Every tag has its partner. A
  tag inside a text of the JSON is text, and one anywhere else in a list is an error.
- Two different lists fail, wherever they stand. The same list twice is one answer.
- A list of objects that has the key "arguments" somewhere is meant as a list of calls, and has to be one. Other lists
  of objects are text, but have to be closed.
- An empty list is the answer when it is alone on its line, or in tags. Beside a list of calls it is another list, also
  inside a sentence.
- It is JSON, and nothing near it: no single quotes, no comments, no key twice in an object, no NaN or Infinity.
- It is within bounds (the constants below), which are held before anything is parsed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable, Iterator, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

MAX_RESPONSE = 200_000
"""Characters of a response: some 50,000 tokens, more than a model writes in one turn."""
MAX_LIST = 50_000
"""Characters of a list of calls."""
MAX_DEPTH = 32
"""Lists and objects inside each other, which also bounds every recursion over a value."""
MAX_CALLS = 64
MAX_DIGITS = 100
"""Characters of a number."""

_CLOSING = "</tool_call>"
_INNER = re.compile(r"[ \t\r\n]*+(?=[\[{])")
_CLOSED = re.compile(rf"[ \t\r\n]*+{_CLOSING}")
# a tag, or a list of objects; at most 32 brackets: it looks ahead from each of them
_OPENING = re.compile(r"</?tool_call>|\[(?=\s*+(?:\[\s*+){0,32}+\{)")
# No step of it can be taken back, so that it takes one pass over any text: also over a text that never ends.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]|</?tool_call>', re.DOTALL)
_ARGUMENTS = re.compile(r"""["']arguments["']\s*:""")
_EMPTY_WORD = re.compile(r"(?<!\S)`*\[ ?\]`*(?=[\s.;!?]|$)")
_EMPTY_LINE = re.compile(r"^[ \t`]*\[ ?\][ \t\r`]*$", re.MULTILINE)
_CUT = "\ufffc"  # in place of what was cut out of a text: no line becomes empty by that


class Kind(StrEnum):
    """What can be wrong with a response, all of it."""

    NO_CALLS = "no calls found"
    SEVERAL_LISTS = "several lists"
    NOT_JSON = "not JSON"
    NOT_CALLS = "not a list of calls"
    TOO_LONG = "too long"
    UNKNOWN_TOOL = "unknown tool"
    SCHEMA_VIOLATION = "schema violation"
    WRONG_TOOL = "wrong tool"
    MISSING_CALL = "missing call"
    EXTRA_CALL = "extra call"
    WRONG_ARGUMENT = "wrong argument"
    WRONG_ORDER = "wrong order"


class Wrong(Exception):
    """A response is not right; the message is the verdict's reason, and begins with the kind of error."""

    def __init__(self, kind: Kind, what: str) -> None:
        super().__init__(f"{kind}: {what}")
        self.kind = kind


class Call(NamedTuple):
    """One call of a tool."""

    name: str
    arguments: dict[str, Any]


def find_calls(response: str) -> list[Call]:
    """Return the calls of a response; raises `Wrong` when there is no list of calls, or more than one."""
    if len(response) > MAX_RESPONSE:
        raise Wrong(Kind.TOO_LONG, f"the response has more than {MAX_RESPONSE:,} characters")
    blocks, found, rest = _cut(response)
    lists = [calls_of([call for block in blocks for call in _read_block(block)])] if blocks else []
    lists += [calls_of(parse(written)) for written in found if _ARGUMENTS.search(written)]
    if (_EMPTY_WORD if lists else _EMPTY_LINE).search(rest):
        lists.append([])
    if not lists and found:
        raise Wrong(Kind.NOT_CALLS, "its objects have no `arguments`")
    if not lists:
        raise Wrong(Kind.NO_CALLS, "there is no JSON list of calls")
    if len(lists) > 1 and len({key_of(calls) for calls in lists}) > 1:
        raise Wrong(Kind.SEVERAL_LISTS, f"{len(lists)} lists that are not the same")
    return lists[0]


def calls_of(value: Any) -> list[Call]:
    """Return a JSON value as calls; raises `Wrong` when it is no list of calls."""
    if not isinstance(value, list):
        raise Wrong(Kind.NOT_CALLS, "it is no list")
    if len(value) > MAX_CALLS:
        raise Wrong(Kind.TOO_LONG, f"more than {MAX_CALLS} calls")
    for place, call in enumerate(value, start=1):
        if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
            raise Wrong(Kind.NOT_CALLS, f"entry {place} is no object with `name` and `arguments` alone")
        if not isinstance(call["name"], str) or not isinstance(call["arguments"], dict):
            raise Wrong(Kind.NOT_CALLS, f"in entry {place} the name is no text, or the arguments are no object")
    return [Call(call["name"], call["arguments"]) for call in value]


def parse(text: str) -> Any:
    """Return the value of a JSON text that is known to be bounded; raises `Wrong` when it is not JSON."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise Wrong(Kind.NOT_JSON, f"{error.msg} at character {error.pos + 1} of the list") from None


def key_of(value: Any) -> Hashable:
    """Return a stand-in for a JSON value that is hashable, and equal for values that are equal in JSON.

    1 and 1.0 are one number; 1, "1" and true are three things; the order of keys is free, that of lists is not.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return frozenset([(name, key_of(item)) for name, item in value.items()])
    if isinstance(value, list | tuple):
        return tuple([key_of(item) for item in value])
    return (bool, value) if isinstance(value, bool) else value  # in Python True is 1


def first_list(text: str) -> str | None:
    """Return the first list of objects in a text, as it is written; raises `Wrong` when it is beyond a bound."""
    found = re.search(r"\[\s*+\{", text)
    return text[found.start() : _end_of(text, found.start())] if found else None


def _cut(text: str) -> tuple[list[str], list[str], str]:
    """Return what stands in tags, the lists of objects outside of them, and the text without all of these.

    It reads on behind the end of each, so that all of it is one pass: a tag inside a list is not one of the text's.
    """
    blocks: list[str] = []
    lists: list[str] = []
    rest: list[str] = []
    place = 0
    while opening := _OPENING.search(text, place):
        rest.append(text[place : opening.start()])
        if opening.group() == "[":
            place = _end_of(text, opening.start())
            lists.append(text[opening.start() : place])
        else:
            end = _end_of_block(text, opening)
            blocks.append(text[opening.end() : end])
            place = end + len(_CLOSING)
    return blocks, lists, _CUT.join([*rest, text[place:]])


def _end_of_block(text: str, tag: re.Match[str]) -> int:
    """Return where the closing tag begins that belongs to an opening one; raises `Wrong` when it has no partner."""
    if tag.group() == _CLOSING or text.find(_CLOSING, tag.end()) < 0:
        raise Wrong(Kind.NOT_JSON, "a <tool_call> tag has no partner")
    inner = _INNER.match(text, tag.end())
    closed = _CLOSED.match(text, _end_of(text, inner.end())) if inner else None
    if closed is None:
        raise Wrong(Kind.NOT_JSON, "what stands in <tool_call> tags is neither one object nor one list")
    return closed.end() - len(_CLOSING)


def _read_block(block: str) -> list[Any]:
    value = parse(block.strip(" \t\r\n"))
    return value if isinstance(value, list) else [value]


def _end_of(text: str, start: int) -> int:
    """Return where the list or object that begins at `start` ends; raises `Wrong` when it goes beyond a bound."""
    depth = 0
    for token in _tokens(text, start):
        bracket = token.group()
        if bracket in ("[", "{"):
            depth += 1
            if depth > MAX_DEPTH:
                raise Wrong(Kind.TOO_LONG, f"more than {MAX_DEPTH} lists and objects inside each other")
        elif bracket in ("]", "}"):
            depth -= 1
            if depth == 0:
                return token.end()
        elif bracket[0] == "<":
            raise Wrong(Kind.NOT_JSON, "a <tool_call> tag inside a list or an object")
    if len(text) - start > MAX_LIST:
        raise Wrong(Kind.TOO_LONG, f"the list has more than {MAX_LIST:,} characters")
    raise Wrong(Kind.NOT_JSON, "a list or an object is not closed")


def _tokens(text: str, start: int) -> Iterator[re.Match[str]]:
    return _TOKEN.finditer(text, start, start + MAX_LIST)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len(made := dict(pairs)) < len(pairs):
        raise Wrong(Kind.NOT_JSON, "an object has a key twice")
    return made


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise Wrong(Kind.TOO_LONG, f"a number has more than {MAX_DIGITS} digits")
    return int(text)


def _real(text: str) -> float:
    if len(text) > MAX_DIGITS:
        raise Wrong(Kind.TOO_LONG, f"a number has more than {MAX_DIGITS} digits")
    if math.isinf(number := float(text)):
        raise Wrong(Kind.NOT_JSON, "a number is beyond what a double can hold")
    return number


def _refuse(constant: str) -> float:
    raise Wrong(Kind.NOT_JSON, f"{constant} is no JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole, parse_float=_real, parse_constant=_refuse)
