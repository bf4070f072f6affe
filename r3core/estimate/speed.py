"""The time of a run, as arithmetic on what a device can do at best and on the share of it that is usually had."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil
from time import perf_counter

from r3core.config import Config
from r3core.estimate.memory import cache, generation_copy, untrained, weights
from r3core.estimate.plan import Plan
from r3core.estimate.shape import Shape
from r3core.task import Frozen


class Device(Frozen):
    """What computes, and how fast it can."""

    name: str
    flops: float
    """Operations a second in dense matrix products of 16 bits, at best."""
    bandwidth: float
    """Bytes of memory a second, at best."""
    computing: float = 0.4
    """The share of `flops` that training and reading prompts usually get."""
    reading: float = 0.6
    """The share of `bandwidth` that writing tokens usually gets."""
    launch: float = 1e-3
    """Seconds that a layer takes to be started for one token, in transformers: the least it can take."""


CARDS = {
    "L4": Device(name="L4", flops=121e12, bandwidth=300e9),
    "4090": Device(name="RTX 4090", flops=165e12, bandwidth=1008e9),
    "A100": Device(name="A100 80 GB", flops=312e12, bandwidth=2039e9),
    "H100": Device(name="H100", flops=989e12, bandwidth=3350e9),
}
"""Known GPUs, by a word in their names: NVIDIA's data sheets, without sparsity, of the SXM form where there is one."""
_VLLM = 0.1  # CUDA graphs start a layer in about this share of the time


class Seconds(Frozen):
    """The seconds of one step, and of mining before all steps."""

    generating: float
    training: float
    mining: float | None = None
    """None where the number of problems is not known."""
    measured: bool = False
    """The time of generation is that of the forecast after mining."""

    @property
    def step(self) -> float:
        """Seconds of one step."""
        return self.generating + self.training


def seconds_of(
    config: Config, shape: Shape, plan: Plan, device: Device, *, forecast: Mapping[str, float] | None = None
) -> Seconds:
    """Return the seconds of a step in which every turn is as long as it may be, verification not counted.

    With the forecast of a mined run, generation takes the seconds, and training the lengths, that were measured.
    """
    reflections = plan.step // plan.processes
    written = float(plan.reflection)
    if forecast is not None:
        # the forecast is of one reflection with all its retries
        written = min(written, forecast["tokens"] * plan.reflection / (plan.reflection + plan.retries * plan.retry))
        generating = forecast["seconds"] * reflections / plan.iterations
    else:
        reflect = _writing(shape, plan, device, count=reflections, before=plan.asked, written=plan.reflection)
        before = plan.asked + plan.reflection
        retry = _writing(shape, plan, device, count=reflections * plan.retries, before=before, written=plan.retry)
        generating = (reflect + retry) / plan.iterations
    training = reflections * (plan.asked + written) * update_flops(shape, plan) / (device.computing * device.flops)
    mining = None
    if config.mine.failures is None and config.mine.limit is not None:
        count = config.mine.limit * config.mine.samples  # by one process
        saved = untrained(plan, plan.dtype_bytes)
        mining = _writing(shape, saved, device, count=count, before=plan.prompt, written=plan.attempt)
    return Seconds(generating=generating, training=training, mining=mining, measured=forecast is not None)


def update_flops(shape: Shape, plan: Plan) -> float:
    """Return the operations for each trained token: 2 a parameter forward, 4 backward (arXiv 2001.08361).

    LoRA spares the 2 for gradients of weights, checkpointing goes forward once more, and so does the reference.
    """
    passes = (4 if shape.lora else 6) + 2 * plan.checkpointing + 2 * bool(plan.beta)
    return float(passes * shape.parameters)


def card_of(name: str) -> Device | None:
    """Return what is known of a GPU by the name that CUDA gives it; None when it is not in the list."""
    return next((device for word, device in CARDS.items() if word in name.replace("-", " ").split()), None)


def this_processor() -> Device:
    """Return what this machine's processor does in a short product of matrices and a copy; half of it is counted on."""
    import torch

    square = torch.ones(512, 512)
    long = torch.ones(2**23)
    return Device(
        name="this processor",
        flops=2 * 512**3 / _fastest(lambda: square @ square),
        bandwidth=2 * 4 * 2**23 / _fastest(long.clone),
        computing=0.5,
        reading=0.5,
        launch=2e-4,
    )


def _writing(shape: Shape, plan: Plan, device: Device, *, count: int, before: int, written: int) -> float:
    """Return the seconds in which `count` conversations are each continued by `written` tokens.

    For each token of a batch all weights and the cache are read once, or 2 operations a parameter and row are done, or
    the layers are started: what takes longest decides. Prompts go through the model at 2 operations a parameter. vLLM
    has the weights in the dtype that the trainer computes in.
    """
    if plan.served and plan.amp:
        plan = untrained(plan, 2)
    batch = count if plan.served else min(count, plan.batch_size)
    start = device.launch * (_VLLM if plan.served else 1.0) * shape.layers
    kept = cache(shape, plan, rows=batch, tokens=before + written // 2)
    compute = device.computing * device.flops
    moved = (bytes_a_token(shape, plan) + kept) / (device.reading * device.bandwidth)
    token = max(start, moved, 2 * shape.parameters * batch / compute)
    prompts = 2 * shape.parameters * count * before / compute
    return ceil(count / max(1, batch)) * written * token + prompts


def bytes_a_token(shape: Shape, plan: Plan) -> int:
    """Return the bytes of weights that are moved for one token of a batch.

    All weights are read once. Under autocast on 32-bit weights, each token makes the 16-bit copies anew: they are
    written once and read once on top. FSDP2 has gathered the weights in 16 bits before.
    """
    if plan.sharded and plan.amp:
        return 2 * shape.parameters
    return weights(shape, plan.model_copy(update={"sharded": False})) + 2 * generation_copy(shape, plan)


def _fastest(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(5):
        began = perf_counter()
        work()
        best = min(best, perf_counter() - began)
    return best
