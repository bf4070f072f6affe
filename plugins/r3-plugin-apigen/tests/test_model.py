"""The built-in model of function calling: its size and its ability."""

import pytest

from r3_plugin_apigen.task import Apigen
from r3core.protocol import Protocol
from r3core.verification.judge import Judge

pytestmark = pytest.mark.slow

TASK = Apigen()
MODEL = TASK.demo.model


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL)


def test_the_model_is_small_and_vllm_supports_its_head_size(model):
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 8_000_000
    assert model.config.head_dim == 64
    assert not list(MODEL.glob("*.bin"))


def test_the_model_calls_some_tools_it_has_not_seen(model, tokenizer):
    from r3core.config import resolve
    from r3core.generation.transformers import TransformersGenerator

    config = resolve(TASK, overrides=["sampling.attempt.temperature=0"])
    problems = [problem for problem, _ in zip(TASK.load("validation"), range(32), strict=False)]
    generator = TransformersGenerator(model, tokenizer, batch_size=32)
    attempted = Protocol(TASK, Judge(TASK), config).attempt(problems, generator, seed=0)
    assert sum(episode.attempt.verdict.outcome == "pass" for episode in attempted) > 0
