"""Write one sentence that holds three given words: following an instruction, for a small pretrained model."""

import hashlib
import itertools
import re
from collections.abc import Iterable
from typing import Any

from r3core import Example, Split, Task, Verdict, hookimpl

WORDS = (
    "apple bell boat book bread bridge candle castle cat chair clock cloud coat desert door farmer field fire flower forest "
    "garden glass hat hill horse island key kitchen lamp letter moon morning mountain music queen rain river road ship snow"
)
LONGEST = 40  # words of a sentence
ABOUT_ITSELF = {"sentence", "word", "words"}  # a copy of the prompt has all three words
SPLITS: dict[Split, range] = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
WORD = r"[A-Za-z]+(?:['\u2019-][A-Za-z]+)*"  # not \w: letters of other scripts look alike
SENTENCE = re.compile(rf"{WORD}(?:,? {WORD})*[.!?]")


class Keywords(Task):
    """Write one sentence of plain words, of which three are given."""

    name = "keywords"
    waived = dict.fromkeys(
        ("negated", "negated inside", "contradicting inside"), "a sentence may use the words in any way, also to deny them"
    )

    def load(self, split: Split) -> Iterable[Example]:
        for words in itertools.combinations(WORDS.split(), 3):
            key = "-".join(words)
            if hashlib.sha256(key.encode()).digest()[0] % 10 in SPLITS[split]:
                yield Example(id=key, info={"words": list(words)})

    def prompt(self, example: Example) -> str:
        one, two, three = _words(example)
        return f"Write one short sentence with the words {one}, {two} and {three}."

    def verify(self, example: Example, response: str) -> Verdict:
        answer = response.strip()
        if not SENTENCE.fullmatch(answer):
            return Verdict.failed("it is not one sentence of plain words with its mark at the end")
        answer_words = re.findall(WORD, answer.lower())
        if len(answer_words) > LONGEST:
            return Verdict.failed(f"it has {len(answer_words)} words, at most {LONGEST} are allowed")
        if ABOUT_ITSELF & set(answer_words):
            return Verdict.failed("it is about a sentence or its words")
        if missing := [word for word in _words(example) if word not in answer_words]:
            return Verdict.failed(f"`{missing[0]}` is missing")
        return Verdict.passed()

    def reference(self, example: Example) -> str:
        one, two, three = _words(example)
        return f"We saw the {one}, the {two} and the {three}."


def _words(example: Example) -> list[str]:
    info: Any = example.info
    words: list[str] = info["words"]
    return words


@hookimpl
def r3_tasks() -> list[type[Task]]:
    return [Keywords]
