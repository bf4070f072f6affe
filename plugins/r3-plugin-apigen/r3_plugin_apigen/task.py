"""The function calling task: its options, its prompt and its verifier."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, JsonValue, field_validator, model_validator

from r3_plugin_apigen import generate, hub, rows
from r3_plugin_apigen.calls import Call, Wrong, calls_of, find_calls
from r3_plugin_apigen.compare import check
from r3_plugin_apigen.demo import DEMO
from r3_plugin_apigen.generate import MOST_CALLS, MOST_DISTRACTORS, Space
from r3_plugin_apigen.schema import Schema, with_defaults
from r3core import Demo, Example, Prompt, Split, Task, Verdict, hookimpl

_RULES = (
    "Which calls does the request need? Make them all at once,{order} in the form that the instructions for your tools "
    'describe; or write them as one JSON list, each call an object with the keys "name" and "arguments". When no tool '
    "fits, write an empty list on a line of its own. Text may stand around the calls, but there must be no second "
    "list of calls."
)
"""What a request with `template=true` ends with: any model's own form of calls fits it."""
_FOR_ALL_SOURCES = {"source", "ordered", "defaults", "template"}


class Apigen(Task):
    """Call the tools that a request needs, with the right arguments, as a JSON list."""

    name = "apigen"
    # 1 read the default `day` from "default today" in xlam's descriptions; 2 refused values that contain call tags
    version: ClassVar[str] = "3"
    fixtures: ClassVar[Path | None] = Path(__file__).with_name("fixtures.jsonl")
    waived: ClassVar[dict[str, str]] = dict.fromkeys(
        ("negated", "retracted", "hidden in a comment"),
        "the answer is the one list of calls in the response; text around it is the model's thinking, and is not read",
    )
    refuses: ClassVar[dict[str, str]] = dict.fromkeys(
        ("in capitals", "in small letters"),
        "the prompt asks for JSON, where other letters make other names and values",
    )
    demo: ClassVar[Demo | None] = DEMO
    presets: ClassVar[dict[str, dict[str, JsonValue]]] = {"paper": {"source": "hub"}}

    source: str = "generated"
    """`generated`, `hub` (xlam's dataset), or a .json, .jsonl or .parquet file in the format of xlam, OpenAI, BFCL or
    ToolACE."""
    ordered: bool = False
    """Whether the calls have to be in the order of the gold calls."""
    defaults: bool = True
    """Whether an omitted argument has the default value in its schema."""
    template: bool = False
    """Whether the tools go to the model's own chat template, and not into the prompt's text."""
    calls: tuple[Annotated[int, Field(ge=0, le=MOST_CALLS)], ...] = Field(default=Space().calls, min_length=1)
    """Numbers of calls that a generated request may need; with 0, none of the tools fits."""
    distractors: int = Field(default=Space().distractors, ge=0, le=MOST_DISTRACTORS)
    """Number of tools that are offered but not needed."""
    optional: float = Field(default=Space().optional, ge=0, le=1)
    """The share of the optional arguments that a generated request states."""
    nested: bool = Space().nested
    """Whether generated tools may take objects as arguments."""
    terse: bool = Space().terse
    """Whether the schemas of generated tools are small."""
    data_seed: int = 0
    """Another seed gives other generated requests, in the same splits."""

    @field_validator("calls", mode="before")
    @classmethod
    def _wrap_one_number(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | str) else value

    @model_validator(mode="after")
    def _agree(self) -> Apigen:
        generated = self.source == "generated"
        if fault := generate.fault(self._space()) if generated else hub.fault(self.source):
            raise ValueError(fault)
        changed = [name for name, field in Apigen.model_fields.items() if getattr(self, name) != field.default]
        if not generated and (unused := [name for name in changed if name not in _FOR_ALL_SOURCES]):
            raise ValueError(f"{', '.join(unused)} has no effect unless source=generated")
        return self

    def load(self, split: Split) -> Iterable[Example]:
        if self.source == "generated":
            return generate.generate(self._space(), split, self.data_seed)
        return rows.load(self.source, split)

    def prompt(self, example: Example) -> str | Prompt:
        order = " in the order of the request," if self.ordered else ""
        if self.template:
            tools = [{"type": "function", "function": tool} for tool in _tools(example)]
            content = f"Request: {example.info['query']}\n\n{_RULES.format(order=order)}"
            return Prompt(messages=[{"role": "user", "content": content}], tools=tools)
        request = (
            f"Request: {example.info['query']}\n\n"
            f"Which calls does the request need? Write them as one JSON list,{order} each call an object with the keys "
            '"name" and "arguments"; the list is empty when no tool fits. It may stand in a code fence or in tool_call '
            "tags, with text around it, but there must be no second list of calls."
        )
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in _tools(example))
        return f"Tools:\n{listed}\n\n{request}"

    def verify(self, example: Example, response: str) -> Verdict:
        schemas, gold = _schemas(example), calls_of(example.answer)
        try:
            check(
                find_calls(response),
                gold,
                schemas,
                ordered=self.ordered,
                defaults=self.defaults,
                accepted=_accepted(example),
            )
        except Wrong as wrong:
            return Verdict.failed(str(wrong), kind=wrong.kind.value)
        return Verdict.passed()

    def reference(self, example: Example) -> str:
        return _json_of(calls_of(example.answer))

    def variants(self, example: Example) -> Iterable[str]:
        gold, reference = calls_of(example.answer), self.reference(example)
        tagged = [f"<tool_call>\n{_json_of([call])[1:-1]}\n</tool_call>" for call in gold]
        yield f"<tool_call>{reference}</tool_call>"
        yield "I look at the tools [and the request] first.\n" + "\n".join(tagged or [reference])
        yield f"These calls are needed:\n```json\n{json.dumps(example.answer, indent=2)}\n```\nThat is all."
        yield f"{reference}\nOnce more:\n{reference}"
        if not self.ordered and len(gold) > 1:
            yield _json_of(gold[::-1])
        if self.defaults:
            schemas = _schemas(example)
            stated = _json_of([Call(name, with_defaults(arguments, schemas[name])) for name, arguments in gold])
            if stated != reference:
                yield stated

    def leaks(self, example: Example, reflection: str) -> bool:
        """Return whether a reflection is an answer, or names every tool to call with every value of its arguments."""
        gold = calls_of(example.answer)
        revealed = all(_names(reflection, text) for call in gold for text in (call.name, *_values(call.arguments)))
        return super().leaks(example, reflection) or (revealed and gold != [])

    def _space(self) -> Space:
        return Space(self.calls, self.distractors, self.optional, self.nested, self.terse)


def _tools(example: Example) -> list[dict[str, Any]]:
    tools: Any = example.info["tools"]
    return list(tools)


def _accepted(example: Example) -> list[Any]:
    accepted: Any = example.info.get("accepted", [])
    return list(accepted)


def _schemas(example: Example) -> dict[str, Schema]:
    return {tool["name"]: tool["parameters"] for tool in _tools(example)}


def _json_of(calls: list[Call]) -> str:
    return json.dumps([call._asdict() for call in calls], ensure_ascii=False)


def _values(value: Any) -> Iterable[str]:
    """Yield the strings and numbers of a JSON value, as they would stand in a sentence."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _values(item)
    elif isinstance(value, str):
        yield value
    else:
        yield json.dumps(value)


def _names(text: str, word: str) -> bool:
    """Return whether a text contains a word, not only as a part of another word or number."""
    return re.search(rf"(?<![\w.]){re.escape(word)}(?!\w|\.[0-9])", text, re.IGNORECASE) is not None


@hookimpl
def r3_tasks() -> list[type[Task]]:
    """Return the task of this plugin."""
    return [Apigen]
