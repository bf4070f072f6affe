"""The log-probabilities of vLLM, which TRL compares with the trainer's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engines
import pytest

from r3core.generation.generator import Sampling
from r3core.generation.models import load_model

pytestmark = pytest.mark.vllm

PROMPTS = [[2, 200, 3, 100 + index, 55] for index in range(8)]


@pytest.mark.parametrize("sampling", [Sampling(temperature=0, max_tokens=12), Sampling(max_tokens=10, seed=3)])
def test_log_probabilities_are_the_models_own(tmp_path: Path, sampling: Sampling) -> None:
    folder = engines.model_in(tmp_path / "model")
    model, _ = load_model(folder, dtype="float32")
    generator: Any
    with engines.vllm(folder) as generator:
        continued = generator.continue_ids(PROMPTS, sampling, logprobs=True)
        without = generator.continue_ids(PROMPTS, sampling)
    assert {one.logprobs for one in without} == {None}
    assert len({len(one.ids) for one in continued}) > 1
    for prompt, one in zip(PROMPTS, continued, strict=True):
        assert one.logprobs == pytest.approx(engines.logprobs_of(model, prompt, one.ids), abs=1e-3)
