"""Answer formats: right answers, written as real models write them. Each passes, or the prompt rules it out.

They are the opposite of the probes. Each is generated from a reference, without knowledge of the task: thoughts and
sentences around it, Markdown and LaTeX around it or around what is inside the references' tags, and other signs in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pydantic import JsonValue

from r3core.check.context import Checking
from r3core.check.probes import Frame
from r3core.task import Example

_EXAMPLES = 8  # number of references that are written in every format
_SHORT = 100  # maximum number of characters of an answer that is put into LaTeX or quotes

_THOUGHT = "The task has several parts. I take them one after the other."
_TAG = re.compile(r"<[^<>/\s][^<>]*>")
_BEFORE_AN_ANSWER = re.compile(r"(?:<[^<>/\s][^<>]*>|\[\w+\]|\\boxed\{|:)\s*$")
_ARITHMETIC = re.compile(r"[0-9 ()+*/.-]{2,200}")
_OPERATION = re.compile(r"[0-9)] *[+*/-] *[0-9(]")
_SIGNS = str.maketrans({"*": "×", "/": "÷", "-": "−"})  # noqa: RUF001
_LATEX = str.maketrans({"*": r"\times", "/": r"\div"})
_LARGE = re.compile(r"[0-9]{4,30}")


class Answer(NamedTuple):
    """A right answer that is to be written in other formats."""

    right: str
    frame: Frame
    result: JsonValue
    """The example's `answer`."""

    @property
    def core(self) -> str:
        """What is inside the frame."""
        return self.frame.core(self.right)


def check_formats(checking: Checking, right: Sequence[tuple[Example, str]], *, frame: Frame) -> None:
    """Judge right answers in every format, and add the findings; a refused one is noted, unless it is in `refuses`."""
    tries: dict[str, list[tuple[Example, str]]] = {}
    for example, response in checking.sample(right, _EXAMPLES):
        for name, texts in formats_of(Answer(response, frame, example.answer)).items():
            tries.setdefault(name, []).extend((example, text) for text in texts)
    for name in NAMES:
        if name in tries:
            checking.add_format(name, checking.judged(tries[name]))


def formats_of(answer: Answer) -> dict[str, list[str]]:
    """Return name -> texts of a right answer, without those equal to it and without formats that do not fit."""
    formats = {name: write(answer) for name, write in _AROUND.items()}
    for name, mark in _MARKS.items():
        formats[name] = mark(answer.right)
        formats[f"{name} inside"] = [*map(answer.frame.around, mark(answer.core))] if _is_framed(answer) else []
    formats |= {name: [*map(answer.frame.around, write(answer))] for name, write in _INSIDE.items()}
    other = {name: [text for text in dict.fromkeys(texts) if text != answer.right] for name, texts in formats.items()}
    return {name: texts for name, texts in other.items() if texts}


def _is_framed(answer: Answer) -> bool:
    """Return whether a model could put marks inside the frame: the frame is a tag or a label, and no part of JSON."""
    return _BEFORE_AN_ANSWER.search(answer.frame.before) is not None and not _is_json(answer.right)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _mentioned(answer: Answer) -> list[str]:
    before, after = answer.frame.before.strip(), answer.frame.after.strip()
    if not _TAG.fullmatch(before) or not after:
        return []
    sentences = [
        f"I will put it in `{before}{after}` tags.",
        f"It goes between {before} and {after}.",
        f"I use the {before} tag.",
        f"The form is {before}...{after}.",
    ]
    return [f"{sentence}\n\n{answer.right}" for sentence in sentences]


def _other_signs(answer: Answer) -> list[str]:
    return [answer.core.translate(_SIGNS)] if _ARITHMETIC.fullmatch(answer.core) else []


def _latex_signs(answer: Answer) -> list[str]:
    return [answer.core.translate(_LATEX)] if _is_operation(answer.core) else []


def _with_result(answer: Answer) -> list[str]:
    number = isinstance(answer.result, int | float) and not isinstance(answer.result, bool)
    return [f"{answer.core} = {answer.result}"] if number and _is_operation(answer.core) else []


def _is_operation(text: str) -> bool:
    return _ARITHMETIC.fullmatch(text) is not None and _OPERATION.search(text) is not None


def _grouped(answer: Answer) -> list[str]:
    return [f"{int(answer.core):,}"] if _LARGE.fullmatch(answer.core) and answer.core[0] != "0" else []


def _short(mark: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """Return marks that models put around one short text without quotes or braces only."""
    return lambda text: mark(text) if len(text) <= _SHORT and not re.search(r"[\n\"{}$]", text) else []


_AROUND: dict[str, Callable[[Answer], list[str]]] = {
    "a thought before": lambda answer: [f"{mark}{_THOUGHT}\n</think>\n\n{answer.right}" for mark in ("<think>\n", "")],
    "a thought with the answer before": lambda answer: [f"<think>\n{answer.right}?\n</think>\n\n{answer.right}"],
    "a sentence before": lambda answer: [f"The answer is:\n{answer.right}", f"So the answer is {answer.right}"],
    "a sentence after": lambda answer: [f"{answer.right}\n\nThis is my final answer."],
    "several lines around": lambda answer: [f"I read the task.\nThen I work it out.\n\n{answer.right}\n\nThat is all."],
    "a label before": lambda answer: [f"Answer: {answer.right}", f"**Final answer:** {answer.right}"],
    "the tags mentioned before": _mentioned,
}
_MARKS: dict[str, Callable[[str], list[str]]] = {
    "on a line of its own": lambda text: [f"\n{text}\n"],
    "in a code fence": lambda text: [f"```\n{text}\n```", f"```text\n{text}\n```"],
    "in code marks": lambda text: [f"`{text}`"],
    "bold": lambda text: [f"**{text}**"],
    "a period behind": lambda text: [f"{text}."],
    "in quotes": _short(lambda text: [f'"{text}"']),
    "in dollar signs": _short(lambda text: [f"${text}$"]),
    "in a LaTeX box": _short(lambda text: [rf"\boxed{{{text}}}", rf"$\boxed{{{text}}}$"]),
}
_INSIDE: dict[str, Callable[[Answer], list[str]]] = {
    "other signs": _other_signs,
    "LaTeX signs": _latex_signs,
    "= and the result behind": _with_result,
    "digits in groups": _grouped,
    "in capitals": lambda answer: [answer.core.upper()],
    "in small letters": lambda answer: [answer.core.lower()],
}
NAMES = (*_AROUND, *(f"{name}{place}" for name in _MARKS for place in ("", " inside")), *_INSIDE)
"""Every format that a task can list in `refuses`."""
