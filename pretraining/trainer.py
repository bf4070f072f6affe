"""Pre-train a small Llama on synthetic conversations: transcripts, chat tokenizer, model and training loop.

For plugins that ship a model (`Demo`). One process on the CPU.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from r3core.task import Prompt

SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MUON_LR, ADAM_LR = 8e-3, 3e-3
LOG = "pretraining.json"
IGNORED = -100  # the label of a token without loss
_CHUNK = 8_192  # transcripts that are sorted by length together, so that batches need little padding


@dataclass(frozen=True)
class Piece:
    """A part of a turn; without `trained` it carries no loss."""

    text: str
    trained: bool = True


Turn = Sequence[Piece]
Transcript = list[tuple[str, Turn]]
"""(role, pieces) of every turn."""
Corpus = Callable[[random.Random, Any], Transcript]
"""Generates a conversation from a phase's mixture."""


def text_of(turn: Turn) -> str:
    """Return the text of a turn."""
    return "".join(piece.text for piece in turn)


def transcript(prompt: Prompt, turns: Sequence[Turn]) -> Transcript:
    """Return a prompt's messages with the assistant's replaced by `turns`; turns that are left over come at the end."""
    remaining = iter(turns)
    conversation: Transcript = [
        (
            message["role"],
            next(remaining) if message["role"] == "assistant" else [Piece(message["content"], trained=False)],
        )
        for message in prompt.messages
    ]
    return [*conversation, *(("assistant", turn) for turn in remaining)]


@dataclass(frozen=True)
class Phase:
    """A part of the training with its own corpus and learning-rate schedule."""

    steps: int
    mixture: Any
    """The shares of what is in the corpus; only the corpus reads it."""
    rates: list[tuple[int, float]]
    """Knots (step of this phase, share of the full learning rate), with linear interpolation between them."""

    def rate(self, step: int) -> float:
        """Return the share of the full learning rate at a step."""
        steps, shares = zip(*self.rates, strict=True)
        return float(np.interp(step, np.asarray(steps), np.asarray(shares)))


def chat_tokenizer(tokenizer: Tokenizer, whole: Sequence[str], *, context: int) -> PreTrainedTokenizerFast:
    """Add the tokens of the chat template to a tokenizer, and one token for each text in `whole`."""
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in dict.fromkeys(whole)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def small_llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained model of about 1.2 million parameters, including the embeddings.

    The head size is 64 because vLLM's attention on the CPU supports it.
    """
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": tokenizer.model_max_length,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "attn_implementation": "sdpa",
    }
    return LlamaForCausalLM(LlamaConfig(**shape))


def pretrain(
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    phases: Sequence[Phase],
    output: Path,
    *,
    seed: int,
    batch_tokens: int,
    first: int,
) -> None:
    """Train a small Llama and save it as a Hugging Face folder, with its log, after every phase.

    `batch_tokens` is the number of tokens per step, including padding. With `first` above 0, resume with that phase
    from the model in `output`.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM.from_pretrained(output) if first else small_llama(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    logs = json.loads((output / LOG).read_text())["phases"][:first] if first else []
    for number, phase in list(enumerate(phases))[first:]:
        batches = _batches(tokenizer, corpus, phase, batch_tokens, seed + number)
        logs.append(_train(model, phase, batches))
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
        log = {"seed": seed, "batch_tokens": batch_tokens, "phases": logs}
        (output / LOG).write_text(json.dumps(log, indent=1) + "\n")


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates for matrices (Jordan et al. 2024), in float32.

    torch's own Muon orthogonalizes in bfloat16, which is many times slower than float32 on most CPUs.
    """

    def __init__(self, matrices: Sequence[torch.Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update every matrix; matrices of one shape are orthogonalized together."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.Tensor]] = {}
            for matrix in group["params"]:
                shapes.setdefault(matrix.shape, []).append(matrix)
            for (rows, columns), matrices in shapes.items():
                directions = []
                for matrix in matrices:
                    gradient = torch.zeros_like(matrix) if matrix.grad is None else matrix.grad
                    average = self.state[matrix].setdefault("average", torch.zeros_like(matrix))
                    average.lerp_(gradient, 1 - group["momentum"])
                    directions.append(gradient.lerp(average, group["momentum"]))
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for matrix, direction in zip(matrices, _orthogonalized(torch.stack(directions)), strict=True):
                    matrix.mul_(1 - group["lr"] * 0.01).sub_(direction, alpha=scale)


def _orthogonalized(x: torch.Tensor) -> torch.Tensor:
    """Return roughly the nearest orthogonal matrices by five Newton-Schulz steps; (batch, rows, columns)."""
    if x.shape[-2] > x.shape[-1]:
        return _orthogonalized(x.mT).mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def encode(tokenizer: PreTrainedTokenizerFast, conversation: Transcript) -> tuple[list[int], list[int]]:
    """Return token ids and labels of one conversation; only trained pieces and the end of their turn have labels."""
    ids: list[int] = []
    labels: list[int] = []
    for role, pieces in conversation:
        end = Piece("<|end|>", trained=role == "assistant")
        for piece in [Piece(f"<|{role}|>", trained=False), *pieces, end]:
            tokens = tokenizer.backend_tokenizer.encode(piece.text, add_special_tokens=False).ids
            ids += tokens
            labels += tokens if piece.trained else [IGNORED] * len(tokens)
    return ids, labels


def _batches(
    tokenizer: PreTrainedTokenizerFast, corpus: Corpus, phase: Phase, batch_tokens: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (ids, labels), each (batch, width), cut from chunks of fresh transcripts that are sorted by length."""
    rng = random.Random(seed)
    yielded = 0
    while yielded < phase.steps:
        rows = [encode(tokenizer, corpus(rng, phase.mixture)) for _ in range(_CHUNK)]
        rows.sort(key=lambda row: len(row[0]))
        chunk = []
        while rows:
            width = len(rows[-1][0])
            count = max(1, batch_tokens // width)
            batch, rows = rows[-count:], rows[:-count]
            ids = torch.full((len(batch), width), tokenizer.pad_token_id)
            labels = torch.full((len(batch), width), IGNORED)
            for i, (row, label) in enumerate(batch):
                ids[i, : len(row)] = torch.tensor(row)
                labels[i, : len(row)] = torch.tensor(label)
            chunk.append((ids, labels))
        rng.shuffle(chunk)
        yield from chunk[: phase.steps - yielded]
        yielded += len(chunk)


def _train(
    model: LlamaForCausalLM, phase: Phase, batches: Iterator[tuple[torch.Tensor, torch.Tensor]]
) -> list[dict[str, float]]:
    """Train the model through one phase and return its log."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [Muon(matrices, lr=MUON_LR), torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0)]
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, phase.rate) for optimizer in optimizers]
    started, smooth, tokens = time.monotonic(), 0.0, 0
    log: list[dict[str, float]] = []
    for step, (ids, labels) in enumerate(batches, start=1):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]  # (batch, width - 1, hidden)
        trained = labels[:, 1:] != IGNORED
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[trained]), labels[:, 1:][trained])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        tokens += ids.numel()
        smooth = loss.item() if step == 1 else 0.98 * smooth + 0.02 * loss.item()
        if step % 50 == 0:
            seconds = round(time.monotonic() - started)
            log.append({"step": step, "loss": round(smooth, 4), "tokens": tokens, "seconds": seconds})
            print(json.dumps(log[-1]), flush=True)
    return log
