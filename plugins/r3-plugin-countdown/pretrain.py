"""Make the built-in model: `python plugins/r3-plugin-countdown/pretrain.py` writes r3_plugin_countdown/model/.

A Llama of about 1.3 million parameters, trained from scratch on the synthetic corpus of `r3_plugin_countdown.corpus`,
on problems of the train split alone. One process, two CPU threads. docs/built-in-model.md has run time and loss.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from r3_plugin_countdown import corpus
from r3_plugin_countdown.task import Countdown

MODEL = Path(__file__).parent / "r3_plugin_countdown" / "model"
SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MUON_LR, ADAM_LR = 8e-3, 3e-3
LOG = "pretraining.json"
IGNORED = -100  # the label that carries no loss


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer in which whole numbers and the fixed phrases are one token each."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    whole = [*map(str, range(corpus.LARGEST_RESULT + 1)), *corpus.phrases(Countdown())]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in dict.fromkeys(whole)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained model; its head size of 64 is one that vLLM's CPU attention takes."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates for matrices (Jordan et al. 2024), in float32.

    torch's own Muon orthogonalises in bfloat16, which is many times slower than float32 on most CPUs.
    """

    def __init__(self, matrices: list[torch.Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix; those of one shape are orthogonalised together."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.Tensor]] = {}
            for matrix in group["params"]:
                shapes.setdefault(matrix.shape, []).append(matrix)
            for (rows, columns), matrices in shapes.items():
                directions = []
                for matrix in matrices:
                    average = self.state[matrix].setdefault("average", torch.zeros_like(matrix))
                    average.lerp_(matrix.grad, 1 - group["momentum"])
                    directions.append(matrix.grad.lerp(average, group["momentum"]))
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for matrix, direction in zip(matrices, orthogonalised(torch.stack(directions)), strict=True):
                    matrix.mul_(1 - group["lr"] * 0.01).sub_(direction, alpha=scale)


def orthogonalised(x: torch.Tensor) -> torch.Tensor:
    """Return the nearest orthogonal matrices, roughly, by five Newton-Schulz steps; (batch, rows, columns)."""
    if x.shape[-2] > x.shape[-1]:
        return orthogonalised(x.mT).mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def encode(tokenizer: PreTrainedTokenizerFast, conversation: corpus.Conversation) -> tuple[list[int], list[int]]:
    """Return token ids and labels of one conversation; only trained pieces and the end of their turn have labels."""
    ids: list[int] = []
    labels: list[int] = []
    for role, pieces in conversation:
        spoken = role == "assistant"
        stretches = [
            corpus.Piece(f"<|{role}|>", trained=False),
            *pieces,
            corpus.Piece("<|end|>", trained=spoken),
        ]
        for piece in stretches:
            tokens = tokenizer.backend_tokenizer.encode(piece.text, add_special_tokens=False).ids
            ids += tokens
            labels += tokens if piece.trained else [IGNORED] * len(tokens)
    return ids, labels


@dataclass(frozen=True)
class Phase:
    """A stretch of the training: what it is trained on, and how the learning rate goes."""

    steps: int
    mixture: corpus.Mixture
    rates: list[tuple[int, float]]
    """Knots (step of this phase, share of the full learning rate), linear between them."""

    def rate(self, step: int) -> float:
        """Return the share of the full learning rate at a step."""
        return float(np.interp(step, *zip(*self.rates, strict=True)))


PHASES = (
    Phase(1_700, corpus.BROAD, [(0, 0.02), (52, 1.0), (1_300, 1.0), (1_700, 0.69)]),
    Phase(550, corpus.FINAL, [(0, 0.77), (550, 0.02)]),
)


def batches(
    tokenizer: PreTrainedTokenizerFast, phase: Phase, batch_tokens: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches of equal length, cut from chunks of fresh episodes that were sorted by length."""
    rng = random.Random(seed)
    task = Countdown()
    problems = list(task.load("train"))
    made = 0
    while made < phase.steps:
        episodes = (corpus.episode(task, rng.choice(problems), rng, phase.mixture) for _ in range(8_192))
        rows = [encode(tokenizer, episode) for episode in episodes]
        rows.sort(key=lambda row: len(row[0]))
        chunk = []
        while rows:
            width = len(rows[-1][0])
            count = max(1, batch_tokens // width)
            taken, rows = rows[-count:], rows[:-count]
            ids = torch.full((len(taken), width), tokenizer.pad_token_id)
            labels = torch.full((len(taken), width), IGNORED)
            for i, (row, label) in enumerate(taken):
                ids[i, : len(row)] = torch.tensor(row)
                labels[i, : len(row)] = torch.tensor(label)
            chunk.append((ids, labels))
        rng.shuffle(chunk)
        yield from chunk[: phase.steps - made]
        made += len(chunk)


def train_phase(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, phase: Phase, *, batch_tokens: int, seed: int
) -> list[dict[str, float]]:
    """Train the model through one phase and return its log."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [Muon(matrices, lr=MUON_LR), torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0)]
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, phase.rate) for optimizer in optimizers]
    began, smooth, tokens = time.monotonic(), 0.0, 0
    log: list[dict[str, float]] = []
    for step, (ids, labels) in enumerate(batches(tokenizer, phase, batch_tokens, seed), start=1):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]  # (batch, width - 1, hidden)
        trained = labels[:, 1:] != IGNORED
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[trained]), labels[:, 1:][trained])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        tokens += ids.numel()
        smooth = loss.item() if step == 1 else 0.98 * smooth + 0.02 * loss.item()
        if step % 50 == 0:
            seconds = round(time.monotonic() - began)
            log.append({"step": step, "loss": round(smooth, 4), "tokens": tokens, "seconds": seconds})
            print(json.dumps(log[-1]), flush=True)
    return log


def main(
    batch_tokens: Annotated[int, typer.Option(help="Tokens a step, padding included.")] = 8_192,
    seed: int = 0,
    output: Path = MODEL,
    first: Annotated[int, typer.Option(help="Go on with this phase from the model in OUTPUT.")] = 0,
) -> None:
    """Pre-train the built-in model and save it as a Hugging Face folder, after every phase."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    model = LlamaForCausalLM.from_pretrained(output) if first else make_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    phases = json.loads((output / LOG).read_text())["phases"][:first] if first else []
    for number, phase in list(enumerate(PHASES))[first:]:
        log = train_phase(model, tokenizer, phase, batch_tokens=batch_tokens, seed=seed + number)
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
        phases.append(log)
        made = {"seed": seed, "batch_tokens": batch_tokens, "phases": phases}
        (output / LOG).write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
