"""Predict what a short program prints. The generator computes a program's output itself: nothing is executed."""

import hashlib
import operator
import re
from collections.abc import Iterable
from typing import NamedTuple

from pydantic import Field

from r3core import Example, Split, Task, Verdict, hookimpl

STEPS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "%": operator.mod}
FENCE = re.compile(r"```\n(.*)\n```", re.DOTALL)
SPLITS: dict[Split, range] = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}


class Program(NamedTuple):
    """A program and what it prints."""

    source: str
    printed: str


class Output(Task):
    """Predict what a short Python program prints, line by line."""

    name = "output"

    problems: int = Field(default=2000, ge=1)
    """The number of programs that are generated; identical ones count once."""
    turns: int = Field(default=3, ge=2, le=20)
    """The number of iterations of a program's loop, and of the lines that it prints."""

    def load(self, split: Split) -> Iterable[Example]:
        for program in dict.fromkeys(_program(number, self.turns) for number in range(self.problems)):
            digest = hashlib.sha256(program.source.encode()).hexdigest()
            if int(digest, 16) % 10 in SPLITS[split]:
                prompt = (
                    f"What does this Python program print?\n\n{program.source}\n\nAnswer with the printed lines alone."
                )
                yield Example(id=digest[:12], prompt=prompt, answer=program.printed)

    def verify(self, example: Example, response: str) -> Verdict:
        text = response.strip()
        fenced = FENCE.fullmatch(text)
        lines = (fenced[1] if fenced else text).split("\n")
        right = str(example.answer).split("\n")
        if len(lines) != len(right):
            return Verdict.failed(f"it prints {len(right)} lines, not {len(lines)}")
        for number, (line, printed) in enumerate(zip(lines, right, strict=True), start=1):
            if line.rstrip() != printed:  # compared as text: int() accepts `07`, `1_0` and the digits of other scripts
                return Verdict.failed(f"line {number} is another")
        return Verdict.passed()

    def reference(self, example: Example) -> str:
        return str(example.answer)


def _program(number: int, turns: int) -> Program:
    dice = iter(hashlib.sha256(f"program {number}".encode()).digest())  # the same bytes on every machine
    x = start = 2 + next(dice) % 8
    steps = [(list(STEPS)[next(dice) % len(STEPS)], 2 + next(dice) % 8) for _ in range(2)]
    printed = []
    for _ in range(turns):
        for sign, operand in steps:
            x = STEPS[sign](x, operand)
        printed.append(str(x))
    body = "".join(f"    x = x {sign} {operand}\n" for sign, operand in steps)
    return Program(f"x = {start}\nfor turn in range({turns}):\n{body}    print(x)", "\n".join(printed))


@hookimpl
def r3_tasks() -> list[type[Task]]:
    return [Output]
