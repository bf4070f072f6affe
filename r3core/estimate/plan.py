"""The settings that memory and time depend on, as TRL and r3 read them."""

from __future__ import annotations

from math import ceil

from r3core.config import Config
from r3core.estimate.shape import Shape
from r3core.plugins.engines import find_engine
from r3core.task import Frozen
from r3core.training.grpo_options import with_defaults

PROMPT = 300
"""Tokens assumed for a problem together with the sentences that r3 says."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_TORCHAO = ("adamw_torch_8bit", "adamw_torch_4bit")


class Plan(Frozen):
    """The settings that memory and time depend on, with what TRL puts where nothing is set."""

    rows: int
    """Reflections that go through the model at once in training, on each process."""
    accumulation: int
    """Such passes before each update."""
    steps_per_generation: int
    """Such passes that one generation serves."""
    group: int
    """Reflections on each failure."""
    retries: int
    """Retries after each reflection."""
    iterations: int
    """Updates that each generation serves."""
    batch_size: int
    """Conversations generated at once."""
    prompt: int
    """Tokens of a problem with r3's own sentences; the three below are what a turn may have at most."""
    attempt: int
    reflection: int
    retry: int
    checkpointing: bool
    """Activations are computed again on the way back."""
    amp: bool
    """Training computes in 16 bits by autocast, whatever the dtype of the weights."""
    dtype_bytes: int
    """Bytes per weight in mining and evaluation, and of the base of a LoRA adapter in training."""
    full_bytes: int
    """Bytes per weight in training when all weights are trained: that of `train.dtype`."""
    beta: float
    """The weight of the KL term; 0 needs no reference model."""
    quantized: bool = False
    """The linear layers are in 4 bits."""
    optimizer: str = "adamw"
    rate: float = 0.0
    """The learning rate."""
    stochastic: bool = False
    """The optimizer rounds 16-bit weights stochastically, so that small updates are kept on average."""
    vllm: float = 0.0
    """The share of a card that vLLM takes beside the trainer."""
    served: bool = False
    """vLLM generates, here or on a server."""
    evaluates: bool = True
    """Mining and evaluation generate with transformers, on the device of the first process."""
    sleeps: bool = False
    """vLLM gives its share back while the model is trained."""
    processes: int = 1
    sharded: bool = False
    """FSDP: weights, gradients and states are divided among the processes."""
    cuda: bool = True
    """Training is on a GPU."""

    @property
    def step(self) -> int:
        """Reflections of one update, on all processes."""
        return self.rows * self.accumulation * self.processes

    @property
    def generated(self) -> int:
        """Reflections of one generation, on each process."""
        return self.rows * self.steps_per_generation

    @property
    def asked(self) -> int:
        """Tokens that stand before a reflection."""
        return self.prompt + self.attempt


def plan_of(
    config: Config, shape: Shape, *, prompt: int = PROMPT, processes: int = 1, sharded: bool = False, cuda: bool = True
) -> Plan:
    """Return what a configuration comes to for a model; `cuda` tells whether training is on a GPU.

    GRPOConfig of TRL 1.16 turns on gradient checkpointing, and bf16 unless fp16 is set; r3 turns bf16 off on a CPU.
    """
    given = with_defaults(config.grpo_options())
    turns = config.sampling
    reflection = given["max_completion_length"] or turns.reflection.max_tokens
    lengths = turns.attempt.max_tokens + reflection + turns.retry.max_tokens
    if shape.context:
        prompt = max(1, min(prompt, shape.context - lengths))
    bf16 = given["bf16"] if given["bf16"] is not None else cuda and not given["fp16"]
    served = bool(given["use_vllm"])
    shared = served and given["vllm_mode"] == "colocate"
    optimizer = str(getattr(given["optim"], "value", given["optim"]))
    micro = given["per_device_train_batch_size"]
    per_generation = given["steps_per_generation"] or given["gradient_accumulation_steps"]
    if given["generation_batch_size"]:
        per_generation = ceil(given["generation_batch_size"] / (micro * processes))
    return Plan(
        rows=micro,
        accumulation=given["gradient_accumulation_steps"],
        steps_per_generation=per_generation,
        group=given["num_generations"],
        retries=config.train.retries,
        iterations=given["num_iterations"],
        batch_size=config.batch_size,
        prompt=prompt,
        attempt=turns.attempt.max_tokens,
        reflection=reflection,
        retry=turns.retry.max_tokens,
        checkpointing=given["gradient_checkpointing"],
        amp=bool(bf16 or given["fp16"]),
        dtype_bytes=_BYTES.get(config.dtype, shape.dtype_bytes),
        full_bytes=_BYTES[config.train.dtype],
        beta=given["beta"],
        quantized=config.quantization == "4bit",
        optimizer=optimizer,
        rate=given["learning_rate"],
        stochastic=optimizer in _TORCHAO and "bf16_stochastic_round=true" in str(given["optim_args"]).lower(),
        vllm=given["vllm_gpu_memory_utilization"] if shared else 0.0,
        served=served,
        evaluates=find_engine(config.engine).in_process,
        sleeps=bool(given["vllm_enable_sleep_mode"]),
        processes=processes,
        sharded=sharded and processes > 1,
        cuda=cuda,
    )
