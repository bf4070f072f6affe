"""Evaluation during training: the policy on a fixed part of the validation split, every `evaluate.every` steps.

Each evaluation appends a row to `validation.jsonl`. With `train.keep: best` the weights of the step with the best
second try are what training saves in `model/`; with `train.stop_after` training ends when that step lies far back. The
score by which a step was chosen is too high on average: the result of a run is that of the test split.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from r3core.activity import PROCESS, waiting_for
from r3core.config import Config
from r3core.dataset import Problems, load_examples, select_examples
from r3core.distributed import rank
from r3core.episode import Arm, Episode
from r3core.errors import ConfigError, RunError
from r3core.evaluation.result import scores, truncated
from r3core.generation.generator import Generator
from r3core.objective import Turn
from r3core.progress import is_quiet
from r3core.protocol import Protocol, seed_of
from r3core.runs import Run, values_of
from r3core.stats import Rate
from r3core.task import Example, Frozen, Task
from r3core.training.checkpoints import best_folder, complete_step, delete_best, save_model
from r3core.training.grpo_options import reflections_per_step

if TYPE_CHECKING:
    from r3core.training.trainer import ReflectionTrainer

CONTROL: Arm = "none"
"""The control of these evaluations: a retry without a reflection costs least and shows most, the gain of reflecting."""
_ROWS = "validation"
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


def is_valid_at(done: int, *, step: int) -> bool:
    """Return whether what was made in a step is still there when training resumes from the checkpoint of step `done`.

    Without a checkpoint everything is made again, the evaluation before training too.
    """
    return done > 0 and step <= done


class Validator:
    """Evaluates a trainer's policy, and remembers the best step; every training process has one and calls it alike.

    The weights of the best step are in `checkpoints/best-STEP`. Those of an earlier one stay until a checkpoint exists
    that is not older than the new one: training that is killed before resumes from a step whose best that is.
    """

    def __init__(self, trainer: ReflectionTrainer, examples: Sequence[Example], *, done: int) -> None:
        """Read the evaluations of the steps up to the checkpoint, `done`; the others will be made again."""
        self.trainer = trainer
        self.run: Run = trainer.run
        self.config = trainer.protocol.config
        self.examples = examples
        self.folder = self.run.path / "checkpoints"
        self.steps = steps_of(self.config)
        rows = values_of(Validation, self.run.read(_ROWS), _ROWS)
        self.rows = [row for row in rows if is_valid_at(done, step=row.step)]
        best = best_of(self.rows)
        if self.keeps_best and best is not None and not self._folder(best.step).is_dir():
            raise RunError(
                f"`{self._folder(best.step)}` is missing: the weights of the best step so far",
                "restore the folder, or start a new run",
            )

    @property
    def keeps_best(self) -> bool:
        """Whether the weights of the best step are what training saves."""
        return self.config.train.keep == "best"

    @property
    def stopped(self) -> bool:
        """Whether training ends before its last step, as the last evaluations brought no improvement."""
        limit = self.config.train.stop_after
        early = self.rows and self.rows[-1].step < self.steps[-1]
        return bool(limit and early and since_best(self.rows) >= limit)

    @property
    def source(self) -> Path | None:
        """The folder with the weights to save as the model; None for those that the trainer has."""
        best = best_of(self.rows)
        return self._folder(best.step) if self.keeps_best and best else None

    def is_due(self, step: int) -> bool:
        """Return whether the policy is to be evaluated after a step, and was not yet; also where a budget ends."""
        due = step in self.steps or self.trainer.budget_is_spent
        return due and all(row.step != step for row in self.rows)

    def evaluate(self, step: int) -> dict[str, float]:
        """Evaluate the policy, append the row, save the weights if it is the best so far, and return the metrics."""
        started_at = perf_counter()
        with random_states_restored():
            episodes = self._episodes()
        found = scores(episodes, [CONTROL])
        row = Validation(
            step=step,
            **{name: getattr(found, name) for name in ("first", "second", "fix", "leaks", "errors")},
            control=found.controls,
            truncated=truncated(found),
            tokens=sum(map(_tokens, episodes)),
            seconds=perf_counter() - started_at,
        )
        self.rows.append(row)
        self.run.append(_ROWS, [row])
        if rank() == 0 and not is_quiet():
            print(self._describe(row), file=sys.stderr)
        if self.keeps_best:
            self._keep_best()
        rates = {name: getattr(row, name) for name in ("first", "second", "fix", "leaks")}
        rates["fix_without_reflection"] = row.control[CONTROL]
        metrics = {f"validation/{name}": rate.rate for name, rate in rates.items() if rate.total}
        return metrics | {"validation/seconds": row.seconds}

    def facts(self) -> dict[str, Any]:
        """Return what the stage records: the step that was saved, its scores, and where training stopped early."""
        best = best_of(self.rows)
        if best is None:  # the rows were deleted
            return {}
        saved = best if self.keeps_best else self.rows[-1]
        facts: dict[str, Any] = {
            "keep": self.config.train.keep,
            "saved_step": saved.step,
            "second": saved.second.model_dump(),
            "problems": len(self.examples),
            "evaluations": len(self.rows),
            "tokens": sum(row.tokens for row in self.rows),
            "seconds": sum(row.seconds for row in self.rows),
        }
        if self.stopped:
            facts["stopped_early"] = {"step": self.rows[-1].step, "without_improvement": since_best(self.rows)}
            return {"steps": self.rows[-1].step, "validation": facts}
        return {"validation": facts}

    def _episodes(self) -> list[Episode]:
        """Return the episodes of all problems, in every process; each generates those of its own part."""
        from accelerate.utils import gather_object

        place, count = self.trainer.accelerator.process_index, self.trainer.accelerator.num_processes
        own = validated(self.trainer.protocol, self.trainer.policy, self.examples[place::count], process=place)
        with waiting_for(PROCESS, "evaluating"):
            episodes: list[Episode] = gather_object(own)
        return episodes

    def _keep_best(self) -> None:
        """Save the weights if the last evaluation is the best, and delete those that no resumed training can need."""
        best = best_of(self.rows)
        assert best is not None
        if best is self.rows[-1]:
            # A merged adapter would be added to the weights that are being trained.
            apart = self.config.train.model_copy(update={"merge": False})
            config = self.config.model_copy(update={"train": apart})
            save_model(self.trainer, config, self._folder(best.step), dtype=self.trainer.saved_dtype)
        if rank() == 0:
            resumable = complete_step(self.folder)
            before = best_of([row for row in self.rows if row.step <= resumable and resumable])
            needed = {best.step, before.step} if before else {best.step}
            delete_best(self.folder, keep=needed.__contains__)

    def _folder(self, step: int) -> Path:
        return best_folder(self.folder, step)

    def _describe(self, row: Validation) -> str:
        """Return one line about an evaluation; the first one has the time that all of them will take."""
        shown = [("first try", row.first), ("second try", row.second), ("fix rate", row.fix)]
        shown.append(("without reflection", row.control[CONTROL]))
        rates = ", ".join(f"{name} {100 * rate.rate:.1f}%" for name, rate in shown if rate.total)
        best = best_of(self.rows)
        place = ", the best so far" if best is row and row.step else ""
        left = sum(step > row.step for step in self.steps)
        ahead = f"; {left} more, about {left * row.seconds:.0f} s" if left and len(self.rows) == 1 else ""
        return f"validation at step {row.step}: {rates}{place}; {row.tokens:,} tokens, {row.seconds:.1f} s{ahead}"


def validated(protocol: Protocol, generator: Generator, examples: Sequence[Example], *, process: int) -> list[Episode]:
    """Return the episodes of one process, with a retry after the reflection and one without; seeds never change."""

    def seed(what: str) -> int:
        return seed_of(protocol.config.seed, "validation", what, process)

    episodes = protocol.attempt(examples, generator, seed=seed("attempt"))
    episodes = protocol.reflect(episodes, generator, seed=seed("reflection"))
    arms: tuple[Arm, ...] = ("reflect", CONTROL)
    for arm in arms:
        episodes = protocol.retry(episodes, generator, seed=seed(arm), arm=arm)
    return episodes


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


@contextmanager
def random_states_restored() -> Iterator[None]:
    """Restore the random states of this process after the block, for dropout and whatever else training samples."""
    import numpy as np
    import torch

    state, numpys = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpys)


def _tokens(episode: Episode) -> int:
    turns = [episode.attempt, *episode.retries.values(), *([episode.reflection] if episode.reflection else [])]
    return sum(turn.tokens for turn in turns)
