"""Make the built-in model: `python plugins/r3-plugin-countdown/pretrain.py` writes r3_plugin_countdown/model/.

A Llama of about 1.3 million parameters, trained from scratch on the synthetic corpus of `r3_plugin_countdown.corpus`,
on problems of the train split alone. One process, two CPU threads. docs/built-in-model.md has run time and loss.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from r3_plugin_countdown import corpus
from r3_plugin_countdown.task import Countdown
from r3core.pretraining import Phase, Transcript, chat_tokenizer, pretrain

MODEL = Path(__file__).parent / "r3_plugin_countdown" / "model"
TASK = Countdown()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer in which whole numbers and the fixed phrases are one token each."""
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
    batch_tokens: Annotated[int, typer.Option(help="Tokens a step, padding included.")] = 8_192,
    seed: int = 0,
    output: Path = MODEL,
    first: Annotated[int, typer.Option(help="Go on with this phase from the model in OUTPUT.")] = 0,
) -> None:
    """Pre-train the built-in model and save it as a Hugging Face folder, after every phase."""
    problems = list(TASK.load("train"))

    def episode(rng: random.Random, mixture: corpus.Mixture) -> Transcript:
        return corpus.episode(TASK, rng.choice(problems), rng, mixture)

    pretrain(make_tokenizer(), episode, PHASES, output, seed=seed, batch_tokens=batch_tokens, first=first)


if __name__ == "__main__":
    typer.run(main)
