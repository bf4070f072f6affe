"""Your own questions and answers, from a JSONL file with the columns `question` and `answer`."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from r3core import Example, Split, Task, TaskError, Verdict, hookimpl

SPLITS: dict[Split, range] = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}


class Questions(Task):
    """Answer a question; the last line of the response counts."""

    name = "questions"
    waived = {"wrong then right": "the prompt asks for the answer in the last line, and only that line counts"}

    file: Path
    """A JSONL file with the columns `question` and `answer`."""
    ask: str = "End with a line that holds the answer alone."
    """The sentence after each question."""

    def load(self, split: Split) -> Iterable[Example]:
        if not self.file.is_file():
            raise TaskError(f"there is no file `{self.file}`", "name it with --task-option file=PATH")
        seen = set()
        for line in filter(str.strip, self.file.read_text(encoding="utf-8").split("\n")):
            row = json.loads(line)
            digest = hashlib.sha256(row["question"].encode()).hexdigest()
            # The question alone decides its split, so that held-out questions stay held out when the file grows.
            if digest not in seen and int(digest, 16) % 10 in SPLITS[split]:
                seen.add(digest)
                yield Example(id=digest[:12], prompt=f"{row['question']}\n{self.ask}", answer=str(row["answer"]))

    def verify(self, example: Example, response: str) -> Verdict:
        answer = response.strip().split("\n")[-1].strip()
        right = str(example.answer).strip().removesuffix(".")
        # Accepted spellings derive from the gold answer: folding the case of the response would accept look-alikes.
        if answer.removesuffix(".") in {right, right.lower(), right.upper(), right.title(), right.capitalize()}:
            return Verdict.passed()
        return Verdict.failed(f"{answer[:40]!r} is not the answer")

    def reference(self, example: Example) -> str:
        return str(example.answer)


@hookimpl
def r3_tasks() -> list[type[Task]]:
    return [Questions]
