"""Everything that the author of a task reads: `Task`, `Example`, `Prompt`, `Verdict`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Split = Literal["train", "validation", "test"]
Message = dict[str, Any]
"""A chat message: `{"role": "user", "content": "..."}`; other roles are `assistant` and `system`."""
Tool = dict[str, Any]
"""A tool in OpenAI's format: `{"type": "function", "function": {"name": ..., "parameters": ...}}`."""
Outcome = Literal["pass", "fail", "error"]


class Frozen(BaseModel):
    """An immutable value; unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Prompt(Frozen):
    """A conversation for a model to continue, and the tools that its chat template or server offers it.

    >>> prompt = Prompt(messages=[{"role": "user", "content": "Say 7."}])
    >>> retry = prompt.then({"role": "assistant", "content": "8"}, {"role": "user", "content": "Try again."})
    >>> [message["role"] for message in retry.messages]
    ['user', 'assistant', 'user']
    >>> len(prompt.messages)
    1
    """

    messages: list[Message]
    """Chat messages. A turn that the model sampled may have `token_ids`: its tokens without the end-of-turn token."""
    tools: list[Tool] = []
    """Tools in OpenAI's format. A model whose chat template has no place for tools is refused."""

    def then(self, *messages: Message) -> Prompt:
        """Return the prompt that has these messages after its own; the tools stay."""
        return Prompt(messages=[*self.messages, *messages], tools=self.tools)


class Example(Frozen):
    """One problem of a task's dataset."""

    id: str = Field(min_length=1)
    """Stable name of the problem, unique within the task."""
    prompt: str | list[Message] | Prompt | None = None
    """The prompt: a text, messages, or a `Prompt`; required only when the task does not define `prompt`."""
    answer: JsonValue = None
    """The gold answer, in whatever form the verifier expects."""
    info: dict[str, JsonValue] = {}
    """Any other data about the problem that the task needs."""


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
    """The sentences that r3 adds to the prompts; a task or a configuration may replace them."""

    failed: str = "Your answer is incorrect."
    """Opens the turn after a wrong attempt."""
    failed_because: str = "Your answer is incorrect: {reason}."
    """The same under `feedback: reason`; `{reason}` is the verdict's reason."""
    reflect: str = "Write a short reflection: what went wrong, and what will you do differently?"
    """Asks for the reflection."""
    retry: str = "Now solve the task again."
    """Asks for the second attempt."""
    empty: str = "(no answer)"
    """Stands for an answer without text in later prompts, as some chat templates do not accept an empty turn."""
    generic: str = "I made a mistake. I will read the task again and check every step."
    """The reflection of the control that puts a generic sentence in its place."""


class Demo(Frozen):
    """A small model that a task ships, with the settings for running it."""

    model: Path
    """A folder in Hugging Face format."""
    settings: dict[str, JsonValue] = {}
    """Dotted configuration keys and their values."""
    made_for: tuple[str, ...] = ()
    """Options of the task that should keep their defaults: the model was trained for these."""


class Task(Frozen, ABC):
    """A task: problems, prompts and a verifier. The fields of a subclass are its options.

    The first line of the subclass's docstring is its description in `r3 tasks`.

    >>> class Successor(Task):
    ...     '''Add one to a number.'''
    ...
    ...     name = "successor"
    ...     problems: int = 100
    ...
    ...     def load(self, split):
    ...         first = {"train": 0, "validation": 1000, "test": 2000}[split]
    ...         for number in range(first, first + self.problems):
    ...             yield Example(id=str(number), prompt=f"What is {number} + 1?", answer=number + 1)
    ...
    ...     def verify(self, example, response):
    ...         if response.strip() == str(example.answer):
    ...             return Verdict.passed()
    ...         return Verdict.failed(f"it is {example.answer}")
    >>> task = Successor(problems=10)
    >>> example = next(iter(task.load("test")))
    >>> task.prompt(example)
    'What is 2000 + 1?'
    >>> task.verify(example, "2002").reason
    'it is 2001'
    """

    model_config = ConfigDict(use_attribute_docstrings=True)  # a string under an option is its meaning in `r3 tasks`

    name: ClassVar[str]
    """The task's name on the command line."""
    version: ClassVar[str] = "1"
    """Increase it whenever `verify` returns another verdict for any response."""
    wording: ClassVar[Wording] = Wording()
    """The sentences around attempt, reflection and retry."""
    demo: ClassVar[Demo | None] = None
    """The built-in model, if the task ships one."""
    presets: ClassVar[dict[str, dict[str, JsonValue]]] = {}
    """Options that a preset sets for this task: preset -> option -> value; explicit options take precedence."""
    fixtures: ClassVar[Path | None] = None
    """A JSONL file of responses that must pass and must fail: rows of `example`, `response`, `outcome` and `why`."""
    reads: ClassVar[Literal["answer", "everything"]] = "answer"
    """What `verify` and `leaks` receive: the answer, or all that was generated, with the thinking and its marks."""
    waived: ClassVar[dict[str, str]] = {}
    """Probes of `r3 check` that this task's verifier accepts by design, and why; the certificate lists them."""
    refuses: ClassVar[dict[str, str]] = {}
    """Formats of right answers that this task's verifier refuses, and the rule of the prompt that rules each out."""

    @abstractmethod
    def load(self, split: Split) -> Iterable[Example]:
        """Yield the problems of one split, the same ones in the same order every time.

        No problem may be in two splits. A task without a validation split yields nothing for it.
        """

    @abstractmethod
    def verify(self, example: Example, response: str) -> Verdict | bool:
        """Judge one response. A wrong answer is `Verdict.failed(reason, kind=...)`; only a broken verifier raises."""

    def prompt(self, example: Example) -> str | list[Message] | Prompt:
        """Return the prompt of a first attempt: a text, chat messages that end with the user's turn, or a `Prompt`.

        A `Prompt` can bring tools for the model's chat template.
        """
        if example.prompt is None:
            raise ValueError(f"example {example.id!r} has no prompt, and {type(self).__name__} defines no `prompt`")
        return example.prompt

    def reference(self, example: Example) -> str | None:
        """Return a response that must pass, or None where none is known."""
        return None

    def variants(self, example: Example) -> Iterable[str]:
        """Yield other responses that must pass: right answers that differ from the reference."""
        return ()

    def leaks(self, example: Example, reflection: str) -> bool:
        """Return whether a reflection reveals the answer; by default, whether the verifier accepts it."""
        verdict = self.verify(example, reflection)
        return verdict if isinstance(verdict, bool) else verdict.outcome == "pass"

    def options(self) -> dict[str, Any]:
        """Return the task's options with their values, as JSON values."""
        return self.model_dump(mode="json")
