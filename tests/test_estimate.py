"""The computed memory against real tensors, the advice that follows from it, and what a dry run prints."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import password
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
from r3core.estimate.advice import Advice, Machine, advice, explain, share_moved
from r3core.estimate.memory import (
    PHASES,
    Plan,
    activations,
    cache,
    generation,
    generation_copy,
    gradients,
    log_probabilities,
    memory_of,
    plan_of,
    reference,
    states,
    weights,
)
from r3core.estimate.shape import Shape, read_config, shape_of
from r3core.generation.models import load
from r3core.plugins.discovery import get_task
from r3core.training.anchor import Attempts, divergence
from r3core.training.lora import check_adapter, lora_config
from r3core.training.precision import training_dtype

pytestmark = pytest.mark.slow

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
def test_trained_parameters_of_lora_are_those_of_the_adapters_that_training_makes(options: dict[str, Any]) -> None:
    from peft import get_peft_model

    model = LlamaForCausalLM(LlamaConfig(**MODERATE, dtype="bfloat16")).to(torch.bfloat16)
    plain = shape_of(model.config)
    counted = shape_of(model.config, lora=options)
    wrapped = get_peft_model(model, lora_config(options))
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

    password.beginner(steps=0).to(getattr(torch, saved)).save_pretrained(tmp_path / "base")
    password.tokenizer().save_pretrained(tmp_path / "base")
    options: dict[str, Any] = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 3}
    config = settings(train={"dtype": trained}, grpo=options | {"bf16": bf16, "beta": 0.1})
    model, _ = load(config, str(tmp_path / "base"), dtype=training_dtype(config))
    counted = shape_of(read_config(str(tmp_path / "base")))
    seen = Seen()
    trainer = GRPOTrainer(
        model=model,
        processing_class=password.tokenizer(),
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
    held = [value for state in trainer.optimizer.state.values() for value in state.values()]
    assert weights(counted, chosen) == size(model.parameters())
    assert reference(counted, chosen) == size(trainer.ref_model.parameters())
    assert gradients(counted, chosen) == seen.gradients
    assert states(counted, chosen) == size(held)


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
    held = [value for state in made.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    counted = shape_of(model.config)
    maps = 2 * 256 * 4 * counted.tensors if "8bit" in optimizer else 0  # the values that a byte stands for
    assert states(counted, plan_of(settings(grpo={"optim": optimizer}), counted)) + maps == pytest.approx(
        size(held), rel=0.02, abs=0.01 * counted.parameters
    )


@pytest.mark.parametrize(("dtype", "amp"), [("float32", False), ("bfloat16", False), ("float32", True)])
def test_the_cache_is_that_of_a_real_generation(dtype: str, amp: bool) -> None:
    model = LlamaForCausalLM(LlamaConfig(**MODERATE)).to(getattr(torch, dtype)).eval()
    held = DynamicCache(config=model.config)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
        for written in (torch.ones(3, 11, dtype=torch.long), torch.ones(3, 1, dtype=torch.long)):
            model(input_ids=written, past_key_values=held, use_cache=True)
    counted = shape(dtype=dtype)
    layers = [tensor for layer in held.layers for tensor in (layer.keys, layer.values)]
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


def peak(work: Callable[[LlamaForCausalLM], None], dtype: str, *, checkpointing: bool = False, **changes: int) -> int:
    """Return the bytes at the peak of what `work` does with a model of moderate size, by torch's own tracker.

    No number is computed: the tensors are fake, and those alone count that were made after the model.
    """
    described = LlamaConfig(**MODERATE | changes, use_cache=False)
    with FakeTensorMode():
        model = LlamaForCausalLM._from_config(described, dtype=getattr(torch, dtype))
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


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("dtype", "amp"), [("float32", False), ("float32", True), ("bfloat16", True)])
def test_the_peak_of_the_anchor_is_as_estimated_within_a_tenth(dtype: str, amp: bool, checkpointing: bool) -> None:
    wide, rows, attempt, prompt = {"vocab_size": 40_000}, 8, 40, 152

    def pass_through(model: LlamaForCausalLM) -> None:
        ids = torch.ones(rows, prompt + attempt, dtype=torch.long)
        places = torch.arange(rows * (attempt + 1))
        attempts = Attempts(ids, torch.ones_like(ids), places % rows, places // rows, scored=attempt + 1)
        target = torch.zeros(len(places), 40_000)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            divergence(target, attempts.log_probabilities(model.train())).backward()

    counted = shape(dtype=dtype, **wide)
    chosen = plan(counted, rows=0, prompt=prompt, attempt=attempt, anchored=rows, amp=amp, checkpointing=checkpointing)
    terms = memory_of(counted, chosen).training
    assert "the anchor's distributions" in terms
    more = sum(terms.values()) - terms["weights"] - terms["gradients"] - terms["optimizer states"]
    assert more == pytest.approx(peak(pass_through, dtype, checkpointing=checkpointing, **wide), rel=0.1)


@pytest.mark.parametrize(("dtype", "amp"), [("bfloat16", False), ("float32", False), ("float32", True)])
def test_the_peak_of_reading_prompts_is_as_estimated_within_a_tenth(dtype: str, amp: bool) -> None:
    def read(model: LlamaForCausalLM) -> None:
        ids = torch.ones(64, 256, dtype=torch.long)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
            held = DynamicCache(config=model.config)
            mask = torch.ones_like(ids)
            model(input_ids=ids, attention_mask=mask, past_key_values=held, use_cache=True, logits_to_keep=1)

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
    assert max(PHASES, key=memory.total) == "evaluating"
    assert memory.fits(40 * GIB, "training")
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


def test_fsdp_divides_what_is_stored_and_gathers_the_weights_to_generate() -> None:
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
    options = {"use_vllm": True, "vllm_gpu_memory_utilization": 0.5}
    beside = memory_of(counted, plan_of(settings(grpo=options), counted))
    assert "key-value cache" not in beside.generating
    assert beside.fits(80 * GIB)
    assert not beside.fits(40 * GIB)
    asleep = plan_of(settings(grpo=options | {"vllm_enable_sleep_mode": True}), counted)
    assert memory_of(counted, asleep).vllm == {"generating": 0.5}
    elsewhere = memory_of(counted, plan_of(settings(grpo=options | {"vllm_mode": "server"}), counted))
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


def advised(given: dict[str, Any], card: int, *, gpus: int | None = None, **values: Any) -> Advice:
    found = advice(settings(**values), Qwen2Config(**given), card * GIB, gpus=gpus)
    assert found
    return found


@pytest.mark.parametrize("gpus", [None, 1, 8])
@pytest.mark.parametrize("card", [24, 40, 80])
@pytest.mark.parametrize("given", [SMALL, LARGE], ids=["1.5B", "7B"])
def test_the_advised_arguments_lead_to_the_memory_that_they_promise(
    given: dict[str, Any], card: int, gpus: int | None
) -> None:
    config = settings(batch_size=256, grpo=HEAVY | {"gradient_accumulation_steps": 8})
    found = advice(config, Qwen2Config(**given), card * GIB, gpus=gpus)
    assert found
    assert gpus != 1 or "--processes" not in found.flags
    options = [f"grpo.{key}={str(value).lower()}" for key, value in config.grpo.items()] + ["batch_size=256"]
    options += re.findall(r"--set (\S+)", found.flags)
    changed = resolve(get_task(TASK), overrides=options, flags={"model": "any"})
    check_adapter(changed)  # training accepts the advised settings
    shape = shape_of(Qwen2Config(**given), lora=changed.lora)
    processes = max([1, *map(int, re.findall(r"--processes (\d+)", found.flags))])
    reached = plan_of(changed, shape, processes=processes, sharded=processes > 1)
    assert reached.rows * reached.accumulation * reached.processes == 256
    assert memory_of(shape, reached) == found.memory
    assert found.memory.fits(card * GIB)


ACCUMULATED: dict[str, Any] = {"gradient_accumulation_steps": 8, "beta": 0.001}


def test_a_model_that_needs_lora_gets_no_advice_that_lora_makes_unnecessary() -> None:
    assert advised(LARGE, 80, grpo=ACCUMULATED).flags == "--set lora.r=16"


def test_the_states_of_adamw_are_put_into_8_bits_before_the_kl_term_is_given_up() -> None:
    assert "--set grpo.optim=adamw_8bit" in advised(SMALL, 29, grpo=ACCUMULATED).flags
    assert "--set grpo.beta=0" not in advised(SMALL, 29, grpo=ACCUMULATED).flags
    assert "--set grpo.beta=0 --set grpo.optim=adamw_8bit" in advised(SMALL, 24, grpo=ACCUMULATED).flags
    assert "8bit" not in advised(SMALL, 12, grpo=ACCUMULATED, train={"dtype": "bfloat16"}).flags


def test_the_gpus_of_the_machine_are_used_before_settings_change_what_is_learned() -> None:
    flags = advised(LARGE, 80, gpus=8, grpo=ACCUMULATED).flags
    assert flags.startswith("--processes ")
    assert not any(setting in flags for setting in ("grpo.beta", "lora.r"))


def test_no_advice_is_given_where_none_helps() -> None:
    assert advice(settings(), Qwen2Config(**LARGE), 4 * GIB) is None


def test_what_fits_is_left_alone() -> None:
    found = advised(SMALL, 80)
    assert found.settings == {}


A100 = Machine(gpu="NVIDIA A100-SXM4-80GB", gpu_memory=79.3 * GIB)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., str]:
    """A function that makes a model's folder without weights."""

    def make(**given: Any) -> str:
        Qwen2Config(**given).save_pretrained(tmp_path)
        return str(tmp_path)

    return make


