"""Synthetic episodes for pre-training the built-in model: attempts, reflections of mixed quality, retries.

The prompts are the task's and the core's own; only what the assistant says is made up here. Reflections come in four
kinds: platitudes, a right and a wrong diagnosis of the attempt, and a review, which goes through the tools on offer
and tells which arguments the request states; none of them says a value. What is sampled as the model's own behaviour is
trained on, except how a review for practice begins: it teaches how to review, not to choose it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from r3_plugin_apigen import coined
from r3_plugin_apigen.calls import key_of
from r3_plugin_apigen.catalog import Form
from r3_plugin_apigen.generate import Problem, Request, Space, ask_for, draw
from r3_plugin_apigen.task import Apigen
from r3_plugin_apigen.words import choose
from r3core import Example, Split, Verdict, prompts
from r3core.pretraining import Piece, Transcript, Turn, text_of, transcript

WITHOUT_REFLECTION = 0.15
"""Share of the failed attempts that are retried at once."""
FOLLOWS = {"right diagnosis": 0.92, "review": 0.95, "wrong diagnosis": 0.75}
"""How often a retry does what its reflection says."""
MISTAKES = {"tool": 0.2, "left out": 0.25, "not stated": 0.2, "form": 0.25, "value": 0.1}
"""What wrong attempts get wrong, as far as the request has room for it."""

DRILLED = (1, 2, 3)
"""Tools of a drill beside the first; each is asked for once."""
REQUEST = "\n\nRequest: "

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
    """How often the assistant does what."""

    disguised: float
    """Share of the tools whose words are replaced by new ones."""
    mixed: bool
    """Whether they are disguised with words of other places too, and their arguments come in another order."""
    splits: tuple[Split, ...]
    """Whose tools there are; no query of the test split is ever asked."""
    drills: float
    """Share of the conversations that are several requests to the same tools, each answered rightly."""
    right_attempts: float
    """Share of right ones among first attempts, and among retries that follow nothing."""
    sloppy: bool
    """Whether wrong calls are trained on; else they are context only."""
    practice: float
    """Share of the reflections that are reviews whose beginning carries no loss: they teach how to review."""
    kinds: dict[str, float]
    """Shares of the kinds of the other reflections."""


_FAIR = {"platitude": 0.3, "right diagnosis": 0.3, "wrong diagnosis": 0.0, "review": 0.4}
_ALL: tuple[Split, ...] = ("train", "test")
DRILLS = Mixture(0.8, False, ("train",), 0.9, 0.5, False, 0.5, _FAIR)
"""Teaches to read tools and requests."""
MIXED = replace(DRILLS, mixed=True)
"""The same with tools that are less alike."""
BROAD = Mixture(0.4, True, _ALL, 0.5, 0.3, False, 0.5, _FAIR)
"""Teaches to reflect, and to follow a reflection."""
FINAL = Mixture(
    0.4,
    True,
    _ALL,
    0.0,
    0.25,
    True,
    0.7,
    {"platitude": 0.6, "right diagnosis": 0.08, "wrong diagnosis": 0.17, "review": 0.15},
)
"""Leaves a model that is mostly sloppy and says platitudes, and knows how to review when it begins to."""


class Said(NamedTuple):
    """A call, and what was done wrong in it: a mistake, and the argument or the tool concerned."""

    form: Form
    arguments: dict[str, Any]
    mistake: str | None = None
    about: str = ""

    def text(self) -> str:
        return json.dumps([{"name": self.form.name, "arguments": self.arguments}], ensure_ascii=False)


class Teacher:
    """Writes the assistant's side of episodes about one problem with one call."""

    def __init__(self, problem: Problem, mixture: Mixture, rng: random.Random) -> None:
        self.problem = problem
        self.mixture = mixture
        self.rng = rng
        self.asked: Request = problem.requests[0]
        self.form = self.asked.form
        self.values = {name: said.value for name, said in self.asked.said.items()}
        self.raw = {
            name: said.text
            for name, said in self.asked.said.items()
            if isinstance(said.value, str | int | float) and str(said.value) not in (said.text, "True", "False")
        }

    def right(self) -> Said:
        return Said(self.form, self.values)

    def attempt(self) -> Said:
        """Return an attempt, right or wrong."""
        if self.rng.random() < self.mixture.right_attempts:
            return self.right()
        return self.wrong()

    def say(self, said: Said) -> Piece:
        """Return a call as a stretch of a turn."""
        return Piece(said.text(), trained=said.mistake is None or self.mixture.sloppy)

    def wrong(self) -> Said:
        """Return a wrong call; when a mistake is not possible, another one is made."""
        makers: dict[str, Callable[[], Said | None]] = {
            "tool": self._other_tool,
            "left out": self._left_out,
            "not stated": self._not_stated,
            "form": self._as_it_stands,
            "value": self._other_value,
        }
        kinds = self.rng.choices(list(MISTAKES), list(MISTAKES.values()), k=8)
        return next((said for kind in kinds if (said := makers[kind]())), None) or self._call_of(self._another())

    def _another(self) -> Form:
        return choose(self.rng, [form for form in self.problem.offered if form.name != self.form.name])

    def _other_tool(self) -> Said:
        return self._call_of(self._another())

    def _call_of(self, form: Form) -> Said:
        """Return a call of a tool that is not asked for, with the values of the request that fit."""
        at_hand: dict[str, list[Any]] = {}
        for name, value in self.values.items():
            at_hand.setdefault(_shape(self.form, name), []).append(value)
        fitting = {name: at_hand.get(_shape(form, name), []) for name in _properties(form)}
        return Said(form, {name: values.pop(0) for name, values in fitting.items() if values}, "tool", self.form.name)

    def _left_out(self) -> Said | None:
        optional = [name for name in self.values if name not in _required(self.form)]
        if not optional and self.rng.random() < 0.8:
            return None
        gone = choose(self.rng, optional or list(self.values))
        if _is_default(self.form, gone, self.values[gone]):
            return None
        return Said(self.form, {n: v for n, v in self.values.items() if n != gone}, "left out", gone)

    def _not_stated(self) -> Said | None:
        free = [name for name in _properties(self.form) if name not in self.values]
        values = {name: _simplest(_properties(self.form)[name]) for name in free}
        able = [name for name, value in values.items() if value is not None]
        if not able:
            return None
        name = choose(self.rng, able)
        return Said(self.form, {**self.values, name: values[name]}, "not stated", name)

    def _as_it_stands(self) -> Said | None:
        if not self.raw:
            return None
        name = choose(self.rng, list(self.raw))
        return Said(self.form, {**self.values, name: self.raw[name]}, "form", name)

    def _other_value(self) -> Said | None:
        """Return the right call with the value of one argument in place of another's."""
        pairs = [
            (name, other)
            for name, value in self.values.items()
            for other, its in self.values.items()
            if type(value) is type(its) and isinstance(value, str | int | float) and key_of(value) != key_of(its)
        ]
        if not pairs:
            return None
        name, other = choose(self.rng, pairs)
        return Said(self.form, {**self.values, name: self.values[other]}, "value", name)

    def reflection(self, kind: str, attempt: Said, *, practice: bool = False) -> tuple[Turn, Said | None]:
        """Return a reflection of one kind on a wrong attempt, and the call that follows from it."""
        if kind == "platitude":
            return [Piece(" ".join(self.rng.sample(PLATITUDES, self.rng.randint(1, 2))))], None
        if kind == "review":
            return self._review(practice=practice), self.right()
        if kind == "right diagnosis":
            return [Piece(_diagnosis(attempt))], self.right()
        return self._wrong_diagnosis(attempt)

    def _wrong_diagnosis(self, attempt: Said) -> tuple[Turn, Said | None]:
        for _ in range(8):
            other = self.wrong()
            if other.mistake == "tool":
                other = other._replace(about=other.form.name)  # says that the wrong one is the right one
                if attempt.form.name != other.form.name:
                    return [Piece(_diagnosis(other))], other
            elif (other.mistake, other.about) != (attempt.mistake, attempt.about):
                return [Piece(_diagnosis(other))], None
        return [Piece(PLATITUDES[0])], None

    def _review(self, *, practice: bool) -> Turn:
        tried = ""
        for form in self.problem.offered:
            tried += form.name + (YES if form.name == self.form.name else NO)
            if form.name == self.form.name:
                break
        stated = f"{STATES}{', '.join(self.values)}{STOP}" if self.values else ""
        converted = f"{CONVERT}{', '.join(self.raw)}{STOP}" if self.raw else ""
        return [Piece(REVIEW, trained=not practice), Piece(tried + stated + converted)]

    def retry(self, kind: str | None, follows: Said | None) -> Said:
        """Return the retry after a reflection: often what it leads to, else a fresh attempt."""
        if kind is None or follows is None or self.rng.random() >= FOLLOWS[kind]:
            return self.attempt()
        return follows


