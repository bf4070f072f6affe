"""What a run needs, before it is begun: memory and time from the shape of its model, and what to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from r3core.config import Config
from r3core.errors import UsageError
from r3core.estimate.advice import Advice, advice
from r3core.estimate.memory import Memory, memory_of
from r3core.estimate.plan import Plan, plan_of
from r3core.estimate.shape import Shape, read_config, shape_of
from r3core.estimate.speed import CARDS, Device, card_of, seconds_of, this_processor

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["Advice", "Memory", "Plan", "Shape", "advice", "explain", "memory_of", "plan_of", "read_config", "shape_of"]

GIB = 2**30
SIZES = (24, 40, 80)
"""GB of the cards that a machine without one is told about."""
_DRAWN = 0.05  # smaller shares of the memory are not named


def explain(
    config: Config,
    model: str,
    *,
    processes: int = 1,
    sharded: bool = False,
    forecast: Mapping[str, float] | None = None,
) -> list[str]:
    """Return what a run of `model` needs, in words: one line when the model's shape cannot be had.

    `forecast` is that of the run's mining, when it is over.
    """
    lora = getattr(config, "lora", None)
    try:
        read = read_config(model, revision=config.revision, trust_remote_code=config.trust_remote_code)
        shape = shape_of(read, lora=lora)
    except UsageError as error:
        return [f"estimate: none; {error.message}"]
    plan = plan_of(config, shape, processes=processes, sharded=sharded)
    return list(_lines(config, shape, plan, read, forecast))


def _lines(
    config: Config, shape: Shape, plan: Plan, read: PretrainedConfig, forecast: Mapping[str, float] | None
) -> Iterator[str]:
    here = _gpu()
    memory = memory_of(shape, plan)
    yield from _needs(memory, plan)
    card = here[1] if here else SIZES[-1] * GIB
    if here:
        yield f"memory: {'fits' if memory.fits(card) else 'does not fit'} the {here[0]} here, of {_gib(card)}"
    else:
        yield f"memory: {_which(memory)}; no GPU is here"
        yield _on_this_processor(config, shape, plan, forecast)
    if not memory.fits(card):
        given = advice(shape, plan, card, with_lora=lambda: shape_of(read, lora={"r": 16}))
        yield from _suggestions(given, card)
    known = card_of(here[0]) if here else None
    if here and known is None:
        yield f"time: not known for the {here[0]}; {', '.join(card.name for card in CARDS.values())} are"
    elif known is not None:
        yield _time(config, shape, plan, known, forecast)
    elif memory.fits(card):
        for device in _enough(memory):
            yield _time(config, shape, plan, device, None)
    yield _source(shape, plan)


def _needs(memory: Memory, plan: Plan) -> Iterator[str]:
    for phase, share in (("training", memory.vllm), ("generating", memory.vllm_generating)):
        terms = sorted(memory.terms(phase).items(), key=lambda term: -term[1])
        named = [f"{name} {_gib(size)}" for name, size in terms if size >= _DRAWN * memory.total(phase)]
        rest = sum(size for _, size in terms if size < _DRAWN * memory.total(phase))
        if rest:
            named.append(f"rest {_gib(rest)}")
        vllm = f", and {share:.0%} of the card for vLLM" if share else ""
        each = " on each device" if plan.processes > 1 else ""
        yield f"memory: {_gib(memory.total(phase))}{each} while {phase}{vllm}: {', '.join(named)}"


def _which(memory: Memory) -> str:
    fitting = [size for size in SIZES if memory.fits(size * GIB)]
    if not fitting:
        return f"fits no card of {', '.join(map(str, SIZES))} GB"
    few = [size for size in SIZES if size < fitting[0]]
    return f"fits a card of {fitting[0]} GB" + (f", not of {' or '.join(map(str, few))}" if few else "")


def _enough(memory: Memory) -> list[Device]:
    """Return cards that the run fits: those of 24 GB, or those of 80."""
    return [CARDS[name] for name in (("L4", "4090") if memory.fits(24 * GIB) else ("A100", "H100"))]


def _on_this_processor(config: Config, shape: Shape, plan: Plan, forecast: Mapping[str, float] | None) -> str:
    """Say what the same run would need without a GPU, where r3 computes in the type of the weights."""
    plan = plan_of(config, shape, processes=plan.processes, sharded=plan.sharded, cuda=False)
    memory = memory_of(shape, plan)
    ram = _ram()
    if ram is None or not memory.fits(ram):
        has = f", and this machine has {_gib(ram)}" if ram else ""
        return f"memory: without a GPU it would be {_gib(memory.need)} of main memory{has}"
    return _time(config, shape, plan, this_processor(), forecast)


def _suggestions(given: list[Advice], card: float) -> Iterator[str]:
    for number, suggestion in enumerate(given):
        need = _gib(suggestion.memory.need)
        end = f", which fits {_gib(card)}" if suggestion.fits else ""
        yield f"hint: {'and ' if number else ''}{suggestion.change} makes it {need}{end} ({suggestion.cost})"
    if not given or not given[-1].fits:
        yield f"hint: {'still, ' if given else ''}it does not fit {_gib(card)}: take a smaller model or shorter turns"


def _time(config: Config, shape: Shape, plan: Plan, device: Device, forecast: Mapping[str, float] | None) -> str:
    seconds = seconds_of(config, shape, plan, device, forecast=forecast)
    steps = config.grpo.get("max_steps", -1)
    said = f"time: up to about {_clock(seconds.step)} a step on {device.name}"
    said += f": generation {_clock(seconds.generating)}{' (measured)' if seconds.measured else ''}"
    said += f", training {_clock(seconds.training)}"
    if steps > 0:
        said += f"; {steps:,} steps {_clock(steps * seconds.step)}"
    if seconds.mining is not None and not seconds.measured:
        said += f", mining {_clock(seconds.mining)}"
    return said


def _source(shape: Shape, plan: Plan) -> str:
    trained = f", {shape.trainable:,} of them trained" if shape.lora else ""
    experts = ", all experts counted" if shape.experts else ""
    return (
        f"estimate: arithmetic, no measurement, on {shape.architecture} with {shape.parameters:,} parameters"
        f"{trained}{experts}, prompts of {plan.prompt} tokens and turns at their limits; "
        "memory may be wrong by a quarter, time by a factor of 3"
    )


def _gpu() -> tuple[str, float] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return properties.name, float(properties.total_memory)


def _ram() -> float | None:
    import os

    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # Windows has no such question
        return None


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= 0.95 * GIB / 10 else f"{size / 2**20:.1f} MiB"


def _clock(seconds: float) -> str:
    for unit, length in (("days", 86400 * 2), ("h", 5400), ("min", 90)):
        if seconds >= length:
            return f"{seconds / {'days': 86400, 'h': 3600, 'min': 60}[unit]:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"
