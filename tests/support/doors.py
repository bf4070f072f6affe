"""A toy for training: behind each door stands a word, and only a retry that says it gets through.

The tiny model is first taught, in a second, to take part in the protocol: attempts and reflections are words drawn
evenly, and a retry repeats the word of the reflection. So the verifier, which sees nothing but the retry, passes just
those whose reflection named the right word, and chance is 1 in 8.

As a program it trains a saved model in a run directory, and kills itself at the first verdict of the step it is told.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tiny

from r3core import Example, Split, Task, Verdict, Wording
from r3core.config import Config
from r3core.episode import Answer
from r3core.failures import Failure
from r3core.protocol import Protocol
from r3core.runs import Run
from r3core.task import Message
from r3core.verification.judge import Judge

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ("red", "blue", "green", "black", "white", "brown", "pink", "gray")
DOORS = {"Left?": "red", "Right?": "red"}
WORDING = Wording(failed="No.", reflect="Why?", retry="Again.")
WHY = f"{WORDING.failed} {WORDING.reflect}"


class Doors(Task):
    """Say the word that opens the door."""

    name = "doors"
    wording = WORDING

    def load(self, split: Split) -> Iterator[Example]:
        for door, word in DOORS.items():
            yield Example(id=door, prompt=door, answer=word)

    def verify(self, example: Example, response: str) -> Verdict | bool:
        return response == example.answer


class Halls(Doors):
    """Doors that are there many times, so that an epoch has many failures, each with an id of its own."""

    name = "halls"
    halls: int = 16

    def load(self, split: Split) -> Iterator[Example]:
        for hall in range(self.halls):
            for example in super().load(split):
                yield example.model_copy(update={"id": f"{split}-{hall}-{example.id}"})


class Watched(Halls):
    """The same, whose verdicts are noted in the folder DOORS: one file for each worker of each training process."""

    def verify(self, example: Example, response: str) -> Verdict | bool:
        if folder := os.environ.get("DOORS"):
            with Path(folder, f"{os.environ.get('RANK', 'alone')}-{os.getpid()}").open("a", encoding="utf-8") as file:
                file.write(f"{example.id}\n")
        return super().verify(example, response)


class Lying(Halls):
    """Doors whose verifier gives no verdict where several processes train."""

    def verify(self, example: Example, response: str) -> Verdict | bool:
        return None if "RANK" in os.environ else super().verify(example, response)  # type: ignore[return-value]


class Unsure(Doors):
    """Doors whose verifier breaks on three of the words."""

    def verify(self, example: Example, response: str) -> Verdict | bool:
        if response in ("white", "gray", "pink"):
            raise ValueError(f"{response} is no colour")
        return super().verify(example, response)


class UnsureHalls(Unsure, Halls):
    """Halls whose verifier breaks on the same words."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer for which each word, and each sentence of the protocol, is one token."""
    return tiny.tiny_tokenizer([*WORDS, *DOORS, WHY, WORDING.retry])


def config(
    *, steps: int, train: dict[str, Any] | None = None, lora: dict[str, Any] | None = None, seed: int = 0, **grpo: Any
) -> Config:
    """Return a configuration with groups of 16, 4 groups a step, and no checkpoints unless they are asked for."""
    options: dict[str, Any] = {
        "max_steps": steps,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "per_device_train_batch_size": 64,
        "gradient_accumulation_steps": 1,
        "num_generations": 16,
        "save_strategy": "no",
    }
    turns = {"reflection": {"max_tokens": 4}, "retry": {"max_tokens": 4, "temperature": 0}}
    sections = {"sampling": turns, "train": train or {}, "lora": lora, "grpo": options | grpo}
    return Config.model_validate({"task": "doors", "seed": seed} | sections)


def protocol(settings: Config, task: Task | None = None) -> Protocol:
    task = task or Doors()
    return Protocol(task, Judge(task, settings.judge), settings)


def failures() -> list[Failure]:
    """Return every wrong attempt at every door: 14 failures."""
    return [
        Failure(
            id=door,
            prompt=[{"role": "user", "content": door}],
            answer=right,
            sample=0,
            attempt=Answer(text=word, tokens=1, verdict=Verdict.failed()),
            passed=0,
            samples=1,
        )
        for door, right in DOORS.items()
        for word in WORDS
        if word != right
    ]


def beginner(*, steps: int = 300, heads: int = 16, width: int = 32) -> LlamaForCausalLM:
    """Return a new model that knows the protocol, and of the doors nothing; `steps=0` leaves it random.

    `heads` is the size of each of its two attention heads, `width` the one between layers.
    """
    import torch

    model = tiny.tiny_model(tokenizer(), context=64, spread=0.2, head_dim=heads, hidden_size=width)
    if steps:
        model.load_state_dict(_taught(steps, heads, width))
    torch.manual_seed(0)
    return model


@cache
def _taught(steps: int, heads: int, width: int) -> dict[str, torch.Tensor]:
    """Return the weights after supervised training on conversations in which a retry repeats its reflection."""
    import torch

    speaker = tokenizer()
    model = tiny.tiny_model(speaker, context=64, spread=0.2, head_dim=heads, hidden_size=width)
    texts = [_conversation(door, first, second) for door in DOORS for first in WORDS for second in WORDS]
    rows = torch.tensor([speaker.apply_chat_template(text, return_dict=False) for text in texts])  # (128, 18)
    others = torch.tensor(speaker.convert_tokens_to_ids(["<|user|>", "<|assistant|>", *DOORS, WHY, WORDING.retry]))
    labels = rows.masked_fill(torch.isin(rows, others), -100)
    order = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        batch = torch.randint(len(rows), (64,), generator=order)
        model(input_ids=rows[batch], labels=labels[batch]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def _conversation(door: str, first: str, second: str) -> list[Message]:
    said: Sequence[str] = (door, first, WHY, second, WORDING.retry, second)
    roles = ("user", "assistant") * 3
    return [{"role": role, "content": content} for role, content in zip(roles, said, strict=True)]


KILLED = {"steps": 10, "save_strategy": "steps", "per_device_train_batch_size": 16, "num_generations": 8}
"""The configuration of the run that is killed: 2 of 14 failures a step, so that an epoch has 7 steps."""


class Deadly(Doors):
    """Doors whose verifier kills the run once a checkpoint is there."""

    checkpoint: Path
    run: int
    """The process to be killed; the verifier itself is in another one."""

    def verify(self, example: Example, response: str) -> Verdict | bool:
        if self.checkpoint.exists():
            os.kill(self.run, signal.SIGKILL)
        return super().verify(example, response)


class Fatal(Run):
    """A run directory that kills its process when a step is to be logged."""

    step = 0

    def append(self, name: str, rows: Any) -> None:
        if name == "train" and any(row["step"] == self.step for row in rows):
            os.kill(os.getpid(), signal.SIGKILL)
        super().append(name, rows)


def _main(directory: Path, step: int, folder: Path, options: str = "") -> None:
    """Train until the generation of a step, or with options, until a step is logged; then kill this process."""
    from transformers import AutoModelForCausalLM

    from r3core.train import train

    model = AutoModelForCausalLM.from_pretrained(folder)
    settings = config(**(KILLED | json.loads(options or "{}")))
    checkpoint = directory / "checkpoints" / f"checkpoint-{step - 1}"
    task = Doors() if options else Deadly(checkpoint=checkpoint, run=os.getpid())
    Fatal.step = step if options else 0
    with Fatal.open(directory, settings.record()) as run:
        train(run, protocol(settings, task), failures(), model=model, tokenizer=tokenizer())


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
