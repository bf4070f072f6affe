"""Write one sentence that holds two given words: an instruction that a small pretrained model follows now and then."""

import hashlib
import itertools
import re
from collections.abc import Iterable
from typing import Any

from r3core import Example, Split, Task, Verdict, Wording, hookimpl

WORDS = """apple baker bell boat bottle bread bridge bus button cake camera candle castle cat chair clock cloud coat
    cow cup desert doctor dog door dress egg farmer field fire fish flower forest fox friend garden girl glass guitar
    hat hill horse house island king kitchen kite lake lamp lemon letter lion map milk mirror moon morning mountain
    mouse music onion orange paper piano pilot pocket poem queen rain river road rose sailor school ship shoe snow
    spoon star stone storm table tea tower train tree village wall window winter wolf"""
LONGEST = 25  # words of a short sentence
ABOUT_ITSELF = {"sentence", "word", "words"}  # a copy of the prompt has both given words
SPLITS: dict[Split, range] = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
SENTENCE = re.compile(r"[A-Z][A-Za-z'\u2019,;: -]*[a-z][.!?]")  # not \w: letters of other scripts look alike


class Keywords(Task):
    """Write one sentence of plain words, of which two are given."""

    name = "keywords"
    wording = Wording(
        failed="Your sentence is wrong.",
        reflect="Which two words must it have?",
        retry="Now write one short sentence with the two words.",
    )
    waived = dict.fromkeys(
        ("negated", "negated inside", "contradicting inside"), "a sentence may use the words in any way, also deny them"
    )

    def load(self, split: Split) -> Iterable[Example]:
        for words in itertools.combinations(WORDS.split(), 2):
            key = "-".join(words)
            if hashlib.sha256(key.encode()).digest()[0] % 10 in SPLITS[split]:
                yield Example(id=key, info={"words": list(words)})

    def prompt(self, example: Example) -> str:
        one, two = _given(example)
        return f"Write one short sentence with the words {one} and {two}."

    def verify(self, example: Example, response: str) -> Verdict:
        answer = response.strip()
        if not SENTENCE.fullmatch(answer):
            return Verdict.failed("it is not one sentence of plain words with its mark at the end")
        words = re.findall("[a-z]+", answer.lower())
        if len(words) > LONGEST:
            return Verdict.failed(f"it has {len(words)} words, at most {LONGEST} are allowed")
        if ABOUT_ITSELF & set(words):
            return Verdict.failed("it is about a sentence or its words")
        if missing := [word for word in _given(example) if word not in words]:
            return Verdict.failed(f"`{missing[0]}` is missing")
        return Verdict.passed()

    def reference(self, example: Example) -> str:
        one, two = _given(example)
        return f"We saw the {one} and the {two}."


def _given(example: Example) -> list[str]:
    info: Any = example.info
    words: list[str] = info["words"]
    return words


@hookimpl
def r3_tasks() -> list[type[Task]]:
    return [Keywords]
