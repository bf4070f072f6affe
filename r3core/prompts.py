"""The conversations of the protocol, as pure functions: nowhere else is a word said to the model."""

from __future__ import annotations

from typing import Literal

from r3core.errors import TaskError
from r3core.task import Example, Message, Task, Verdict, Wording

Feedback = Literal["binary", "reason"]


def attempt(task: Task, example: Example) -> list[Message]:
    """Return the conversation that asks for a first attempt."""
    prompt = task.prompt(example)
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    is_chat = isinstance(prompt, list) and all(
        isinstance(message, dict) and {"role", "content"} <= message.keys() for message in prompt
    )
    if not is_chat or not prompt or prompt[-1]["role"] != "user":
        raise TaskError(
            f"task `{task.name}`: the prompt of example {example.id!r} is neither a text nor chat messages "
            "that end with the user's turn",
            'return a str, or [{"role": "user", "content": "..."}]',
        )
    return list(prompt)


def failure(wording: Wording, verdict: Verdict, feedback: Feedback) -> str:
    """Return the sentence that tells the model that it failed; its reason only when the run asks for that."""
    if feedback == "reason" and verdict.reason:
        return wording.failed_because.replace("{reason}", verdict.reason)
    return wording.failed


def reflect(asked: list[Message], attempted: str, said: str, wording: Wording) -> list[Message]:
    """Return the conversation that asks for a reflection, after `said` told that the attempt failed."""
    return [*asked, _assistant(attempted), _user(f"{said} {wording.reflect}")]


def retry(asked: list[Message], attempted: str, said: str, reflection: str | None, wording: Wording) -> list[Message]:
    """Return the conversation that asks for the second attempt; without a reflection, it follows at once."""
    if reflection is None:
        return [*asked, _assistant(attempted), _user(f"{said} {wording.retry}")]
    return [*reflect(asked, attempted, said, wording), _assistant(reflection), _user(wording.retry)]


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