class Episodes:
    """Makes up conversations; the tools are disguised anew after every few."""

    def __init__(self, task: Apigen, *, renew: int = 16) -> None:
        self.task = task
        self.renew = renew
        self._space = Space(task.calls, task.distractors, task.optional, task.nested, task.terse)
        self._held_out = {str(example.info["query"]) for example in task.load("test")}
        self._made = 0
        self._forms: list[tuple[Form, ...]] = []

    def problem(
        self,
        rng: random.Random,
        splits: Sequence[Split],
        *,
        disguised: float,
        mixed: bool,
        distractors: int | None = None,
    ) -> Problem:
        """Draw a problem of some splits' tools, with as many distractors as the task has if not told otherwise."""
        if self._made % self.renew == 0:
            self._forms = coined.forms(rng, splits, disguise=disguised, mixed=mixed)
        self._made += 1
        others = self.task.distractors if distractors is None else distractors
        space = self._space._replace(distractors=others)
        while (problem := draw(rng, self._forms, space)).query in self._held_out:
            pass
        return problem

    def __call__(self, rng: random.Random, mixture: Mixture) -> Transcript:
        """Return one conversation."""
        drill = rng.random() < mixture.drills
        distractors = choose(rng, DRILLED) if drill else None
        tools: dict[str, Any] = {"disguised": mixture.disguised, "mixed": mixture.mixed}
        problem = self.problem(rng, mixture.splits, **tools, distractors=distractors)
        return self._drill(problem, rng) if drill else self._episode(problem, mixture, rng)

    def _drill(self, problem: Problem, rng: random.Random) -> Transcript:
        """Return a request to each tool of a problem, and the right calls."""
        conversation: Transcript = []
        for form in rng.sample(problem.offered, len(problem.offered)):
            problem = ask_for(rng, form, problem.offered, optional=self.task.optional)
            if problem.query in self._held_out:
                continue
            asked = prompts.attempt(self.task, problem.example()).messages[0]["content"]
            asked = asked[asked.index(REQUEST) :] if conversation else asked
            right = Teacher(problem, DRILLS, rng).right()
            conversation += [("user", [Piece(asked, trained=False)]), ("assistant", [Piece(right.text())])]
        return conversation or self._drill(problem, rng)

    def _episode(self, problem: Problem, mixture: Mixture, rng: random.Random) -> Transcript:
        """Return an attempt that succeeds, or one that fails, with what follows."""
        teacher = Teacher(problem, mixture, rng)
        attempt = teacher.attempt()
        asked = prompts.attempt(self.task, problem.example())
        spoken = [teacher.say(attempt)]
        if attempt.mistake is None:
            return transcript(asked, [spoken])
        words = self.task.wording
        told = prompts.failure(words, Verdict.failed(), "binary")
        if rng.random() < WITHOUT_REFLECTION:
            retried = [teacher.say(teacher.retry(None, None))]
            return transcript(prompts.retry(asked, attempt.text(), told, None, words), [spoken, retried])
        practice = rng.random() < mixture.practice
        kinds = mixture.kinds
        kind = "review" if practice else rng.choices(list(kinds), list(kinds.values()))[0]
        reflection, follows = teacher.reflection(kind, attempt, practice=practice)
        retried = [teacher.say(teacher.retry(kind, follows))]
        said = text_of(reflection)
        return transcript(prompts.retry(asked, attempt.text(), told, said, words), [spoken, reflection, retried])


