"""Forms of a right answer: other ways to write a reference, made without knowing anything of the task."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from r3core.check.probes import Frame


class Form(NamedTuple):
    """One way to write an answer."""

    texts: list[str]
    required: bool
    """Whether a verifier should accept it; otherwise its author should know whether it does."""


def forms_of(right: str, frame: Frame) -> dict[str, Form]:
    """Return the forms of a reference by name, without those that change nothing."""
    made = {
        "spaces around": Form([f" {right}", f"{right}\n", f"\n\n{right} \n"], True),
        "JSON in another layout": Form(_layouts(right, frame), True),
        "in a code fence": Form([f"```\n{right}\n```"], False),
        "in capitals": Form([frame.around(frame.core(right).upper())], False),
        "in small letters": Form([frame.around(frame.core(right).lower())], False),
    }
    kept = {name: Form([text for text in form.texts if text != right], form.required) for name, form in made.items()}
    return {name: form for name, form in kept.items() if form.texts}


def _layouts(right: str, frame: Frame) -> list[str]:
    """Return an answer that is a JSON object or array with other spaces and its keys in another order."""
    for text, put in ((right, str), (frame.core(right), frame.around)):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict | list):
            return [put(json.dumps(_turned(value), indent=2)), put(json.dumps(value, separators=(",", ":")))]
    return []


def _turned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _turned(value[key]) for key in reversed(value)}
    return [_turned(item) for item in value] if isinstance(value, list) else value
