"""Are right answers passed: references, other forms of them, and the fixtures that must pass?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

from r3core.check.context import SEEDS, Checking, text_of
from r3core.check.fixtures import placed, read_fixtures
from r3core.check.forms import forms_of
from r3core.check.probes import Frame, frame_of
from r3core.errors import TaskError
from r3core.plugins.diagnostics import as_task_error
from r3core.task import Example, Split

_REFERENCES = 200  # of each split


def check_references(checking: Checking, splits: dict[Split, list[Example]]) -> list[tuple[Example, str]]:
    """Check that references pass, and return those that do."""
    right: list[tuple[Example, str]] = []
    in_prompt = []
    for split, examples in splits.items():
        drawn = checking.sample(examples, _REFERENCES)
        pairs = [(example, said) for example in drawn if (said := _reference(checking, example)) is not None]
        judged = checking.judged(pairs)
        if judged:
            checking.add_judged("references", f"references of `{split}` pass", judged, wanted="pass")
        elif drawn and pairs == []:
            checking.not_checked.append(f"references of `{split}`: the task knows none")
        right += [(one.example, one.response) for one in judged if one.verdict.outcome == "pass"]
    if not right:
        return []
    frame = frame_of([response for _, response in right])
    for example, response in right:
        core = frame.core(response).strip()
        in_prompt.append(not core or not _stands_in(core, text_of(checking.task, example)))
    note = "some prompts contain the reference answer, word for word"
    checking.add("data", "prompts do not hold the answer", in_prompt, [e for e, _ in right], note=note)
    drawn_right = checking.sample(right, SEEDS)
    _check_forms(checking, drawn_right, frame)
    return right


def _check_forms(checking: Checking, right: Sequence[tuple[Example, str]], frame: Frame) -> None:
    tries: dict[str, list[tuple[Example, str]]] = {}
    required = {"the task's variants": True}
    for example, response in right:
        for name, form in forms_of(response, frame).items():
            required[name] = form.required
            tries.setdefault(name, []).extend((example, text) for text in form.texts)
        with as_task_error(checking.task, f"`variants` of example {example.id!r}"):
            variants: Any = checking.task.variants(example)
            variants = variants if isinstance(variants, str) else list(islice(variants, 50))
        if isinstance(variants, str) or not all(isinstance(text, str) for text in variants):
            raise TaskError(
                f"task `{checking.task.name}`: `variants` of example {example.id!r} returned {variants!r:.100}",
                "yield responses as texts",
            )
        tries.setdefault("the task's variants", []).extend((example, text) for text in variants)
    for name, pairs in tries.items():
        if pairs:
            note = "" if required[name] else "whether this should pass is for the task to say; the prompt should too"
            checking.add_judged("references", name, checking.judged(pairs), wanted="pass", note=note)


def check_fixtures(checking: Checking, known: Sequence[Example]) -> list[tuple[Example, str]]:
    """Check the task's fixtures, and return those that must pass and do."""
    rows = placed(checking.task, read_fixtures(checking.task), known)
    if not rows:
        checking.not_checked.append("fixtures: the task has none")
    right = []
    for outcome in ("pass", "fail"):
        pairs = [(example, fixture.response) for example, fixture in rows if fixture.outcome == outcome]
        judged = checking.judged(pairs)
        if judged:
            checking.add_judged("fixtures", f"what must {outcome}", judged, wanted=outcome)
        if outcome == "pass":
            right = [(one.example, one.response) for one in judged if one.verdict.outcome == "pass"]
    return right


def _reference(checking: Checking, example: Example) -> str | None:
    with as_task_error(checking.task, f"`reference` of example {example.id!r}"):
        said: Any = checking.task.reference(example)
    if said is not None and not isinstance(said, str):
        raise TaskError(
            f"task `{checking.task.name}`: `reference` of example {example.id!r} returned {said!r:.100}",
            "return a response as text, or None",
        )
    return said


def _stands_in(core: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(core)}(?!\w)", text) is not None
