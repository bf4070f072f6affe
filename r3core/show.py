"""The conversations of a few failures as the model sees them, in its chat template, with the trained tokens marked."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from r3core.config import Config, local_model
from r3core.console import visible
from r3core.dataset import problems_to_mine
from r3core.episode import Episode
from r3core.episode import Text as Turn
from r3core.errors import RunError
from r3core.generation.chat import encode
from r3core.generation.models import load
from r3core.generation.transformers import TransformersGenerator
from r3core.protocol import Protocol, seed_of
from r3core.task import Prompt, Task
from r3core.transcript import CLOSE, ENDS, OPEN
from r3core.truncation import limit_of
from r3core.verification.judge import Judge

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_visible = partial(visible, keep="\n")


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

    def decoded(ids: list[int]) -> Text:
        return Text(_visible(str(tokenizer.decode(ids, skip_special_tokens=False))))

    def conversation(request: Prompt, turn: Turn) -> Text:
        return decoded([*encode(tokenizer, request), *_ids(turn, tokenizer)])

    for number, episode in enumerate(failures, start=1):
        assert episode.reflection is not None  # `_failures` reflected on every one
        reflection, retried = episode.reflection, episode.retries["reflect"]
        request, ids = protocol.reflection_request(episode), _ids(reflection, tokenizer)
        first = reflection.answer_start if config.train.tokens == "answer-of-reflection" else 0
        marked_are = "its answer is trained" if first else "the trained tokens"
        marked = Text.assemble(OPEN, decoded(ids[first:]), CLOSE, style="bold green")
        console.rule(Text(f"{number}. {episode.example.id}"), align="left")
        attempt = conversation(protocol.attempt_request(episode.example), episode.attempt)
        console.print(f"-- attempt: {episode.attempt.verdict.outcome}", attempt, sep="\n")
        console.print(f"-- reflection ({reflection.tokens} tokens, {ENDS[reflection.stopped]}: {marked_are})")
        console.print(decoded([*encode(tokenizer, request), *ids[:first]]) + marked)
        if reflection.unanswered:
            limit = f"was cut off in its thinking, at {limit_of(config, 'reflection')}: raise it"
            console.print(f"-- no retry: the reflection {limit if reflection.cut_in_thought else 'was not generated'}")
            continue
        retry = conversation(protocol.retry_request(episode, reflection), retried)
        console.print(f"-- retry: {retried.verdict.outcome}", retry, sep="\n")


def _ids(turn: Turn, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of a generated turn, with the end-of-turn token if the model wrote one."""
    end = tokenizer.eos_token_id if turn.stopped == "end" else None  # some tokenizers have no such token
    return [*(turn.token_ids or ()), *([] if end is None else [end])]


def _failures(protocol: Protocol, generator: TransformersGenerator, *, count: int) -> list[Episode]:
    """Return up to `count` episodes with a failed attempt, its reflection and its retry."""
    config = protocol.config
    examples = problems_to_mine(protocol.task, config).examples
    failed: list[Episode] = []
    cut = 0
    for start in range(0, len(examples), 8 * count):
        seed = seed_of(config.seed, "show", start)
        episodes = protocol.attempt(examples[start : start + 8 * count], generator, seed=seed)
        failed += [episode for episode in episodes if episode.failed]
        cut += sum(episode.attempt.cut_in_thought for episode in episodes)
        if len(failed) >= count:
            break
    if not failed:
        fault = f"none of {len(examples)} attempts failed, so there is no failure to reflect on"
        if not cut:
            raise RunError(fault)
        limit = limit_of(config, "attempt")
        raise RunError(f"{fault}; {cut} were cut off in their thinking, at {limit}", f"raise {limit.partition('=')[0]}")
    reflected = protocol.reflect(failed[:count], generator, seed=seed_of(config.seed, "show", "reflect"))
    return protocol.retry(reflected, generator, seed=seed_of(config.seed, "show", "retry"))
