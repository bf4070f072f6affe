"""Synthetic episodes of Countdown, to pre-train the built-in model on: attempts, reflections of mixed quality, retries.

The prompts are those of the task and of the core; only the assistant's turns are made up. Reflections come in four
kinds: platitudes, a right first step, a wrong first step, and a search through first steps. The model is trained on
everything that it should sample itself. In a search, the steps that fail are context only: the model learns to propose
a step that works after steps that did not, and not to imitate the failing ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pretraining.trainer import Piece, Transcript, Turn, text_of, transcript
from r3_plugin_countdown.task import Countdown
from r3core import Example, Verdict, prompts

LARGEST_RESULT = 400
"""Intermediate results above this are never written; every number up to it is one token."""

WITHOUT_REFLECTION = 0.15
"""Share of the failed attempts that are retried without a reflection."""
FOLLOWS = {"right step": 0.92, "search": 0.92, "wrong step": 0.75}
"""How often a retry uses the first step that its reflection ended on, by the kind of the reflection."""
SEARCH_SPELLED_OUT = 0.3
"""How often a search that found a first step also writes the second."""
WORKED = 0.25
"""How often an attempt shows its steps before the answer."""

PLATITUDES = (
    "I made a mistake.",
    "I was too hasty.",
    "I will check every step.",
    "I should have been more careful.",
    "I will read the task again.",
    "I need to use each number once.",
    "Next time I will try a different way.",
    "I must watch the order of the operations.",
)
RESULT_IS = "My expression makes "
WRONG_NUMBERS = "I did not use the given numbers."
BEGIN_WITH = "I should begin with "
SEARCH = "Let me test first steps: "
STOP = "."
NO = " no. "
YES = " yes."
THEN = " Then "


@dataclass(frozen=True)
class Mixture:
    """The shares of what is in a corpus."""

    right_attempts: float
    """Share of right ones among first attempts, and among retries that follow no reflection's step."""
    practice: float
    """Share of the reflections that are searches whose opening carries no loss: they teach how to search."""
    kinds: dict[str, float]
    """Shares of the kinds of the other reflections."""


BROAD = Mixture(0.4, 0.6, {"platitude": 0.52, "right step": 0.11, "wrong step": 0.14, "search": 0.23})
"""Teaches arithmetic and what solves a problem."""
FINAL = Mixture(0.12, 0.8, {"platitude": 0.60, "right step": 0.08, "wrong step": 0.17, "search": 0.15})
"""Leaves a model that mostly guesses and reflects in platitudes, but can search once a search is opened."""


class Step(NamedTuple):
    """Two of three numbers combined."""

    left: int
    operator: str
    right: int
    result: int
    rest: int
    """The number that the step does not use."""

    def __str__(self) -> str:
        return f"{self.left} {self.operator} {self.right}"


class Solution(NamedTuple):
    """A first step with a second that reaches the target."""

    first: Step
    second: str
    expression: str


