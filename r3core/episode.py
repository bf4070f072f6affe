"""A problem's record in the protocol: each stage fills in one more field, and none is changed afterwards."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, model_serializer

from r3core.task import Example, Frozen, Verdict

TOKENS, WHOLE, THINKING, CALLS = "token_ids", "generated", "reasoning_content", "tool_calls"
"""Keys of a message that the model generated: the tokens of its answer, `ids` and `text` of the whole turn, its
thought, and its calls."""
Stopped = Literal["end", "length", "overlong", "skipped"]
Arm = Literal["reflect", "none", "generic", "shuffled", "placebo", "resample"]
CONTROLS: tuple[Arm, ...] = ("none", "generic", "shuffled", "placebo", "resample")
"""Second attempts without the model's own reflection on its failure."""


class ToolCall(Frozen):
    """One call of a tool, read from the form in which the model's chat template writes calls."""

    name: str
    arguments: dict[str, JsonValue]


class Text(Frozen):
    """A turn that the model generated, split into its thinking and its answer.

    >>> turn = Text(text="It is 7.", thinking="3 + 4", raw="<think>3 + 4</think>It is 7.", tokens=9)
    >>> turn.unanswered
    False
    >>> Text(text="", thinking="3 +", raw="<think>3 +", tokens=3, stopped="length", thought_closed=False).unanswered
    True
    """

    text: str
    """The answer: what the verifier reads and what later prompts show. All of the turn for a model without thinking."""
    calls: tuple[ToolCall, ...] = ()
    """The calls of the answer, where the prompt offered tools; `text` has them as JSON in <tool_call> tags."""
    malformed: str = ""
    """Why the calls of the answer cannot be read; empty where they can be read."""
    token_ids: list[int] | None = None
    """The sampled tokens, without the end-of-turn token, for the prompts that continue this turn; None where they are
    unknown, as a server's are."""
    tokens: int = Field(ge=0)
    """Number of generated tokens, thinking included, without the end-of-turn token."""
    stopped: Stopped = "end"
    """`end`: the model ended its turn; `length`: it was cut off at the maximum number of tokens; `overlong`: the prompt
    does not fit the model's context, and nothing was generated; `skipped`: nothing was generated, as the turn before
    has no answer."""
    thinking: str | None = None
    """The thought before the answer, without its marks; None without a thought."""
    thought_closed: bool = True
    """Whether the thought was closed before the turn stopped; True without a thought."""
    raw: str | None = None
    """The generated text with its marks and special tokens; None where it is the same as `text`."""
    answer_start: int = 0
    """Index in `token_ids` of the answer's first token; their number where the answer has no tokens of its own."""

    @property
    def cut_in_thought(self) -> bool:
        """Whether the token limit cut the turn off inside its thinking."""
        return self.stopped == "length" and not self.thought_closed

    @property
    def unanswered(self) -> bool:
        """Whether the turn has no answer that could be judged: it was cut off in its thinking, or not generated."""
        return self.cut_in_thought or self.stopped in ("overlong", "skipped")


class Answer(Text):
    """An attempt or a retry, with its verdict."""

    verdict: Verdict


class Reflection(Text):
    """The model's reflection on its failed attempt."""

    leaked: bool | None = None
    """Whether the reflection reveals the answer; None when that could not be judged."""


class Round(Frozen):
    """A further round of a conversation: a reflection on a failed retry, and the retry after it."""

    reflection: Reflection
    retry: Answer


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
    resamples: tuple[Answer, ...] = ()
    """Fresh attempts beside `retries["resample"]`, for pass@k; left out of the JSON where empty."""

    rounds: tuple[Round, ...] = ()
    """Further rounds after a failed retry (`protocol.rounds`); left out of the JSON where empty."""

    @model_serializer(mode="wrap")
    def _without_empty(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave empty `resamples` and `rounds` out, so that rows have the form in which earlier versions wrote them."""
        values: dict[str, Any] = dump(self)
        for name in ("resamples", "rounds"):
            if not getattr(self, name):
                values.pop(name, None)
        return values

    @property
    def answers(self) -> list[Answer]:
        """The attempt and the retries after the model's own reflections, in their order."""
        retry = self.retries.get("reflect")
        return [self.attempt, *([] if retry is None else [retry]), *(one.retry for one in self.rounds)]

    @property
    def failed(self) -> bool:
        """Whether the verdict on the attempt is `fail`; an attempt that could not be judged has not failed."""
        return self.attempt.verdict.outcome == "fail"
