"""Two toy tasks for tests: `Toy` is easy to answer by a script, `Even` by an untrained model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import ClassVar

from r3core import Demo, Example, Split, Task, Verdict

FIRST = {"train": 0, "validation": 1000, "test": 2000}


class Toy(Task):
    """Say the number in the prompt."""

    name = "toy"
    demo: ClassVar[Demo | None] = None

    problems: int = 24
    """Number of problems in each split."""

    def load(self, split: Split) -> Iterator[Example]:
        for number in range(FIRST[split], FIRST[split] + self.problems):
            yield Example(id=f"n{number}", prompt=f"Say {number}.", answer=str(number))

    def verify(self, example: Example, response: str) -> Verdict | bool:
        """Accept the number alone; a response with `unclear` raises."""
        if "unclear" in response:
            raise ValueError("cannot read that")
        if response == example.answer:
            return Verdict.passed()
        return Verdict.failed(f"it should be {example.answer}")

    def reference(self, example: Example) -> str | None:
        return str(example.answer)

    def leaks(self, example: Example, reflection: str) -> bool:
        return str(example.answer) in reflection


class Even(Toy):
    """Say something with an even number of characters.

    Every verdict appends a line to the file in the environment variable TOY_VERDICTS, for tests to count.
    """

    name = "even"

    def verify(self, example: Example, response: str) -> Verdict | bool:
        if path := os.environ.get("TOY_VERDICTS"):
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"{example.id}\n")
        return len(response) % 2 == 0

    def reference(self, example: Example) -> str | None:
        return "ab"

    def leaks(self, example: Example, reflection: str) -> bool:
        return False
