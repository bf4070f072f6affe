"""The options of TRL's GRPOConfig: which of them r3 owns, and what their batch sizes come to, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from math import gcd, lcm
from typing import Any

from pydantic import ValidationError

from r3core.errors import ConfigError, did_you_mean

OWNED = {
    "output_dir": "set `output_dir`",
    "seed": "set `seed`",
    "data_seed": "set `seed`",
    "model_init_kwargs": "set `model`, `revision` and `dtype`",
    "trust_remote_code": "set `trust_remote_code`",
    "resume_from_checkpoint": "leave it out: the same command goes on where it was stopped",
    "remove_unused_columns": "leave it out: the reward needs every column",
    "reward_weights": "leave it out: there is one reward, the verdict of the retry",
    "chat_template_kwargs": "leave it out: put the template you want into the model's folder, as chat_template.jinja",
    "do_eval": "see `evaluate`",
    "eval_on_start": "see `evaluate`",
    "eval_strategy": "see `evaluate`",
}
"""Options of GRPOConfig that are not set under `grpo`, and what to do instead."""


def check_grpo(grpo: Mapping[str, Any]) -> None:
    """Raise ConfigError when TRL's GRPOConfig has no such option, when r3 owns it, or when a number is none."""
    from types import NoneType
    from typing import get_args, get_type_hints

    from pydantic import TypeAdapter
    from trl.trainer.grpo_config import GRPOConfig

    types = get_type_hints(GRPOConfig)
    known = sorted(set(GRPOConfig.__dataclass_fields__) - OWNED.keys())
    for key, value in grpo.items():
        if key in OWNED:
            raise ConfigError(f"`grpo.{key}` is not set here", OWNED[key])
        if key not in known:
            raise ConfigError(f"TRL's GRPOConfig has no option `{key}`", *did_you_mean(key, known))
        if set(get_args(types[key]) or [types[key]]) <= {bool, int, float, NoneType}:
            try:
                TypeAdapter(types[key]).validate_python(value, strict=True)
            except ValidationError as error:
                said = error.errors()[0]["msg"].replace("Input should", "it should")
                raise ConfigError(f"`grpo.{key}` cannot be {value!r}: {said}") from None


def check_training(grpo: Mapping[str, Any], options: Mapping[str, Any], world_size: int = 1) -> list[str]:
    """Return what one step trains on, in words; ConfigError when training could not begin with these options.

    `grpo` is what was set under that name, `options` is all that GRPOConfig will be given in `world_size` processes.
    """
    check_grpo(grpo)
    if options.get("max_steps", -1) <= 0:
        raise ConfigError("`grpo.max_steps` is not set", "say how long to train: --set grpo.max_steps=100")
    return explain_batch(options, world_size)


def check_vllm(options: Mapping[str, Any]) -> None:
    """Raise ConfigError when training wants vLLM, and this machine has none; a dry run may plan for another one."""
    if options.get("use_vllm") and find_spec("vllm") is None:
        raise ConfigError("`grpo.use_vllm` is set, and vLLM is not installed", "pip install 'r3core[vllm]'")


def explain_batch(grpo: Mapping[str, Any], world_size: int = 1) -> list[str]:
    """Return what one step trains on, in words, for `world_size` processes; ConfigError when TRL would refuse it.

    The arithmetic is that of GRPOConfig in TRL 1.16; a generation batch holds whole groups only.
    """
    from trl.trainer.grpo_config import GRPOConfig

    given: dict[str, Any] = {key: field.default for key, field in GRPOConfig.__dataclass_fields__.items()} | dict(grpo)
    device, accumulation, group, reuse = (
        _count(given, key)
        for key in ("per_device_train_batch_size", "gradient_accumulation_steps", "num_generations", "num_iterations")
    )
    step = device * world_size * accumulation
    generated = _generation_batch(given, device * world_size)
    if group < 2:
        raise ConfigError(f"`grpo.num_generations` cannot be {group}: a group has at least 2 reflections")
    if generated % group:
        raise ConfigError(
            f"{generated} reflections are generated at a time, and that is no multiple of "
            f"`grpo.num_generations` = {group}",
            *_ways_out(given, group, generated=generated, micro=device * world_size),
        )
    failures = step / (group * reuse)
    processes = f"{world_size} process{'es' if world_size > 1 else ''}"
    lines = [
        f"a step trains on {step} reflections = per_device_train_batch_size {device} "
        f"x gradient_accumulation_steps {accumulation} x {processes}",
        f"{generated} reflections are generated at a time = {generated // group} failures x num_generations {group}",
    ]
    if reuse > 1 or generated != step:
        lines.append(f"each generation serves {generated * reuse / step:g} steps")
    if given["max_steps"] > 0:
        used = f"max_steps {given['max_steps']} use {given['max_steps'] * failures:g} failures"
    else:
        used = f"num_train_epochs {given['num_train_epochs']:g} over the failures"
    return [*lines, f"{used}, {failures:g} a step"]


def _count(given: Mapping[str, Any], key: str) -> int:
    value = given[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"`grpo.{key}` cannot be {value!r}: it should be a whole number of at least 1")
    return value


def _generation_batch(given: Mapping[str, Any], micro: int) -> int:
    """Return how many reflections are generated at a time, when `micro` go through the model at once."""
    batch, steps = given["generation_batch_size"], given["steps_per_generation"]
    if batch is not None and steps is not None:
        raise ConfigError("`grpo.generation_batch_size` and `grpo.steps_per_generation` exclude each other", "set one")
    if batch is None:
        return micro * _count(given, "steps_per_generation" if steps is not None else "gradient_accumulation_steps")
    if _count(given, "generation_batch_size") % micro:
        valid = _around(batch, micro)
        raise ConfigError(
            f"`grpo.generation_batch_size` cannot be {batch}: it should be a multiple of {micro}, "
            "which is per_device_train_batch_size x processes",
            f"it can be {valid}",
        )
    return int(batch)


def _ways_out(given: Mapping[str, Any], group: int, *, generated: int, micro: int) -> tuple[str, ...]:
    """Return hints: the numbers nearest to those given that fit together."""
    divisors = [number for number in range(2, generated + 1) if generated % number == 0]
    nearest = sorted(sorted(divisors, key=lambda number: abs(number - group))[:4])
    hints = [f"num_generations can be {_listed(nearest)}"] if nearest else []
    if given["generation_batch_size"] is not None:
        return (*hints, f"generation_batch_size can be {_around(generated, lcm(micro, group))}")
    key = "gradient_accumulation_steps" if given["steps_per_generation"] is None else "steps_per_generation"
    return (*hints, f"{key} can be {_around(generated // micro, group // gcd(group, micro))}")


def _around(value: int, unit: int) -> str:
    """Return the multiples of `unit` just below and above a value that is none."""
    below = value // unit * unit
    return _listed([number for number in (below, below + unit) if number])


def _listed(numbers: Sequence[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last
