"""vLLM on a LoRA adapter in a folder of its own, which names its base model."""

from __future__ import annotations

import os
from pathlib import Path

import password
import pytest
import torch
from engines import logprobs_of
from peft import get_peft_model

from r3core.config import Config
from r3core.generation.chat import encode
from r3core.generation.generator import Sampling
from r3core.generation.models import load_model
from r3core.generation.transformers import TransformersGenerator
from r3core.generation.vllm import VllmGenerator
from r3core.training.lora import lora_config

pytestmark = pytest.mark.vllm


def test_vllm_generates_with_an_adapter_on_its_base(tmp_path: Path) -> None:
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB
    base, folder = tmp_path / "base", tmp_path / "adapter"
    model = password.beginner(heads=64)
    model.save_pretrained(base)
    password.tokenizer().save_pretrained(base)
    model.name_or_path = str(base)
    torch.manual_seed(0)
    get_peft_model(model, lora_config({"r": 4, "init_lora_weights": False})).save_pretrained(folder)
    password.tokenizer().save_pretrained(folder)
    config = Config.model_validate({"task": "doors", "engine": "vllm", "engine_options": {"max_model_len": 64}})
    sampling = Sampling(temperature=0.0, max_tokens=8, seed=0)
    plain, adapted = (TransformersGenerator(*load_model(place)) for place in (base, folder))
    protocol = password.protocol(password.config(steps=1))
    prompts = [
        encode(plain.tokenizer, protocol.reflection_request(failure.episode())) for failure in password.failures()
    ]
    served = VllmGenerator.load(str(folder), config)
    try:
        by_vllm = served.continue_ids(prompts, sampling, logprobs=True)
    finally:
        served.close()
    expected, without = (generator.continue_ids(prompts, sampling) for generator in (adapted, plain))
    assert [one.ids for one in by_vllm] == [one.ids for one in expected]
    assert [one.ids for one in by_vllm] != [one.ids for one in without], "the adapter changes nothing: no test"
    for prompt, one in zip(prompts, by_vllm, strict=True):
        assert one.logprobs == pytest.approx(logprobs_of(adapted.model, prompt, one.ids), abs=1e-3)
