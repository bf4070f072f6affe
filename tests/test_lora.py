"""Training a LoRA adapter: what it learns, which weights stay the same, and what is saved in `model/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import password
import pytest
import torch
from transformers import AutoModelForCausalLM

from r3core import ConfigError, Example, Verdict
from r3core.config import Config
from r3core.generation.chat import encode
from r3core.generation.generator import Sampling
from r3core.generation.models import load_model
from r3core.generation.transformers import TransformersGenerator
from r3core.runs import Run
from r3core.train import train
from r3core.training.lora import check_adapter, lora_config

pytestmark = pytest.mark.slow

LEARNING: dict[str, Any] = {"steps": 60, "learning_rate": 4e-3, "lora": {"r": 8, "lora_alpha": 16}}


@pytest.fixture(scope="module")
def beginner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return password.saved(tmp_path_factory.mktemp("models") / "beginner")


def trained(path: Path, config: Config, beginner: Path) -> Run:
    model, tokenizer = load_model(beginner)
    with Run.open(path, config.record()) as run:
        train(run, password.protocol(config), password.failures(), model=model, tokenizer=tokenizer)
    return run


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, beginner: Path) -> Run:
    return trained(tmp_path_factory.mktemp("runs") / "merged", password.config(**LEARNING), beginner)


def named(folder: Path) -> float:
    """Return the share of reflections that name the password."""
    generator = TransformersGenerator(*load_model(folder))
    protocol = password.protocol(password.config(steps=1))
    with protocol.judge:
        episodes = protocol.reflect([f.episode() for f in password.failures() for _ in range(20)], generator, seed=1)
    return sum(e.reflection is not None and e.reflection.text == "red" for e in episodes) / len(episodes)


def test_an_adapter_learns_the_reflections_that_make_the_retry_pass(merged: Run, beginner: Path) -> None:
    rewards = [row["reward"] for row in merged.read("train")]
    assert sum(rewards[:3]) / 3 < 0.3
    assert sum(rewards[-10:]) / 10 > 0.9
    assert named(beginner) < 0.2
    assert named(merged.path / "model") > 0.5


def test_the_merged_model_is_a_plain_one(merged: Run, beginner: Path) -> None:
    assert not list((merged.path / "model").glob("adapter*"))
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (beginner, merged.path / "model"))
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed
    assert all("_proj" in name for name in changed)  # the linear layers, and neither embeddings nor norms


def test_an_adapter_alone_is_small_and_is_loaded_with_its_base(tmp_path: Path, merged: Run, beginner: Path) -> None:
    config = password.config(**LEARNING, train={"merge": False})
    run = trained(tmp_path / "apart", config, beginner)
    folder = run.path / "model"
    assert (folder / "adapter_model.safetensors").exists()
    assert not (folder / "model.safetensors").exists()
    apart, whole = (TransformersGenerator(*load_model(path)) for path in (folder, merged.path / "model"))
    requests = [password.protocol(config).reflection_request(failure.episode()) for failure in password.failures()]
    prompts = [encode(whole.tokenizer, request) for request in requests]
    with torch.no_grad():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            torch.testing.assert_close(
                apart.model(input_ids=ids).logits, whole.model(input_ids=ids).logits, rtol=1e-3, atol=1e-3
            )


def test_with_a_penalty_the_base_itself_is_the_reference(tmp_path: Path, beginner: Path) -> None:
    from r3core.train import grpo_config
    from r3core.training.trainer import ReflectionTrainer

    config = password.config(steps=2, beta=0.1, lora={"r": 4})
    model, tokenizer = load_model(beginner)
    protocol = password.protocol(config)
    with Run.open(tmp_path / "run", config.record()) as run:
        args = grpo_config(protocol, tmp_path / "checkpoints", on_cpu=True)
        trainer = ReflectionTrainer(run, protocol, password.failures(), model=model, tokenizer=tokenizer, args=args)
        assert trainer.ref_model is None
        trainer.train()
    assert any("kl" in row for row in trainer.state.log_history)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that can be quantized to 4 bits, which is done in blocks of 64."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    password.beginner(steps=0, width=64).save_pretrained(folder)
    password.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wide_beginner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same shape that ends its turns, so that its retries are judged."""
    folder = tmp_path_factory.mktemp("models") / "beginner"
    password.beginner(width=64).save_pretrained(folder)
    password.tokenizer().save_pretrained(folder)
    return folder


