"""The values that model text writes: strict JSON, and calls in Python's syntax; bounded, and never evaluated."""

from __future__ import annotations

import ast
import json
import keyword
import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 32
"""Lists and objects inside each other."""
MAX_DIGITS = 100
"""Characters of a number."""

_STRING = r"""'(?:[^'\\\n]|\\.)*+'|"(?:[^"\\\n]|\\.)*+\""""
_KEYWORD = re.compile(rf"{_STRING}|(?<![\w.])({'|'.join(keyword.kwlist)})(?=\s*+=(?!=))", re.DOTALL)
_TOKEN = re.compile(rf"{_STRING}|[\[\](){{}}]|(?:[-+~]\s*+|\bnot\s++){{2,}}", re.DOTALL)
_ESCAPE = "r3_keyword_"  # `from=1` is no Python; `r3_keyword_from=1` is
_WORDS = {"true": True, "false": False, "null": None}


def strict_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: It is not JSON, a key occurs twice, a number is NaN, infinite or too long, it is nested too deeply,
            or a text in it has half a surrogate pair, which no file can hold.
    """
    try:
        value = _DECODER.decode(text.strip(" \t\r\n"))
    except RecursionError:
        raise _too_deep() from None
    check_depth(value)
    json.dumps(value, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError
    return value


def check_depth(value: Any) -> None:
    """Raise `ValueError` for a JSON value that is nested more than `MAX_DEPTH` deep."""
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise _too_deep()
        inner = [item for one in level if isinstance(one, dict | list) for item in _items(one)]
        level, depth = inner, depth + 1


def in_dialect(text: str, *, string_delims: list[list[str]], unquoted_keys: bool) -> str:
    """Return a text in a dialect of JSON, with strings in other marks and keys without quotes, as JSON."""
    strings = "|".join(rf"{re.escape(opening)}(.*?){re.escape(closing)}" for opening, closing in string_delims)
    key = r"|(?<=[{,])(?P<key>\w++)(?=:)" if unquoted_keys else ""

    def written(found: re.Match[str]) -> str:
        return json.dumps(next(group for group in found.groups() if group is not None))

    return re.sub(strings + key, written, text, flags=re.DOTALL)


def python_calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return calls that are written as in Python: `f(x=1)`, a list of such calls, or one per line.

    Values are JSON's: texts, numbers, true, false, null (in either language), lists, tuples as lists, and objects.

    Raises:
        ValueError: It is anything else.
    """
    _check_nesting(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\d" in a string: Python warns, and keeps it
        try:
            tree = ast.parse(_KEYWORD.sub(_escaped, text.strip()))
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError(f"it is no call in Python's syntax: {error}") from None
    found: list[ast.expr | None] = []
    for statement in tree.body:
        value = statement.value if isinstance(statement, ast.Expr) else None
        found += value.elts if isinstance(value, ast.List) else [value]
    return [_call(node) for node in found]


def _check_nesting(text: str) -> None:
    """Raise for brackets or operators that are nested so deeply that Python's parser might not survive it."""
    depth = 0
    for token in _TOKEN.finditer(text):
        mark = token.group()
        depth += (mark in ("[", "(", "{")) - (mark in ("]", ")", "}"))
        if mark[0] in "-+~n":
            raise ValueError("operators in a row")
        if depth > MAX_DEPTH:
            raise _too_deep()


def _escaped(found: re.Match[str]) -> str:
    return f"{_ESCAPE}{found.group()}" if found.group(1) else found.group()


def _call(node: ast.AST | None) -> tuple[str, dict[str, Any]]:
    if not isinstance(node, ast.Call) or node.args or not all(one.arg for one in node.keywords):
        raise ValueError("it is no call with named arguments alone")
    names = [str(one.arg).removeprefix(_ESCAPE) for one in node.keywords]
    if len(set(names)) < len(names):
        raise ValueError("an argument occurs twice")
    return _name(node.func), {name: _literal(one.value) for name, one in zip(names, node.keywords, strict=True)}


def _name(node: ast.AST) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise ValueError("the name of a call is no name")
    return ".".join([node.id, *reversed(parts)])


def _literal(node: ast.AST) -> Any:
    match node:
        case ast.Constant(value=str(text)):
            return _characters(text)
        case ast.Constant(value=bool() | None as word):
            return word
        case ast.Constant(value=int() | float() as number):
            return _number(number)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)) if number is not True:
            return -_number(number)
        case ast.Name(id=name) if name in _WORDS:
            return _WORDS[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return _object([(_literal(key) if key else None, _literal(item)) for key, item in zip(keys, values)])  # noqa: B905
    raise ValueError("a value of a call is no literal")


def _characters(text: str) -> str:
    r"""Return a text with its surrogate pairs joined: JSON's `\ud83d\ude00` is one character, Python's is two."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16")  # raises UnicodeDecodeError for half a pair


def _number(number: int | float) -> int | float:
    if math.isinf(number) if isinstance(number, float) else abs(number) >= 10**MAX_DIGITS:
        raise ValueError("a number is too large")
    return number


def _object(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("an object has a key twice")
    if not all(isinstance(key, str) for key in made):
        raise ValueError("a key of an object is no text")
    return made


def _items(value: Mapping[str, Any] | list[Any]) -> list[Any]:
    return list(value.values() if isinstance(value, Mapping) else value)


def _too_deep() -> ValueError:
    return ValueError(f"more than {MAX_DEPTH} lists and objects inside each other")


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has more than {MAX_DIGITS} digits")
    return int(text)


def _real(text: str) -> float:
    if len(text) > MAX_DIGITS or math.isinf(number := float(text)):
        raise ValueError("a number is too long or too large")
    return number


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole, parse_float=_real, parse_constant=_refused)
