"""The arithmetic of memory and time, against real tensors, and what is said of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import doors
import pytest
import torch
from command import R3
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen2Config, Trainer
from transformers.trainer_callback import TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from r3core.config import Config, resolve
from r3core.estimate import Machine, advice, explain
from r3core.estimate.memory import (
    activations,
    cache,
    generation,
    generation_copy,
    gradients,
    log_probabilities,
    memory_of,
    reference,
    states,
    weights,
)
from r3core.estimate.plan import Plan, plan_of
from r3core.estimate.rounding import share_moved
from r3core.estimate.shape import Shape, read_config, shape_of
from r3core.estimate.speed import CARDS, Seconds, bytes_a_token, card_of, seconds_of
from r3core.generation.models import load
from r3core.plugins.discovery import get_task
from r3core.training.lora import check_adapter
from r3core.training.precision import training_dtype

GIB = 2**30
TASK = f"{Path(__file__).with_name('support') / 'toy.py'}:Even"
SMALL = {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
"""The shape of Qwen2.5-1.5B."""
LARGE = SMALL | {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
"""The shape of Qwen2.5-7B."""
MODERATE = {
    "vocab_size": 4000,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def settings(**values: Any) -> Config:
    return Config.model_validate({"task": TASK} | values)


def shape(**changes: Any) -> Shape:
    return shape_of(LlamaConfig(**MODERATE | changes))


def plan(of: Shape, **changes: Any) -> Plan:
    """Return the plan of a model that is trained in the dtype it was saved in, as those are that the tests build."""
    given = {"rows": 4, "prompt": 60, "attempt": 20, "reflection": 16, "retry": 20, "amp": False, "cuda": False}
    return plan_of(settings(), of).model_copy(update=given | {"full_bytes": of.dtype_bytes} | changes)


def size(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize(("given", "parameters"), [(SMALL, 1_543_714_304), (LARGE, 7_615_616_512)])
def test_parameters_are_those_that_the_models_are_known_for(given: dict[str, Any], parameters: int) -> None:
    assert shape_of(Qwen2Config(**given)).parameters == parameters


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_counted_as_in_the_real_model(tied: bool) -> None:
    model = LlamaForCausalLM(LlamaConfig(**MODERATE, tie_word_embeddings=tied))
    counted = shape_of(model.config)
    assert counted.parameters == counted.trainable == sum(p.numel() for p in model.parameters())
    assert counted.tensors == len(list(model.parameters()))
    assert counted.head == model.lm_head.weight.numel()


@pytest.mark.parametrize("options", [{"r": 16}, {"r": 8, "target_modules": "all-linear"}, {"r": 4, "use_dora": True}])
def test_what_lora_trains_is_counted_as_peft_makes_it(options: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    model = LlamaForCausalLM(LlamaConfig(**MODERATE, dtype="bfloat16")).to(torch.bfloat16)
    plain = shape_of(model.config)
    counted = shape_of(model.config, lora=options)
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    chosen = plan(counted)
    assert (counted.trainable, counted.parameters) == (sum(p.numel() for p in trained), plain.parameters)
    assert weights(counted, chosen) == size(wrapped.parameters())
    assert gradients(counted, chosen) == size(trained)  # a gradient has its parameter's type


class Seen(TrainerCallback):
    """Adds up the gradients before each update."""

    def __init__(self) -> None:
        self.gradients = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        self.gradients = size(p.grad for p in model.parameters())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("saved", "trained"), [("bfloat16", "float32"), ("bfloat16", "bfloat16"), ("float32", "float32")]
)
def test_weights_gradients_and_states_are_those_of_a_real_step(
    tmp_path: Path, saved: str, trained: str, bf16: bool
) -> None:
    from datasets import Dataset

    doors.beginner(steps=0).to(getattr(torch, saved)).save_pretrained(tmp_path / "base")
    doors.tokenizer().save_pretrained(tmp_path / "base")
    options: dict[str, Any] = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 3}
    config = settings(train={"dtype": trained}, grpo=options | {"bf16": bf16, "beta": 0.1})
    model, _ = load(config, str(tmp_path / "base"), dtype=training_dtype(config))
    counted = shape_of(read_config(str(tmp_path / "base")))
    seen = Seen()
    trainer = GRPOTrainer(
        model=model,
        processing_class=doors.tokenizer(),
        reward_funcs=lambda completion_ids, **_: [float(i % 2) for i in range(len(completion_ids))],
        args=GRPOConfig(
            output_dir=str(tmp_path),
            **options,
            bf16=bf16,
            beta=0.1,
            max_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": "Left?"}]] * 2}),
        callbacks=[seen],
    )
    trainer.train()
    chosen = plan_of(config, counted, cuda=False)
    kept = [value for state in trainer.optimizer.state.values() for value in state.values()]
    assert weights(counted, chosen) == size(model.parameters())
    assert reference(counted, chosen) == size(trainer.ref_model.parameters())
    assert gradients(counted, chosen) == seen.gradients
    assert states(counted, chosen) == size(kept)


@pytest.mark.filterwarnings("default:Paged optimizers are not supported")
@pytest.mark.parametrize(
    "optimizer", ["adamw_torch", "adamw_8bit", "lion_8bit", "paged_adamw_32bit", "adafactor", "sgd"]
)
def test_the_states_of_other_optimizers_are_those_of_a_real_step_within_a_fiftieth(
    tmp_path: Path, optimizer: str
) -> None:
    model = LlamaForCausalLM(LlamaConfig(**MODERATE))
    options = {"use_cpu": True, "bf16": False, "report_to": "none"}
    trainer = Trainer(model, GRPOConfig(output_dir=str(tmp_path), optim=optimizer, **options))
    made = trainer.create_optimizer()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    kept = [value for state in made.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    counted = shape_of(model.config)
    maps = 2 * 256 * 4 * counted.tensors if "8bit" in optimizer else 0  # the values that a byte stands for
    assert states(counted, plan_of(settings(grpo={"optim": optimizer}), counted)) + maps == pytest.approx(
        size(kept), rel=0.02, abs=0.01 * counted.parameters
    )


@pytest.mark.parametrize(("dtype", "amp"), [("float32", False), ("bfloat16", False), ("float32", True)])
def test_the_cache_is_that_of_a_real_generation(dtype: str, amp: bool) -> None:
    model = LlamaForCausalLM(LlamaConfig(**MODERATE)).to(getattr(torch, dtype)).eval()
    kept = DynamicCache(config=model.config)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
        for written in (torch.ones(3, 11, dtype=torch.long), torch.ones(3, 1, dtype=torch.long)):
            model(input_ids=written, past_key_values=kept, use_cache=True)
    counted = shape(dtype=dtype)
    layers = [tensor for layer in kept.layers for tensor in (layer.keys, layer.values)]
    assert cache(counted, plan(counted, amp=amp), rows=3, tokens=12) == size(layers)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("dtype", "amp"), [("float32", False), ("float32", True), ("bfloat16", True)])
def test_activations_are_what_torch_saves_within_a_twentieth(dtype: str, amp: bool, checkpointing: bool) -> None:
    model = LlamaForCausalLM(LlamaConfig(**MODERATE, use_cache=False)).to(getattr(torch, dtype)).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    counted = shape(dtype=dtype)
    chosen = plan(counted, amp=amp, checkpointing=checkpointing)
    of_weights = {p.shape for p in model.parameters()} | {p.T.shape for p in model.parameters() if p.dim() == 2}
    saved: dict[int, torch.Tensor] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in of_weights:  # those are the weights, or autocast's copies of them
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.ones(4, 96, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    with (
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=amp),
    ):
        model.model(input_ids=ids, attention_mask=mask)
    real = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    assert activations(counted, chosen) == pytest.approx(real, rel=0.05)


def peak(work: Callable[[LlamaForCausalLM], None], dtype: str, *, checkpointing: bool = False) -> int:
    """Return the bytes at the peak of what `work` does with a model of moderate size, by torch's own tracker.

    No number is computed: the tensors are fake, and those alone count that were made after the model.
    """
    with FakeTensorMode():
        model = LlamaForCausalLM._from_config(LlamaConfig(**MODERATE, use_cache=False), dtype=getattr(torch, dtype))
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        tracker = MemTracker()
        tracker.track_external(model)
        with tracker:
            work(model)
        total = sum(counts["Total"] for counts in tracker.get_tracker_snapshot("peak").values())
        return int(total) - size(model.parameters()) - size(p.grad for p in model.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("dtype", "amp"), [("float32", False), ("float32", True), ("bfloat16", True)])
def test_the_peak_of_a_training_pass_is_as_estimated_within_a_tenth(dtype: str, amp: bool, checkpointing: bool) -> None:
    def pass_through(model: LlamaForCausalLM) -> None:
        add_fused_lm_head(model.train(), outputs=("log_probs", "entropy"))
        ids = torch.ones(8, 256, dtype=torch.long)
        labels = ids.clone()
        labels[:, :-64] = -100
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            made = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, fused_lm_head=True)
        made.log_probs.sum().backward()

    counted = shape(dtype=dtype)
    chosen = plan(counted, rows=8, prompt=152, attempt=40, reflection=64, amp=amp, checkpointing=checkpointing)
    terms = memory_of(counted, chosen).training
    more = sum(terms.values()) - terms["weights"] - terms["gradients"] - terms["optimizer states"]
    assert more == pytest.approx(peak(pass_through, dtype, checkpointing=checkpointing), rel=0.1)


@pytest.mark.parametrize(("dtype", "amp"), [("bfloat16", False), ("float32", False), ("float32", True)])
def test_the_peak_of_reading_prompts_is_as_estimated_within_a_tenth(dtype: str, amp: bool) -> None:
    def read(model: LlamaForCausalLM) -> None:
        ids = torch.ones(64, 256, dtype=torch.long)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
            kept = DynamicCache(config=model.config)
            mask = torch.ones_like(ids)
            model(input_ids=ids, attention_mask=mask, past_key_values=kept, use_cache=True, logits_to_keep=1)

    counted = shape(dtype=dtype)
    chosen = plan(counted, batch_size=64, rows=64, prompt=152, attempt=40, reflection=64, retry=1, amp=amp)
    terms = generation(counted, chosen, rows=64)
    assert set(terms) == {"key-value cache", "prompts"} | ({"16-bit copy of the weights"} if amp else set())
    assert sum(terms.values()) == pytest.approx(peak(read, dtype), rel=0.1)


@pytest.mark.parametrize("amp", [False, True])
def test_a_generating_pass_copies_the_weights_that_autocast_computes_with(amp: bool) -> None:
    def write(model: LlamaForCausalLM) -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
            model(input_ids=torch.ones(1, 1, dtype=torch.long), use_cache=False)

    counted = shape(dtype="float32")
    copied = generation_copy(counted, plan(counted, amp=amp))
    assert copied == 2 * (counted.linear + counted.head) * amp
    assert peak(write, "float32") == pytest.approx(copied, rel=0.02, abs=200_000)


def test_mining_and_evaluation_have_the_weights_as_they_were_saved() -> None:
    counted = shape_of(Qwen2Config(**SMALL))
    memory = memory_of(counted, plan_of(settings(), counted))
    assert memory.evaluating["weights"] == 2 * counted.parameters
    assert memory.generating["weights"] == 4 * counted.parameters
    adapted = shape_of(Qwen2Config(**SMALL), lora={"r": 16})
    small = memory_of(adapted, plan_of(settings(quantization="4bit"), adapted)).evaluating["weights"]
    assert small == counted.linear * 9 // 16 + 2 * (counted.parameters - counted.linear)
    assert memory_of(counted, plan_of(settings(engine="vllm"), counted)).evaluating == {}


def test_evaluation_by_one_process_can_need_more_than_training_by_eight() -> None:
    counted = shape_of(Qwen2Config(**LARGE))
    memory = memory_of(counted, plan_of(settings(), counted, processes=8, sharded=True))
    assert memory.phase == "evaluating"
    assert memory.enough(40 * GIB, "training")
    assert not memory.fits(40 * GIB)


def test_the_loss_needs_no_logits_of_the_whole_vocabulary() -> None:
    counted = shape_of(Qwen2Config(**SMALL))
    chosen = plan_of(settings(grpo={"per_device_train_batch_size": 64}), counted)
    frozen = counted.model_copy(update={"lora": True})
    logits = chosen.rows * chosen.reflection * counted.vocabulary * 4
    assert log_probabilities(frozen, chosen) < logits / 10


def test_four_bits_take_little_more_than_half_a_byte_for_each_weight_of_a_linear_layer() -> None:
    counted = shape_of(Qwen2Config(**LARGE), lora={"r": 16})
    chosen = plan_of(settings(), counted)
    saved = weights(counted, chosen) - weights(counted, chosen.model_copy(update={"quantized": True}))
    assert saved == counted.linear * (2 - 0.5 - 4 / 64) + counted.trainable * 2  # TRL makes the adapters 16-bit too


def test_fsdp_divides_what_is_kept_and_gathers_the_weights_to_generate() -> None:
    counted = shape_of(Qwen2Config(**SMALL))
    one = plan_of(settings(dtype="float32"), counted)
    four = plan_of(settings(dtype="float32"), counted, processes=4, sharded=True)
    for of in (weights, gradients, states):
        assert of(counted, four) == pytest.approx(of(counted, one) / 4, rel=1e-6)
    assert memory_of(counted, four).generating["gathered weights"] == 2 * counted.parameters  # it computes in 16 bits
    served = plan_of(settings(grpo={"use_vllm": True}), counted, processes=4, sharded=True)
    assert "gathered weights" not in memory_of(counted, served).generating
    copies = plan_of(settings(dtype="float32"), counted, processes=4)
    assert weights(counted, copies) == weights(counted, one)


def test_fsdp_keeps_trained_weights_in_32_bits_whatever_they_were_loaded_in() -> None:
    counted = shape_of(Qwen2Config(**SMALL))
    for dtype in ("float32", "bfloat16"):
        two = plan_of(settings(train={"dtype": dtype}), counted, processes=2, sharded=True)
        assert weights(counted, two) == 2 * counted.parameters


def test_all_weights_are_trained_in_the_dtype_of_the_configuration() -> None:
    counted = shape_of(Qwen2Config(**SMALL))
    wide, narrow = plan_of(settings(), counted), plan_of(settings(train={"dtype": "bfloat16"}), counted)
    for of in (weights, gradients, reference):
        assert of(counted, wide) == 4 * counted.parameters
        assert of(counted, narrow) == 2 * counted.parameters
    copies = plan_of(settings(), counted, processes=4)  # plain DDP
    assert weights(counted, copies) == 4 * counted.parameters
    unmixed = plan_of(settings(grpo={"bf16": False}), counted, processes=4, sharded=True)
    assert weights(counted, unmixed) == counted.parameters


def test_vllm_takes_its_share_of_whatever_card_there_is() -> None:
    counted = shape_of(Qwen2Config(**SMALL))
    asked = {"use_vllm": True, "vllm_gpu_memory_utilization": 0.5}
    beside = memory_of(counted, plan_of(settings(grpo=asked), counted))
    assert "key-value cache" not in beside.generating
    assert beside.fits(80 * GIB)
    assert not beside.fits(40 * GIB)
    asleep = plan_of(settings(grpo=asked | {"vllm_enable_sleep_mode": True}), counted)
    assert memory_of(counted, asleep).vllm == 0
    elsewhere = memory_of(counted, plan_of(settings(grpo=asked | {"vllm_mode": "server"}), counted))
    assert elsewhere.fits(40 * GIB)


def test_only_a_run_with_a_reference_model_needs_memory_for_one() -> None:
    counted, adapted = shape_of(Qwen2Config(**SMALL)), shape_of(Qwen2Config(**SMALL), lora={"r": 16})
    held = settings(grpo={"beta": 0.04})
    assert memory_of(counted, plan_of(held, counted)).training["reference model"] == 4 * counted.parameters
    two = plan_of(held, counted, processes=2, sharded=True)
    assert memory_of(counted, two).training["reference model"] == counted.parameters  # loaded as it was saved
    assert "reference model" not in memory_of(counted, plan_of(settings(), counted)).training
    assert "reference model" not in memory_of(adapted, plan_of(held, adapted)).training


HEAVY: dict[str, Any] = {"gradient_checkpointing": False, "per_device_train_batch_size": 32, "beta": 0.04}


@pytest.mark.parametrize("gpus", [None, 1, 8])
@pytest.mark.parametrize("card", [24, 40, 80])
@pytest.mark.parametrize("given", [SMALL, LARGE], ids=["1.5B", "7B"])
def test_each_suggestion_leads_to_the_need_that_it_names(given: dict[str, Any], card: int, gpus: int | None) -> None:
    counted = shape_of(Qwen2Config(**given))
    config = settings(batch_size=256, grpo=HEAVY | {"gradient_accumulation_steps": 8})
    suggested = advice(
        counted,
        plan_of(config, counted),
        card * GIB,
        with_lora=lambda: shape_of(Qwen2Config(**given), lora={"r": 16}),
        gpus=gpus,
    )
    assert suggested
    assert gpus != 1 or not any("--processes" in suggestion.change for suggestion in suggested)
    need = memory_of(counted, plan_of(config, counted)).need
    options = [f"grpo.{key}={str(value).lower()}" for key, value in config.grpo.items()] + ["batch_size=256"]
    said: list[str] = []
    for suggestion in suggested:
        said.append(suggestion.change)
        options += re.findall(r"--set (\S+)", suggestion.change)
        changed = resolve(get_task(TASK), overrides=options, flags={"model": "any"})
        check_adapter(changed)  # what is suggested can be done
        shape = shape_of(Qwen2Config(**given), lora=changed.lora)
        processes = max([1, *(int(number) for number in re.findall(r"--processes (\d+)", " ".join(said)))])
        reached = plan_of(changed, shape, processes=processes, sharded=processes > 1)
        assert reached.step == 256
        assert memory_of(shape, reached) == suggestion.memory
        assert suggestion.memory.need < need
        assert suggestion.fits == suggestion.memory.fits(card * GIB)
        need = suggestion.memory.need
    assert [suggestion.fits for suggestion in suggested[:-1]] == [False] * (len(suggested) - 1)


def changes_for(given: dict[str, Any], card: int, *, gpus: int | None = None, **values: Any) -> list[str]:
    counted = shape_of(Qwen2Config(**given))
    config = settings(grpo={"gradient_accumulation_steps": 8, "beta": 0.001}, **values)
    adapted = shape_of(Qwen2Config(**given), lora={"r": 16})
    suggested = advice(counted, plan_of(config, counted), card * GIB, with_lora=lambda: adapted, gpus=gpus)
    assert suggested[-1].fits
    return [suggestion.change for suggestion in suggested]


def test_a_model_that_needs_lora_is_not_also_told_what_lora_makes_needless() -> None:
    assert changes_for(LARGE, 80) == ["--set lora.r=16"]


def test_the_states_of_adamw_are_put_into_8_bits_before_the_kl_term_is_given_up() -> None:
    assert changes_for(SMALL, 29)[-1] == "--set grpo.optim=adamw_8bit"
    assert changes_for(SMALL, 24)[-2:] == ["--set grpo.beta=0", "--set grpo.optim=adamw_8bit"]
    assert not any("8bit" in change for change in changes_for(SMALL, 12, train={"dtype": "bfloat16"}))


def test_the_gpus_that_are_there_are_used_before_settings_change_what_is_learned() -> None:
    changes = changes_for(LARGE, 80, gpus=8)
    assert changes[-1].startswith("--processes ")
    assert not {"--set grpo.beta=0", "--set lora.r=16"} & set(changes)


def test_what_fits_is_left_alone() -> None:
    counted = shape_of(Qwen2Config(**SMALL))
    assert advice(counted, plan_of(settings(), counted), 80 * GIB) == []


def test_a_card_is_known_by_the_name_that_cuda_gives_it() -> None:
    names = ("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA L4", "NVIDIA GeForce RTX 4090", "NVIDIA L40S")
    assert [card and card.name for card in map(card_of, names)] == ["A100 80 GB", "H100", "L4", "RTX 4090", None]


def test_the_time_grows_with_what_is_asked() -> None:
    counted = shape_of(Qwen2Config(**SMALL))

    def step(**values: Any) -> float:
        config = settings(**values)
        return seconds_of(config, counted, plan_of(config, counted), CARDS["A100"]).step

    assert step(grpo={"gradient_accumulation_steps": 2}) > step()
    assert step(grpo={"gradient_checkpointing": False}) < step()
    assert step(train={"retries": 2}) > step()
    assert step(sampling={"retry": {"max_tokens": 64}}) < step()
    assert step(grpo={"use_vllm": True}) < step()


def test_mining_is_timed_in_the_saved_dtype_and_training_casts_its_weights_for_each_token() -> None:
    counted = shape_of(Qwen2Config(**LARGE))
    plans = [plan_of(settings(train={"dtype": dtype}), counted) for dtype in ("float32", "bfloat16")]
    wide, narrow = (seconds_of(settings(), counted, chosen, CARDS["A100"]) for chosen in plans)
    assert wide.mining == narrow.mining
    assert wide.generating > narrow.generating
    copied = 2 * (counted.linear + counted.head)
    assert [bytes_a_token(counted, chosen) for chosen in plans] == [
        4 * counted.parameters + 2 * copied,
        2 * counted.parameters,
    ]
    gathered = plan_of(settings(), counted, processes=8, sharded=True)
    assert bytes_a_token(counted, gathered) == 2 * counted.parameters


def test_a_forecast_is_believed_more_than_the_arithmetic() -> None:
    counted = shape_of(Qwen2Config(**SMALL))
    config = settings(grpo={"gradient_accumulation_steps": 4})
    chosen = plan_of(config, counted)
    forecast = {"tokens": 100.0, "seconds": 0.5}
    told = seconds_of(config, counted, chosen, CARDS["A100"], forecast=forecast)
    assert told.measured
    assert told.generating == 16.0
    assert told.training < seconds_of(config, counted, chosen, CARDS["A100"]).training


def test_a_forecast_holds_all_retries_of_a_reflection_already() -> None:
    counted = shape_of(Qwen2Config(**SMALL))
    forecast = {"tokens": 100.0, "seconds": 0.5}

    def told(**values: Any) -> Seconds:
        config = settings(**values)
        return seconds_of(config, counted, plan_of(config, counted), CARDS["A100"], forecast=forecast)

    assert told(train={"retries": 4}).generating == told().generating == 4.0
    assert told(train={"retries": 4}).training < told().training  # fewer of the same tokens are the reflection's
    assert told(grpo={"num_iterations": 2}).generating == 2.0


A100 = Machine(gpu="NVIDIA A100-SXM4-80GB", gpu_memory=79.3 * GIB)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., str]:
    """A function that makes a model's folder without weights."""

    def make(**given: Any) -> str:
        Qwen2Config(**given).save_pretrained(tmp_path)
        return str(tmp_path)

    return make


