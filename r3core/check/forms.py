"""Forms of a right answer: other ways to write a reference, generated without knowledge of the task."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from r3core.check.probes import Frame


class Form(NamedTuple):
    """One way to write an answer."""

    texts: list[str]
    required: bool
    """Whether a verifier must accept it; otherwise the finding is a note for the task's author."""


def forms_of(right: str, frame: Frame) -> dict[str, Form]:
    """Return name -> form of a reference, without forms that are equal to it."""
    forms = {
        "spaces around": Form([f" {right}", f"{right}\n", f"\n\n{right} \n"], True),
        "JSON in another layout": Form(_layouts(right, frame), True),
        "in a code fence": Form([f"```\n{right}\n```"], False),
        "in capitals": Form([frame.around(frame.core(right).upper())], False),
        "in small letters": Form([frame.around(frame.core(right).lower())], False),
    }
    other = {name: Form([text for text in form.texts if text != right], form.required) for name, form in forms.items()}
    return {name: form for name, form in other.items() if form.texts}


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
