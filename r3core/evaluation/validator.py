"""Evaluation during training: the policy on a fixed part of the validation split, every `evaluate.every` steps."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from r3core.activity import PROCESS, waiting_for
from r3core.distributed import rank
from r3core.episode import Episode
from r3core.errors import RunError
from r3core.evaluation.result import scores, truncated
from r3core.evaluation.validation import CONTROL, Validation, best_of, since_best, steps_of
from r3core.generation.generator import Generator
from r3core.progress import is_quiet
from r3core.protocol import Protocol, seed_of
from r3core.runs import Run, values_of
from r3core.task import Example
from r3core.training.checkpoints import best_folder, complete_step, delete_best, save_model

if TYPE_CHECKING:
    from r3core.training.trainer import ReflectionTrainer

_ROWS = "validation"


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
    return protocol.retries(episodes, generator, seed=seed("retries"), arms=["reflect", CONTROL])


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