def test_a_run_that_fits_is_told_its_need_and_its_time(folder: Callable[..., str]) -> None:
    lines = explain(settings(grpo={"max_steps": 100}), folder(**SMALL), machine=A100)
    assert [line.split(":")[0] for line in lines] == ["memory"] * 4 + ["time", "estimate"]
    assert "GiB while training: " in lines[0]
    assert "GiB while mining and evaluating: " in lines[2]
    assert "it fits the NVIDIA A100-SXM4-80GB here, which has 79.3 GiB" in lines[3]
    assert re.match(r"time: up to about .* a step on A100 80 GB: generation .*, training .*; 100 steps .*", lines[4])
    assert "arithmetic, no measurement, on Qwen2ForCausalLM with 1,543,714,304 parameters" in lines[5]


def test_weights_that_stay_in_16_bits_are_warned_of(folder: Callable[..., str]) -> None:
    narrow = settings(train={"dtype": "bfloat16"}, grpo={"learning_rate": 5e-7})
    lines = explain(narrow, folder(**SMALL), machine=A100)
    assert lines[0].startswith("warning: all weights are trained in 16 bits (train.dtype)")
    assert "grpo.learning_rate=5e-07" in lines[0]
    assert "about 1.0% can change" in lines[0]
    assert "hint: --set train.dtype=float32 " in lines[1]
    sharded = narrow.model_copy(update={"grpo": narrow.grpo | {"bf16": False}})
    said = explain(sharded, folder(**SMALL), processes=2, sharded=True, machine=A100)
    assert said[0].startswith("warning: all weights are trained in 16 bits")


