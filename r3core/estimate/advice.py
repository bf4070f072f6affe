"""What `--dry-run` prints about memory: each phase's need, whether it fits, and settings with which it would."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from math import erf, floor, log2, sqrt
from typing import TYPE_CHECKING, Any

from r3core.config import Config
from r3core.errors import UsageError
from r3core.estimate.memory import PHASES, Memory, Plan, memory_of, plan_of, trained_bytes
from r3core.estimate.shape import Shape, read_config, shape_of
from r3core.task import Frozen

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GIB = 2**30
SIZES = (24, 40, 80)
"""GB of the cards that a run is compared with on a machine without a GPU."""
COSTS = {
    "processes": "more GPUs",
    "grpo.optim": "AdamW's states in 8 bits, needs bitsandbytes",
    "grpo.beta": "no KL term holds the model near its start",
    "lora.r": "only LoRA adapters are trained, and they need a larger learning rate",
    "quantization": "coarser weights, slower",
    "grpo.gradient_checkpointing": "a third more time in training",
    "batch_size": "slower generation",
    "grpo.per_device_train_batch_size": "more passes for the same batch",
}
"""What the suggested settings cost besides memory."""


class Machine(Frozen):
    """The machine that a run is estimated for; memory in bytes."""

    gpu: str | None = None
    """Name of the visible GPU with the least memory: every process of a training needs as much as the others."""
    gpu_memory: float = 0.0
    """Memory of that GPU."""
    largest_gpu_memory: float = 0.0
    """Memory of the visible GPU with the most; 0 stands for the same."""
    gpus: int = 0
    """Number of visible GPUs."""
    memory: float | None = None
    """Main memory; None where the system does not report it."""

    @classmethod
    def here(cls) -> Machine:
        """Return the machine of this process."""
        import torch

        try:
            memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        except (AttributeError, ValueError, OSError):  # Windows has no such call
            memory = None
        visible = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return cls.of([(gpu.name, gpu.total_memory) for gpu in visible], memory=memory)

    @classmethod
    def of(cls, gpus: Sequence[tuple[str, float]], *, memory: float | None) -> Machine:
        """Return a machine with these GPUs, each a name and its memory in bytes."""
        if not gpus:
            return cls(memory=memory)
        name, least = min(gpus, key=lambda gpu: gpu[1])
        most = max(bytes_ for _, bytes_ in gpus)
        return cls(gpu=name, gpu_memory=least, largest_gpu_memory=most, gpus=len(gpus), memory=memory)


def explain(
    config: Config, model: str, *, processes: int = 1, sharded: bool = False, machine: Machine | None = None
) -> list[str]:
    """Return lines about the memory of a run of `model`; a single one when its configuration cannot be read.

    `sharded` is whether FSDP2 divides the model among the processes.
    """
    try:
        read = read_config(model, revision=config.revision, trust_remote_code=config.trust_remote_code)
        shape = shape_of(read, lora=config.lora)
    except UsageError as error:
        return [f"estimate: none; {error.message}"]
    machine = machine or Machine.here()
    plan = plan_of(config, shape, processes=processes, sharded=sharded)
    plan_on_cpu = plan_of(config, shape, processes=processes, cuda=False)
    memory, on_cpu = memory_of(shape, plan), memory_of(shape, plan_on_cpu)
    warning = rounding_warning(shape, plan) or ([] if machine.gpu else rounding_warning(shape, plan_on_cpu))
    lines = [*warning, *_needs(memory, each=" on each device" * (plan.processes > 1)), _fitting(memory, machine)]
    card = machine.gpu_memory if machine.gpu else SIZES[-1] * GIB
    if not memory.fits(card):
        gpus = machine.gpus if machine.gpu else None
        lines.append(_hint(advice(config, read, card, processes=processes, sharded=sharded, gpus=gpus), card))
    if machine.gpu is None and not (machine.memory and on_cpu.fits(machine.memory)):
        available = f", and this machine has {_gib(machine.memory)}" if machine.memory else ""
        lines.append(f"memory: without a GPU it needs {_gib(on_cpu.need)} of main memory{available}")
    trained = f", {shape.trainable:,} of them trained" if shape.lora else ""
    return [
        *lines,
        f"estimate: computed, not measured, for {shape.architecture} with {shape.parameters:,} parameters{trained}, "
        f"prompts of {plan.prompt} tokens and turns of maximum length; it can be 10% off",
    ]


class Advice(Frozen):
    """Settings with which a run fits, and its memory with them."""

    settings: dict[str, Any]
    """Configuration keys and their values."""
    memory: Memory

    @property
    def flags(self) -> str:
        """The settings as arguments of the command line."""
        texts = {key: str(value).lower() if isinstance(value, bool) else value for key, value in self.settings.items()}
        return " ".join(
            f"--{key} {text}" if key == "processes" else f"--set {key}={text}" for key, text in texts.items()
        )


def advice(
    config: Config,
    model: PretrainedConfig,
    card: float,
    *,
    processes: int = 1,
    sharded: bool = False,
    gpus: int | None = None,
) -> Advice | None:
    """Return the least harmful settings with which a run fits a device of `card` bytes; None if none are found.

    `gpus` is the number of GPUs of this machine; without it, up to 8 processes are suggested as a last resort.
    """
    shape = cache(lambda rank: shape_of(model, lora={"r": rank} if rank else config.lora))

    def estimate(settings: dict[str, Any]) -> tuple[Plan, Memory]:
        count, of = settings.get("processes", processes), shape(settings.get("lora.r"))
        plan = plan_of(_changed(config, settings), of, processes=count, sharded=sharded or "processes" in settings)
        return plan, memory_of(of, plan)

    for change in _alternatives(config, estimate({})[0], gpus):
        settings = _reduced(change, card, estimate)
        memory = estimate(settings)[1]
        if memory.fits(card):
            return Advice(settings=settings, memory=memory)
    return None


def _alternatives(config: Config, plan: Plan, gpus: int | None) -> Iterator[dict[str, Any]]:
    """Yield settings that lower the need a lot, the least harmful first."""
    alone = plan.processes == 1 and not plan.quantized
    counts = [n for n in (2, 4, 8) if alone and n <= (gpus or 8) and plan.accumulation % n == 0]
    shards = [{"processes": n, "grpo.gradient_accumulation_steps": plan.accumulation // n} for n in counts]
    optim = {"grpo.optim": "adamw_8bit"} if plan.optimizer.startswith("adamw_torch") and plan.full_bytes == 4 else {}
    lora = {"lora.r": 16} if config.lora is None else {}
    yield {}
    if gpus is not None:
        yield from shards
    if lora and optim and not plan.sharded:
        yield optim
    if lora and plan.beta:
        yield {"grpo.beta": 0}
        yield {"grpo.beta": 0} | ({} if plan.sharded else optim)
    if lora:
        yield lora
    if not plan.quantized and not plan.sharded:
        yield lora | {"quantization": "4bit", "train.merge": False}
    if gpus is None:
        yield from shards


def _reduced(change: dict[str, Any], card: float, estimate: Callable[..., tuple[Plan, Memory]]) -> dict[str, Any]:
    """Return a change with checkpointing and smaller batches where it does not fit without them."""
    settings = dict(change)
    plan, memory = estimate(settings)
    if not plan.checkpointing and not memory.fits(card, "training"):
        settings["grpo.gradient_checkpointing"] = True
        plan, memory = estimate(settings)
    while plan.batch_size >= 16 and not memory.fits(card, "generating", "evaluating"):
        settings["batch_size"] = plan.batch_size // 2
        plan, memory = estimate(settings)
    while plan.rows % 2 == 0 and not memory.fits(card, "training"):
        settings["grpo.per_device_train_batch_size"] = plan.rows // 2
        settings["grpo.gradient_accumulation_steps"] = plan.accumulation * 2
        plan, memory = estimate(settings)
    return settings


def _changed(config: Config, settings: dict[str, Any]) -> Config:
    values = config.model_dump()
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        if section:
            values[section] = (values[section] or {}) | {name: value}
        else:
            values[name] = value
    return Config.model_validate(values)


def share_moved(rate: float) -> float:
    """Return the share of bfloat16 weights sampled from N(0, 0.02) that one AdamW step with this learning rate changes.

    AdamW moves a weight by about `rate`. bfloat16 has 8 significant bits, so that the values between 2^k and 2^(k+1)
    are 2^(k-7) apart, and less than half of that is rounded away: a weight moves when it is below 2^(floor(log2 rate)
    + 9). Measured (`benchmarks/optimizers.py`, 30 equal gradients): 0.98% at 5e-7 and 1.96% at 1e-6; this: 0.97, 1.95.
    """
    return erf(2.0 ** (floor(log2(rate)) + 9) / (0.02 * sqrt(2))) if rate > 0 else 0.0


def rounding_warning(shape: Shape, plan: Plan) -> list[str]:
    """Return a warning and a hint where all weights are trained in 16 bits and rounding undoes most updates."""
    moved = share_moved(plan.rate)
    if shape.lora or plan.stochastic or trained_bytes(shape, plan) > 2 or moved > 0.95:
        return []
    return [
        f"warning: all weights are trained in 16 bits (train.dtype), and at grpo.learning_rate={plan.rate:g} most "
        "updates are rounded away: near 0.02, bfloat16 values are 1.2e-04 apart; of weights sampled from N(0, 0.02) "
        f"about {moved:.1%} can change",
        "hint: --set train.dtype=float32 trains all of them; --set grpo.optim=adamw_8bit or --lora r=16 save memory "
        "instead; --set grpo.optim=adamw_torch_8bit --set grpo.optim_args=bf16_stochastic_round=true (needs torchao) "
        "keeps 16 bits and rounds stochastically",
    ]


def _needs(memory: Memory, *, each: str) -> Iterator[str]:
    for phase in PHASES:
        total = memory.total(phase)
        if total:
            terms = sorted(memory.terms(phase).items(), key=lambda term: -term[1])
            large = [f"{name} {_gib(size)}" for name, size in terms if size >= 0.05 * total]
            rest = sum(size for _, size in terms if size < 0.05 * total)
            vllm = f", and {memory.vllm[phase]:.0%} of the card for vLLM" if phase in memory.vllm else ""
            during = "mining and evaluating" if phase == "evaluating" else phase
            where = "" if phase == "evaluating" else each
            named = ", ".join([*large, f"rest {_gib(rest)}"] if rest else large)
            yield f"memory: {_gib(total)}{where} while {during}{vllm}: {named}"


def _fitting(memory: Memory, machine: Machine) -> str:
    if machine.gpu:
        fits = "fits" if memory.fits(machine.gpu_memory) else "does not fit"
        least, most = _gib(machine.gpu_memory), _gib(machine.largest_gpu_memory)
        if machine.largest_gpu_memory > machine.gpu_memory:
            smallest = f"the smallest of {machine.gpus} GPUs here, the {machine.gpu} with {least}"
            return f"memory: it {fits} {smallest}; the largest has {most}"
        return f"memory: it {fits} the {machine.gpu} here, which has {least}"
    small = [str(size) for size in SIZES if not memory.fits(size * GIB)]
    if len(small) == len(SIZES):
        return f"memory: it fits no GPU of {', '.join(small)} GB; this machine has none"
    but = f", not of {' or '.join(small)}" if small else ""
    return f"memory: it fits a GPU of {SIZES[len(small)]} GB{but}; this machine has none"


def _hint(found: Advice | None, card: float) -> str:
    if found is None:
        return f"hint: no settings were found that fit {_gib(card)}: take a smaller model or shorter turns"
    costs = "; ".join(COSTS[key] for key in found.settings if key in COSTS)
    return f"hint: {found.flags} makes it {_gib(found.memory.need)}, which fits {_gib(card)} ({costs})"


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
