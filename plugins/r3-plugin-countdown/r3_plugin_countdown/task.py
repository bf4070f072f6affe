"""The Countdown task: its options, its prompt and its verifier."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

from pydantic import Field, JsonValue, field_validator, model_validator

from r3_plugin_countdown import answer, data, hub, leaks
from r3_plugin_countdown.demo import DEMO
from r3_plugin_countdown.expression import Wrong
from r3core import Demo, Example, Split, Task, Verdict, hookimpl


class Countdown(Task):
    """Combine all given numbers with + - * / into an expression that equals the target."""

    name = "countdown"
    version: ClassVar[str] = "2"  # 1 refused other signs, marks around the expression, and tags mentioned in the text
    fixtures: ClassVar[Path | None] = Path(__file__).with_name("fixtures.jsonl")
    waived: ClassVar[dict[str, str]] = dict.fromkeys(
        ("negated", "retracted", "hidden in a comment"),
        "the answer is what stands between the tags; text around them is the model's thinking, and is not read",
    )
    demo: ClassVar[Demo | None] = DEMO
    presets: ClassVar[dict[str, dict[str, JsonValue]]] = {"paper": {"source": "hub"}}

    source: str = "generated"
    """`generated`, `hub`, or a .parquet, .json or .jsonl file with the columns `nums` and `target`.

    A path is made absolute, so that a recorded run finds its file from any folder.
    """
    numbers: tuple[Annotated[int, Field(ge=1, le=12)], ...] = Field(default=(3,), min_length=1)
    """How many numbers a generated problem has, one of these."""
    smallest: int = Field(default=1, ge=1)
    largest: int = Field(default=20, ge=1, le=999_999_999)
    target_min: int = Field(default=10, ge=1)
    target_max: int = Field(default=99, ge=1)
    data_seed: int = 0
    """Another seed gives other generated problems, in the same splits."""

    @field_validator("numbers", mode="before")
    @classmethod
    def _wrap_one_number(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | str) else value

    @field_validator("source")
    @classmethod
    def _same_file_from_anywhere(cls, value: str) -> str:
        return hub.absolute(value)

    @model_validator(mode="after")
    def _agree(self) -> Countdown:
        generated = self.source == "generated"
        if fault := data.fault(self._space()) if generated else hub.fault(self.source):
            raise ValueError(fault)
        changed = [name for name, field in Countdown.model_fields.items() if getattr(self, name) != field.default]
        if not generated and changed != ["source"]:
            raise ValueError(f"{', '.join(changed[1:])} has no effect unless source=generated")
        return self

    def load(self, split: Split) -> Iterable[Example]:
        if self.source == "generated":
            return data.generate(self._space(), split, self.data_seed)
        return hub.load(self.source, split)

    def prompt(self, example: Example) -> str:
        numbers = ", ".join(map(str, _numbers(example)))
        return (
            f"Make {example.info['target']} from the numbers {numbers}. Use every number exactly once, with + - * / "
            "and parentheses only. Write the expression inside <answer> and </answer>."
        )

    def verify(self, example: Example, response: str) -> Verdict:
        try:
            answer.check(response, _numbers(example), _target(example))
        except Wrong as wrong:
            return Verdict.failed(str(wrong), kind=wrong.kind)
        return Verdict.passed()

    def reference(self, example: Example) -> str | None:
        solution = example.info.get("solution")
        return f"<answer>{solution}</answer>" if solution else None

    def variants(self, example: Example) -> Iterable[str]:
        if solution := cast(str | None, example.info.get("solution")):
            yield f"<answer>{solution.replace(' ', '')}</answer>"
            yield f"<answer>\n( {solution} )\n</answer>"
            yield f"I combine them: <answer>{solution}</answer> That makes {_target(example)}."
            yield f"{self.prompt(example)}\n<answer>{solution}</answer>"

    def leaks(self, example: Example, reflection: str) -> bool:
        return super().leaks(example, reflection) or leaks.gives_away(reflection, _numbers(example), _target(example))

    def _space(self) -> data.Space:
        return data.Space(self.numbers, self.smallest, self.largest, self.target_min, self.target_max)


def _numbers(example: Example) -> list[int]:
    return cast(list[int], example.info["numbers"])


def _target(example: Example) -> int:
    return cast(int, example.info["target"])


@hookimpl
def r3_tasks() -> list[type[Task]]:
    """Bring the one task of this plugin."""
    return [Countdown]
