"""What happens around each training step: times, metrics, progress, and the mark of a complete checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from r3core.activity import PROCESS, waiting_for
from r3core.distributed import wait_for_all
from r3core.training.checkpoints import mark_complete, world_of
from r3core.training.trackers import report_episodes
from r3core.training.trainer import ReflectionTrainer

if TYPE_CHECKING:
    from r3core.evaluation.validator import Validator


class StepCallback(TrainerCallback):
    """Times every step, appends what TRL logs to the run's `train` rows, and marks complete checkpoints.

    `advance` adds a step, or tokens of the budget, to the progress, with its main figure; `save_clock` saves how long
    the stage has taken so far.
    """

    def __init__(
        self, trainer: ReflectionTrainer, *, advance: Callable[..., Any], save_clock: Callable[[], Any]
    ) -> None:
        self.trainer = trainer
        self.advance = advance
        self.save_clock = save_clock
        self.ended_at = perf_counter()
        self.spent = trainer.usage.spent

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the step's clocks."""
        self.started_at = perf_counter()
        self.between_steps = self.started_at - self.ended_at
        self.trainer.generation_index = 0
        if self.trainer.anchor is not None:
            self.trainer.anchor.passes = 0
        self.generation_before = self.trainer.generation_seconds
        self.verification_before = self.trainer.protocol.judge.seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Add the seconds of the step's parts to TRL's metrics; `rest` is the time between two steps."""
        self.ended_at = perf_counter()
        generation = self.trainer.generation_seconds - self.generation_before
        verification = self.trainer.protocol.judge.seconds - self.verification_before
        metrics = {
            "seconds/generation": generation,
            "seconds/verification": verification,
            "seconds/training": self.ended_at - self.started_at - generation - verification,
            "seconds/rest": self.between_steps,
        }
        if (engine := self.trainer.policy.vllm) is not None:
            metrics["generation/prefix_cache_hit_rate"] = engine.cached / max(1, engine.prompted)
            engine.cached = engine.prompted = 0
        for name, value in metrics.items():
            self.trainer._metrics["train"][name].append(value)
        with waiting_for(PROCESS, "the token counts of the other ranks"):
            self.trainer.usage.gather()
        budget = self.trainer.protocol.config.train.budget_tokens
        spent, self.spent = self.spent, self.trainer.usage.spent
        done = 1 if budget is None else min(self.spent, budget) - min(spent, budget)
        self.advance(done, figure=main_figure(self.trainer._metrics["train"]))
        if state.global_step >= args.max_steps or self.trainer.budget_is_spent:
            control.should_log = True  # whatever `logging_steps` is: the row has the tokens of all steps
        if self.trainer.budget_is_spent:
            control.should_training_stop = True
            control.should_save = args.save_strategy != "no"

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Append one row of metrics to the run, and report episodes.

        TRL's summary after the last step is neither, nor is what precedes the first step.
        """
        if logs and state.global_step and "train_runtime" not in logs:
            self.trainer.run.append("train", [{"step": state.global_step, **logs}])
            self.save_clock()
            if state.is_world_process_zero:
                report_episodes(self.trainer, self.trainer.recorded)
            self.trainer.recorded = []

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark a checkpoint as complete, once every process has written its shards of weights and optimizer states."""
        wait_for_all("the checkpoint of the other ranks")
        if state.is_world_process_zero:
            checkpoint = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
            self.trainer.usage.save(checkpoint)
            mark_complete(checkpoint, world_of(self.trainer.accelerator))


class ValidationCallback(TrainerCallback):
    """Evaluates the policy before training and after the steps where that is due, and stops training early.

    It follows `steps`, the callback that times each step: an evaluation counts in the time of none.
    """

    def __init__(self, validator: Validator, *, steps: StepCallback) -> None:
        self.validator = validator
        self.steps = steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate the model before its first step."""
        if state.global_step == 0 and self.validator.is_due(0):
            self.steps.trainer.log(self._evaluate(state.global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate where it is due; the metrics are logged with those of the step, before a checkpoint is written."""
        if not self.validator.is_due(state.global_step):
            return
        for name, value in self._evaluate(state.global_step).items():
            self.steps.trainer._metrics["train"][name].append(value)
        control.should_log = True  # under this step, whatever `logging_steps` is
        if self.validator.stopped:
            control.should_training_stop = True
            control.should_save = args.save_strategy != "no"

    def _evaluate(self, step: int) -> dict[str, float]:
        metrics = self.validator.evaluate(step)
        if (engine := self.steps.trainer.policy.vllm) is not None:
            engine.cached = engine.prompted = 0  # their hit rate is that of training
        self.steps.ended_at = perf_counter()
        return metrics


def main_figure(metrics: Mapping[str, Sequence[float]]) -> str:
    """Return the mean reward and the share of mixed groups of the last generation; empty without one since TRL logged.

    A step that reuses the completions of an earlier one has no generation of its own.
    """
    rewards, mixed = metrics.get("reward"), metrics.get("groups/mixed")
    return f"reward {rewards[-1]:.2f}, mixed groups {mixed[-1]:.0%}" if rewards and mixed else ""
