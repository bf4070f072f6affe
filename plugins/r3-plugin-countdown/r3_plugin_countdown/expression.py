"""The grammar of Countdown answers: found, bounded, parsed and computed exactly, and never executed.

The rules, for people:

- The answer stands between `<answer>` and `</answer>`. Every tag has its partner, and none stands inside another.
- Several blocks are one answer when they differ in nothing but spaces; otherwise the response fails. A block that
  contains only "and" quotes the prompt ("inside <answer> and </answer>") and does not count.
- An expression has whole numbers in ASCII digits, + - * / and parentheses, and nothing else: no sign before a number,
  no ** or //, no "= target" behind it.
- It uses each given number exactly as often as it is given, written as it is given: no joined digits, no leading zeros.
- It equals the target in exact rational arithmetic; nothing is rounded, and a division by zero fails.

The parser is our own: for such short texts it is twice as fast as `ast.parse` with a walk over the tree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sympy import Rational

MAX_RESPONSE = 200_000
"""Characters of a response: some 50,000 tokens, more than a model writes in one turn."""
MAX_EXPRESSION = 200
"""Characters of an expression: twelve numbers of nine digits, spaces and all the parentheses they need take 161."""
MAX_DEPTH = 24
"""Pairs of parentheses, which also bounds the parser's recursion: twice what twelve numbers need."""

_TAG = re.compile(r"(</?answer>)")
_QUOTED_FROM_PROMPT = "and"
_WORD = re.compile(r"\*\*|//|[0-9]+|\S")
_ALLOWED = re.compile(r"[0-9+\-*/() \t\r\n]*")
_END = ""


class Wrong(Exception):
    """An answer is wrong; the message is the verdict's reason, and its error category unless another one is given."""

    def __init__(self, reason: str, kind: str = "") -> None:
        super().__init__(reason)
        self.kind = kind or reason


def check(response: str, numbers: Sequence[int], target: int) -> None:
    """Raise `Wrong` unless the response's answer makes the target from the numbers."""
    tokens = tokenize(find_answer(response))
    if sorted(filter(str.isdecimal, tokens)) != sorted(map(str, numbers)):
        raise Wrong("it does not use every given number exactly once")
    value = compute(tokens)
    if value != target:
        number = f"{value.p if value.q == 1 else f'{value.p}/{value.q}'}"
        raise Wrong(f"it equals {number}, not {target}", kind="it equals another number")


def find_answer(response: str) -> str:
    """Return the text of the one answer; raises `Wrong` unless there is exactly one."""
    if len(response) > MAX_RESPONSE:
        raise Wrong("the response is too long")
    texts = _TAG.split(response)  # what is before, tag, block, tag, what is between, tag, block, tag, ...
    tags = texts[1::2]
    if tags != ["<answer>", "</answer>"] * (len(tags) // 2):
        raise Wrong("an answer tag has no partner")
    blocks = [block for block in map(str.strip, texts[2::4]) if block != _QUOTED_FROM_PROMPT]
    if not blocks:
        raise Wrong("there is no answer between answer tags")
    if len(max(blocks, key=len)) > MAX_EXPRESSION:
        raise Wrong("the answer is too long")
    if len(blocks) > 1 and len({" ".join(_WORD.findall(block)) for block in blocks}) > 1:
        raise Wrong("it gives several different answers")
    return blocks[0]


def tokenize(expression: str) -> list[str]:
    """Return the numbers and signs of an expression; raises `Wrong` when it is too long or holds anything else."""
    if len(expression) > MAX_EXPRESSION or expression.count("(") > MAX_DEPTH:
        raise Wrong("the answer is too long")
    if not _ALLOWED.fullmatch(expression):
        raise Wrong("only whole numbers, + - * / and parentheses are allowed")
    return _WORD.findall(expression)


def compute(tokens: Sequence[str]) -> Rational:
    """Return the exact value of a tokenized expression; raises `Wrong` when the grammar has no such expression."""
    from sympy import Integer  # takes half a second the first time: not before an answer is judged

    ahead = [_END, *reversed(tokens)]  # the next token is the last
    value = _sum(ahead, Integer)
    if ahead != [_END]:
        raise _unexpected(ahead[-1])
    return value


def _sum(ahead: list[str], whole: type[Rational]) -> Rational:
    value = _product(ahead, whole)
    while ahead[-1] in ("+", "-"):
        plus = ahead.pop() == "+"
        right = _product(ahead, whole)
        value = value + right if plus else value - right
    return value


def _product(ahead: list[str], whole: type[Rational]) -> Rational:
    value = _factor(ahead, whole)
    while ahead[-1] in ("*", "/"):
        times = ahead.pop() == "*"
        right = _factor(ahead, whole)
        if not times and right == 0:
            raise Wrong("it divides by zero")
        value = value * right if times else value / right
    return value


def _factor(ahead: list[str], whole: type[Rational]) -> Rational:
    token = ahead.pop()
    if token.isdecimal() and (token[0] != "0" or token == "0"):
        return whole(int(token))
    if token in ("+", "-"):
        raise Wrong("a sign before a number is not allowed")
    if token != "(":
        raise _unexpected(token)
    value = _sum(ahead, whole)
    if ahead[-1] != ")":
        raise _unexpected(ahead[-1])
    ahead.pop()
    return value


def _unexpected(token: str) -> Wrong:
    return Wrong("** and // are not allowed" if token in ("**", "//") else "it is not a complete expression")
