"""The conversations of a few failures as the model sees them, in its chat template, with the trained tokens marked."""

from __future__ import annotations

import sys
from functools import partial

from r3core.config import Config, local_model
from r3core.console import visible
from r3core.dataset import problems_to_mine
from r3core.episode import Episode
from r3core.errors import RunError
from r3core.generation.chat import templated
from r3core.generation.models import load
from r3core.generation.transformers import TransformersGenerator
from r3core.protocol import Protocol, seed_of
from r3core.task import Prompt, Task
from r3core.verification.judge import Judge

_visible = partial(visible, keep="\n")
OPEN, CLOSE = "⟦", "⟧"
"""Brackets around the trained tokens: they are visible without colours too."""


def print_conversations(task: Task, config: Config, *, count: int) -> None:
    """Attempt problems of the mining split until `count` fail, and print each failure's three conversations."""
    from rich.console import Console
    from rich.text import Text

    model, tokenizer = load(config, local_model(config, task, done="shown"))
    generator = TransformersGenerator(model, tokenizer, batch_size=config.batch_size)
    with Judge(task, config.judge) as judge:
        protocol = Protocol(task, judge, config)
        failures = _failures(protocol, generator, count=count)
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)

    def rendered(request: Prompt, response: str | None = None) -> str:
        whole = request if response is None else request.then({"role": "assistant", "content": response})
        return str(templated(tokenizer, whole, tokenize=False, add_generation_prompt=response is None))

    for number, episode in enumerate(failures, start=1):
        assert episode.reflection is not None  # `_failures` reflected on every one
        reflection, retried = episode.reflection, episode.retries["reflect"]
        attempt = rendered(protocol.attempt_request(episode.example), episode.attempt.text)
        request = protocol.reflection_request(episode)
        before = rendered(request)
        ended = reflection.stopped == "end"
        trained, after = _split(rendered(request, reflection.text)[len(before) :], tokenizer.eos_token, ended=ended)
        retry = rendered(protocol.retry_request(episode, reflection), retried.text)
        end = "and the end-of-turn token" if ended else "cut off at the limit"
        marked = Text(f"{OPEN}{_visible(trained)}{CLOSE}", style="bold green")
        console.rule(Text(f"{number}. {episode.example.id}"), align="left")
        console.print(f"-- attempt: {episode.attempt.verdict.outcome}", Text(_visible(attempt)), sep="\n")
        console.print(f"-- reflection ({reflection.tokens} tokens, {end}: the trained tokens)")
        console.print(Text(_visible(before)) + marked + Text(_visible(after)))
        console.print(f"-- retry: {retried.verdict.outcome}", Text(_visible(retry)), sep="\n")


def _failures(protocol: Protocol, generator: TransformersGenerator, *, count: int) -> list[Episode]:
    """Return up to `count` episodes with a failed attempt, its reflection and its retry."""
    config = protocol.config
    examples = problems_to_mine(protocol.task, config).examples
    failed: list[Episode] = []
    for start in range(0, len(examples), 8 * count):
        seed = seed_of(config.seed, "show", start)
        episodes = protocol.attempt(examples[start : start + 8 * count], generator, seed=seed)
        failed += [episode for episode in episodes if episode.failed]
        if len(failed) >= count:
            break
    if not failed:
        raise RunError(f"none of {len(examples)} attempts failed, so there is no failure to reflect on")
    reflected = protocol.reflect(failed[:count], generator, seed=seed_of(config.seed, "show", "reflect"))
    return protocol.retry(reflected, generator, seed=seed_of(config.seed, "show", "retry"))


def _split(turn: str, end: str, *, ended: bool) -> tuple[str, str]:
    """Split a rendered turn after the trained tokens; the end-of-turn token `end` is one if the model generated it."""
    text, separator, after = turn.rpartition(end)
    if not separator:
        return turn, ""
    return (text + separator, after) if ended else (text, separator + after)