def in_four_bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    named = model.named_parameters()
    return {name.split("model.")[-1].replace(".base_layer", ""): one for name, one in named if one.dtype == torch.uint8}


def test_only_the_adapter_of_a_base_in_four_bits_is_trained(tmp_path: Path, wide_beginner: Path) -> None:
    config = password.config(steps=3, learning_rate=1e-2, lora={"r": 4}, train={"merge": False})
    model, tokenizer = load_model(wide_beginner, quantization="4bit")
    before = {name: one.clone() for name, one in in_four_bits(model).items()}
    assert len(before) == 2 * 7, "the linear layers of both blocks"
    protocol = password.protocol(config, LongResponse())
    with Run.open(tmp_path / "run", config.record()) as run, protocol.judge:
        train(run, protocol, password.failures(), model=model, tokenizer=tokenizer)
    assert any(row["grad_norm"] > 0 for row in run.read("train"))
    after = in_four_bits(model)
    assert all(torch.equal(one, after[name]) for name, one in before.items())
    folder = run.path / "model"
    assert {path.name for path in folder.glob("*.safetensors")} == {"adapter_model.safetensors"}
    again, _ = load_model(folder, quantization="4bit")
    assert all(torch.equal(one, before[name]) for name, one in in_four_bits(again).items())
    assert any("lora_B" in name and one.abs().max() > 0 for name, one in again.named_parameters())


class LongResponse(password.Doors):
    """Say something long, as the untrained model does now and then."""

    def verify(self, example: Example, response: str) -> Verdict | bool:
        return len(response) > 3


def test_generation_leaves_the_gradient_on_four_bits_as_it_is(wide: Path) -> None:
    """Compare it with that on plain layers with the same weights; bitsandbytes' fast layers for CPUs have none."""
    from bitsandbytes.functional import dequantize_4bit
    from peft import get_peft_model

    quantized, tokenizer = load_model(wide, dtype="float32", quantization="4bit")
    plain, _ = load_model(wide, dtype="float32")
    for name, layer in quantized.named_modules():
        if type(layer).__name__ == "Linear4bit":
            plain.get_submodule(name).weight.data = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    TransformersGenerator(quantized, tokenizer).continue_ids([[1, 2, 3]], Sampling(max_tokens=4, seed=0))
    ids = torch.arange(40).reshape(2, 20)
    gradients = []
    for model in (quantized, plain):
        torch.manual_seed(0)
        adapted = get_peft_model(model, lora_config({"r": 4, "init_lora_weights": False})).train()
        adapted(input_ids=ids, labels=ids).loss.backward()
        gradients.append(torch.cat([one.grad.flatten() for one in adapted.parameters() if one.grad is not None]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999  # the quantized layers multiply in 16 bits
    assert gradients[0].norm() / gradients[1].norm() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4}, "`lora` has no option `rank`"),
        ({"r": 0}, "`lora.r` cannot be 0"),
        ({"r": "many"}, "`lora.r` cannot be 'many'"),
        ({"task_type": "SEQ_CLS"}, "`lora` has no option `task_type`"),
    ],
)
def test_an_error_names_the_wrong_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lora_config(options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quantization": "4bit"}, "requires `lora`: quantized weights cannot be trained"),
        ({"quantization": "4bit", "lora": {"r": 4}}, "cannot be merged into weights of 4 bits"),
    ],
)
def test_combinations_that_cannot_be_trained_are_errors(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_adapter(Config.model_validate({"task": "doors"} | given))


def test_quantized_weights_cannot_be_sharded() -> None:
    config = Config.model_validate(
        {"task": "doors", "quantization": "4bit", "lora": {"r": 4}, "train": {"merge": False}}
    )
    check_adapter(config)
    with pytest.raises(ConfigError, match="quantized weights cannot be sharded"):
        check_adapter(config, sharded=True)