def test_a_dry_run_names_the_need_of_each_phase_and_the_card(folder: Callable[..., str]) -> None:
    lines = explain(settings(grpo={"max_steps": 100}), folder(**SMALL), machine=A100)
    assert [line.split(":")[0] for line in lines] == ["memory"] * 4 + ["estimate"]
    assert "GiB while training: " in lines[0]
    assert "GiB while mining and evaluating: " in lines[2]
    assert "it fits the NVIDIA A100-SXM4-80GB here, which has 79.3 GiB" in lines[3]
    assert "computed, not measured, for Qwen2ForCausalLM with 1,543,714,304 parameters" in lines[4]


def test_weights_that_stay_in_16_bits_cause_a_warning(folder: Callable[..., str]) -> None:
    narrow = settings(train={"dtype": "bfloat16"}, grpo={"learning_rate": 5e-7})
    lines = explain(narrow, folder(**SMALL), machine=A100)
    assert lines[0].startswith("warning: all weights are trained in 16 bits (train.dtype)")
    assert "grpo.learning_rate=5e-07" in lines[0]
    assert "about 1.0% can change" in lines[0]
    assert "hint: --set train.dtype=float32 " in lines[1]
    sharded = narrow.model_copy(update={"grpo": narrow.grpo | {"bf16": False}})
    result = explain(sharded, folder(**SMALL), processes=2, sharded=True, machine=A100)
    assert result[0].startswith("warning: all weights are trained in 16 bits")


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
def test_weights_that_can_move_cause_no_warning(
    folder: Callable[..., str], values: dict[str, Any], processes: int
) -> None:
    lines = explain(settings(**values), folder(**SMALL), processes=processes, sharded=processes > 1, machine=A100)
    assert not any(line.startswith("warning") for line in lines)


