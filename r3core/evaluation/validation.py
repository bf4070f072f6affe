"""Evaluations during training, on a fixed part of the validation split: their rows, their plan and the best step.

`validator.py` makes them, every `evaluate.every` steps, and appends each to `validation.jsonl`. With `train.keep: best`
the weights of the step with the best second try are what training saves in `model/`; with `train.stop_after` training
ends when that step lies far back. The score by which a step was chosen is too high on average: the result of a run is
that of the test split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from r3core.config import Config
from r3core.dataset import Problems, load_examples, select_examples
from r3core.episode import Arm
from r3core.errors import ConfigError
from r3core.objective import Turn
from r3core.stats import Rate
from r3core.task import Frozen, Task
from r3core.training.grpo_options import reflections_per_step

CONTROL: Arm = "none"
"""The control of these evaluations: a retry without a reflection costs least and shows most, the gain of reflecting."""
_GENERATIONS = 4  # attempt, reflection, retry, retry of the control


class Validation(Frozen):
    """One evaluation during training: a row of `validation.jsonl`. Rates are those of `Scores`."""

    step: int
    """Training steps before it; 0 is the model before training."""
    first: Rate
    second: Rate
    fix: Rate
    control: dict[Arm, Rate]
    """The fix rate over the same failures, with a retry that no reflection precedes."""
    leaks: Rate
    truncated: dict[Turn, Rate]
    """Share of each kind of turn that the token limit cut off."""
    errors: int
    tokens: int
    """Number of generated tokens."""
    seconds: float


def check_validation(config: Config) -> None:
    """Raise ConfigError when a step would be chosen without evaluations during training, or on the result's split."""
    chosen = [("train.keep", "best")] if config.train.keep == "best" else []
    chosen += [("train.stop_after", str(config.train.stop_after))] if config.train.stop_after is not None else []
    for key, value in chosen:
        if config.evaluate.every is None:
            raise ConfigError(
                f"`{key}` cannot be {value} without evaluations during training",
                "set the number of steps between two of them: --set evaluate.every=10",
            )
        if config.evaluate.split == "validation":
            raise ConfigError(
                f"`{key}` cannot be {value} with `evaluate.split` 'validation': the step is chosen on that split, and "
                "on the same problems the result would be too high",
                "take the result from another split: --set evaluate.split=test",
            )


def check_validation_split(task: Task, config: Config) -> None:
    """Raise ConfigError when there are to be evaluations during training and the task has no validation split."""
    if config.evaluate.every is not None and next(load_examples(task, "validation"), None) is None:
        raise ConfigError(
            f"`evaluate.every` cannot be {config.evaluate.every}: it evaluates on the validation split, and task "
            f"`{task.name}` has no problems in it",
            "set evaluate.every=null, or give the task such a split: `load('validation')` should yield its examples",
        )


def problems_to_validate(task: Task, config: Config) -> Problems:
    """Return the examples of every evaluation during training: the same for each step, seed and model."""
    settings = config.evaluate.model_copy(update={"split": "validation", "limit": config.evaluate.every_limit})
    return select_examples(task, settings, salt="validation")


def steps_of(config: Config) -> list[int]:
    """Return the steps after which the policy is evaluated: 0, every `evaluate.every` steps, and the last."""
    every, last = config.evaluate.every, int(config.grpo_options().get("max_steps", 0))
    return [] if every is None or last < 1 else sorted({*range(0, last + 1, every), last})


def explain_validation(config: Config, processes: int, *, problems: int | None = None) -> list[str]:
    """Return what the evaluations during training do and cost at most; `problems` is their number, where known."""
    if not (steps := steps_of(config)):
        return []
    turns = config.sampling
    each = turns.attempt.max_tokens + turns.reflection.max_tokens + 2 * turns.retry.max_tokens
    limit = problems or config.evaluate.every_limit
    cost = "all of the split, so that the cost is unknown"
    if limit is not None:
        tokens = len(steps) * limit * each
        trained = steps[-1] * reflections_per_step(config.grpo_options(), processes) * _longest_sample(config)
        cost = f"at most {tokens:,} tokens, where training generates at most {trained:,.0f} ({tokens / trained:.0%})"
    lines = [
        f"{len(steps)} evaluations (step 0, every {config.evaluate.every}, the last) x {limit or 'all'} problems, at "
        f"most {_GENERATIONS} generations per problem; {cost}"
    ]
    if config.train.keep == "best":
        lines.append(
            "model/ gets the step with the best second try; the result is that of the test split, not this one"
        )
    if config.train.stop_after is not None:
        lines.append(f"training stops after {config.train.stop_after} evaluations in a row without a better second try")
    return lines


def _longest_sample(config: Config) -> int:
    """Return the maximum number of tokens that training generates for one sample."""
    objective, turns = config.objective, config.as_trained().sampling
    tokens = turns.attempt.max_tokens if objective.first == "attempt" else 0
    if objective.retries:
        shared = int(config.grpo_options().get("num_generations", 8)) if objective.first == "retry" else 1
        tokens += turns.reflection.max_tokens // shared + config.train.retries * turns.retry.max_tokens
    return tokens


def best_of(rows: Sequence[Validation]) -> Validation | None:
    """Return the evaluation with the highest second try, of equal ones the earliest; None without evaluations."""
    return max(rows, key=lambda row: (row.second.rate, -row.step), default=None)


def since_best(rows: Sequence[Validation]) -> int:
    """Return the number of evaluations after the best one: those in a row that brought no improvement."""
    best = best_of(rows)
    return sum(row.step > best.step for row in rows) if best else 0


def describe_facts(facts: Mapping[str, Any] | None) -> list[str]:
    """Return sentences about the facts of a training stage: which step was saved, and why training stopped."""
    found = (facts or {}).get("validation")
    if facts is None or found is None:
        return []
    during = f"{found['evaluations']} evaluations on {found['problems']} problems of the validation split"
    score = f"{100 * found['second']['rate']:.1f}%"
    lines = [f"{during} during training; second try {score} after the last step"]
    if found["keep"] == "best":
        lines = [
            f"model/ has the weights of step {found['saved_step']} of {facts['steps']}, the best second try "
            f"of {during} ({score}); as it chose the step, this score is too high: the result is that of the test split"
        ]
        if found["saved_step"] == 0:
            lines.append("no evaluation was better than that before training: model/ has the base model's weights")
    if stopped := found.get("stopped_early"):
        lines.append(
            f"training stopped early at step {stopped['step']}: {stopped['without_improvement']} evaluations in a row "
            "without a better second try (train.stop_after)"
        )
    return lines