def first_steps(numbers: Sequence[int]) -> list[Step]:
    """Return every first step on three numbers, the larger number first, with a positive whole result."""
    steps = set()
    for index, rest in enumerate(numbers):
        low, high = sorted(n for i, n in enumerate(numbers) if i != index)
        steps |= {Step(high, "+", low, high + low, rest), Step(high, "*", low, high * low, rest)}
        if high > low:
            steps.add(Step(high, "-", low, high - low, rest))
        if low > 1 and high % low == 0:
            steps.add(Step(high, "/", low, high // low, rest))
    return sorted(step for step in steps if step.result <= LARGEST_RESULT)


def finishes(step: Step) -> Iterator[tuple[int, str, str]]:
    """Yield the result, the second step and the whole expression of every way to finish after a first step."""
    c, d, inner = step.result, step.rest, f"({step})"
    yield c + d, f"{c} + {d}", f"{inner} + {d}"
    yield c * d, f"{c} * {d}", f"{inner} * {d}"
    if c > d:
        yield c - d, f"{c} - {d}", f"{inner} - {d}"
    else:
        yield d - c, f"{d} - {c}", f"{d} - {inner}"
    if c % d == 0:
        yield c // d, f"{c} / {d}", f"{inner} / {d}"
    elif d % c == 0:
        yield d // c, f"{d} / {c}", f"{d} / {inner}"


class Teacher:
    """Writes the assistant's turns of an episode about one problem."""

    def __init__(self, example: Example, mixture: Mixture, rng: random.Random) -> None:
        self.mixture = mixture
        self.rng = rng
        self.numbers: list[int] = example.info["numbers"]  # type: ignore[assignment]
        self.target: int = example.info["target"]  # type: ignore[assignment]
        self.steps = first_steps(self.numbers)
        self.solutions = [
            Solution(step, second, expression)
            for step in self.steps
            for result, second, expression in finishes(step)
            if result == self.target
        ]
        right = {solution.first for solution in self.solutions}
        self.dead_ends = [step for step in self.steps if step not in right]

    def guess(self, *, right: bool) -> tuple[str, int | None]:
        """Return an expression and its value; the value is None when it does not use the given numbers."""
        if right:
            return self.rng.choice(self.solutions).expression, self.target
        if self.rng.random() < 0.1:
            numbers = list(self.numbers)
            numbers[self.rng.randrange(len(numbers))] = self.rng.randint(1, 20)
            if sorted(numbers) != sorted(self.numbers):
                _, _, expression = self.rng.choice(list(finishes(self.rng.choice(first_steps(numbers)))))
                return expression, None
        return self.miss(self.rng.choice(self.steps))

    def miss(self, step: Step) -> tuple[str, int | None]:
        """Return a wrong expression after a first step, in most cases the one that comes nearest to the target."""
        wrong = [(abs(result - self.target), result, text) for result, _, text in finishes(step)]
        wrong = sorted(item for item in wrong if item[0] > 0)
        _, result, expression = wrong[0] if self.rng.random() < 0.6 else self.rng.choice(wrong)
        return expression, result

    def answer(self, expression: str) -> Turn:
        return [Piece(f"<answer>{expression}</answer>")]

    def attempt(self, *, right: bool) -> tuple[Turn, int | None]:
        """Return an attempt and the value of its expression."""
        expression, value = self.guess(right=right)
        if value is not None and self.rng.random() < WORKED:
            for step in self.steps:
                for result, second, text in finishes(step):
                    if text == expression and result <= LARGEST_RESULT:
                        worked = Piece(f"{step} = {step.result}, {second} = {result}{STOP} ")
                        return [worked, *self.answer(expression)], value
        return self.answer(expression), value

    def reflection(self, kind: str, value: int | None, *, practice: bool = False) -> tuple[Turn, Step | None]:
        """Return a reflection of one kind on an attempt with this value, and the first step it ends on."""
        opening = []
        if self.rng.random() < 0.5:
            opening = [Piece(WRONG_NUMBERS + " " if value is None else f"{RESULT_IS}{value}{STOP} ")]
        if kind == "platitude":
            return [*opening, Piece(" ".join(self.rng.sample(PLATITUDES, self.rng.randint(1, 3))))], None
        if kind == "search":
            turn, step = self.search(practice=practice)
            return [*opening, *turn], step
        step = self.rng.choice(self.solutions).first if kind == "right step" else self.rng.choice(self.dead_ends)
        return [*opening, Piece(f"{BEGIN_WITH}{step} = {step.result}{STOP}")], step

    def search(self, *, practice: bool) -> tuple[Turn, Step]:
        """Return a search: first steps that fail, then one that works; and that step."""
        misses = self.rng.randint(0, min(9, len(self.dead_ends)))
        pieces = [Piece(SEARCH, trained=not practice)]
        for step in self.rng.sample(self.dead_ends, misses):
            pieces += [Piece(str(step), trained=False), Piece(f" = {step.result}{NO}")]
        found = self.rng.choice(self.solutions)
        pieces.append(Piece(f"{found.first} = {found.first.result}{YES}"))
        if self.rng.random() < SEARCH_SPELLED_OUT:
            pieces.append(Piece(f"{THEN}{found.second} = {self.target}{STOP}"))
        return pieces, found.first

    def retry(self, kind: str | None, step: Step | None) -> Turn:
        """Return the retry after a reflection: often along its first step, otherwise a fresh attempt."""
        if step is None or kind is None or self.rng.random() >= FOLLOWS[kind]:
            return self.attempt(right=self.rng.random() < self.mixture.right_attempts)[0]
        ways = [solution.expression for solution in self.solutions if solution.first == step]
        return self.answer(self.rng.choice(ways) if ways else self.miss(step)[0])


def episode(task: Countdown, example: Example, rng: random.Random, mixture: Mixture = FINAL) -> Transcript:
    """Return one conversation: an attempt that passes, or one that fails with its reflection and retry."""
    teacher = Teacher(example, mixture, rng)
    right = rng.random() < mixture.right_attempts
    if not right and not teacher.dead_ends:
        right = True
    attempt, value = teacher.attempt(right=right)
    prompt = prompts.attempt(task, example)
    if right:
        return transcript(prompt, [attempt])
    failure = prompts.failure(task.wording, Verdict.failed(), "binary")
    if rng.random() < WITHOUT_REFLECTION:
        turns = [attempt, teacher.retry(None, None)]
        return transcript(prompts.retry(prompt, text_of(attempt), failure, None, task.wording), turns)
    practice = rng.random() < mixture.practice
    kind = "search" if practice else rng.choices(list(mixture.kinds), list(mixture.kinds.values()))[0]
    reflection, step = teacher.reflection(kind, value, practice=practice)
    turns = [attempt, reflection, teacher.retry(kind, step)]
    return transcript(prompts.retry(prompt, text_of(attempt), failure, text_of(reflection), task.wording), turns)


def phrases(task: Countdown) -> list[str]:
    """Return the fixed texts that are one token each: of the prompts and of the corpus."""
    marked = Example.model_validate({"id": "phrases", "info": {"numbers": ["\0"], "target": "\0"}})
    words = task.wording
    return [
        *(part for part in task.prompt(marked).split("\0") if part),
        f"{words.failed} {words.reflect}",
        f"{words.failed} {words.retry}",
        words.retry,
        words.generic,
        *PLATITUDES,
        *(RESULT_IS, WRONG_NUMBERS, BEGIN_WITH, SEARCH, NO, YES, THEN),
        *(" + ", " - ", " * ", " / ", " = ", ", ", ". ", "(", ")", "<answer>", "</answer>"),
    ]
