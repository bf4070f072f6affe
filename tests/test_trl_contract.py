"""What r3 relies on in TRL, transformers and accelerate; a failure here names what an update has changed."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import password
import pytest
import torch
from accelerate import PartialState
from torch.distributed.fsdp import FSDPModule
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedModel, Trainer
from trl.generation import vllm_generation
from trl.models.utils import unwrap_model_for_generation
from trl.trainer import grpo_trainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

import r3core.train
import r3core.training
from r3core.presets import PRESETS
from r3core.train import MISLEADING_WARNINGS, grpo_config
from r3core.training import grpo_options
from r3core.training.private_names import PRIVATE_NAMES
from r3core.training.sampler import EpochSampler
from r3core.training.trainer import _ONLY_IN_TRL, ReflectionTrainer

PROMPT = [{"role": "user", "content": "Left?"}]
PEFT = ("lora.py", "interpolation.py")
"""Files that read options of peft's."""
SOURCES = [Path(r3core.train.__file__), *sorted(Path(r3core.training.__file__).parent.glob("*.py"))]
"""The modules that import TRL."""


class Recorder:
    """A reward function that records its arguments."""

    __name__ = "recorder"

    def __init__(self, rewards: list[float | None]) -> None:
        self.rewards = rewards
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **named: Any) -> list[float | None]:
        self.calls.append(named)
        named["log_metric"]("mine/number", 3.0)
        return self.rewards


def grpo(tmp_path: Path, reward: Any, *, rows: int = 2, prompts: Sequence[Any] = (), **options: Any) -> GRPOTrainer:
    """Return TRL's own trainer on a number of rows, or on prompts, for one step with two groups of four."""
    from datasets import Dataset

    prompts = list(prompts) or [PROMPT] * rows
    given: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": 8, "num_generations": 4}
    given |= {"max_completion_length": 3, "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False}
    return GRPOTrainer(
        model=password.beginner(steps=0),
        processing_class=password.tokenizer(),
        reward_funcs=reward,
        args=GRPOConfig(output_dir=str(tmp_path), disable_tqdm=True, dataloader_pin_memory=False, **given | options),
        train_dataset=Dataset.from_dict({"prompt": prompts, "failure": list(range(len(prompts)))}),
    )


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def test_every_private_name_in_use_is_listed() -> None:
    used: set[str] = set()
    own: set[str] = set()
    for path in SOURCES:
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef):
                own.add(node.name)
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
                used.add(node.attr)
    overridden = {name for name in vars(ReflectionTrainer) if name[:2] != "__" and hasattr(GRPOTrainer, name)}
    private = {name for name in overridden if name.startswith("_")}
    listed = {name for names in PRIVATE_NAMES.values() for name in names}
    assert private
    assert (used - own) | private == listed


@pytest.mark.parametrize("owner", PRIVATE_NAMES)
def test_every_listed_name_is_there(owner: str, tmp_path: Path) -> None:
    module, _, name = owner.rpartition(".")
    target = getattr(import_module(module), name)
    if target is GRPOTrainer:  # some are attributes that the constructor sets, with vLLM alone
        target = grpo(tmp_path, Recorder([]))
        target._last_loaded_step = None
        assert "self._last_loaded_step = -1" in inspect.getsource(GRPOTrainer.__init__)
    assert [name for name in PRIVATE_NAMES[owner] if not hasattr(target, name)] == []


def test_sampling_has_the_signature_of_the_override() -> None:
    theirs = parameters(GRPOTrainer._generate_single_turn)
    assert theirs == parameters(ReflectionTrainer._generate_single_turn)
    assert theirs == ["self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"]


def test_prompts_are_tokenized_by_the_overridden_method(tmp_path: Path) -> None:
    assert parameters(GRPOTrainer._tokenize_prompts) == parameters(ReflectionTrainer._tokenize_prompts)
    ids = password.tokenizer().apply_chat_template(PROMPT, add_generation_prompt=True, return_dict=False)
    assert grpo(tmp_path, Recorder([]))._tokenize_prompts([PROMPT]) == ([ids], None, {})


