"""The conversations of the protocol, as pure functions: nowhere else is a word said to the model."""

from __future__ import annotations

import json
from typing import Literal

from r3core.episode import Text
from r3core.errors import TaskError
from r3core.plugins.diagnostics import as_task_error
from r3core.task import TOOLS, Example, Message, Task, Verdict, Wording

Feedback = Literal["binary", "reason"]


def attempt(task: Task, example: Example) -> list[Message]:
    """Return the conversation that asks for a first attempt; TaskError when no model can answer to it."""
    if example.prompt is None and type(task).prompt is Task.prompt:
        raise TaskError(
            f"task `{task.name}`: example {example.id!r} has no prompt, and `{type(task).__name__}` defines none",
            "give every Example a `prompt`, or write `def prompt(self, example)`",
        )
    with as_task_error(task, f"`prompt` of example {example.id!r}"):
        prompt = task.prompt(example)
    if fault := _fault(prompt):
        raise TaskError(
            f"task `{task.name}`: the prompt of example {example.id!r} {fault}",
            'return a str, or [{"role": "user", "content": "..."}]',
        )
    return [_user(prompt)] if isinstance(prompt, str) else list(prompt)


def failure(wording: Wording, verdict: Verdict, feedback: Feedback) -> str:
    """Return the sentence that tells the model that it failed; its reason only when the run asks for that."""
    if feedback == "reason" and verdict.reason:
        return wording.failed_because.replace("{reason}", verdict.reason)
    return wording.failed


def reflect(asked: list[Message], attempted: Text | str, said: str, wording: Wording) -> list[Message]:
    """Return the conversation that asks for a reflection, after `said` told that the attempt failed."""
    return [*asked, _assistant(attempted), _user(f"{said} {wording.reflect}")]


def retry(
    asked: list[Message], attempted: Text | str, said: str, reflection: Text | str | None, wording: Wording
) -> list[Message]:
    """Return the conversation that asks for the second attempt; without a reflection, it follows at once."""
    if reflection is None:
        return [*asked, _assistant(attempted), _user(f"{said} {wording.retry}")]
    return [*reflect(asked, attempted, said, wording), _assistant(reflection), _user(wording.retry)]


def _fault(prompt: object) -> str | None:
    """Return why no model can answer to a prompt, or None when one can."""
    if isinstance(prompt, str):
        return None if prompt.strip() else "is empty"
    if not isinstance(prompt, list):
        return f"is {prompt!r:.100}; that is neither a text nor a list of chat messages"
    for number, message in enumerate(prompt, start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            return f"has {message!r:.100} as message {number}; that is no dict of `role` and `content`"
        for key in ("role", "content"):
            if not isinstance(message[key], str):
                return f"has {message[key]!r:.100} as the {key} of message {number}; that is no text"
        if message["role"] == TOOLS and (fault := _fault_of_tools(number, message["content"])):
            return fault
    if not prompt or not prompt[-1]["content"].strip():
        return "is empty"
    if (role := prompt[-1]["role"]) != "user":
        return f"ends with the turn of {role!r}; it should end with the user's"
    return None


def _fault_of_tools(number: int, content: str) -> str | None:
    if number > 1:
        return f"has tools as message {number}; only the first message may bring them"
    try:
        tools = json.loads(content)
    except ValueError:
        tools = None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        return f"has {content!r:.100} as its tools; that is no JSON list of objects"
    return None


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(written: Text | str) -> Message:
    if isinstance(written, str):
        return {"role": "assistant", "content": written}
    message = {"role": "assistant", "content": written.text}
    return message if written.token_ids is None else {**message, "token_ids": written.token_ids}