@pytest.mark.parametrize("rate", [5e-7, 1e-6, 1e-5])
def test_the_share_of_weights_that_can_move_is_that_of_a_real_step(rate: float) -> None:
    initial = (torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)) * 0.02).to(torch.bfloat16)
    weight = torch.nn.Parameter(initial.clone())
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=rate, weight_decay=0).step()
    assert share_moved(rate) == pytest.approx(float((weight != initial).float().mean()), rel=0.1)


def test_a_run_that_does_not_fit_gets_a_hint(folder: Callable[..., str]) -> None:
    lines = explain(settings(grpo=HEAVY), folder(**LARGE), machine=A100)
    assert any("it does not fit the NVIDIA A100-SXM4-80GB here" in line for line in lines)
    (hint,) = [line for line in lines if line.startswith("hint: ")]
    assert re.match(r"hint: --set .* makes it \d+\.\d GiB, which fits 79.3 GiB \(.*\)", hint)
    assert "--set grpo.gradient_checkpointing=true" in hint
    tiny = Machine(gpu="small", gpu_memory=4 * GIB, gpus=1)
    assert any(
        "take a smaller model or shorter turns" in line for line in explain(settings(), folder(**LARGE), machine=tiny)
    )


def test_of_several_gpus_the_smallest_decides(folder: Callable[..., str]) -> None:
    mixed = Machine.of([("NVIDIA A100-SXM4-80GB", 79.3 * GIB), ("NVIDIA L4", 22.0 * GIB)], memory=None)
    assert (mixed.gpu, mixed.gpus) == ("NVIDIA L4", 2)
    lines = explain(settings(grpo={"beta": 0.1}), folder(**SMALL), machine=mixed)
    expected = "memory: it does not fit the smallest of 2 GPUs here, the NVIDIA L4 with 22.0 GiB; the largest has 79.3"
    assert any(line.startswith(expected) for line in lines)
    assert any(re.match(r"hint: .* which fits 22.0 GiB", line) for line in lines)
    alike = Machine.of([("NVIDIA L4", 22.0 * GIB)] * 2, memory=None)
    assert any(
        "fit the NVIDIA L4 here, which has 22.0 GiB" in line
        for line in explain(settings(), folder(**SMALL), machine=alike)
    )
    assert Machine.of([], memory=1.0) == Machine(memory=1.0)


