"""What the project leans on inside TRL and transformers; a failure here names what an update has changed."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import doors
import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from r3core.presets import PRESETS
from r3core.train import arguments
from r3core.training.grpo_options import OWNED
from r3core.training.trainer import ReflectionTrainer

PROMPT = [{"role": "user", "content": "Left?"}]


class Kept:
    """A reward function that keeps what it is called with."""

    __name__ = "kept"

    def __init__(self, rewards: list[float | None]) -> None:
        self.rewards = rewards
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **named: Any) -> list[float | None]:
        self.calls.append(named)
        named["log_metric"]("mine/number", 3.0)
        return self.rewards


def grpo(tmp_path: Path, reward: Any, *, rows: int = 2, **options: Any) -> GRPOTrainer:
    """Return TRL's own trainer, over so many rows, for one step on two groups of four."""
    from datasets import Dataset

    given: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": 8, "num_generations": 4}
    given |= {"max_completion_length": 3, "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False}
    return GRPOTrainer(
        model=doors.beginner(steps=0),
        processing_class=doors.tokenizer(),
        reward_funcs=reward,
        args=GRPOConfig(output_dir=str(tmp_path), disable_tqdm=True, dataloader_pin_memory=False, **given | options),
        train_dataset=Dataset.from_dict({"prompt": [PROMPT] * rows, "failure": list(range(rows))}),
    )


def test_sampling_has_the_signature_that_is_overridden() -> None:
    theirs = inspect.signature(GRPOTrainer._generate_single_turn).parameters
    ours = inspect.signature(ReflectionTrainer._generate_single_turn).parameters
    assert list(theirs) == list(ours)
    assert list(theirs) == ["self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"]


def test_prompts_are_tokenized_by_the_method_that_is_overridden(tmp_path: Path) -> None:
    theirs = inspect.signature(GRPOTrainer._tokenize_prompts).parameters
    assert list(theirs) == list(inspect.signature(ReflectionTrainer._tokenize_prompts).parameters)
    asked = doors.tokenizer().apply_chat_template(PROMPT, add_generation_prompt=True, return_dict=False)
    assert grpo(tmp_path, Kept([]))._tokenize_prompts([PROMPT]) == ([asked], None, {})


def test_sampling_is_called_once_a_generation_and_returns_ids_and_log_probabilities(tmp_path: Path) -> None:
    calls = []

    class Fixed(GRPOTrainer):  # type: ignore[misc]
        def _generate_single_turn(self, prompt_ids: Any, images: Any, fields: Any, count: int) -> Any:
            calls.append((prompt_ids, images, fields, count))
            return [[7, 8, self.eos_token_ids[0]]] * len(prompt_ids), None

    reward = Kept([1.0, 0.0] * 4)
    trainer = grpo(tmp_path, reward)
    trainer.__class__ = Fixed
    trainer.train()
    asked = doors.tokenizer().apply_chat_template(PROMPT, add_generation_prompt=True, return_dict=False)
    assert calls == [([asked] * 8, None, {}, 4)]
    assert reward.calls[0]["completion_ids"] == [[7, 8, trainer.eos_token_ids[0]]] * 8


def test_a_reward_function_is_given_columns_ids_and_a_way_to_log(tmp_path: Path) -> None:
    reward = Kept([1.0, 0.0, 0.0, 1.0] * 2)
    trainer = grpo(tmp_path, reward)
    trainer.train()
    [call] = reward.calls
    assert {"completion_ids", "failure", "log_metric"} <= call.keys()
    assert all(1 <= len(ids) <= 3 for ids in call["completion_ids"])
    [step] = [row for row in trainer.state.log_history if "mine/number" in row]
    assert step["mine/number"] == 3.0
    assert {"reward", "completions/mean_length"} <= step.keys()


def test_a_group_lies_side_by_side_in_a_batch(tmp_path: Path) -> None:
    reward = Kept([0.0] * 8)
    grpo(tmp_path, reward, rows=6, max_steps=3).train()
    assert len(reward.calls) == 3
    for call in reward.calls:
        first, second = call["failure"][:4], call["failure"][4:]
        assert len(set(first)) == len(set(second)) == 1
        assert first != second
    assert {index for call in reward.calls for index in call["failure"]} == set(range(6))


def test_none_is_no_reward_and_stays_out_of_the_baseline(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, Kept([1.0, None, 0.0, 0.0, None, None, None, None]), scale_rewards="none")
    trainer.train()
    assert list(trainer._logs["advantages"]) == pytest.approx([2 / 3, 0, -1 / 3, -1 / 3, 0, 0, 0, 0])
    [step] = [row for row in trainer.state.log_history if "reward" in row]
    assert step["reward"] == pytest.approx(1 / 3)


def test_a_trainer_has_what_is_read_from_it(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, Kept([0.0] * 8))
    assert set(trainer.eos_token_ids) == {doors.tokenizer().eos_token_id}
    assert isinstance(trainer.model_wrapped, LlamaForCausalLM)
    assert trainer.processing_class.apply_chat_template
    assert trainer.accelerator.process_index == 0
    assert trainer.state.global_step == 0
    assert {type(callback).__name__ for callback in trainer.callback_handler.callbacks} >= {"PrinterCallback"}
    assert callable(trainer._load_from_checkpoint)


def test_metrics_are_a_list_a_name_averaged_when_they_are_logged(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, Kept([0.0] * 8))
    trainer._metrics["train"]["seconds/any"] += [1.0, 2.0]
    trainer.train()
    assert trainer.state.log_history[0]["seconds/any"] == 1.5
    assert not trainer._metrics["train"], "metrics are not cleared"


def test_a_model_unwrapped_for_generation_is_itself_again_afterwards(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, Kept([0.0] * 8))
    trainer.model.activation_checkpointing_enable()
    with unwrap_model_for_generation(
        trainer.model_wrapped,
        trainer.accelerator,
        gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
        gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
    ) as model:
        assert model is trainer.model
        assert not model.is_activation_checkpointing
    assert trainer.model.is_activation_checkpointing


def test_a_cache_lets_go_of_rows() -> None:
    model = doors.beginner(steps=0)
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([[1, 2], [3, 4], [5, 6]])
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache.batch_select_indices(torch.tensor([2, 0]))
        after = model(input_ids=torch.tensor([[7], [8]]), past_key_values=cache, use_cache=True).logits[:, -1]
        alone = model(input_ids=torch.tensor([[5, 6, 7], [1, 2, 8]])).logits[:, -1]
    torch.testing.assert_close(after, alone)


def test_every_option_that_is_named_is_one_of_trls() -> None:
    preset = [key.partition(".")[2] for keys in PRESETS.values() for key in keys if key.startswith("grpo.")]
    set_by_train = ["output_dir", "disable_tqdm", "remove_unused_columns", "use_cpu", "bf16", "dataloader_pin_memory"]
    set_by_train += ["logging_steps", "save_steps", "save_total_limit", "report_to"]
    read_by_train = ["min_p", "generation_kwargs", "use_transformers_continuous_batching", "repetition_penalty"]
    read_by_train += ["temperature", "top_p", "top_k", "max_completion_length", "generation_batch_size"]
    read_by_train += ["ds3_gather_for_generation", "gradient_checkpointing_kwargs", "use_vllm", "seed", "max_steps"]
    known = set(GRPOConfig.__dataclass_fields__)
    assert {*preset, *set_by_train, *read_by_train, *OWNED} <= known


def test_the_defaults_that_results_depend_on() -> None:
    fields = GRPOConfig.__dataclass_fields__
    defaults = {
        name: fields[name].default for name in ("loss_type", "scale_rewards", "beta", "epsilon", "num_iterations")
    }
    assert defaults == {"loss_type": "dapo", "scale_rewards": "group", "beta": 0.0, "epsilon": 0.2, "num_iterations": 1}


def test_the_number_of_failures_in_a_generation(tmp_path: Path) -> None:
    settings = doors.config(steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=8, num_generations=4)
    args = arguments(doors.protocol(settings), tmp_path, on_cpu=True)
    assert (args.generation_batch_size, args.num_generations) == (32, 4)
