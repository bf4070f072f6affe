"""Synthetic episodes of function calling, to pre-train the built-in model on.

The prompts are those of the task and of the core; only the assistant's turns are made up. The model is trained on
everything that it should sample itself, except on the opening of a review for practice: it teaches how to review, not
to choose to review.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pretraining import apigen_disguise
from pretraining.apigen_teacher import CONVERT, DIAGNOSES, NO, PLATITUDES, REVIEW, STATES, YES, Mixture, Teacher
from pretraining.trainer import Piece, Transcript, text_of, transcript
from r3_plugin_apigen.catalog import Form
from r3_plugin_apigen.generate import Problem, Space, ask_for, draw
from r3_plugin_apigen.task import Apigen
from r3_plugin_apigen.words import choose
from r3core import Example, Split, Verdict, prompts

WITHOUT_REFLECTION = 0.15
"""Share of the failed attempts that are retried without a reflection."""
DRILL_DISTRACTORS = (1, 2, 3)
"""How many tools a drill has beside the first; each is requested once."""
REQUEST = "\n\nRequest: "

_FAIR = {"platitude": 0.3, "right diagnosis": 0.3, "wrong diagnosis": 0.0, "review": 0.4}
_ALL: tuple[Split, ...] = ("train", "test")
DRILLS = Mixture(0.8, False, ("train",), 0.9, 0.5, False, 0.5, _FAIR)
"""Teaches to read tools and requests."""
MIXED = replace(DRILLS, mixed=True)
"""The same with tools that resemble each other less."""
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
"""Leaves a model that is mostly sloppy and reflects in platitudes, but can review once a review is opened."""


class Episodes:
    """Generates conversations; the disguises of the tools change after every `renew` problems."""

    def __init__(self, task: Apigen, *, renew: int = 16) -> None:
        self.task = task
        self.renew = renew
        self._space = Space(task.calls, task.distractors, task.optional, task.nested, task.terse)
        self._held_out = {str(example.info["query"]) for example in task.load("test")}
        self._count = 0
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
        """Sample a problem about tools of the splits; the number of distractors defaults to the task's."""
        if self._count % self.renew == 0:
            self._forms = apigen_disguise.forms(rng, splits, disguise=disguised, mixed=mixed)
        self._count += 1
        others = self.task.distractors if distractors is None else distractors
        space = self._space._replace(distractors=others)
        while (problem := draw(rng, self._forms, space)).query in self._held_out:
            pass
        return problem

    def __call__(self, rng: random.Random, mixture: Mixture) -> Transcript:
        """Return one conversation."""
        drill = rng.random() < mixture.drills
        distractors = choose(rng, DRILL_DISTRACTORS) if drill else None
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
            prompt = prompts.attempt(self.task, problem.example()).messages[0]["content"]
            prompt = prompt[prompt.index(REQUEST) :] if conversation else prompt  # the tools are listed once
            right = Teacher(problem, DRILLS, rng).right()
            conversation += [("user", [Piece(prompt, trained=False)]), ("assistant", [Piece(right.text())])]
        return conversation or self._drill(problem, rng)

    def _episode(self, problem: Problem, mixture: Mixture, rng: random.Random) -> Transcript:
        """Return an attempt that passes, or one that fails with its reflection and retry."""
        teacher = Teacher(problem, mixture, rng)
        attempt = teacher.attempt()
        prompt = prompts.attempt(self.task, problem.example())
        turns = [[teacher.piece(attempt)]]
        if attempt.error is None:
            return transcript(prompt, turns)
        wording = self.task.wording
        failure = prompts.failure(wording, Verdict.failed(), "binary")
        if rng.random() < WITHOUT_REFLECTION:
            turns.append([teacher.piece(teacher.retry(None, None))])
            return transcript(prompts.retry(prompt, attempt.text(), failure, None, wording), turns)
        practice = rng.random() < mixture.practice
        kinds = mixture.kinds
        kind = "review" if practice else rng.choices(list(kinds), list(kinds.values()))[0]
        reflection, follows = teacher.reflection(kind, attempt, practice=practice)
        turns += [list(reflection), [teacher.piece(teacher.retry(kind, follows))]]
        return transcript(prompts.retry(prompt, attempt.text(), failure, text_of(reflection), wording), turns)


def phrases(task: Apigen) -> list[str]:
    """Return the fixed texts that are one token each: of the prompts, of JSON and of the corpus."""
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
