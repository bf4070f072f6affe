"""Your own questions and answers, from a JSONL file with the columns `question` and `answer`."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from r3core import Example, Split, Task, TaskError, Verdict

SPLITS: dict[Split, range] = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}


class Questions(Task):
    """Answer a question; the last line of the response counts."""

    name = "questions"

    file: Path
    """A JSONL file with the columns `question` and `answer`."""
    ask: str = "End with a line that holds the answer alone."

    def load(self, split: Split) -> Iterable[Example]:
        if not self.file.is_file():
            raise TaskError(f"there is no file `{self.file}`", "name it with --task-option file=PATH")
        seen = set()
        for line in self.file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            digest = hashlib.sha256(row["question"].encode()).hexdigest()
            # The question alone decides its split: what is held out stays so when the file grows.
            if digest not in seen and int(digest, 16) % 10 in SPLITS[split]:
                seen.add(digest)
                yield Example(id=digest[:12], prompt=f"{row['question']}\n{self.ask}", answer=str(row["answer"]))

    def verify(self, example: Example, response: str) -> Verdict:
        *_, said = response.strip().splitlines() or [""]
        if _plain(said) == _plain(str(example.answer)):
            return Verdict.passed()
        return Verdict.failed(f"`{said:.40}` is not the answer")

    def reference(self, example: Example) -> str:
        return str(example.answer)


def _plain(text: str) -> str:
    """Return what counts of an answer: not its case, spaces around it, or a full stop."""
    return text.strip().rstrip(".").casefold()
