"""Pre-train the built-in model of function calling: `python -m pretraining.apigen`, from the root of the repository.

A Llama of about 1.4 million parameters, trained from scratch on the synthetic episodes of `apigen_corpus`, with no
query of the test split. One process on the CPU; docs/built-in-model.md has run time and loss.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import typer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pretraining.apigen_corpus import BROAD, DRILLS, FINAL, MIXED, Episodes, phrases
from pretraining.trainer import Phase, chat_tokenizer, pretrain
from r3_plugin_apigen.task import Apigen

MODEL = Path(__file__).parents[1] / "plugins/r3-plugin-apigen/r3_plugin_apigen/model"
TASK = Apigen()
WORDS = 1_200
"""Tokens for bytes, words and parts of words; the fixed phrases come on top."""
_SAMPLE = 6_000  # problems that the byte-pair encoding is learned from
_SPLIT = Regex("[A-Z]?[a-z]+|[A-Z]+|[^A-Za-z]")

PHASES = (
    Phase(2_000, DRILLS, [(0, 0.02), (100, 1.0), (2_000, 1.0)]),
    Phase(2_400, MIXED, [(0, 0.5), (50, 1.0), (2_400, 1.0)]),
    Phase(2_000, BROAD, [(0, 0.5), (50, 1.0), (1_200, 1.0), (2_000, 0.4)]),
    Phase(600, FINAL, [(0, 0.2), (50, 0.4), (600, 0.02)]),
    Phase(1_100, FINAL, [(0, 0.1), (50, 0.5), (700, 0.4), (1_100, 0.02)]),
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer of words, digits and fixed phrases, learned from the tools of the train split."""
    tokenizer = Tokenizer(models.BPE())
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(_SPLIT, "isolated"), bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=WORDS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_texts(), trainer)
    return chat_tokenizer(tokenizer, phrases(TASK), context=1_024)


def _texts() -> list[str]:
    rng, episodes = random.Random(0), Episodes(TASK)
    problems = [episodes.problem(rng, ("train",), disguised=0.5, mixed=False) for _ in range(_SAMPLE)]
    return [text for problem in problems for text in (problem.query, *(str(f.offer) for f in problem.offered))]


def main(
    batch_tokens: Annotated[int, typer.Option(help="Tokens per step, including padding.")] = 4_096,
    seed: int = 0,
    output: Path = MODEL,
    first: Annotated[int, typer.Option(help="Resume with this phase, counted from 0, from the model in OUTPUT.")] = 0,
) -> None:
    """Pre-train the built-in model and save it as a Hugging Face folder after every phase."""
    pretrain(make_tokenizer(), Episodes(TASK), PHASES, output, seed=seed, batch_tokens=batch_tokens, first=first)


if __name__ == "__main__":
    typer.run(main)
