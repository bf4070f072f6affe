"""The assistant's turns in synthetic episodes of function calling: calls that are right or wrong, reflections, retries.

Reflections come in four kinds: platitudes, a right and a wrong diagnosis of the attempt, and a review, which goes
through the offered tools and lists the arguments that the request states. No reflection contains a value of the calls.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from pretraining.trainer import Piece, Turn
from r3_plugin_apigen.calls import key_of
from r3_plugin_apigen.catalog import Form
from r3_plugin_apigen.generate import Problem, Request
from r3_plugin_apigen.words import choose
from r3core import Split

FOLLOWS = {"right diagnosis": 0.92, "review": 0.95, "wrong diagnosis": 0.75}
"""How often a retry follows its reflection, by the kind of the reflection."""
ERRORS = {"tool": 0.2, "left out": 0.25, "not stated": 0.2, "form": 0.25, "value": 0.1}
"""Shares of the errors in wrong calls, where the request allows them."""

PLATITUDES = (
    "I made a mistake.",
    "I was too hasty.",
    "I will check every argument.",
    "I should have been more careful.",
    "I will read the request again.",
    "I need to look at the tools.",
    "Next time I will mind the details.",
    "I must follow the schema.",
)
DIAGNOSES = {
    "tool": "I called the wrong tool, it should be ",
    "left out": "I left out ",
    "not stated": "I stated what is not in the request: ",
    "form": "I did not write in the right form: ",
    "value": "I gave a wrong value to ",
}
REVIEW = "Let me go through the tools: "
NO = " no, "
YES = " yes."
STATES = " The request states "
CONVERT = " In another form: "
STOP = "."


@dataclass(frozen=True)
class Mixture:
    """The shares of what is in a corpus."""

    disguised: float
    """Share of the tools whose words are replaced by new ones."""
    mixed: bool
    """Whether words of other lists are among the new ones, and the arguments are shuffled."""
    splits: tuple[Split, ...]
    """The splits whose tools are used; no query of the test split is ever used."""
    drills: float
    """Share of the conversations with several requests to the same tools, each answered correctly."""
    right_attempts: float
    """Share of right ones among first attempts, and among retries that follow no reflection."""
    sloppy: bool
    """Whether wrong calls are trained on; otherwise they are context only."""
    practice: float
    """Share of the reflections that are reviews whose opening carries no loss: they teach how to review."""
    kinds: dict[str, float]
    """Shares of the kinds of the other reflections."""


class Answer(NamedTuple):
    """A call; when it is wrong, with its error and the argument or tool that the error is about."""

    form: Form
    arguments: dict[str, Any]
    error: str | None = None
    about: str = ""

    def text(self) -> str:
        return json.dumps([{"name": self.form.name, "arguments": self.arguments}], ensure_ascii=False)


class Teacher:
    """Writes the assistant's turns of an episode about one problem with one call."""

    def __init__(self, problem: Problem, mixture: Mixture, rng: random.Random) -> None:
        self.problem = problem
        self.mixture = mixture
        self.rng = rng
        request: Request = problem.requests[0]
        self.form = request.form
        self.values = {name: stated.value for name, stated in request.stated.items()}
        self.raw = {  # the values whose form in the request is not the one in the schema
            name: stated.text
            for name, stated in request.stated.items()
            if isinstance(stated.value, str | int | float) and str(stated.value) not in (stated.text, "True", "False")
        }

    def right(self) -> Answer:
        return Answer(self.form, self.values)

    def attempt(self) -> Answer:
        """Return an attempt, right or wrong."""
        if self.rng.random() < self.mixture.right_attempts:
            return self.right()
        return self.wrong()

    def piece(self, answer: Answer) -> Piece:
        """Return a call as a piece of a turn."""
        return Piece(answer.text(), trained=answer.error is None or self.mixture.sloppy)

    def wrong(self) -> Answer:
        """Return a wrong call; an error that the request does not allow is replaced by another."""
        makers: dict[str, Callable[[], Answer | None]] = {
            "tool": self._other_tool,
            "left out": self._left_out,
            "not stated": self._not_stated,
            "form": self._unconverted,
            "value": self._swapped,
        }
        errors = self.rng.choices(list(ERRORS), list(ERRORS.values()), k=8)
        return next((answer for error in errors if (answer := makers[error]())), None) or self._other_tool()

    def _other_tool(self) -> Answer:
        """Return a call of a tool that is not requested, with the values of the request that fit its arguments."""
        form = choose(self.rng, [form for form in self.problem.offered if form.name != self.form.name])
        available: dict[str, list[Any]] = {}
        for name, value in self.values.items():
            available.setdefault(_shape(self.form, name), []).append(value)
        fitting = {name: available.get(_shape(form, name), []) for name in _properties(form)}
        arguments = {name: values.pop(0) for name, values in fitting.items() if values}
        return Answer(form, arguments, "tool", self.form.name)

    def _left_out(self) -> Answer | None:
        optional = [name for name in self.values if name not in _required(self.form)]
        if not optional and self.rng.random() < 0.8:
            return None
        gone = choose(self.rng, optional or list(self.values))
        if _is_default(self.form, gone, self.values[gone]):
            return None
        return Answer(self.form, {n: v for n, v in self.values.items() if n != gone}, "left out", gone)

    def _not_stated(self) -> Answer | None:
        free = [name for name in _properties(self.form) if name not in self.values]
        values = {name: _simplest(_properties(self.form)[name]) for name in free}
        possible = [name for name, value in values.items() if value is not None]
        if not possible:
            return None
        name = choose(self.rng, possible)
        return Answer(self.form, {**self.values, name: values[name]}, "not stated", name)

    def _unconverted(self) -> Answer | None:
        """Return the right call with one value in the form of the request."""
        if not self.raw:
            return None
        name = choose(self.rng, list(self.raw))
        return Answer(self.form, {**self.values, name: self.raw[name]}, "form", name)

    def _swapped(self) -> Answer | None:
        """Return the right call with the value of one argument replaced by that of another."""
        pairs = [
            (name, other)
            for name, value in self.values.items()
            for other, its in self.values.items()
            if type(value) is type(its) and isinstance(value, str | int | float) and key_of(value) != key_of(its)
        ]
        if not pairs:
            return None
        name, other = choose(self.rng, pairs)
        return Answer(self.form, {**self.values, name: self.values[other]}, "value", name)

    def reflection(self, kind: str, attempt: Answer, *, practice: bool = False) -> tuple[Turn, Answer | None]:
        """Return a reflection of one kind on a wrong attempt, and the call that follows from it."""
        if kind == "platitude":
            return [Piece(" ".join(self.rng.sample(PLATITUDES, self.rng.randint(1, 2))))], None
        if kind == "review":
            return self._review(practice=practice), self.right()
        if kind == "right diagnosis":
            return [Piece(_diagnosis(attempt))], self.right()
        return self._wrong_diagnosis(attempt)

    def _wrong_diagnosis(self, attempt: Answer) -> tuple[Turn, Answer | None]:
        for _ in range(8):
            other = self.wrong()
            if other.error == "tool":
                other = other._replace(about=other.form.name)  # claims that the wrong tool is the right one
                if attempt.form.name != other.form.name:
                    return [Piece(_diagnosis(other))], other
            elif (other.error, other.about) != (attempt.error, attempt.about):
                return [Piece(_diagnosis(other))], None
        return [Piece(PLATITUDES[0])], None

    def _review(self, *, practice: bool) -> Turn:
        tools = ""
        for form in self.problem.offered:
            tools += form.name + (YES if form.name == self.form.name else NO)
            if form.name == self.form.name:
                break
        stated = f"{STATES}{', '.join(self.values)}{STOP}" if self.values else ""
        converted = f"{CONVERT}{', '.join(self.raw)}{STOP}" if self.raw else ""
        return [Piece(REVIEW, trained=not practice), Piece(tools + stated + converted)]

    def retry(self, kind: str | None, follows: Answer | None) -> Answer:
        """Return the retry after a reflection: often the call that follows from it, otherwise a fresh attempt."""
        if kind is None or follows is None or self.rng.random() >= FOLLOWS[kind]:
            return self.attempt()
        return follows


def _diagnosis(answer: Answer) -> str:
    return f"{DIAGNOSES[answer.error or '']}{answer.about}{STOP}"


def _properties(form: Form) -> dict[str, Any]:
    parameters: Any = form.offer["parameters"]
    return dict(parameters["properties"])


def _required(form: Form) -> list[str]:
    parameters: Any = form.offer["parameters"]
    return list(parameters["required"])


def _is_default(form: Form, name: str, value: Any) -> bool:
    schema = _properties(form)[name]
    return "default" in schema and key_of(schema["default"]) == key_of(value)


def _simplest(schema: dict[str, Any]) -> Any:
    """Return the first value of an enum or boolean that is not the default; None for other types."""
    values = schema.get("enum", [True, False] if schema["type"] == "boolean" else [])
    return next((value for value in values if value != schema.get("default")), None)


def _shape(form: Form, name: str) -> str:
    """Return the schema of an argument without its default: arguments of equal shape accept each other's values."""
    return json.dumps({key: value for key, value in _properties(form)[name].items() if key != "default"})
