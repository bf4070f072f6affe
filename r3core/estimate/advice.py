"""What to change when a run does not fit, in order of least harm, each with the need that it was seen to lead to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from r3core.estimate.memory import Memory, memory_of, trained_bytes
from r3core.estimate.plan import Plan
from r3core.estimate.shape import Shape
from r3core.task import Frozen

RANK = 16
"""The rank of the adapters that are suggested."""
_MOST_PROCESSES = 8
"""No more are suggested for a machine that is not this one."""


class Advice(Frozen):
    """One change of the settings, on top of those before it."""

    change: str
    cost: str
    """What it costs beside memory."""
    memory: Memory
    """The memory with this change."""
    fits: bool


def advice(
    shape: Shape,
    plan: Plan,
    card: float,
    *,
    with_lora: Callable[[], Shape] | None = None,
    gpus: int | None = None,
) -> list[Advice]:
    """Return changes, each on top of those before it and each of which lowers the need, until a device is enough.

    What turns out not to be needed beside a later change is left out: a model that fits with LoRA alone is not also
    split into smaller parts. `with_lora` returns the model's shape with adapters of rank 16; `gpus` are those of this
    machine, None when the run would be on another one.
    """
    changes = list(_changes(cache(with_lora) if with_lora is not None else None, gpus))
    given = _applied(changes, shape, plan, card)
    if not given or not given[-1].fits:
        return given
    for index in reversed(range(len(changes))):
        fewer = changes[:index] + changes[index + 1 :]
        without = _applied(fewer, shape, plan, card)
        same = {one.change for one in without} <= {one.change for one in given}
        if without and without[-1].fits and same:
            changes, given = fewer, without
    return given


Change = Callable[[Shape, Plan, float], tuple[Shape, Plan] | None]


def _applied(changes: Sequence[tuple[str, str, Change]], shape: Shape, plan: Plan, card: float) -> list[Advice]:
    """Return those of the changes that lower the need, one after the other until the device is enough."""
    given: list[Advice] = []
    memory = memory_of(shape, plan)
    for change, cost, make in changes:
        if memory.fits(card):
            break
        changed = make(shape, plan, card)
        if changed is None:
            continue
        after = memory_of(*changed)
        if after.need < memory.need:
            (shape, plan), memory = changed, after
            said = change.format(plan=plan)
            given.append(Advice(change=said, cost=cost, memory=memory, fits=memory.fits(card)))
    return given


def _changes(with_lora: Callable[[], Shape] | None, gpus: int | None) -> Iterator[tuple[str, str, Change]]:
    """Yield what to set, what it costs, and what changes shape and plan; None where nothing changes."""
    batch = "--set batch_size={plan.batch_size}", "slower generation", _narrow
    micro = (
        "--set grpo.per_device_train_batch_size={plan.rows} --set grpo.gradient_accumulation_steps={plan.accumulation}"
    )
    split = micro, "the same batch, in smaller parts", _split
    processes = "--processes {plan.processes} --set grpo.gradient_accumulation_steps={plan.accumulation}"
    eight = "--set grpo.optim=adamw_8bit", "AdamW's states in 8 bits, needs bitsandbytes", _eight_bits
    yield "--set grpo.gradient_checkpointing=true", "a third more time in training", _checkpoint
    yield batch
    yield split
    if gpus is not None:
        yield processes, "the other GPUs of this machine", _shard(gpus)
    yield eight
    yield "--set grpo.beta=0", "no KL term holds the model near its start", _free
    yield eight
    if with_lora is not None:
        yield (
            f"--set lora.r={RANK}",
            "only LoRA adapters are trained, and they take a larger learning rate",
            _adapt(with_lora),
        )
    yield batch  # once training needs less, generation may be what does not fit
    yield split
    if gpus is None:
        yield processes, "as many GPUs", _shard(_MOST_PROCESSES)
    if with_lora is not None:
        yield "--set quantization=4bit --set train.merge=false", "coarser weights, slower", _quantize


def _checkpoint(shape: Shape, plan: Plan, card: float) -> tuple[Shape, Plan] | None:
    return None if plan.checkpointing else (shape, _but(plan, checkpointing=True))


def _narrow(shape: Shape, plan: Plan, card: float) -> tuple[Shape, Plan] | None:
    """Generate fewer conversations at once, until that fits or training is what needs more."""
    rows = plan.batch_size if plan.evaluates else min(plan.batch_size, plan.generated * plan.retries)
    while rows > 8:
        memory = memory_of(shape, _but(plan, batch_size=rows))
        fits = memory.enough(card, "generating") and memory.enough(card, "evaluating")
        if fits or memory.phase == "training":
            break
        rows //= 2
    return (shape, _but(plan, batch_size=rows)) if rows < plan.batch_size else None


def _split(shape: Shape, plan: Plan, card: float) -> tuple[Shape, Plan] | None:
    """Halve the rows of a pass, and double the passes, until it fits or one row is left."""
    changed = plan
    while changed.rows % 2 == 0 and not memory_of(shape, changed).enough(card, "training"):
        changed = _but(
            changed,
            rows=changed.rows // 2,
            accumulation=changed.accumulation * 2,
            steps_per_generation=changed.steps_per_generation * 2,
        )
    return (shape, changed) if changed != plan else None


def _free(shape: Shape, plan: Plan, card: float) -> tuple[Shape, Plan] | None:
    return (shape, _but(plan, beta=0.0)) if plan.beta and not shape.lora else None


def _eight_bits(shape: Shape, plan: Plan, card: float) -> tuple[Shape, Plan] | None:
    """Keep AdamW's states in 8 bits, in one process, and where that is enough."""
    if shape.lora or plan.sharded or not plan.optimizer.startswith("adamw_torch") or trained_bytes(shape, plan) == 2:
        return None
    changed = _but(plan, optimizer="adamw_8bit")
    return (shape, changed) if memory_of(shape, changed).fits(card) else None


def _adapt(with_lora: Callable[[], Shape]) -> Change:
    def adapt(shape: Shape, plan: Plan, card: float) -> tuple[Shape, Plan] | None:
        return None if shape.lora else (with_lora(), plan)

    return adapt


def _quantize(shape: Shape, plan: Plan, card: float) -> tuple[Shape, Plan] | None:
    return (shape, _but(plan, quantized=True)) if shape.lora and not plan.quantized and not plan.sharded else None


def _shard(most: int) -> Change:
    """Divide among 2, 4, 8 ... processes, with as many passes fewer: the batch stays the same."""

    def shard(shape: Shape, plan: Plan, card: float) -> tuple[Shape, Plan] | None:
        if plan.processes > 1 or plan.quantized:
            return None
        changed = plan
        while changed.processes * 2 <= most:
            memory = memory_of(shape, changed)
            if memory.enough(card, "training") and memory.enough(card, "generating"):
                break
            if changed.accumulation % 2 or changed.steps_per_generation % 2:
                break
            changed = _but(
                changed,
                processes=changed.processes * 2,
                sharded=True,
                accumulation=changed.accumulation // 2,
                steps_per_generation=changed.steps_per_generation // 2,
            )
        return None if changed == plan else (shape, changed)

    return shard


def _but(plan: Plan, **changes: Any) -> Plan:
    return plan.model_copy(update=changes)
