"""A toy task for training: each door has a password, and a response passes when it is the password.

A tiny model is first trained, for a second, to follow the protocol: attempts and reflections are words sampled
uniformly, and a retry repeats the word of the reflection. So the verifier, which receives nothing but the retry, passes
exactly those whose reflection named the right word; chance is 1 in 8.

As a program it trains a saved model in a run directory, and kills itself in the step that is its second argument.
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
    """Say the password of the door."""

    name = "doors"
    wording = WORDING

    def load(self, split: Split) -> Iterator[Example]:
        for door, word in DOORS.items():
            yield Example(id=door, prompt=door, answer=word)

    def verify(self, example: Example, response: str) -> Verdict | bool:
        return response == example.answer


class Halls(Doors):
    """Many copies of the doors, each with an id of its own, so that an epoch has many failures."""

    name = "halls"
    halls: int = 16

    def load(self, split: Split) -> Iterator[Example]:
        for hall in range(self.halls):
            for example in super().load(split):
                yield example.model_copy(update={"id": f"{split}-{hall}-{example.id}"})


class RecordedHalls(Halls):
    """Halls whose verdicts are recorded in the folder DOORS: one file per worker of each training process."""

    def verify(self, example: Example, response: str) -> Verdict | bool:
        if folder := os.environ.get("DOORS"):
            with Path(folder, f"{os.environ.get('RANK', 'alone')}-{os.getpid()}").open("a", encoding="utf-8") as file:
                file.write(f"{example.id}\n")
        return super().verify(example, response)


class FullHalls(Halls):
    """Halls that exhaust the memory of the training processes whose ranks are listed in FULL."""

    def model_post_init(self, context: Any) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ["RANK"] in os.environ.get("FULL", "").split(","):
            import torch

            def full(module: Any, *_: Any) -> None:
                if torch.is_grad_enabled() and type(module).__name__.endswith("LlamaForCausalLM"):
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

            torch.nn.modules.module.register_module_forward_pre_hook(full)


class NoVerdict(Halls):
    """Halls whose verifier returns no verdict when several processes train."""

    def verify(self, example: Example, response: str) -> Verdict | bool:
        return None if "RANK" in os.environ else super().verify(example, response)  # type: ignore[return-value]


class BrokenVerifier(Doors):
    """Doors whose verifier raises for three of the words."""

    def verify(self, example: Example, response: str) -> Verdict | bool:
        if response in ("white", "gray", "pink"):
            raise ValueError(f"{response} is no colour")
        return super().verify(example, response)


class BrokenVerifierHalls(BrokenVerifier, Halls):
    """Halls whose verifier raises for the same words."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer in which each word, and each sentence of the protocol, is one token."""
    return tiny.tiny_tokenizer([*WORDS, *DOORS, WHY, WORDING.retry])


def config(
    *,
    steps: int,
    train: dict[str, Any] | None = None,
    lora: dict[str, Any] | None = None,
    evaluate: dict[str, Any] | None = None,
    seed: int = 0,
    **grpo: Any,
) -> Config:
    """Return a configuration with groups of 16, 4 groups per step, and no checkpoints unless `grpo` sets them."""
    options: dict[str, Any] = {
        "max_steps": steps,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "per_device_train_batch_size": 64,
        "gradient_accumulation_steps": 1,
        "num_generations": 16,
        "save_strategy": "no",
    }
    turns = {"attempt": {"max_tokens": 4}, "reflection": {"max_tokens": 4}}
    turns["retry"] = {"max_tokens": 4, "temperature": 0}
    sections = {"sampling": turns, "train": train or {}, "lora": lora, "evaluate": evaluate or {}}
    sections["grpo"] = options | grpo
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
    """Return a new model that follows the protocol, and guesses the passwords; with `steps=0` it is random.

    `heads` is the size of each of its two attention heads, `width` the hidden size.
    """
    import torch

    model = tiny.tiny_model(tokenizer(), context=64, spread=0.2, head_dim=heads, hidden_size=width)
    if steps:
        model.load_state_dict(_pretrained_weights(steps, heads, width))
    torch.manual_seed(0)
    return model


@cache
def _pretrained_weights(steps: int, heads: int, width: int) -> dict[str, torch.Tensor]:
    """Return the weights after supervised training on conversations in which a retry repeats its reflection."""
    import torch

    chat_tokenizer = tokenizer()
    model = tiny.tiny_model(chat_tokenizer, context=64, spread=0.2, head_dim=heads, hidden_size=width)
    texts = [_conversation(door, first, second) for door in DOORS for first in WORDS for second in WORDS]
    rows = torch.tensor([chat_tokenizer.apply_chat_template(text, return_dict=False) for text in texts])  # (128, 18)
    untrained = torch.tensor(
        chat_tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>", *DOORS, WHY, WORDING.retry])
    )
    labels = rows.masked_fill(torch.isin(rows, untrained), -100)
    order = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        batch = torch.randint(len(rows), (64,), generator=order)
        model(input_ids=rows[batch], labels=labels[batch]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def _conversation(door: str, first: str, second: str) -> list[Message]:
    turns: Sequence[str] = (door, first, WHY, second, WORDING.retry, second)
    roles = ("user", "assistant") * 3
    return [{"role": role, "content": content} for role, content in zip(roles, turns, strict=True)]


KILLED = {"steps": 10, "save_strategy": "steps", "per_device_train_batch_size": 16, "num_generations": 8}
"""The configuration of the run that is killed: 2 of 14 failures per step, so that an epoch has 7 steps."""


class KillingDoors(Doors):
    """Doors whose verifier kills the run as soon as a checkpoint exists."""

    checkpoint: Path
    run: int
    """The process to kill; the verifier runs in another one."""

    def verify(self, example: Example, response: str) -> Verdict | bool:
        if self.checkpoint.exists():
            os.kill(self.run, signal.SIGKILL)
        return super().verify(example, response)


class KillingRun(Run):
    """A run directory that kills its process when a step is about to be logged, or its evaluation is."""

    step = 0
    name = "train"

    def append(self, name: str, rows: Any) -> None:
        if name == self.name and any(dict(row)["step"] == self.step for row in rows):
            os.kill(os.getpid(), signal.SIGKILL)
        super().append(name, rows)


def _main(directory: Path, step: int, folder: Path, options: str = "") -> None:
    """Train until the generation of a step or, with `options`, until it is logged; then kill this process.

    `options` are those of `config`; `rows` among them is the name of the rows that log the step.
    """
    from transformers import AutoModelForCausalLM

    from r3core.train import train

    model = AutoModelForCausalLM.from_pretrained(folder)
    given = json.loads(options or "{}")
    KillingRun.name = given.pop("rows", "train")
    settings = config(**(KILLED | given))
    checkpoint = directory / "checkpoints" / f"checkpoint-{step - 1}"
    task = Halls() if options else KillingDoors(checkpoint=checkpoint, run=os.getpid())
    KillingRun.step = step if options else 0
    with KillingRun.open(directory, settings.record()) as run:
        train(run, protocol(settings, task), failures(), model=model, tokenizer=tokenizer())


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])


def saved(folder: Path) -> Path:
    """Save the beginner and its tokenizer in a folder, and return the folder."""
    beginner().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
