"""What training rewards: an objective lists the turns whose tokens are trained, and how each gets its advantage.

For every failure of a batch, G = `num_generations` samples are generated. A sample begins with the turn of the first
segment, and has the turns after it that other segments need. The verdict r1 of the attempt and the verdict r2 of the
retry are 0 or 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import Field, model_validator

from r3core.task import Frozen

Turn = Literal["attempt", "reflection", "retry"]
TURNS: tuple[Turn, ...] = ("attempt", "reflection", "retry")
PLURAL: dict[Turn, str] = {"attempt": "attempts", "reflection": "reflections", "retry": "retries"}


class Segment(Frozen):
    """Tokens that are trained: those of one turn, under one prompt."""

    turn: Turn
    """The turn that is trained. An attempt is rewarded by its verdict r1, a reflection and a retry by r2."""
    prompt: Literal["own", "task"] = "own"
    """The prompt the tokens are trained under: the one they were sampled after, or that of a first attempt."""
    baseline: bool = True
    """Whether the advantage is the reward minus the mean of its group, divided as `grpo.scale_rewards` has it; if not,
    it is the reward itself. A group has the G samples of one failure; with `train.retries` above 1, retries are
    compared with those after the same reflection."""


class Objective(Frozen):
    """An objective of training; a plugin returns its own from the hook `r3_objectives`.

    Retries that are trained as if they were first attempts, and nothing else:

    >>> distilled = Objective(
    ...     name="distilled",
    ...     segments=(Segment(turn="reflection"), Segment(turn="retry", prompt="task", baseline=False)),
    ...     formula="norm(r2) for the reflection; r2 for the retry under the prompt of the task",
    ... )
    >>> distilled.first, distilled.rows(retries=2)
    ('reflection', 3)
    """

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9+_-]*[a-z0-9])?$")
    segments: tuple[Segment, ...] = Field(min_length=1)
    """What is trained; the turn of the first is sampled G times per failure."""
    formula: str
    """How rewards become advantages, in one line."""
    source: str = ""
    """The paper that describes it."""

    @model_validator(mode="after")
    def _can_be_sampled(self) -> Objective:
        if self.segments[0].prompt != "own" or not self.segments[0].baseline:
            raise ValueError("the first segment is sampled in groups: it should have `prompt='own'` and a baseline")
        if any(TURNS.index(segment.turn) < TURNS.index(self.first) for segment in self.segments):
            raise ValueError(f"no turn before the first segment's, {self.first}, is sampled: none can be trained")
        if len({(segment.turn, segment.prompt) for segment in self.segments}) < len(self.segments):
            raise ValueError("two segments have the same turn under the same prompt")
        return self

    @property
    def first(self) -> Turn:
        """The turn that is sampled G times per failure."""
        return self.segments[0].turn

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns that are trained, in their order in a conversation."""
        return tuple(turn for turn in TURNS if any(segment.turn == turn for segment in self.segments))

    @property
    def retries(self) -> bool:
        """Whether each sample has a retry that the policy generates after it, or that is the sample itself."""
        return self.turns != ("attempt",)

    def rows(self, *, retries: int) -> int:
        """Return how many rows of a batch one sample becomes, with a number of retries per reflection."""
        return sum(retries if segment.turn == "retry" else 1 for segment in self.segments)


def _objective(name: str, *segments: Segment, formula: str, source: str = "") -> Objective:
    return Objective(name=name, segments=segments, formula=formula, source=source)


_ATTEMPT, _REFLECTION, _RETRY = (Segment(turn=turn) for turn in TURNS)

OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {
        one.name: one
        for one in (
            _objective(
                "reflection",
                _REFLECTION,
                formula="reflection: (r2 - mean) / (std + 1e-4)",
                source="Bensal et al. 2025, Reflect, Retry, Reward, arXiv 2505.24726",
            ),
            _objective(
                "retry",
                _RETRY,
                formula="retry: (r2 - mean) / (std + 1e-4), over G retries after one reflection",
                source="compare the stored contexts of Cobalt, arXiv 2602.03806",
            ),
            _objective(
                "reflection+retry",
                _REFLECTION,
                _RETRY,
                formula="reflection and retry: (r2 - mean) / (std + 1e-4)",
            ),
            _objective(
                "attempt",
                _ATTEMPT,
                formula="attempt: (r1 - mean) / (std + 1e-4)",
                source="Shao et al. 2024, GRPO, arXiv 2402.03300",
            ),
            _objective(
                "erl",
                _ATTEMPT,
                _REFLECTION,
                _RETRY,
                Segment(turn="retry", prompt="task", baseline=False),
                formula="attempt: norm(r1); where it failed, reflection and retry: norm(r2), and the retry under the "
                "prompt of the task: r2",
                source="Experiential Reinforcement Learning, arXiv 2602.13949",
            ),
        )
    }
)
"""The objectives of r3core by name."""


def attempts_of_anchor(rows: int) -> int:
    """Return how many mined attempts `train.anchor` adds to a training pass over a number of rows."""
    return max(1, rows // 4)