def test_log_probabilities_are_computed_by_the_overridden_method(tmp_path: Path) -> None:
    theirs = parameters(GRPOTrainer._get_per_token_logps_and_entropies)
    ours = parameters(ReflectionTrainer._get_per_token_logps_and_entropies)
    assert theirs[:6] == ours[:6] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"]
    assert theirs[6:8] == ["compute_entropy", "compute_aux_loss"], "the other parameters are of images"
    calls: list[Any] = []

    class Recording(GRPOTrainer):  # type: ignore[misc]
        def _get_per_token_logps_and_entropies(self, model: Any, *values: Any, **options: Any) -> Any:
            calls.append(
                (torch.is_grad_enabled(), len(values), {name for name in options if options[name] is not None})
            )
            return super()._get_per_token_logps_and_entropies(model, *values, **options)

    trainer = grpo(tmp_path, Recorder([1.0, 0.0] * 4), num_iterations=2, max_steps=2)
    trainer.__class__ = Recording
    trainer.train()
    in_the_loss = (True, 3, {"compute_entropy", "compute_aux_loss"})
    assert calls == [(False, 3, {"batch_size"}), in_the_loss, in_the_loss]


def test_a_batch_has_the_rows_whose_prompts_are_tokenized_in_the_same_order(tmp_path: Path) -> None:
    override = ReflectionTrainer._generate_and_score_completions
    assert parameters(GRPOTrainer._generate_and_score_completions) == parameters(override)
    batches: list[Any] = []

    class Recording(GRPOTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            batches.append([(row["failure"], row["prompt"]) for row in inputs])
            return super()._generate_and_score_completions(inputs)

        def _tokenize_prompts(self, prompts: Any) -> Any:
            batches.append(prompts)
            return super()._tokenize_prompts(prompts)

    prompts = [[{"role": "user", "content": door}] for door in password.DOORS]
    trainer = grpo(tmp_path, Recorder([1.0, 0.0] * 4), prompts=prompts)
    trainer.__class__ = Recording
    trainer.train()
    rows, tokenized = batches
    assert [prompt for _, prompt in rows] == tokenized
    assert sorted(failure for failure, _ in rows) == [0] * 4 + [1] * 4
    assert all(prompts[failure] == prompt for failure, prompt in rows)


def test_sampling_is_called_once_per_generation_and_returns_ids_and_log_probabilities(tmp_path: Path) -> None:
    calls = []

    class Fixed(GRPOTrainer):  # type: ignore[misc]
        def _generate_single_turn(self, prompt_ids: Any, images: Any, fields: Any, count: int) -> Any:
            calls.append((prompt_ids, images, fields, count))
            return [[7, 8, self.eos_token_ids[0]]] * len(prompt_ids), None

    reward = Recorder([1.0, 0.0] * 4)
    trainer = grpo(tmp_path, reward)
    trainer.__class__ = Fixed
    trainer.train()
    ids = password.tokenizer().apply_chat_template(PROMPT, add_generation_prompt=True, return_dict=False)
    assert calls == [([ids] * 8, None, {}, 4)]
    assert reward.calls[0]["completion_ids"] == [[7, 8, trainer.eos_token_ids[0]]] * 8


def test_the_sampler_has_the_attributes_that_are_copied_and_takes_an_epoch(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, Recorder([]), rows=6)
    theirs = trainer._get_train_sampler()
    copied = ["data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed"]
    assert parameters(type(theirs)) == copied
    ours = EpochSampler(*(getattr(theirs, name) for name in copied))
    assert list(ours) == list(theirs), "the order of the first epoch is TRL's"
    ours.set_epoch(1)
    second = list(ours)
    assert second != list(grpo(tmp_path, Recorder([]), rows=6)._get_train_sampler())
    ours.set_epoch(1)
    assert list(ours) == second


def test_a_reward_function_receives_columns_ids_and_a_function_to_log(tmp_path: Path) -> None:
    reward = Recorder([1.0, 0.0, 0.0, 1.0] * 2)
    trainer = grpo(tmp_path, reward)
    trainer.train()
    [call] = reward.calls
    assert {"completion_ids", "failure", "log_metric"} <= call.keys()
    assert all(1 <= len(ids) <= 3 for ids in call["completion_ids"])
    [step] = [row for row in trainer.state.log_history if "mine/number" in row]
    assert step["mine/number"] == 3.0
    assert {"reward", "completions/mean_length"} <= step.keys()


def test_rows_of_a_group_are_adjacent_in_a_batch(tmp_path: Path) -> None:
    reward = Recorder([0.0] * 8)
    grpo(tmp_path, reward, rows=6, max_steps=3).train()
    assert len(reward.calls) == 3
    for call in reward.calls:
        first, second = call["failure"][:4], call["failure"][4:]
        assert len(set(first)) == len(set(second)) == 1
        assert first != second
    assert {index for call in reward.calls for index in call["failure"]} == set(range(6))


def test_a_missing_reward_stays_out_of_the_baseline(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, Recorder([1.0, None, 0.0, 0.0, None, None, None, None]), scale_rewards="none")
    trainer.train()
    assert list(trainer._logs["advantages"]) == pytest.approx([2 / 3, 0, -1 / 3, -1 / 3, 0, 0, 0, 0])
    [step] = [row for row in trainer.state.log_history if "reward" in row]
    assert step["reward"] == pytest.approx(1 / 3)


def test_a_trainer_has_the_attributes_that_are_read(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, Recorder([0.0] * 8))
    assert set(trainer.eos_token_ids) == {password.tokenizer().eos_token_id}
    assert isinstance(trainer.model_wrapped, LlamaForCausalLM)
    assert trainer.processing_class.apply_chat_template
    assert trainer.accelerator.process_index == 0
    assert trainer.state.global_step == 0
    assert {type(callback).__name__ for callback in trainer.callback_handler.callbacks} >= {"PrinterCallback"}


def test_a_trainer_loads_the_weights_of_a_checkpoint(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, Recorder([0.0] * 8))
    saved = password.beginner(steps=1)
    saved.save_pretrained(tmp_path / "checkpoint-1")
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    for name, weight in saved.state_dict().items():
        assert weight.equal(trainer.model.state_dict()[name])
    assert parameters(Trainer._prepare_for_training) == [
        "self",
        "max_steps",
        "train_dataloader",
        "resume_from_checkpoint",
    ]


def test_the_distributed_type_is_in_the_shared_state() -> None:
    state = PartialState(cpu=True)
    assert PartialState._shared_state["distributed_type"] is state.distributed_type
    assert "create_accelerator_and_postprocess" in vars(Trainer)


def test_weights_that_stay_in_32_bits_are_named_by_their_modules() -> None:
    for name in PRIVATE_NAMES["transformers.PreTrainedModel"]:
        assert getattr(PreTrainedModel, name) is None
        assert not getattr(password.beginner(steps=0), name)


def test_fsdp_modules_can_be_unsharded_for_a_while() -> None:
    assert parameters(FSDPModule.set_reshard_after_forward) == ["self", "reshard_after_forward", "recurse"]
    assert callable(FSDPModule.unshard)
    assert callable(FSDPModule.reshard)


def test_metrics_are_lists_by_name_averaged_when_they_are_logged(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, Recorder([0.0] * 8))
    trainer._metrics["train"]["seconds/any"] += [1.0, 2.0]
    trainer.train()
    assert trainer.state.log_history[0]["seconds/any"] == 1.5
    assert not trainer._metrics["train"], "metrics are not cleared"


def test_vllm_is_started_by_a_name_that_can_be_replaced_and_without_our_options() -> None:
    source = ast.parse(inspect.getsource(vllm_generation))
    [call] = [node for node in ast.walk(source) if isinstance(node, ast.Call) and ast.unparse(node.func) == "LLM"]
    assert not {"dtype", "revision", "enable_prefix_caching"} & {keyword.arg for keyword in call.keywords}


def test_vllm_receives_prompts_and_weights_by_the_methods_that_are_called() -> None:
    engine = vllm_generation.VLLMGeneration
    assert parameters(engine.generate)[:4] == ["self", "prompts", "images", "num_generations"]
    assert parameters(engine.sync_weights) == parameters(engine._iter_named_params) == ["self"]
    source = inspect.getsource(engine)
    assert "llm_engine.model_executor.driver_worker.model_runner" in source, "TRL too reaches vLLM's weights like this"
    for name in ("mode", "llm", "temperature", "top_p", "top_k", "max_completion_length", "enable_sleep_mode"):
        assert f"self.{name} = " in source


def test_trl_skips_its_own_sync_when_the_weights_are_those_of_the_step() -> None:
    source = inspect.getsource(GRPOTrainer._generate_single_turn)
    assert "if self.state.global_step != self._last_loaded_step:" in source


@pytest.mark.parametrize("warning", MISLEADING_WARNINGS)
def test_the_warnings_that_are_hidden_are_trls(warning: str) -> None:
    assert warning in inspect.getsource(grpo_trainer)


def test_a_model_unwrapped_for_generation_is_itself_again_afterwards(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, Recorder([0.0] * 8))
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


def test_rows_of_a_cache_can_be_dropped_and_reordered() -> None:
    model = password.beginner(steps=0)
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([[1, 2], [3, 4], [5, 6]])
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache.reorder_cache(torch.tensor([2, 0]))
        after = model(input_ids=torch.tensor([[7], [8]]), past_key_values=cache, use_cache=True).logits[:, -1]
        alone = model(input_ids=torch.tensor([[5, 6, 7], [1, 2, 8]])).logits[:, -1]
    torch.testing.assert_close(after, alone)


def options_read(path: Path) -> Iterator[str]:
    """Yield the names that a module reads from TRL's arguments, or from options that are going to be those."""
    for node in nodes(path):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("args", "self.args", "trainer.args"):
            yield node.attr
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("options", "given", "grpo"):
            yield from constants(node.slice)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "options.get",
            "given.get",
            "grpo.get",
            "config.grpo.get",
        ):
            yield from constants(node.args[0])
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "_positive":
            yield from constants(*node.args[1:])


