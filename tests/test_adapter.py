"""Training an adapter: what is learnt, what stays as it was, and what lies in `model/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import doors
import pytest
import torch
from transformers import AutoModelForCausalLM

from r3core import ConfigError
from r3core.adapter import check_adapter, lora_of
from r3core.config import Config
from r3core.generation.local import TransformersGenerator, load_model
from r3core.runs import Run
from r3core.train import train

LEARNING: dict[str, Any] = {"steps": 60, "learning_rate": 4e-3, "lora": {"r": 8, "lora_alpha": 16}}


@pytest.fixture(scope="module")
def beginner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "beginner"
    doors.beginner().save_pretrained(folder)
    doors.tokenizer().save_pretrained(folder)
    return folder


def trained(path: Path, config: Config, beginner: Path) -> Run:
    model, tokenizer = load_model(beginner)
    with Run.open(path, config.record()) as run:
        train(run, doors.protocol(config), doors.failures(), model=model, tokenizer=tokenizer)
    return run


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, beginner: Path) -> Run:
    return trained(tmp_path_factory.mktemp("runs") / "merged", doors.config(**LEARNING), beginner)


def named(folder: Path) -> float:
    """Return the share of reflections that name the right word."""
    generator = TransformersGenerator(*load_model(folder))
    protocol = doors.protocol(doors.config(steps=1))
    with protocol.judge:
        episodes = protocol.reflect([f.episode() for f in doors.failures() for _ in range(20)], generator, seed=1)
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
    config = doors.config(**LEARNING, train={"merge": False})
    run = trained(tmp_path / "apart", config, beginner)
    folder = run.path / "model"
    assert (folder / "adapter_model.safetensors").exists()
    assert not (folder / "model.safetensors").exists()
    apart, whole = (TransformersGenerator(*load_model(path)) for path in (folder, merged.path / "model"))
    asked = [doors.protocol(config).reflection_request(failure.episode()) for failure in doors.failures()]
    prompts = [whole.encode(request) for request in asked]
    with torch.no_grad():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            torch.testing.assert_close(
                apart.model(input_ids=ids).logits, whole.model(input_ids=ids).logits, rtol=1e-3, atol=1e-3
            )


def test_with_a_penalty_the_base_itself_is_the_reference(tmp_path: Path, beginner: Path) -> None:
    from r3core.train import ReflectionTrainer, arguments

    config = doors.config(steps=2, beta=0.1, lora={"r": 4})
    model, tokenizer = load_model(beginner)
    protocol = doors.protocol(config)
    with Run.open(tmp_path / "run", config.record()) as run:
        args = arguments(protocol, tmp_path / "checkpoints", on_cpu=True)
        trainer = ReflectionTrainer(run, protocol, doors.failures(), model=model, tokenizer=tokenizer, args=args)
        assert trainer.ref_model is None
        trainer.train()
    assert any("kl" in row for row in trainer.state.log_history)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4}, "peft's LoraConfig has no option `rank`"),
        ({"r": 0}, "`lora.r` cannot be 0"),
        ({"r": "many"}, "`lora.r` cannot be 'many'"),
        ({"task_type": "SEQ_CLS"}, "has no option `task_type` to be set here"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lora_of(options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quantization": "4bit"}, "all weights are to be trained"),
        ({"quantization": "4bit", "lora": {"r": 4}}, "cannot be merged without a loss"),
    ],
)
def test_what_could_not_be_trained_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_adapter(Config.model_validate({"task": "doors"} | given))
