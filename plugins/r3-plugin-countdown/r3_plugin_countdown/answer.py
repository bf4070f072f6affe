r"""The answer in a response: between which tags it stands, and what it is without the marks that models put around it.

The rules, for people:

- The answer stands between `<answer>` and `</answer>`, in the last such block. Whatever stands before it, tagged or
  not, is the way to it: one block is judged, so more of them give no more chances.
- A bare list of answers fails: two different blocks with nothing but signs, numbers, "or" and "and" between them. The
  same answer twice is one answer.
- Tags that are only mentioned do not count: a block without a word or number in it, except for the "and" of the prompt
  ("inside <answer> and </answer>"), and a tag without its partner. Behind the last block, though, a tag without its
  partner that begins or ends another expression makes the response fail.
- Bold, code marks, a code fence, dollar signs, `\boxed{}`, quotes and one period around the expression are left out.
- "= 52" beside the expression is left out when 52 is the target; another number there makes the answer fail.

What an expression is, and what it may use, are the rules in `expression`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from r3_plugin_countdown.expression import MAX_EXPRESSION, Wrong, compute, plain, tokenize, words

MAX_RESPONSE = 200_000
"""Characters of a response: some 50,000 tokens, more than a model writes in one turn."""
_MAX_WRITTEN = 4 * MAX_EXPRESSION
"""Characters of an answer with its marks: LaTeX needs several characters for one sign."""
_MAX_MARKS = 8  # pairs of marks around one answer

_TAG = re.compile(r"(</?answer>)")
_OPENED, _CLOSED = "<answer>", "</answer>"
_WORD_OR_NUMBER = re.compile(r"[^\W_]+")
_WORD = re.compile(r"[^\W\d_]+")
_OF_THE_PROMPT = {"and"}
_OF_A_LIST = {"and", "or"}
_BEGINS = re.compile(r"[\s(]*(?:[0-9]|$)")
_ENDS = tuple("0123456789)")
_MARKS = (
    ("```", "```"),
    ("`", "`"),
    ("**", "**"),
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    (r"\boxed{", "}"),
    ('"', '"'),
)
_LANGUAGE = re.compile(r"[A-Za-z]*[ \t]*\n")


def check(response: str, numbers: Sequence[int], target: int) -> None:
    """Raise `Wrong` unless the response's answer makes the target from the numbers."""
    tokens = tokenize(_without_target(find_answer(response), str(target)))
    if sorted(filter(str.isdecimal, tokens)) != sorted(map(str, numbers)):
        raise Wrong("it does not use every given number exactly once")
    value = compute(tokens)
    if value != target:
        number = f"{value.p if value.q == 1 else f'{value.p}/{value.q}'}"
        raise Wrong(f"it equals {number}, not {target}", kind="it equals another number")


def find_answer(response: str) -> str:
    """Return the answer of a response, with + - * / for every sign; raises `Wrong` unless there is exactly one."""
    if len(response) > MAX_RESPONSE:
        raise Wrong("the response is too long")
    texts = _TAG.split(response)  # text, tag, text, tag, ..., text
    starts = [i for i in range(1, len(texts) - 2, 2) if (texts[i], texts[i + 2]) == (_OPENED, _CLOSED)]
    blocks = [i for i in starts if set(_WORD_OR_NUMBER.findall(texts[i + 1])) - _OF_THE_PROMPT]
    if not blocks:
        unpaired = len(texts) // 2 > 2 * len(starts)
        raise Wrong("an answer tag has no partner" if unpaired else "there is no answer between answer tags")
    if _is_unfinished(texts, blocks[-1] + 4):
        raise Wrong("an answer tag has no partner")
    answer, compared = _written(texts[blocks[-1] + 1]), _compared(texts[blocks[-1] + 1])
    for before, after in zip(blocks[-2::-1], blocks[:0:-1], strict=True):
        if set(map(str.lower, _WORD.findall("".join(texts[before + 3 : after : 2])))) - _OF_A_LIST:
            break  # words stand between: what comes before them was a try
        if _compared(texts[before + 1]) not in ("", compared):
            raise Wrong("it gives several different answers")
    return answer


def _is_unfinished(texts: Sequence[str], first: int) -> bool:
    """Return whether a tag without its partner, from number `first` on, begins or ends another expression."""
    for i in range(first, len(texts), 2):
        if texts[i] == _OPENED and texts[i + 2 : i + 3] != [_CLOSED] and _BEGINS.match(texts[i + 1]):
            return True
        if texts[i] == _CLOSED and texts[i - 2] != _OPENED and texts[i - 1].rstrip().endswith(_ENDS):
            return True
    return False


def _written(block: str) -> str:
    """Return a block without the marks around it, and with + - * / for every sign."""
    text = block.strip()
    if len(text) > _MAX_WRITTEN:
        raise Wrong("the answer is too long")
    return plain(_unmarked(text))


def _unmarked(text: str) -> str:
    for _ in range(_MAX_MARKS):
        before, text = text, _without_one_mark(text)
        if text == before:
            break
    return text


def _without_one_mark(text: str) -> str:
    text = text.strip().removesuffix(".").rstrip()
    for opened, closed in _MARKS:
        if len(text) > len(opened) + len(closed) and text.startswith(opened) and text.endswith(closed):
            inside = text[len(opened) : -len(closed)]
            language = _LANGUAGE.match(inside) if opened == "```" else None
            return inside[language.end() if language else 0 :].strip()
    return text


def _without_target(text: str, target: str) -> str:
    """Return the expression of "expression = target"; raises `Wrong` when another number is stated."""
    sides = [_unmarked(side.strip()) for side in text.split("=")]
    if len(sides) != 2:
        return text  # more than one `=` is for the grammar to refuse
    if target in sides:
        return sides[0] if sides[1] == target else sides[1]
    raise Wrong("it states another result")


def _compared(block: str) -> str:
    """Return what the same answers have in common, however they are written; empty for a block without a number."""
    expression = _written(block).partition("=")[0]
    return " ".join(words(expression)) if re.search("[0-9]", expression) else ""
