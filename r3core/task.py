"""Everything that the author of a task reads: `Task`, `Example`, `Verdict`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Split = Literal["train", "validation", "test"]
Message = dict[str, Any]  # {"role": "user" | "assistant" | "system", "content": ...}
TOOLS = "tools"
"""The role of a first message whose content is a JSON list of tools in OpenAI's format: see `Task.prompt`."""
Outcome = Literal["pass", "fail", "error"]


class Frozen(BaseModel):
    """A value: it never changes, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Example(Frozen):
    """One problem of a task's data set."""

    id: str = Field(min_length=1)
    """Stable name of the problem, unique within the task."""
    prompt: str | list[Message] | None = None
    """What the model is asked; needed only when the task does not define `prompt`."""
    answer: JsonValue = None
    """The gold answer, in whatever form the verifier wants it."""
    info: dict[str, JsonValue] = {}
    """Whatever else the task needs to know of the problem."""


class Limit(StrEnum):
    """A limit of a verdict (`judge.*` in the configuration) that was exceeded."""

    TIME = "time"
    MEMORY = "memory"
    OUTPUT = "output"
    """Characters that the verifier printed."""
    CHARACTERS = "characters"
    """Characters of the response: it fails without being passed to the verifier."""


class Verdict(Frozen):
    """A verifier's judgment of one response: pass, fail, or error (it could not judge)."""

    outcome: Outcome
    """`error` means that the verifier broke; it is never a reward of 0."""
    reason: str = ""
    """For people; the model sees it only under `feedback: reason`."""
    kind: str = ""
    """Error category of a wrong answer, one of a few per task: an evaluation counts failed answers by it."""
    limit: Limit | None = None
    """The limit that was exceeded; set by the judge, never by a verifier."""

    @classmethod
    def passed(cls, reason: str = "") -> Verdict:
        return cls(outcome="pass", reason=reason)

    @classmethod
    def failed(cls, reason: str = "", *, kind: str = "") -> Verdict:
        return cls(outcome="fail", reason=reason, kind=kind)

    @classmethod
    def error(cls, reason: str) -> Verdict:
        return cls(outcome="error", reason=reason)


class Wording(Frozen):
    """The sentences that r3 itself says to the model; a task or a configuration may replace them."""

    failed: str = "Your answer is incorrect."
    """Opens the turn after a wrong attempt."""
    failed_because: str = "Your answer is incorrect: {reason}."
    """The same under `feedback: reason`; `{reason}` is the verdict's reason."""
    reflect: str = "Write a short reflection: what went wrong, and what will you do differently?"
    """Asks for the reflection."""
    retry: str = "Now solve the task again."
    """Asks for the second attempt."""
    generic: str = "I made a mistake. I will read the task again and check every step."
    """The reflection of the control that puts a generic sentence in its place."""


class Demo(Frozen):
    """A small model that a task ships, with the settings it is run with."""

    model: Path
    """A folder in Hugging Face format."""
    settings: dict[str, JsonValue] = {}
    """Dotted configuration keys and their values."""
    made_for: tuple[str, ...] = ()
    """Options of the task that should have their defaults: the model was made for these."""


class Task(Frozen, ABC):
    """A task: a subclass's fields are its options, and `name` is how it is called.

    The docstring's first line is what `r3 tasks` shows.
    """

    name: ClassVar[str]
    """How the task is called on the command line."""
    version: ClassVar[str] = "1"
    """Raise it when `verify` changes its mind on any response."""
    wording: ClassVar[Wording] = Wording()
    """The sentences around attempt, reflection and retry."""
    demo: ClassVar[Demo | None] = None
    """The built-in model, if the task ships one."""
    presets: ClassVar[dict[str, dict[str, JsonValue]]] = {}
    """What a preset changes for this task: preset -> option -> value; an option that is given is stronger."""
    fixtures: ClassVar[Path | None] = None
    """A JSONL file of responses that must pass and must fail: rows of `example`, `response`, `outcome` and `why`."""
    waived: ClassVar[dict[str, str]] = {}
    """Probes of `r3 check` that this task's verifier lets pass by design, and why; the certificate says so."""

    @abstractmethod
    def load(self, split: Split) -> Iterable[Example]:
        """Yield the problems of one split, the same ones in the same order every time.

        No problem may be in two splits. A task without a validation split yields nothing for it.
        """

    @abstractmethod
    def verify(self, example: Example, response: str) -> Verdict | bool:
        """Judge one response. A wrong answer is `Verdict.failed(reason, kind=...)`; only a broken verifier raises."""

    def prompt(self, example: Example) -> str | list[Message]:
        """Return what the model is asked: a text, or chat messages that end with the user's turn.

        A first message of the role `tools`, with a JSON list of tools in OpenAI's format as its content, goes to the
        `tools` of the model's chat template.
        """
        if example.prompt is None:
            raise ValueError(f"example {example.id!r} has no prompt, and {type(self).__name__} defines no `prompt`")
        return example.prompt

    def reference(self, example: Example) -> str | None:
        """Return a response that must pass, if one is known."""
        return None

    def variants(self, example: Example) -> Iterable[str]:
        """Yield other responses that must pass: what a right answer may look like besides the reference."""
        return ()

    def leaks(self, example: Example, reflection: str) -> bool:
        """Tell whether a reflection gives the answer away; by default, whether the verifier accepts it."""
        verdict = self.verify(example, reflection)
        return verdict if isinstance(verdict, bool) else verdict.outcome == "pass"

    def options(self) -> dict[str, Any]:
        """Return the task's options with their values, as JSON values."""
        return self.model_dump(mode="json")
