r"""The grammar of Countdown's expressions: bounded, parsed and computed exactly, and never executed.

The rules, for people:

- An expression has whole numbers in ASCII digits, + - * / and parentheses, and nothing else: no ** or //. A minus may
  stand before its first term, and before the first one in parentheses.
- It uses each given number exactly as often as it is given, written as it is given: no joined digits, no leading zeros.
- It equals the target in exact rational arithmetic; nothing is rounded, and a division by zero fails.

Other ways to write the signs, such as 9 x 5, typographic ones and LaTeX's \times, are read as + - * / by `plain`.
The parser is our own: for such short texts it is twice as fast as `ast.parse` with a walk over the tree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sympy import Rational

MAX_EXPRESSION = 200
"""Characters of an expression: twelve numbers of nine digits, spaces and all the parentheses they need take 161."""
MAX_DEPTH = 24
"""Pairs of parentheses, which also bounds the parser's recursion: twice what twelve numbers need."""

_SIGNS = str.maketrans({"×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "−": "-", "–": "-"})  # noqa: RUF001
_LATEX = re.compile(r"\\(times|cdot|ast|div|left|right|quad|[,;:! ])")
_LATEX_SIGNS = {"times": "*", "cdot": "*", "ast": "*", "div": "/"}
_X = re.compile(r"(?<=[0-9)])( ?)[xX](?= ?[0-9(])")
_WORD = re.compile(r"\*\*|//|[0-9]+|\S")
_ALLOWED = re.compile(r"[0-9+\-*/() \t\r\n]*")
_END = ""


class Wrong(Exception):
    """An answer is wrong; the message is the verdict's reason, and its error category unless another one is given."""

    def __init__(self, reason: str, kind: str = "") -> None:
        super().__init__(reason)
        self.kind = kind or reason


def plain(text: str) -> str:
    """Return a text with + - * / ( ) for the other ways to write these signs: ×, ·, ÷, −, 9 x 5, and LaTeX's."""  # noqa: RUF002
    text = _LATEX.sub(lambda found: _LATEX_SIGNS.get(found.group(1), " "), text.translate(_SIGNS))
    return _X.sub(r"\1*", text)


def words(text: str) -> list[str]:
    """Return the numbers and signs of a text, whatever signs they are."""
    return _WORD.findall(text)


def tokenize(expression: str) -> list[str]:
    """Return the numbers and signs of an expression; raises `Wrong` when it is too long or holds anything else."""
    if len(expression) > MAX_EXPRESSION or expression.count("(") > MAX_DEPTH:
        raise Wrong("the answer is too long")
    if not _ALLOWED.fullmatch(expression):
        raise Wrong("only whole numbers, + - * / and parentheses are allowed")
    return words(expression)


def compute(tokens: Sequence[str]) -> Rational:
    """Return the exact value of a tokenized expression; raises `Wrong` when the grammar has no such expression."""
    from sympy import Integer  # takes half a second the first time: not before an answer is judged

    ahead = [_END, *reversed(tokens)]  # the next token is the last
    value = _sum(ahead, Integer)
    if ahead != [_END]:
        raise _unexpected(ahead[-1])
    return value


def _sum(ahead: list[str], whole: type[Rational]) -> Rational:
    negative = ahead[-1] == "-"
    if negative:
        ahead.pop()
    value = -_product(ahead, whole) if negative else _product(ahead, whole)
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
