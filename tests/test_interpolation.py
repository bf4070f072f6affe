"""`train.interpolate`: what is saved lies between the weights of the base model and those of the trained one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny import tiny_model, tiny_tokenizer
from toy import Toy
from transformers import AutoModelForCausalLM

from r3core.config import Config, resolve
from r3core.errors import ConfigError, RunError
from r3core.training.checkpoints import save_best, save_model
from r3core.training.interpolation import toward
from r3core.training.lora import check_adapter, lora_config

pytestmark = pytest.mark.slow
SHARE = 0.25


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The folder of a base model in 16 bits."""
    folder = tmp_path / "base"
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trainer_of(base: Path, *, lora: bool = False) -> Any:
    """Return what `save_model` reads of a trainer whose weights have moved away from the base's."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if lora:
        from peft import get_peft_model

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)  # for the adapter's random factors A
            model = get_peft_model(model, lora_config({"r": 2}))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.05)
    return SimpleNamespace(
        accelerator=Accelerator(cpu=True),
        model_wrapped=model,
        processing_class=tiny_tokenizer(),
        protocol=SimpleNamespace(task=Toy()),
    )


def config_of(base: Path, *overrides: str, share: float = SHARE) -> Config:
    return resolve(Toy(), overrides=[f"train.interpolate={share}", *overrides], flags={"model": str(base)})


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return dict(model.state_dict())


def between(base: Path, trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    before = weights_of(base)
    return {name: before[name] + SHARE * (trained[name] - before[name]) for name in before}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], *, within: float) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=within) for name in one)


def test_a_full_training_is_saved_between_base_and_trained_weights(base: Path, tmp_path: Path) -> None:
    trainer = trainer_of(base)
    trained = {name: weight.clone() for name, weight in trainer.model_wrapped.state_dict().items()}
    save_model(trainer, config_of(base), tmp_path / "model", dtype=torch.float32)
    saved = weights_of(tmp_path / "model")
    assert same(saved, between(base, trained), within=1e-6)
    assert saved["lm_head.weight"].equal(saved["model.embed_tokens.weight"])  # they are tied
    after = trainer.model_wrapped.state_dict()
    assert all(after[name].equal(trained[name]) for name in trained), "training continues with its own weights"


def test_the_share_is_taken_in_32_bits(base: Path, tmp_path: Path) -> None:
    trainer = trainer_of(base)
    trained = {name: weight.clone() for name, weight in trainer.model_wrapped.state_dict().items()}
    save_model(trainer, config_of(base), tmp_path / "model", dtype=torch.bfloat16)
    expected = {name: one.to(torch.bfloat16).float() for name, one in between(base, trained).items()}
    assert same(weights_of(tmp_path / "model"), expected, within=0)


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("best", [True, False])
def test_an_adapter_is_saved_with_a_share_of_its_update(base: Path, tmp_path: Path, merged: bool, best: bool) -> None:
    lora = ("lora.r=2", f"train.merge={str(merged).lower()}")
    whole = config_of(base, "lora.r=2", share=1)
    save_model(trainer_of(base, lora=True), whole, tmp_path / "whole", dtype=torch.float32)  # merging changes it
    trained = weights_of(tmp_path / "whole")
    assert not same(trained, weights_of(base), within=1e-3)
    trainer, config = trainer_of(base, lora=True), config_of(base, *lora)
    if best:  # the adapter of the best step is saved by itself, and merged at the end
        apart = config.model_copy(update={"train": config.train.model_copy(update={"merge": False})})
        save_model(trainer, apart, tmp_path / "best-3", dtype=torch.float32)
        save_best(trainer, config, tmp_path / "best-3", folder=tmp_path / "model", dtype=torch.float32)
    else:
        save_model(trainer, config, tmp_path / "model", dtype=torch.float32)
    if merged:
        saved = weights_of(tmp_path / "model")
    else:
        from peft import PeftModel

        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        saved = dict(PeftModel.from_pretrained(plain, tmp_path / "model").merge_and_unload().state_dict())
    assert same(saved, between(base, trained), within=1e-6)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("lora.use_dora=true", "use_dora"),
        ("lora.modules_to_save=[lm_head]", "modules_to_save"),
        ("lora.bias=all", "bias"),
        ("lora.init_lora_weights=pissa", "init_lora_weights"),
    ],
)
def test_adapters_with_other_parts_are_refused(base: Path, option: str, named: str) -> None:
    with pytest.raises(ConfigError, match=rf"`train.interpolate` cannot be 0.25 with `lora.{named}`"):
        check_adapter(config_of(base, option))
    check_adapter(config_of(base, option, share=1))


def test_a_base_model_with_other_weights_is_an_error() -> None:
    with pytest.raises(RunError, match="has no weight `head` of the shape"):
        toward({"head": torch.zeros(2)}, {"head": torch.zeros(3)}, 0.5)
