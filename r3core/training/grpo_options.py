"""The options of TRL's GRPOConfig: which of them r3 sets itself, what values they may have, and the batch arithmetic.

Everything here is checked before mining starts, so that hours of work do not end in an error of TRL's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from math import ceil, gcd, lcm
from typing import Any

from pydantic import ValidationError

from r3core.errors import ConfigError, did_you_mean

OWNED = {
    "output_dir": "set `output_dir`",
    "seed": "set `seed`",
    "data_seed": "set `seed`",
    "model_init_kwargs": "set `model`, `revision` and `dtype`",
    "trust_remote_code": "set `trust_remote_code`",
    "resume_from_checkpoint": "leave it out: run the same command to resume",
    "remove_unused_columns": "leave it out: the reward requires every column",
    "reward_weights": "leave it out: there is one reward, the verdict of the retry",
    "chat_template_kwargs": "set the arguments under `template`, for example template.enable_thinking=false",
    "do_eval": "set `evaluate.every`",
    "eval_on_start": "set `evaluate.every`",
    "eval_strategy": "set `evaluate.every`",
}
"""Options of GRPOConfig that r3 sets itself, and what to do instead of setting them under `grpo`."""

CHOICES: dict[str, tuple[str, ...]] = {
    "importance_sampling_level": ("token", "sequence"),
    "loss_type": ("bnpo", "cispo", "dapo", "dr_grpo", "grpo", "luspo", "sapo", "vespo"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "scale_rewards": ("group", "batch", "none"),
    "vllm_importance_sampling_mode": ("sequence_mask", "sequence_truncate", "token_mask", "token_truncate"),
    "vllm_mode": ("colocate", "server"),
}
"""The values of text options that TRL 1.16 checks only in its trainer."""
_TRUNCATING: dict[str, tuple[float | None, ...]] = {
    "top_p": (1.0, None),
    "top_k": (0, -1, None),
    "min_p": (None, 0.0),
    "repetition_penalty": (1.0, None),
}
"""Sampling options that change the probabilities of the sampled tokens, with the values that turn each off."""


def check_grpo(grpo: Mapping[str, Any]) -> None:
    """Raise ConfigError when an option is unknown to TRL's GRPOConfig, is set by r3, or has an invalid value."""
    from types import NoneType
    from typing import get_args, get_type_hints

    from pydantic import TypeAdapter
    from trl.trainer.grpo_config import GRPOConfig

    types = get_type_hints(GRPOConfig)
    known = sorted(set(GRPOConfig.__dataclass_fields__) - OWNED.keys())
    for key, value in grpo.items():
        if key in OWNED:
            raise ConfigError(f"`grpo.{key}` is set by r3", OWNED[key])
        if key not in known:
            raise ConfigError(f"TRL's GRPOConfig has no option `{key}`", *did_you_mean(key, known))
        if set(get_args(types[key]) or [types[key]]) <= {bool, int, float, NoneType}:
            try:
                TypeAdapter(types[key]).validate_python(value, strict=True)
            except ValidationError as error:
                reason = error.errors()[0]["msg"].replace("Input should", "it should")
                raise ConfigError(f"`grpo.{key}` cannot be {value!r}: {reason}") from None
        _check_choice(key, value, _choices_of(key, types[key]))
    _check_report_to(grpo.get("report_to"))


def _choices_of(key: str, kind: Any) -> tuple[str, ...]:
    """Return the allowed values of a text option; empty when any text is allowed."""
    from enum import Enum
    from typing import get_args

    enums = [one for one in get_args(kind) if isinstance(one, type) and issubclass(one, Enum)]
    return CHOICES.get(key) or tuple(str(member.value) for enum in enums for member in enum)


def _check_choice(key: str, value: Any, allowed: tuple[str, ...]) -> None:
    if not allowed or value in allowed or (key == "scale_rewards" and isinstance(value, bool)):
        return
    raise ConfigError(
        f"`grpo.{key}` cannot be {value!r}; allowed: {', '.join(allowed)}", *did_you_mean(str(value), list(allowed))
    )


def _check_report_to(value: Any) -> None:
    from transformers.integrations.integration_utils import get_available_reporting_integrations

    installed = [] if value is None else get_available_reporting_integrations()
    for name in value if isinstance(value, list) else [value]:
        if name not in (None, "none", "all", *installed):
            raise ConfigError(
                f"`grpo.report_to` cannot be {name!r}: no such tracker is installed",
                f"installed: {', '.join(installed) or 'none'}",
            )


