"""A problem's record in the protocol: each stage fills in one more field, and none is changed afterwards."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from r3core.task import Example, Frozen, Verdict

Stopped = Literal["end", "length", "overlong"]
Arm = Literal["reflect", "none", "generic", "shuffled", "resample"]
CONTROLS: tuple[Arm, ...] = ("none", "generic", "shuffled", "resample")
"""Second attempts without the model's own reflection on its failure."""


class Text(Frozen):
    """A turn that the model generated."""

    text: str
    tokens: int = Field(ge=0)
    """Number of generated tokens, without the end-of-turn token."""
    stopped: Stopped = "end"
    """`end`: the model ended its turn; `length`: it was cut off at the maximum number of tokens; `overlong`: the prompt
    does not fit the model's context, and nothing was generated."""
    token_ids: list[int] | None = None
    """The sampled tokens, without the end-of-turn token, for the prompts that continue this turn; None where they are
    unknown, as a server's are."""


class Answer(Text):
    """An attempt or a retry, with its verdict."""

    verdict: Verdict


class Reflection(Text):
    """The model's reflection on its failed attempt."""

    leaked: bool | None = None
    """Whether the reflection reveals the answer; None when that could not be judged."""


class Episode(Frozen):
    """An example, an attempt at it and, when that failed, the reflection and the retries.

    >>> episode = Episode(
    ...     example=Example(id="n7", prompt="Say 7.", answer=7),
    ...     attempt=Answer(text="8", tokens=1, verdict=Verdict.failed("it is 7")),
    ... )
    >>> episode.failed
    True
    >>> reflected = episode.model_copy(update={"reflection": Reflection(text="One too many.", tokens=4)})
    >>> retry = Answer(text="7", tokens=1, verdict=Verdict.passed())
    >>> retried = reflected.model_copy(update={"retries": {"reflect": retry}})
    >>> retried.retries["reflect"].verdict.outcome
    'pass'
    """

    example: Example
    sample: int = 0
    """Index of this attempt among those at the same example."""
    attempt: Answer
    reflection: Reflection | None = None
    retries: dict[Arm, Answer] = {}
    """Second attempts by what precedes them; `reflect` is the method's own, the others are controls."""

    @property
    def failed(self) -> bool:
        """Whether the verdict on the attempt is `fail`; an attempt that could not be judged has not failed."""
        return self.attempt.verdict.outcome == "fail"
