"""What the model sees: whole conversations of a few failures, with the trained tokens marked."""

from __future__ import annotations

import sys

from r3core.config import Config, model_of
from r3core.episode import Episode
from r3core.generation.local import TransformersGenerator, load_model
from r3core.mine import examples_of
from r3core.protocol import Protocol, seed_of
from r3core.task import Message, Task
from r3core.verification import Judge

OPEN, CLOSE = "⟦", "⟧"
"""Stand around the tokens that are trained, so that they are seen without colours too."""


def print_conversations(task: Task, config: Config, *, count: int) -> None:
    """Attempt problems of the mining split until `count` fail, and print each failure's three conversations."""
    from rich.console import Console
    from rich.text import Text

    model, tokenizer = load_model(model_of(config, task), revision=config.revision, dtype=config.dtype)
    generator = TransformersGenerator(model, tokenizer, batch_size=config.batch_size)
    protocol = Protocol(task, Judge(task), config)
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)

    def rendered(messages: list[Message]) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))

    for number, episode in enumerate(_failures(protocol, generator, count=count), start=1):
        assert episode.reflection is not None  # `_failures` reflected on every one
        retried = episode.retries["reflect"]
        asked = list(protocol.attempt_request(episode.example))
        about = list(protocol.reflection_request(episode))
        again = list(protocol.retry_request(episode, episode.reflection.text))
        reflection = str(tokenizer.apply_chat_template(about, tokenize=False, add_generation_prompt=True))
        ending = rendered([*about, _said(episode.reflection.text)])[len(reflection) :]
        console.rule(f"{number}. {episode.example.id}", align="left")
        for title, text in (
            (f"attempt: {episode.attempt.verdict.outcome}", rendered([*asked, _said(episode.attempt.text)])),
            (f"retry: {retried.verdict.outcome}", rendered([*again, _said(retried.text)])),
        ):
            if title.startswith("retry"):
                console.print(
                    f"-- reflection ({episode.reflection.tokens} tokens, and the end of the turn, are trained)"
                )
                trained = Text(f"{OPEN}{_visible(ending)}{CLOSE}", style="bold green")
                console.print(Text(_visible(reflection)) + trained)
            console.print(f"-- {title}")
            console.print(Text(_visible(text)))


def _failures(protocol: Protocol, generator: TransformersGenerator, *, count: int) -> list[Episode]:
    config = protocol.config
    examples = examples_of(protocol.task, config.mine.split, config.mine.limit)
    failed: list[Episode] = []
    for start in range(0, len(examples), 8 * count):
        seed = seed_of(config.seed, "show", start)
        episodes = protocol.attempt(examples[start : start + 8 * count], generator, seed=seed)
        failed += [episode for episode in episodes if episode.failed]
        if len(failed) >= count:
            break
    reflected = protocol.reflect(failed[:count], generator, seed=seed_of(config.seed, "show", "reflect"))
    return protocol.retry(reflected, generator, seed=seed_of(config.seed, "show", "retry"))


def _said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _visible(text: str) -> str:
    """Return model text with its control characters spelled out, so that it cannot steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
