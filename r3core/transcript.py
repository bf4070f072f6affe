"""Print recorded conversations in the terminal, with the trained tokens marked and model text escaped."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, TextIO

from r3core.config import Config
from r3core.console import visible
from r3core.conversations import Conversation, Tried
from r3core.episode import Answer
from r3core.prompts import failure
from r3core.recorded import messages_of, task_of
from r3core.task import Task, Verdict, Wording

if TYPE_CHECKING:
    from rich.text import Text as Styled

OPEN, CLOSE = "⟦", "⟧"
"""Brackets around the trained tokens: they are visible without colours too."""
MAX_CHARACTERS = 4_000
"""Characters of one turn that are printed; the page has more."""
ENDS = {
    "end": "and the end-of-turn token",
    "length": "cut off at the limit",
    "overlong": "its prompt does not fit the context",
    "skipped": "not generated",
}
_shown = partial(visible, longest=MAX_CHARACTERS, keep="\n\t")


def print_conversations(found: list[list[Conversation]], config: Config, to: TextIO) -> None:
    """Print conversations, each after a rule with its number; those in one list are at the same problem."""
    from rich.console import Console
    from rich.text import Text as Styled

    console = Console(file=to, highlight=False, soft_wrap=True)
    task = task_of(config)
    for number, sides in enumerate(found, start=1):
        for place, one in enumerate(sides):
            console.rule(Styled(f"{number}. {visible(one.heading, longest=100)}: {one.state}"), align="left")
            if place == 0:
                for message in messages_of(task, one.example):
                    console.print(_plain(f"{message['role']}: {_shown(str(message['content']))}"))
            for line in _lines(one, config, task):
                console.print(line)


def _lines(one: Conversation, config: Config, task: Task | None) -> Iterator[Styled]:
    """Yield what is printed of a conversation after its prompt."""
    wording = config.wording_for(task) if task else Wording()
    if one.attempt is not None:
        yield from _answer("attempt", one.attempt)
    if one.tried:
        verdict = one.attempt.verdict if one.attempt else Verdict.failed()
        yield _plain(f"user: {_shown(failure(wording, verdict, config.feedback))} {wording.reflect}")
    for tried in one.tried:
        yield from _reflection(tried, config, trains=one.trains)
        if tried.retries:
            yield _plain(f"user: {wording.retry}")
        for retry in tried.retries:
            yield from _answer("retry", retry)
    for before, tried in zip([*one.tried, *one.further], one.further, strict=False):
        yield _plain(f"user: {_shown(failure(wording, before.retries[0].verdict, config.feedback))} {wording.reflect}")
        turn, leak = tried.reflection, ", contains the answer" if tried.reflection.leaked else ""
        yield _plain(f"-- reflection ({turn.tokens} tokens, {ENDS[turn.stopped]}{leak}: not trained)")
        yield _plain(_shown(f"{turn.thinking}\n{turn.text}" if turn.thinking else turn.text))
        yield _plain(f"user: {wording.retry}")
        yield from _answer("retry", tried.retries[0])
    if one.controls:
        outcomes = ", ".join(f"{arm}: {retry.verdict.outcome}" for arm, retry in one.controls.items())
        yield _plain(f"-- controls: {outcomes}")


def _answer(title: str, answer: Answer) -> Iterator[Styled]:
    """Yield an attempt or a retry: its verdict with category and reason, and its text."""
    verdict = answer.verdict
    kind = f" [{_shown(verdict.kind)}]" if verdict.kind else ""
    reason = f": {_shown(verdict.reason)}" if verdict.reason else ""
    ends = f" ({ENDS[answer.stopped]})" if answer.stopped != "end" else ""
    yield _plain(f"-- {title}{ends}: {verdict.outcome}{kind}{reason}")
    if answer.thinking:
        yield _plain(f"(thinking) {_shown(answer.thinking)}")
    yield _plain(_shown(answer.text))


def _reflection(tried: Tried, config: Config, *, trains: bool) -> Iterator[Styled]:
    """Yield a reflection with the tokens that training rewards between brackets."""
    turn = tried.reflection
    only_answer = config.train.tokens == "answer-of-reflection" and turn.answer_start > 0
    marked = "its answer is trained" if only_answer else "the trained tokens"
    leak = ", contains the answer" if turn.leaked else ""
    reward = f", reward {'none' if tried.reward is None else f'{tried.reward:g}'}" if trains else ""
    yield _plain(f"-- reflection ({turn.tokens} tokens, {ENDS[turn.stopped]}{leak}{reward}: {marked})")
    thought = _shown(turn.thinking) if turn.thinking else ""
    inside = _shown(turn.text) if only_answer or not thought else f"{thought}\n{_shown(turn.text)}"
    before = f"(thinking) {thought}\n" if only_answer and thought else ""
    yield _plain(before).append(f"{OPEN}{inside}{CLOSE}", "bold green")


def _plain(text: str) -> Styled:
    """Return a text for the terminal: whatever its parts are, none of them can control it."""
    from rich.text import Text as Styled

    return Styled(visible(text, keep="\n\t"))
