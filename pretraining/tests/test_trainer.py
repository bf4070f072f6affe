"""Pre-training on a corpus of one sentence."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pretraining.trainer import (
    IGNORED,
    LOG,
    Muon,
    Phase,
    Piece,
    Transcript,
    chat_tokenizer,
    encode,
    pretrain,
    transcript,
)
from r3core.generation.generator import Sampling
from r3core.generation.models import load_model
from r3core.generation.transformers import TransformersGenerator
from r3core.task import Prompt

pytestmark = pytest.mark.slow

REQUEST = Prompt(messages=[{"role": "user", "content": "ab"}])


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return chat_tokenizer(made, ["whole phrase"], context=64)


def episode(rng: random.Random, mixture: str) -> Transcript:
    return transcript(REQUEST, [[Piece("x" * rng.randint(1, 3), trained=False), Piece(mixture)]])


def test_only_trained_pieces_and_the_ends_of_the_assistants_turns_have_labels() -> None:
    made = tokenizer()
    ids, labels = encode(made, transcript(REQUEST, [[Piece("x", trained=False), Piece("whole phrase")]]))
    assert ids == made.apply_chat_template(
        [*REQUEST.messages, {"role": "assistant", "content": "xwhole phrase"}], return_dict=False
    )
    assert [made.decode(label) for label in labels if label != IGNORED] == ["whole phrase", "<|end|>"]


def test_a_model_is_trained_phase_by_phase_and_resumes_with_a_later_phase(tmp_path: Path) -> None:
    phases = [Phase(15, "no", [(0, 1.0), (15, 1.0)]), Phase(15, "yes", [(0, 1.0), (15, 0.0)])]
    pretrain(tokenizer(), episode, phases[:1], tmp_path, seed=0, batch_tokens=256, first=0)
    assert answer_of_model_in(tmp_path).endswith("no")
    pretrain(tokenizer(), episode, phases, tmp_path, seed=0, batch_tokens=256, first=1)
    assert answer_of_model_in(tmp_path).endswith("yes")
    assert len(json.loads((tmp_path / LOG).read_text())["phases"]) == 2


def answer_of_model_in(folder: Path) -> str:
    model, made = load_model(str(folder), revision=None, dtype="float32", trust_remote_code=False)
    return TransformersGenerator(model, made).generate([REQUEST], Sampling(temperature=0, max_tokens=8))[0].text


def test_the_share_of_the_learning_rate_is_linear_between_its_knots() -> None:
    phase = Phase(10, None, [(0, 0.0), (4, 1.0), (10, 0.4)])
    assert [phase.rate(step) for step in (0, 1, 4, 7, 10, 12)] == pytest.approx([0, 0.25, 1, 0.7, 0.4, 0.4])


def test_muon_moves_a_matrix_along_an_orthogonal_direction() -> None:
    matrix = torch.nn.Parameter(torch.zeros(4, 8))
    matrix.grad = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    Muon([matrix], lr=1.0).step()
    singular = torch.linalg.svdvals(matrix.detach())
    assert singular.min() > 0.5
    assert singular.max() < 1.5
