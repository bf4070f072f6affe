"""The judge: it runs a task's verifier in worker processes, and turns what breaks there into counted errors."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from r3core.errors import RunError, TaskError
from r3core.sections import Limits
from r3core.task import Example, Limit, Outcome, Task, Verdict
from r3core.verification import worker
from r3core.verification.batch import Batch
from r3core.verification.pool import Pool

Pairs = Sequence[tuple[Example, str]]


class Judge:
    """Judges responses to one task in worker processes, and counts outcomes and errors.

    The workers are started by the first response and end with the `with` block. A verifier that raises, exceeds the
    time, memory or output limit, or ends its process gives the verdict `error`, never `fail`, and its worker is
    replaced. A response with too many characters fails without being passed to the verifier.
    """

    def __init__(self, task: Task, limits: Limits | None = None, *, days: float = 0.0, fresh: bool = False) -> None:
        """Open a judge; `days` sets the task's clock ahead, `fresh` gives every worker a new interpreter."""
        self.task = task
        self.limits = limits or Limits()
        self.days = days
        self.fresh = fresh
        self.seconds = 0.0
        """Time that this process spent on verdicts, mostly waiting for them."""
        self.worker_seconds = 0.0
        """Time that the workers spent in the task's code, summed over workers."""
        self.counts: Counter[Outcome] = Counter()
        """Number of responses per outcome."""
        self.reasons: Counter[str] = Counter()
        """Number of errors per cause: the exception's type, or the reason."""
        self.leak_errors = 0
        """Number of reflections that could not be tested for a leak."""
        self._first_errors: dict[str, str] = {}  # cause -> the first error of it, with its example
        self._pool: Pool | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; the next response starts new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def judge(self, pairs: Pairs) -> list[Verdict]:
        """Return one verdict per pair of example and response, in the same order.

        Raises:
            TaskError: the verifier returned something that is neither a Verdict nor a bool.
            RunError: more responses could not be judged than `judge.max_errors` allows.
        """
        batch = self.verdicts()
        batch.add((index, *pair) for index, pair in enumerate(pairs))
        return batch.result()

    def verdicts(self) -> Batch[Verdict]:
        """Return a batch to which pairs can be added while others are already being judged."""
        return Batch(self, "verify", partial(_verdict, self), too_long=self._fail_too_long)

    def leaks(self) -> Batch[bool | None]:
        """Return a batch of reflections whose results are whether each gives the answer away; None when unknown."""
        return Batch(self, "leaks", partial(_leak, self), too_long=lambda _: False)

    def check_errors(self, *, minimum: int = 20, pending: int = 0) -> None:
        """Raise RunError when too large a share of the responses could not be judged, after `minimum` verdicts.

        With `pending` verdicts to come, only when the share will be too large whatever they are.
        """
        total, errors = self.counts.total() + pending, self.counts["error"]
        limit = self.limits.max_errors
        if self.counts.total() < minimum or errors <= limit * total:
            return
        raise RunError(
            f"the verifier of task `{self.task.name}` could not judge {errors} of {self.counts.total()} responses; "
            f"the maximum is {limit:.0%} (`judge.max_errors`)",
            *(f"{times} times {self._first_errors[kind]}" for kind, times in self.reasons.most_common(3)),
        )

    def _error(self, result: worker.WorkerResult, example: Example) -> Verdict:
        self.reasons[result.kind] += 1
        self._first_errors.setdefault(result.kind, f"{result.reason} (first on example {example.id!r})")
        return Verdict(outcome="error", reason=result.reason, limit=result.limit)

    def _fail_too_long(self, reason: str) -> Verdict:
        self.counts["fail"] += 1
        return Verdict(outcome="fail", reason=reason, limit=Limit.CHARACTERS)

    @property
    def pool(self) -> Pool:
        if self._pool is None:
            self._pool = Pool(self.task, self.limits, days=self.days, fresh=self.fresh)
        return self._pool


def judge(task: Task, pairs: Pairs) -> list[Verdict]:
    """Return one verdict per pair of example and response, in the same order."""
    with Judge(task) as one:
        return one.judge(pairs)


def _verdict(judge: Judge, result: worker.WorkerResult, example: Example) -> Verdict:
    if result.outcome == "wrong value":
        raise _wrong_value(judge.task, "verify", result.reason, allowed="a Verdict or a bool")
    if result.outcome == "error":
        verdict = judge._error(result, example)
    else:
        outcome: Outcome = "pass" if result.outcome == "pass" else "fail"
        verdict = Verdict(outcome=outcome, reason=result.reason, kind=result.kind)
    judge.counts[verdict.outcome] += 1
    return verdict


def _leak(judge: Judge, result: worker.WorkerResult, example: Example) -> bool | None:
    if result.outcome == "wrong value":
        raise _wrong_value(judge.task, "leaks", result.reason, allowed="a bool")
    if result.outcome == "error":
        judge.leak_errors += 1
        return None
    return result.outcome == "pass"


def _wrong_value(task: Task, method: str, shown: str, *, allowed: str) -> TaskError:
    return TaskError(
        f"task `{task.name}`: `{method}` returned {shown}; it must return {allowed}",
        f"a path through `{method}` ends without a `return`"
        if shown == "None"
        else "convert a value such as numpy.bool_ with bool(...)",
    )


def verifier_hash(task: Task) -> str:
    """Return a hash of the verifier's source: of the task's class and those it inherits from, up to `Task`.

    It covers every Python file of a class's package, or its one file; not what these import from other packages.
    """
    digest = hashlib.sha256()
    for name in dict.fromkeys(kind.__module__ for kind in type(task).__mro__ if issubclass(kind, Task)):
        if name != Task.__module__:
            for file in _files_of(name):
                digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _files_of(name: str) -> list[Path]:
    module = sys.modules[name]
    source = Path(module.__file__ or "")
    top = sys.modules.get(name.partition(".")[0])
    packaged = top is not None and hasattr(top, "__path__")
    return sorted(source.parent.glob("*.py")) if packaged else [source] if source.is_file() else []
