"""A toy task for one step of training, on a tiny model without any skill: say something of an even length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tiny
import torch
from transformers import LlamaForCausalLM

from r3core import Example, Split, Task, Verdict
from r3core.config import Config
from r3core.episode import Answer
from r3core.failures import Failure
from r3core.protocol import Protocol
from r3core.runs import Run
from r3core.train import grpo_config
from r3core.training.trainer import ReflectionTrainer
from r3core.training.trimmed import windows_of
from r3core.verification.judge import Judge

TEMPERATURE = 0.7


class Even(Task):
    """Say something with an even number of characters."""

    name = "even"

    def load(self, split: Split) -> list[Example]:
        return [Example(id=str(n), prompt=f"Say something even{'!' * n}") for n in range(4)]

    def verify(self, example: Example, response: str) -> Verdict | bool:
        return len(response) % 2 == 0


class RecordingTrainer(ReflectionTrainer):
    """A trainer that records what it samples, and the inputs of every loss."""

    def _generate_single_turn(self, *args: Any, **named: Any) -> Any:
        self.prompts = args[0]
        self.reflections, logprobs = super()._generate_single_turn(*args, **named)
        return self.reflections, logprobs

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        self.losses = [*getattr(self, "losses", []), inputs]
        return super()._compute_loss(model, inputs)


def bare_model(tokenizer: Any) -> LlamaForCausalLM:
    """Return a model whose head is the identity, so that what its body returns are the logits themselves."""
    size = len(tokenizer)
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16}
    model = tiny.tiny_model(tokenizer, hidden_size=size, tie_word_embeddings=False, **heads)
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.eye(size)).requires_grad_(False)
        model.model.norm.weight[tokenizer.eos_token_id] = 4.0  # else no reflection would ever end
    return model


def as_passed(inputs: dict[str, Any], ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return completion mask, advantages and prompt width of a loss's inputs, as they went through the model in `ids`.

    The trainer has sorted the rows by length, and trimmed them to the longest.
    """
    whole = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    prompt = inputs["prompt_ids"].shape[1]
    order, [(_, first, end)] = windows_of(attention, inputs["completion_ids"].shape[1], 1)
    assert torch.equal(whole[order][:, first:end], ids)
    return inputs["completion_mask"][order][:, : end - prompt].bool(), inputs["advantages"][order], prompt - first


def even_protocol(*, steps: int = 1, **grpo: Any) -> tuple[Protocol, list[Failure]]:
    options = {"max_steps": steps, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    options |= {"num_generations": 8, "save_strategy": "no"}
    turns = {turn: {"max_tokens": 12, "temperature": TEMPERATURE} for turn in ("attempt", "reflection", "retry")}
    config = Config.model_validate({"task": "even", "sampling": turns, "grpo": options | grpo})
    protocol = Protocol(Even(), Judge(Even()), config)
    prompts = {example.id: protocol.attempt_request(example) for example in Even().load("train")}
    failures = [
        Failure(
            id=name,
            prompt=prompt.messages,
            tools=prompt.tools,
            sample=0,
            attempt=Answer(text="odd", tokens=3, verdict=Verdict.failed()),
            passed=0,
            samples=1,
        )
        for name, prompt in prompts.items()
    ]
    return protocol, failures


def trainer_in(
    run: Run,
    protocol: Protocol,
    failures: Sequence[Failure],
    *,
    model: Any,
    tokenizer: Any,
    kind: Any = RecordingTrainer,
) -> Any:
    args = grpo_config(protocol, run.path / "checkpoints", on_cpu=True)
    return kind(run, protocol, failures, model=model, tokenizer=tokenizer, args=args)