def check_training(grpo: Mapping[str, Any], options: Mapping[str, Any], world_size: int = 1) -> list[str]:
    """Return a description of one step's batch and of the checkpoints, one line each.

    `grpo` has the options that the user set under that name, `options` all that GRPOConfig receives in `world_size`
    processes. Raises ConfigError when training is impossible with these options.
    """
    check_grpo(grpo)
    if options.get("max_steps", -1) <= 0:
        raise ConfigError("`grpo.max_steps` is not set", "set the number of steps: --set grpo.max_steps=100")
    if not options["temperature"] > 0:
        raise ConfigError(
            f"the sampling temperature of training ({options['temperature']!r}) must be above 0 in training: "
            "equal samples have no advantage over each other, and TRL divides by the temperature",
            "set grpo.temperature (or that of the trained turn under sampling) above 0; evaluation may be greedy",
        )
    _check_truncation(options)
    return [*explain_batch(options, world_size), *explain_checkpoints(options, world_size)]


def _check_truncation(options: Mapping[str, Any]) -> None:
    """Raise ConfigError when vLLM would sample from other probabilities than TRL's correction assumes.

    TRL multiplies the loss by the ratio of the trainer's probability to vLLM's. With top_p or top_k, vLLM's are those
    of the truncated distribution: the ratio of 200 tokens falls to 3e-8, and training stops learning without an error.
    """
    if not options.get("use_vllm") or options.get("vllm_importance_sampling_correction") is False:
        return
    given = {**options, **(options.get("generation_kwargs") or {})}
    for name, off in _TRUNCATING.items():
        value = given.get(name, off[0])
        if value not in off:
            raise ConfigError(
                f"with vLLM, trained turns cannot be sampled with {name}={value} in training: TRL's importance ratio "
                "would compare truncated with untruncated probabilities, and scale the loss towards 0",
                f"leave {name} out (--set grpo.{name}={'null' if off[0] is None else f'{off[0]:g}'})",
                "or turn the correction off: --set grpo.vllm_importance_sampling_correction=false",
            )


def checkpoint_steps(options: Mapping[str, Any], world_size: int = 1) -> int:
    """Return the number of steps between checkpoints: `save_steps`, rounded up to the end of a generation.

    A generation serves `steps_per_generation * num_iterations` passes, `gradient_accumulation_steps` of them per step.
    Training that resumes within one would generate again, and give other results. `save_steps` below 1 is a share of
    `max_steps`, as in transformers; r3's default is 1.
    """
    given = with_defaults({"save_steps": 1} | dict(options))
    micro_batch = given["per_device_train_batch_size"] * world_size
    passes = _generation_batch(given, micro_batch) // micro_batch
    period = steps_of_generations(given | {"steps_per_generation": passes})
    steps = given["save_steps"]
    if 0 < steps < 1:
        steps = ceil(steps * given["max_steps"])
    return int(ceil(steps / period) * period)