def constants(*expressions: ast.AST) -> Iterator[str]:
    return (node.value for node in expressions if isinstance(node, ast.Constant) and isinstance(node.value, str))


def test_every_option_that_is_set_or_read_is_one_of_trls(tmp_path: Path) -> None:
    everything = password.config(steps=1).model_copy(update={"revision": "v1"})
    args = grpo_config(password.protocol(everything), tmp_path, on_cpu=True)  # raises for an option that TRL lacks
    read = {name for path in SOURCES if path.name not in PEFT for name in options_read(path)}  # peft's options
    assert {"temperature", "max_completion_length", "optim_args", "save_steps", "num_iterations", "use_vllm"} <= read
    assert [name for name in sorted(read) if not hasattr(args, name)] == []
    preset = {key.partition(".")[2] for keys in PRESETS.values() for key in keys if key.startswith("grpo.")}
    constant = {*grpo_options.OWNED, *grpo_options.CHOICES, *grpo_options._TRUNCATING, *_ONLY_IN_TRL}
    assert preset | constant <= set(GRPOConfig.__dataclass_fields__)


def test_the_defaults_that_results_depend_on() -> None:
    fields = GRPOConfig.__dataclass_fields__
    defaults = {
        name: fields[name].default for name in ("loss_type", "scale_rewards", "beta", "epsilon", "num_iterations")
    }
    assert defaults == {"loss_type": "dapo", "scale_rewards": "group", "beta": 0.0, "epsilon": 0.2, "num_iterations": 1}


def test_the_number_of_failures_per_generation(tmp_path: Path) -> None:
    settings = password.config(steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=8, num_generations=4)
    args = grpo_config(password.protocol(settings), tmp_path, on_cpu=True)
    assert (args.generation_batch_size, args.num_generations) == (32, 4)
