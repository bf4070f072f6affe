"""The prompts of the protocol, as pure functions: every sentence that r3 writes to the model is put in here."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Literal

from r3core.episode import CALLS, THINKING, TOKENS, WHOLE, Text
from r3core.errors import TaskError
from r3core.plugins.diagnostics import as_task_error
from r3core.task import Example, Message, Prompt, Task, Verdict, Wording

if TYPE_CHECKING:
    from r3core.generation.generator import Generator

Feedback = Literal["binary", "reason"]
History = Literal["template", "answer", "verbatim"]
"""What later prompts show of a turn: what the chat template shows, the answer alone, or the tokens as generated."""
PLACEBO = (
    "The lake lies between low hills. In the morning its water is grey and still, and the boats are tied to the pier. "
    "Towards noon the wind rises, and small waves run along the shore. Birds sit on the old posts. In the evening the "
    "boats come back, and the lamps of the village are lit. "
)
"""A text about nothing that a task could be about, without numbers, names or advice."""


def attempt(task: Task, example: Example) -> Prompt:
    """Return the prompt of a first attempt; TaskError when the task's prompt is invalid."""
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
            'return a str, [{"role": "user", "content": "..."}], or Prompt(messages=[...], tools=[...])',
        )
    if isinstance(prompt, Prompt):
        return prompt
    return Prompt(messages=[_user(prompt)] if isinstance(prompt, str) else prompt)


def failure(wording: Wording, verdict: Verdict, feedback: Feedback) -> str:
    """Return the sentence that opens the turn after a failed attempt; it has the reason only under `reason`."""
    if feedback == "reason" and verdict.reason:
        return wording.failed_because.replace("{reason}", verdict.reason)
    return wording.failed


def reflect(
    first: Prompt, attempted: Text | str, failed: str, wording: Wording, history: History = "template"
) -> Prompt:
    """Return the prompt of a reflection; `failed` is the sentence of `failure`."""
    return first.then(_assistant(attempted, wording, history), _user(f"{failed} {wording.reflect}"))


def retry(
    first: Prompt,
    attempted: Text | str,
    failed: str,
    reflection: Text | str | None,
    wording: Wording,
    history: History = "template",
) -> Prompt:
    """Return the prompt of a retry; without a reflection, the retry is requested right after the failure."""
    if reflection is None:
        return first.then(_assistant(attempted, wording, history), _user(f"{failed} {wording.retry}"))
    reflected = reflect(first, attempted, failed, wording, history)
    return reflected.then(_assistant(reflection, wording, history), _user(wording.retry))


def placebo(reflection: Text, generator: Generator) -> str:
    """Return the neutral text, cut or repeated to the length of a reflection's answer.

    The length is counted in tokens where the generator has the model's tokenizer. A server has it elsewhere: then the
    number of characters is the same.
    """
    tokenizer = getattr(generator, "tokenizer", None)
    if tokenizer is None or reflection.token_ids is None:
        length = len(reflection.text)
        return (PLACEBO * ceil(length / len(PLACEBO)))[:length]
    length = len(reflection.token_ids) - reflection.answer_start
    ids = tokenizer(PLACEBO, add_special_tokens=False)["input_ids"]
    shown = (ids * ceil(length / len(ids)))[:length]
    return str(tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _fault(prompt: object) -> str | None:
    """Return what is wrong with the value that a task's `prompt` returned, or None."""
    if isinstance(prompt, str):
        return None if prompt.strip() else "is empty"
    messages = prompt.messages if isinstance(prompt, Prompt) else prompt
    if not isinstance(messages, list):
        return f"is {prompt!r:.100}; it must be a str, a list of chat messages or a Prompt"
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            return f"has {message!r:.100} as message {number}; it must be a dict with `role` and `content`"
        for key in ("role", "content"):
            if not isinstance(message[key], str):
                return f"has {message[key]!r:.100} as the {key} of message {number}; it must be a str"
    if not messages or not messages[-1]["content"].strip():
        return "is empty"
    if (role := messages[-1]["role"]) != "user":
        return f"ends with a turn of {role!r}; it must end with the user's"
    return None


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(turn: Text | str, wording: Wording, history: History) -> Message:
    """Return an earlier turn of the model; some chat templates do not accept an empty one."""
    text = turn if isinstance(turn, str) else turn.text
    message: Message = {"role": "assistant", "content": text or wording.empty}
    if isinstance(turn, str):
        return message
    if turn.thinking and history == "template":
        message[THINKING] = turn.thinking
    if turn.calls:
        message[CALLS] = [
            {"type": "function", "id": f"call{index:05d}", "function": call.model_dump()}  # some need 9 characters
            for index, call in enumerate(turn.calls)
        ]
    if turn.token_ids is not None and text:
        message[TOKENS] = turn.token_ids[turn.answer_start :]
    if turn.token_ids is not None and history == "verbatim":
        message[WHOLE] = {"ids": turn.token_ids, "text": turn.text if turn.raw is None else turn.raw}
    return message