def steps_of_generations(options: Mapping[str, Any]) -> int:
    """Return after how many steps a step ends with a generation, from options that TRL has resolved."""
    passes = options["steps_per_generation"] * options["num_iterations"]
    return int(passes // gcd(passes, options["gradient_accumulation_steps"]))


def explain_checkpoints(options: Mapping[str, Any], world_size: int) -> list[str]:
    """Return when checkpoints are written; ConfigError for a strategy that cannot be resumed from."""
    strategy = str(options.get("save_strategy", "steps"))
    if strategy not in ("steps", "no"):
        raise ConfigError(
            f"`grpo.save_strategy` cannot be {strategy!r}; allowed: steps, no",
            "--set grpo.save_steps=N sets how often a checkpoint is written",
        )
    if strategy == "no":
        return ["no checkpoints (save_strategy=no): training that is stopped starts again"]
    save_steps = options.get("save_steps", 1)
    if not save_steps > 0:
        raise ConfigError(
            f"`grpo.save_steps` cannot be {save_steps}: it should be above 0", "to write none: save_strategy=no"
        )
    steps = checkpoint_steps(options, world_size)
    if steps == save_steps or save_steps < 1:
        return [f"a checkpoint every {steps} steps"] if steps > 1 else []
    return [f"a checkpoint every {steps} steps (save_steps is {save_steps}), as a generation serves several steps"]


def reflections_per_step(options: Mapping[str, Any], world_size: int = 1) -> float:
    """Return the number of reflections that are generated per step, in all processes."""
    given = with_defaults(options)
    step = given["per_device_train_batch_size"] * world_size * given["gradient_accumulation_steps"]
    return float(step / given["num_iterations"])


def check_vllm(options: Mapping[str, Any]) -> None:
    """Raise ConfigError when training requires vLLM and it is not installed; a dry run may plan for another machine."""
    if options.get("use_vllm") and find_spec("vllm") is None:
        raise ConfigError("`grpo.use_vllm` is set, and vLLM is not installed", "pip install 'r3core[vllm]'")


def explain_batch(grpo: Mapping[str, Any], world_size: int = 1) -> list[str]:
    """Return a description of the batch of one step in `world_size` processes; ConfigError when TRL would reject it.

    The arithmetic is that of GRPOConfig in TRL 1.16. With b = per_device_train_batch_size, W processes and
    a = gradient_accumulation_steps, a step trains on b * W * a samples. A generation makes b * W *
    steps_per_generation of them, which are whole groups of G = num_generations.
    """
    given = with_defaults(grpo)
    device, accumulation, group, iterations = (
        _positive(given, key)
        for key in ("per_device_train_batch_size", "gradient_accumulation_steps", "num_generations", "num_iterations")
    )
    step = device * world_size * accumulation
    generated = _generation_batch(given, device * world_size)
    if group < 2:
        raise ConfigError(f"`grpo.num_generations` ({group}) must be at least 2: a group compares its samples")
    if generated % group:
        groups, hint = _fitting_values(given, group, generated=generated, micro_batch=device * world_size)
        raise ConfigError(
            f"generation batch size ({generated}) must be divisible by num_generations ({group}){groups}", hint
        )
    failures = step / (group * iterations)
    processes = f"{world_size} process{'es' if world_size > 1 else ''}"
    lines = [
        f"a step trains on {step} samples = per_device_train_batch_size {device} "
        f"x gradient_accumulation_steps {accumulation} x {processes}",
        f"{generated} samples are generated at a time = {generated // group} failures x num_generations {group}",
    ]
    if iterations > 1 or generated != step:
        lines.append(f"each generation serves {generated * iterations / step:g} steps")
    if given["max_steps"] > 0:
        total = f"max_steps {given['max_steps']} use {given['max_steps'] * failures:g} failures"
    else:
        total = f"num_train_epochs {given['num_train_epochs']:g} over the failures"
    return [*lines, f"{total}, {failures:g} per step"]


def with_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the defaults of GRPOConfig where nothing is set."""
    from trl.trainer.grpo_config import GRPOConfig

    return {key: field.default for key, field in GRPOConfig.__dataclass_fields__.items()} | dict(options)


def _positive(given: Mapping[str, Any], key: str) -> int:
    """Return the value of an option that is a positive integer; ConfigError when it is not."""
    value = given[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"`grpo.{key}` cannot be {value!r}: it should be a positive integer")
    return value


def _generation_batch(given: Mapping[str, Any], micro_batch: int) -> int:
    """Return how many samples are generated at a time; `micro_batch` is the size of one pass in all processes."""
    batch, steps = given["generation_batch_size"], given["steps_per_generation"]
    if batch is not None and steps is not None:
        raise ConfigError("`grpo.generation_batch_size` and `grpo.steps_per_generation` cannot both be set", "set one")
    if batch is None:
        key = "steps_per_generation" if steps is not None else "gradient_accumulation_steps"
        return micro_batch * _positive(given, key)
    if _positive(given, "generation_batch_size") % micro_batch:
        raise ConfigError(
            f"generation_batch_size ({batch}) must be divisible by per_device_train_batch_size x processes "
            f"({micro_batch}); generation_batch_size can be {_multiples_near(batch, micro_batch)}"
        )
    return int(batch)


def _fitting_values(given: Mapping[str, Any], group: int, *, generated: int, micro_batch: int) -> tuple[str, str]:
    """Return the nearest group sizes that fit, as the end of a message, and a hint with the nearest batches."""
    divisors = [number for number in range(2, generated + 1) if generated % number == 0]
    nearest = sorted(sorted(divisors, key=lambda number: abs(number - group))[:5])
    groups = f"; num_generations can be {_listed(nearest)}" if nearest else ""
    if given["generation_batch_size"] is not None:
        return groups, f"generation_batch_size can be {_multiples_near(generated, lcm(micro_batch, group))}"
    key = "gradient_accumulation_steps" if given["steps_per_generation"] is None else "steps_per_generation"
    return groups, f"{key} can be {_multiples_near(generated // micro_batch, group // gcd(group, micro_batch))}"


def _multiples_near(value: int, unit: int) -> str:
    """Return the multiples of `unit` just below and above a value between them."""
    below = value // unit * unit
    return _listed([number for number in (below, below + unit) if number])


def _listed(numbers: Sequence[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last
