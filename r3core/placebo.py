"""The control `placebo`: a neutral text in the reflection's place, as long as the reflection itself."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from r3core.episode import Text

if TYPE_CHECKING:
    from r3core.generation.generator import Generator

PLACEBO = (
    "The lake lies between low hills. In the morning its water is grey and still, and the boats are tied to the pier. "
    "Towards noon the wind rises, and small waves run along the shore. Birds sit on the old posts. In the evening the "
    "boats come back, and the lamps of the village are lit. "
)
"""A text about nothing that a task could be about, without numbers, names or advice."""


def placebo(reflection: Text, generator: Generator) -> str:
    """Return the neutral text, cut or repeated to the length of a reflection's answer.

    The length is counted in tokens where the generator has the model's tokenizer. A server has it elsewhere: then the
    number of characters is the same.
    """
    tokenizer = getattr(generator, "tokenizer", None)
    if tokenizer is None or reflection.token_ids is None:
        length = len(reflection.text)
        return (PLACEBO * ceil(length / len(PLACEBO)))[:length]
    length = len(reflection.token_ids) - reflection.answer_start
    ids = tokenizer(PLACEBO, add_special_tokens=False)["input_ids"]
    shown = (ids * ceil(length / len(ids)))[:length]
    return str(tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False))