@pytest.mark.parametrize(
    ("values", "processes"),
    [
        ({}, 1),
        ({"dtype": "bfloat16"}, 1),
        ({"train": {"dtype": "bfloat16"}, "lora": {"r": 16}}, 1),
        ({"train": {"dtype": "bfloat16"}}, 2),  # FSDP2 makes weights in 32 bits
        ({"train": {"dtype": "bfloat16"}, "grpo": {"learning_rate": 1e-3}}, 1),
        (
            {
                "train": {"dtype": "bfloat16"},
                "grpo": {"optim": "adamw_torch_8bit", "optim_args": "bf16_stochastic_round=True"},
            },
            1,
        ),
    ],
)
def test_weights_that_can_move_are_not_warned_of(
    folder: Callable[..., str], values: dict[str, Any], processes: int
) -> None:
    lines = explain(settings(**values), folder(**SMALL), processes=processes, sharded=processes > 1, machine=A100)
    assert not any(line.startswith("warning") for line in lines)


@pytest.mark.parametrize("rate", [5e-7, 1e-6, 1e-5])
def test_the_share_of_weights_that_can_move_is_that_of_a_real_step(rate: float) -> None:
    drawn = (torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)) * 0.02).to(torch.bfloat16)
    weight = torch.nn.Parameter(drawn.clone())
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=rate, weight_decay=0).step()
    assert share_moved(rate) == pytest.approx(float((weight != drawn).float().mean()), rel=0.1)


