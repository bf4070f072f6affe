"""Write a sentence of a given length that uses two given words: many answers are right, so a program judges them."""

import hashlib
import itertools
import re
from collections.abc import Iterable
from typing import Any

from pydantic import Field

from r3core import Example, Split, Task, Verdict, hookimpl

WORDS = "apple bridge candle clock cloud garden hammer island lamp letter moon piano queen river road storm train"
FILLER = "we saw it near the old house when some people came by that day with their own small blue bags"
SPLITS: dict[Split, range] = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
WORD = r"[A-Za-z]+(?:['\u2019-][A-Za-z]+)*"  # not \w: letters of other scripts look alike
SENTENCE = re.compile(rf"{WORD}(?:,? {WORD})*[.!?]")


class Sentence(Task):
    """Write one sentence with an exact number of words: two given words in it, and no word twice."""

    name = "sentence"

    shortest: int = Field(default=8, ge=2)
    """The smallest number of words in a sentence."""
    longest: int = Field(default=16, le=22)
    """The largest number of words in a sentence."""

    def load(self, split: Split) -> Iterable[Example]:
        for length in range(self.shortest, self.longest + 1):
            for pair in itertools.combinations(WORDS.split(), 2):
                key = f"{'-'.join(pair)}-{length}"
                if hashlib.sha256(key.encode()).digest()[0] % 10 in SPLITS[split]:
                    yield Example(id=key, info={"words": list(pair), "length": length})

    def prompt(self, example: Example) -> str:
        (one, other), length = _problem(example)
        return (
            f"Write one sentence of exactly {length} words. Use the words `{one}` and `{other}`. Use no word twice. "
            "Answer with the sentence alone."
        )

    def verify(self, example: Example, response: str) -> Verdict:
        required, length = _problem(example)
        answer = response.strip()
        if not SENTENCE.fullmatch(answer):
            return Verdict.failed("it is not one sentence of plain words with its mark at the end")
        answer_words = re.findall(WORD, answer.lower())
        if missing := [word for word in required if word not in answer_words]:
            return Verdict.failed(f"`{missing[0]}` is missing")
        if len(answer_words) != length:
            return Verdict.failed(f"it has {len(answer_words)} words, not {length}")
        return Verdict.passed() if len(set(answer_words)) == length else Verdict.failed("a word is there twice")

    def reference(self, example: Example) -> str:
        words, length = _problem(example)
        return " ".join([*FILLER.split(), *words][-length:]).capitalize() + "."


def _problem(example: Example) -> tuple[list[str], int]:
    info: Any = example.info
    return info["words"], info["length"]


@hookimpl
def r3_tasks() -> list[type[Task]]:
    return [Sentence]
