"""What a run needs, before it is begun: memory and time from the shape of its model, and what to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from r3core.config import Config
from r3core.errors import UsageError
from r3core.estimate.advice import RANK, Advice, advice
from r3core.estimate.memory import PHASES, Memory, memory_of
from r3core.estimate.plan import Plan, plan_of
from r3core.estimate.rounding import warning_of
from r3core.estimate.shape import Shape, read_config, shape_of
from r3core.estimate.speed import CARDS, Device, card_of, seconds_of, this_processor
from r3core.task import Frozen

__all__ = [
    "Advice",
    "Machine",
    "Memory",
    "Plan",
    "Shape",
    "advice",
    "clock",
    "explain",
    "memory_of",
    "plan_of",
    "read_config",
    "shape_of",
]

GIB = 2**30
SIZES = (24, 40, 80)
"""GB of the cards that a machine without one is told about."""
_DRAWN = 0.05  # smaller shares of the memory are not named


class Machine(Frozen):
    """What a run would be on."""

    gpu: str | None = None
    """The name of the first GPU, as CUDA gives it."""
    gpu_memory: float = 0.0
    """Its bytes."""
    gpus: int = 0
    """How many GPUs there are."""
    memory: float | None = None
    """Bytes of main memory; None where they cannot be known."""

    @classmethod
    def here(cls) -> Machine:
        """Return what this process runs on."""
        import torch

        memory = _main_memory()
        if not torch.cuda.is_available():
            return cls(memory=memory)
        gpu = torch.cuda.get_device_properties(0)
        return cls(gpu=gpu.name, gpu_memory=gpu.total_memory, gpus=torch.cuda.device_count(), memory=memory)


def explain(
    config: Config,
    model: str,
    *,
    processes: int = 1,
    sharded: bool = False,
    forecast: Mapping[str, float] | None = None,
    machine: Machine | None = None,
) -> list[str]:
    """Return what a run of `model` needs, in words: one line when the model's shape cannot be had.

    `forecast` is that of the run's mining, when it is over; `sharded` tells that the processes are under FSDP.
    """
    try:
        read = read_config(model, revision=config.revision, trust_remote_code=config.trust_remote_code)
        shape = shape_of(read, lora=config.lora)
    except UsageError as error:
        return [f"estimate: none; {error.message}"]
    machine = machine or Machine.here()
    plan = plan_of(config, shape, processes=processes, sharded=sharded)
    memory = memory_of(shape, plan)
    card = machine.gpu_memory if machine.gpu else SIZES[-1] * GIB
    plans = [plan] if machine.gpu else [plan, plan_of(config, shape, processes=processes, sharded=sharded, cuda=False)]
    warned = [warning for given in plans for warning in warning_of(shape, given)][:2]
    lines = [*warned, *_needs(memory, plan), _fitting(memory, machine)]
    if not memory.fits(card):
        gpus = machine.gpus if machine.gpu else None
        given = advice(shape, plan, card, with_lora=lambda: shape_of(read, lora={"r": RANK}), gpus=gpus)
        lines += _hints(given, card)
    if machine.gpu is None:
        lines += _without_gpu(config, shape, processes, machine=machine, forecast=forecast)
    for device in _devices(memory, machine):
        lines.append(_time(config, shape, plan, device, forecast if machine.gpu else None))
    return [*lines, _source(shape, plan)]


def _fitting(memory: Memory, machine: Machine) -> str:
    if machine.gpu:
        fits = "fits" if memory.fits(machine.gpu_memory) else "does not fit"
        return f"memory: it {fits} the {machine.gpu} here, which has {_gib(machine.gpu_memory)}"
    few = [str(size) for size in SIZES if not memory.fits(size * GIB)]
    if len(few) == len(SIZES):
        return f"memory: it fits no GPU of {', '.join(few)} GB; none is here"
    return f"memory: it fits a GPU of {SIZES[len(few)]} GB{', not of ' + ' or '.join(few) if few else ''}; none is here"


def _without_gpu(
    config: Config, shape: Shape, processes: int, *, machine: Machine, forecast: Mapping[str, float] | None
) -> list[str]:
    """Say what the same run would take on the processor, where r3 computes in the type of the weights."""
    plan = plan_of(config, shape, processes=processes, cuda=False)
    memory = memory_of(shape, plan)
    if machine.memory is not None and memory.fits(machine.memory):
        return [_time(config, shape, plan, this_processor(), forecast)]
    has = f", and this machine has {_gib(machine.memory)}" if machine.memory else ""
    return [f"memory: without a GPU it would take {_gib(memory.need)} of main memory{has}"]


def _devices(memory: Memory, machine: Machine) -> list[Device]:
    """Return the GPU that is here, if its speed is known; without one, two of the smallest size that is enough."""
    if machine.gpu:
        known = card_of(machine.gpu)
        return [known] if known else []
    names = ("L4", "4090") if memory.fits(24 * GIB) else ("A100", "H100") if memory.fits(80 * GIB) else ()
    return [CARDS[name] for name in names]


def _needs(memory: Memory, plan: Plan) -> Iterator[str]:
    for phase in PHASES:
        if not memory.terms(phase):
            continue
        share = memory.share(phase)
        terms = sorted(memory.terms(phase).items(), key=lambda term: -term[1])
        named = [f"{name} {_gib(size)}" for name, size in terms if size >= _DRAWN * memory.total(phase)]
        rest = sum(size for _, size in terms if size < _DRAWN * memory.total(phase))
        if rest:
            named.append(f"rest {_gib(rest)}")
        vllm = f", and {share:.0%} of the card for vLLM" if share else ""
        each = " on each device" if plan.processes > 1 and phase != "evaluating" else ""
        during = "mining and evaluating" if phase == "evaluating" else phase
        yield f"memory: {_gib(memory.total(phase))}{each} while {during}{vllm}: {', '.join(named)}"


def _hints(given: list[Advice], card: float) -> Iterator[str]:
    for number, suggestion in enumerate(given):
        need = _gib(suggestion.memory.need)
        end = f", which fits {_gib(card)}" if suggestion.fits else ""
        yield f"hint: {'and ' if number else ''}{suggestion.change} makes it {need}{end} ({suggestion.cost})"
    if not given or not given[-1].fits:
        yield f"hint: {'still, ' if given else ''}it does not fit {_gib(card)}: take a smaller model or shorter turns"


def _time(config: Config, shape: Shape, plan: Plan, device: Device, forecast: Mapping[str, float] | None) -> str:
    seconds = seconds_of(config, shape, plan, device, forecast=forecast)
    steps = config.grpo.get("max_steps", -1)
    said = f"time: up to about {clock(seconds.step)} a step on {device.name}"
    said += f": generation {clock(seconds.generating)}{' (measured)' if seconds.measured else ''}"
    said += f", training {clock(seconds.training)}"
    if steps > 0:
        said += f"; {steps:,} steps {clock(steps * seconds.step)}"
    if seconds.mining is not None and not seconds.measured:
        said += f", mining {clock(seconds.mining)}"
    return said


def _source(shape: Shape, plan: Plan) -> str:
    trained = f", {shape.trainable:,} of them trained" if shape.lora else ""
    experts = ", all experts counted" if shape.experts else ""
    return (
        f"estimate: arithmetic, no measurement, on {shape.architecture} with {shape.parameters:,} parameters"
        f"{trained}{experts}, prompts of {plan.prompt} tokens and turns at their limits; "
        "memory is often a tenth off; most turns end long before their limits, so that time can be ten times less"
    )


def _main_memory() -> float | None:
    import os

    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # Windows cannot be asked so
        return None


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= 0.95 * GIB / 10 else f"{size / 2**20:.1f} MiB"


def clock(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    for unit, length in (("days", 86400 * 2), ("h", 5400), ("min", 90)):
        if seconds >= length:
            return f"{seconds / {'days': 86400, 'h': 3600, 'min': 60}[unit]:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"