def test_a_run_that_does_not_fit_is_told_what_to_change(folder: Callable[..., str]) -> None:
    lines = explain(settings(grpo=HEAVY), folder(**LARGE), machine=A100)
    assert any("it does not fit the NVIDIA A100-SXM4-80GB here" in line for line in lines)
    hints = [line for line in lines if line.startswith("hint: ")]
    assert hints[0].startswith("hint: --set grpo.gradient_checkpointing=true makes it ")
    assert "which fits 79.3 GiB" in hints[-1]


def test_a_machine_without_a_gpu_is_told_of_common_cards(folder: Callable[..., str]) -> None:
    lines = explain(settings(), folder(**SMALL), machine=Machine(memory=8 * GIB))
    assert any(re.match(r"memory: it fits a GPU of \d+ GB.*; none is here", line) for line in lines)
    assert any("without a GPU it would take" in line and "this machine has 8.0 GiB" in line for line in lines)
    large = explain(settings(dtype="float32"), folder(**LARGE), machine=Machine())
    assert "memory: it fits no GPU of 24, 40, 80 GB; none is here" in large


def test_a_forecast_is_named_where_it_was_used(folder: Callable[..., str]) -> None:
    lines = explain(settings(), folder(**SMALL), machine=A100, forecast={"tokens": 100.0, "seconds": 0.5})
    assert any("generation 4.0 s (measured)" in line for line in lines)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ('{"model_type": "unheard-of"}', "model type `unheard-of`"),
        ('{"model_type": "bert", "vocab_size": 9, "num_attention_heads": 0}', "models of type `bert`"),
        ('{"model_type": "vit"}', "models of type `vit` are not understood"),
        ("{", "cannot be read"),
        ("{}", "cannot be read"),
    ],
)
def test_a_model_that_is_not_understood_costs_one_line(tmp_path: Path, written: str, message: str) -> None:
    (tmp_path / "config.json").write_text(written)
    (line,) = explain(settings(), str(tmp_path))
    assert line.startswith("estimate: none; ")
    assert message in line


def test_a_model_that_cannot_be_had_costs_one_line(tmp_path: Path) -> None:
    (line,) = explain(settings(), str(tmp_path / "nothing"))
    assert line.startswith(f"estimate: none; the shape of `{tmp_path / 'nothing'}` cannot be read: ")


def test_a_dry_run_ends_with_the_estimate(r3: R3, tiny_folder: Path) -> None:
    said = r3("run", "--task", TASK, "--model", tiny_folder, "--set", "grpo.max_steps=1", "--dry-run")
    assert said.code == 0
    assert "memory: " in said.out
    assert said.out.splitlines()[-1].startswith("estimate: arithmetic, no measurement, on LlamaForCausalLM with ")
    assert said.err == ""
    assert not list(Path().iterdir())


def test_a_dry_run_of_an_unknown_model_goes_on(r3: R3, tmp_path: Path) -> None:
    said = r3("run", "--task", TASK, "--model", tmp_path / "no", "--set", "grpo.max_steps=1", "--dry-run")
    assert said.code == 0
    assert "estimate: none; the shape of " in said.out