def test_a_machine_without_a_gpu_is_compared_with_common_cards(folder: Callable[..., str]) -> None:
    lines = explain(settings(), folder(**SMALL), machine=Machine(memory=8 * GIB))
    assert any(re.match(r"memory: it fits a GPU of \d+ GB.*; this machine has none", line) for line in lines)
    assert any("without a GPU it needs" in line and "this machine has 8.0 GiB" in line for line in lines)
    large = explain(settings(dtype="float32"), folder(**LARGE), machine=Machine())
    assert "memory: it fits no GPU of 24, 40, 80 GB; this machine has none" in large


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ('{"model_type": "unheard-of"}', "model type `unheard-of`"),
        ('{"model_type": "bert", "vocab_size": 9, "num_attention_heads": 0}', "models of type `bert`"),
        ('{"model_type": "vit"}', "models of type `vit` are not supported"),
        ("{", "cannot be read"),
        ("{}", "cannot be read"),
    ],
)
def test_a_model_that_is_not_supported_costs_one_line(tmp_path: Path, written: str, message: str) -> None:
    (tmp_path / "config.json").write_text(written)
    (line,) = explain(settings(), str(tmp_path))
    assert line.startswith("estimate: none; ")
    assert message in line


def test_a_model_that_cannot_be_found_costs_one_line(tmp_path: Path) -> None:
    (line,) = explain(settings(), str(tmp_path / "nothing"))
    assert line.startswith(f"estimate: none; the configuration of `{tmp_path / 'nothing'}` cannot be read: ")


def test_a_dry_run_ends_with_the_estimate(r3: R3, tiny_folder: Path) -> None:
    result = r3("run", "--task", TASK, "--model", tiny_folder, "--set", "grpo.max_steps=1", "--dry-run")
    assert result.code == 0
    assert "memory: " in result.out
    assert result.out.splitlines()[-1].startswith("estimate: computed, not measured, for LlamaForCausalLM with ")
    assert result.err == ""
    assert not list(Path().iterdir())


def test_a_dry_run_of_an_unknown_model_prints_the_rest(r3: R3, tmp_path: Path) -> None:
    result = r3("run", "--task", TASK, "--model", tmp_path / "no", "--set", "grpo.max_steps=1", "--dry-run")
    assert result.code == 0
    assert "estimate: none; the configuration of " in result.out
