"""Pre-train Countdown's built-in model: `python -m pretraining.countdown`, from the root of the repository.

A Llama of about 1.3 million parameters, trained from scratch on the synthetic episodes of `countdown_corpus`, with
problems of the train split only. One process on the CPU; docs/built-in-model.md has run time and loss.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pretraining import countdown_corpus as corpus
from pretraining.trainer import Phase, Transcript, chat_tokenizer, pretrain
from r3_plugin_countdown.task import Countdown

MODEL = Path(__file__).parents[1] / "plugins/r3-plugin-countdown/r3_plugin_countdown/model"
TASK = Countdown()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer in which every whole number and every fixed phrase is one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    whole = [*map(str, range(corpus.LARGEST_RESULT + 1)), *corpus.phrases(TASK)]
    return chat_tokenizer(tokenizer, whole, context=512)


PHASES = (
    Phase(1_700, corpus.BROAD, [(0, 0.02), (52, 1.0), (1_300, 1.0), (1_700, 0.69)]),
    Phase(550, corpus.FINAL, [(0, 0.77), (550, 0.02)]),
)


def main(
    batch_tokens: Annotated[int, typer.Option(help="Tokens per step, including padding.")] = 8_192,
    seed: int = 0,
    output: Path = MODEL,
    first: Annotated[int, typer.Option(help="Resume with this phase, counted from 0, from the model in OUTPUT.")] = 0,
) -> None:
    """Pre-train the built-in model and save it as a Hugging Face folder after every phase."""
    problems = list(TASK.load("train"))

    def episode(rng: random.Random, mixture: corpus.Mixture) -> Transcript:
        return corpus.episode(TASK, rng.choice(problems), rng, mixture)

    pretrain(make_tokenizer(), episode, PHASES, output, seed=seed, batch_tokens=batch_tokens, first=first)


if __name__ == "__main__":
    typer.run(main)
