"""One problem's way through the protocol: each stage fills one more field, nothing is ever changed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from r3core.task import Example, Frozen, Verdict

Stopped = Literal["end", "length"]
Arm = Literal["reflect", "none", "generic", "shuffled", "resample"]
CONTROLS: tuple[Arm, ...] = ("none", "generic", "shuffled", "resample")
"""The ways to a second try that do without the model's own reflection on its failure."""


class Text(Frozen):
    """What the model wrote in one turn."""

    text: str
    tokens: int = Field(ge=0)
    """How many tokens the model generated for it."""
    stopped: Stopped = "end"
    """`length` when the limit of tokens cut it off."""
    token_ids: list[int] | None = None
    """The sampled tokens, without the end-of-turn token, for the prompts that continue this turn; None where they are
    unknown (a server's)."""


class Answer(Text):
    """A turn that the verifier judged: an attempt or a retry."""

    verdict: Verdict


class Reflection(Text):
    """A turn about a failed attempt."""

    leaked: bool | None = None
    """Whether the reflection itself gives the answer away; `None` when that could not be judged."""


class Episode(Frozen):
    """An example, its attempt and, when that failed, the reflection and the retries."""

    example: Example
    sample: int = 0
    """Which of several attempts at the same example this is."""
    attempt: Answer
    reflection: Reflection | None = None
    retries: dict[Arm, Answer] = {}
    """The second attempts, by what came before them; `reflect` is the method's own, the others are controls."""

    @property
    def failed(self) -> bool:
        """Whether the attempt was judged wrong; an attempt that could not be judged did not fail."""
        return self.attempt.verdict.outcome == "fail"
