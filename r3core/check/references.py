"""Do right answers pass: references, other forms of them, and the fixtures that must pass?"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

from r3core.check.context import SEEDS, Checking, text_of
from r3core.check.fixtures import read_fixtures, with_examples
from r3core.check.probes import Frame, frame_of
from r3core.errors import TaskError
from r3core.plugins.diagnostics import as_task_error
from r3core.task import Example, Split

_REFERENCES = 200  # maximum per split


def check_references(checking: Checking, splits: dict[Split, list[Example]]) -> list[tuple[Example, str]]:
    """Check that references pass, and return those that do, with their examples."""
    right: list[tuple[Example, str]] = []
    not_in_prompt = []
    for split, examples in splits.items():
        sampled = checking.sample(examples, _REFERENCES)
        pairs = [(example, text) for example in sampled if (text := _reference(checking, example)) is not None]
        judged = checking.judged(pairs)
        if judged:
            checking.add_judged("references", f"references of `{split}` pass", judged, expected="pass")
        elif sampled and not pairs:
            checking.not_checked.append(f"references of `{split}`: the task has none")
        right += [(one.example, one.response) for one in judged if one.verdict.outcome == "pass"]
    if not right:
        return []
    frame = frame_of([response for _, response in right])
    for example, response in right:
        core = frame.core(response).strip()
        not_in_prompt.append(not core or not _contains_word(text_of(checking.task, example), core))
    note = "some prompts contain the reference answer, word for word"
    checking.add("data", "prompts do not contain the answer", not_in_prompt, [e for e, _ in right], note=note)
    _check_forms(checking, checking.sample(right, SEEDS), frame)
    return right


def _check_forms(checking: Checking, right: Sequence[tuple[Example, str]], frame: Frame) -> None:
    tries: dict[str, list[tuple[Example, str]]] = {}
    for example, response in right:
        for name, texts in forms_of(response, frame).items():
            tries.setdefault(name, []).extend((example, text) for text in texts)
        with as_task_error(checking.task, f"`variants` of example {example.id!r}"):
            variants: Any = checking.task.variants(example)
            variants = variants if isinstance(variants, str) else list(islice(variants, 50))
        if isinstance(variants, str) or not all(isinstance(text, str) for text in variants):
            raise TaskError(
                f"task `{checking.task.name}`: `variants` of example {example.id!r} returned {variants!r:.100}",
                "yield responses as strings",
            )
        tries.setdefault("the task's variants", []).extend((example, text) for text in variants)
    for name, pairs in tries.items():
        if pairs:
            checking.add_judged("references", name, checking.judged(pairs), expected="pass")


def check_fixtures(checking: Checking, known: Sequence[Example]) -> list[tuple[Example, str]]:
    """Check the task's fixtures, and return those that must pass and do, with their examples."""
    rows = with_examples(checking.task, read_fixtures(checking.task), known)
    if not rows:
        checking.not_checked.append("fixtures: the task has none")
    right = []
    for outcome in ("pass", "fail"):
        pairs = [(example, fixture.response) for example, fixture in rows if fixture.outcome == outcome]
        judged = checking.judged(pairs)
        if judged:
            checking.add_judged("fixtures", f"what must {outcome}", judged, expected=outcome)
        if outcome == "pass":
            right = [(one.example, one.response) for one in judged if one.verdict.outcome == "pass"]
    return right


def _reference(checking: Checking, example: Example) -> str | None:
    with as_task_error(checking.task, f"`reference` of example {example.id!r}"):
        reference: Any = checking.task.reference(example)
    if reference is not None and not isinstance(reference, str):
        raise TaskError(
            f"task `{checking.task.name}`: `reference` of example {example.id!r} returned {reference!r:.100}",
            "return a response as a string, or None",
        )
    return reference


def _contains_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def forms_of(right: str, frame: Frame) -> dict[str, list[str]]:
    """Return name -> other texts of a reference that every verifier must accept."""
    forms = {
        "spaces around": [f" {right}", f"{right}\n", f"\n\n{right} \n"],
        "JSON in another layout": _layouts(right, frame),
    }
    other = {name: [text for text in texts if text != right] for name, texts in forms.items()}
    return {name: texts for name, texts in other.items() if texts}


def _layouts(right: str, frame: Frame) -> list[str]:
    """Return an answer that is a JSON object or array with other whitespace, and once with its keys reversed."""
    for text, wrap in ((right, str), (frame.core(right), frame.around)):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict | list):
            return [wrap(json.dumps(_reversed(value), indent=2)), wrap(json.dumps(value, separators=(",", ":")))]
    return []


def _reversed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _reversed(value[key]) for key in reversed(value)}
    return [_reversed(item) for item in value] if isinstance(value, list) else value