def phrases(task: Apigen) -> list[str]:
    """Return the fixed stretches of text that the tokenizer keeps whole: of the prompts, of JSON, of the corpus."""
    marked = Example.model_validate({"id": "phrases", "info": {"query": "\0", "tools": ["\0"]}})
    words, kinds = task.wording, ("string", "integer", "number", "boolean")
    return [
        *str(task.prompt(marked)).replace(json.dumps("\0"), "\0").split("\0"),
        f"{words.failed} {words.reflect}",
        f"{words.failed} {words.retry}",
        words.retry,
        words.generic,
        *PLATITUDES,
        *(*DIAGNOSES.values(), REVIEW, NO, YES, STATES, CONVERT),
        *('{"name": "', '", "description": "', '", "parameters": {"type": "object", "properties": {"'),
        *(f'": {{"type": "{kind}"' for kind in kinds),
        *(f'": {{"type": "array", "items": {{"type": "{kind}"' for kind in kinds),
        *(', "format": "date"', ', "format": "email"', ', "format": "uri"', ', "pattern": "^[0-9]{2}:[0-9]{2}$"'),
        *(', "enum": ["', '", "', '"], "', '"]}, "', ', "default": ', ', "default": true', ', "default": false'),
        *(f'{end}, "' for end in ("}", '"}', "}}")),
        *(f'{end}, "required": ["' for end in ("}}", '"}}', '"]}}', "}}}")),
        *('"]}}', '"]}}\n{"name": "'),
        *(
            '[{"name": "',
            '", "arguments": {"',
            '": "',
            '": ["',
            '": ',
            '": true',
            '": false',
            ', "',
            '"}}]',
            "}}]",
            '"]}}]',
        ),
    ]


def _diagnosis(said: Said) -> str:
    return f"{DIAGNOSES[said.mistake or '']}{said.about}{STOP}"


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
    """Return a value that one may think of first, and that is not the default; `None` when there is none."""
    values = schema.get("enum", [True, False] if schema["type"] == "boolean" else [])
    return next((value for value in values if value != schema.get("default")), None)


def _shape(form: Form, name: str) -> str:
    """Return what kind of value an argument takes, so that another of its kind may stand in its place."""
    return json.dumps({key: value for key, value in _properties(form)[name].items() if key != "default"})
