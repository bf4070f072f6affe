"""Verdicts: a task's verifier is called in worker processes only, and what breaks there is caught and counted here."""

from __future__ import annotations

import hashlib
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from math import ceil
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Generic, NamedTuple, Self, TypeVar

from pebble import ProcessExpired

from r3core.config import Limits
from r3core.errors import RunError, TaskError
from r3core.task import Example, Outcome, Task, Verdict
from r3core.verification import worker
from r3core.verification.pool import MAIN_GUARD, Future, Pool, cause_of, end_group, unloadable, workers_of

T = TypeVar("T")
Pairs = Sequence[tuple[Example, str]]
_SMALLEST_CHUNK, _LARGEST_CHUNK = 8, 64  # answers that a worker is sent at a time
_MOST_LOSSES = 5  # workers that may end in between verdicts, one after the other
_PATIENCE = 60.0  # seconds, before it is asked whether a job was lost


class Judge:
    """Judges responses to one task in worker processes, and keeps count.

    The workers are started by the first response and end with the `with` block. A verifier that raises, takes too
    long, needs too much memory, prints too much or ends its process gives the verdict `error`, never `fail`, and its
    worker is replaced. A response that is too long is the model's doing and fails unread.
    """

    def __init__(self, task: Task, limits: Limits | None = None, *, days: float = 0.0, fresh: bool = False) -> None:
        """Take a task and its limits; `days` puts its clock forward, `fresh` gives every worker a new interpreter."""
        self.task = task
        self.limits = limits or Limits()
        self.days = days
        self.fresh = fresh
        self.seconds = 0.0
        """Time that this process spent on verdicts, waiting for them for the most part."""
        self.worker_seconds = 0.0
        """Time that the workers spent in the task's code, side by side."""
        self.counts: Counter[Outcome] = Counter()
        """How many responses passed, failed or could not be judged."""
        self.reasons: Counter[str] = Counter()
        """How often each kind of error came: the exception's type, or the reason that was given."""
        self.leak_errors = 0
        """How many reflections could not be tested for a leak."""
        self._seen: dict[str, str] = {}  # kind of error -> the first of them, with its example
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
        """Return one verdict a pair of example and response, in the same order.

        Raises TaskError when the verifier returns something that is neither a Verdict nor a bool, RunError when more
        responses cannot be judged than the limits allow.
        """
        batch = self.verdicts()
        batch.add((index, *pair) for index, pair in enumerate(pairs))
        return batch.result()

    def verdicts(self) -> Batch[Verdict]:
        """Return a batch to which pairs can be added while others are being judged already."""
        return Batch(self, "verify", partial(_verdict, self), too_long=self._unread)

    def leaks(self) -> Batch[bool | None]:
        """Return a batch of reflections: does each give its example's answer away? None when that is not known."""
        return Batch(self, "leaks", partial(_leak, self), too_long=lambda _: False)

    def check_errors(self, *, least: int = 20, still: int = 0) -> None:
        """Raise RunError when too large a share of the responses, at least so many, could not be judged.

        With `still` more to come, only when it will be too large whatever comes of them.
        """
        total, errors = self.counts.total() + still, self.counts["error"]
        limit = self.limits.max_errors
        if self.counts.total() < least or errors <= limit * total:
            return
        raise RunError(
            f"the verifier of task `{self.task.name}` could not judge {errors} of {self.counts.total()} responses; "
            f"at most {limit:.0%} are tolerated (`judge.max_errors`)",
            *(f"{times} times {self._seen[kind]}" for kind, times in self.reasons.most_common(3)),
        )

    def _counted(self, said: worker.Said, example: Example) -> Verdict:
        self.reasons[said.kind] += 1
        self._seen.setdefault(said.kind, f"{said.reason} (first on example {example.id!r})")
        return Verdict.error(said.reason)

    def _unread(self, reason: str) -> Verdict:
        self.counts["fail"] += 1
        return Verdict.failed(reason)

    @property
    def pool(self) -> Pool:
        if self._pool is None:
            self._pool = Pool(self.task, self.limits, days=self.days, fresh=self.fresh)
        return self._pool


class _Job(NamedTuple):
    """Some answers of a batch that a worker was asked about in one go."""

    items: Sequence[tuple[int, Example, str]]
    place: int
    future: Future
    start: int
    """Of the pool's workers, those that were asked."""


class Batch(Generic[T]):
    """Answers that are being judged; made by a Judge."""

    def __init__(
        self, judge: Judge, method: str, tell: Callable[[worker.Said, Example], T], *, too_long: Callable[[str], T]
    ) -> None:
        self._judge = judge
        self._method = method
        self._tell = tell
        self._too_long = too_long
        self._jobs: deque[_Job] = deque()
        self._told: dict[int, T] = {}
        self._added = 0
        self._losses = 0

    def add(self, items: Iterable[tuple[int, Example, str]]) -> None:
        """Begin to judge more of the batch: its index in the results, the example, the response. Waits for nothing."""
        began = perf_counter()
        longest = self._judge.limits.characters
        short = []
        for index, example, response in items:
            self._added += 1
            if len(response) <= longest:
                short.append((index, example, response))
                continue
            said = f"response of {len(response)} characters is longer than the limit of {longest}"
            self._told[index] = self._too_long(said)
        size = min(max(ceil(len(short) / (4 * workers_of(self._judge.limits))), _SMALLEST_CHUNK), _LARGEST_CHUNK)
        for start in range(0, len(short), size):
            self._ask(short[start : start + size])
        self._judge.seconds += perf_counter() - began

    def settle(self, index: int, outcome: T) -> None:
        """Put in the outcome of a response that the verifier is not asked about."""
        self._added += 1
        self._told[index] = outcome

    def result(self) -> list[T]:
        """Wait for the rest, and return what came of each answer, in the order of their indices."""
        began = perf_counter()
        try:
            while self._jobs:
                self._collect(self._jobs.popleft())
        finally:
            self._judge.seconds += perf_counter() - began
        return [self._told[index] for index in sorted(self._told)]

    def _ask(self, items: Sequence[tuple[int, Example, str]], *, warm_up: bool = True) -> None:
        pairs = [(example, response) for _, example, response in items]
        place, future = self._judge.pool.schedule(self._method, pairs, warm_up=warm_up)
        self._jobs.append(_Job(items, place, future, self._judge.pool.start))

    def _collect(self, job: _Job) -> None:
        """Take in what a worker says, or find out which answer was its end; what it left goes to another one."""
        pool = self._judge.pool
        try:
            while not job.future.done() and not (wait([job.future], _PATIENCE).done or pool.idle):
                pass
            said, seconds = job.future.result(timeout=0)
        except ProcessExpired as death:
            end_group(death.pid)
            return self._bury(job, death.exitcode)
        except TimeoutError:
            return self._bury(job, -signal.SIGALRM) if job.future.done() else self._begin_anew(job)
        except (BrokenProcessPool, CancelledError):
            return self._begin_anew(job)
        except Exception as error:
            if job.start != pool.start or not pool.active:  # the pipe was closed while the job was being sent
                return self._begin_anew(job)
            raise unloadable(self._judge.task, f"{type(error).__name__}: {error}") from error
        if said[0].outcome == "unloadable":
            raise unloadable(self._judge.task, said[0].reason)
        self._losses = 0
        self._judge.worker_seconds += seconds
        for (index, example, _), one in zip(job.items, said, strict=False):
            self._told[index] = self._tell(one, example)
        if len(said) < len(job.items):
            self._ask(job.items[len(said) :])

    def _begin_anew(self, job: _Job) -> None:
        """Ask again, with new workers: the old ones ended while they had nothing to do, or took a job with them."""
        if job.start == self._judge.pool.start:
            self._losses += 1
            if self._losses > _MOST_LOSSES:
                raise RunError(
                    f"the worker processes of task `{self._judge.task.name}` end while they have nothing to do",
                    MAIN_GUARD,
                    "a task starts no threads or timers that outlive a verdict",
                )
            self._judge.pool.restart()
        self._ask(job.items)

    def _bury(self, job: _Job, code: int) -> None:
        """Find out which answer a worker died of, and ask again about the others."""
        items, last = job.items, self._judge.pool.places[job.place]
        cause = cause_of(code, self._judge.limits)
        if last == worker.WARMING_UP:
            return self._ask(items, warm_up=False)
        if last == worker.NOT_READY:
            self._losses += code != worker.GROWN
            if code == -signal.SIGALRM or self._losses > _MOST_LOSSES:
                raise unloadable(self._judge.task, cause)
            return self._ask(items)
        if last == worker.ALL_JUDGED:  # one of them broke what the worker needs to say what it found
            alone, cause = items, f"after its verdict, {cause}"
        else:
            alone = [items[last]]
            for others in (items[:last], items[last + 1 :]):
                if others:
                    self._ask(others)
        if len(items) > 1 and (last == worker.ALL_JUDGED or code == worker.TOO_MUCH_MEMORY):
            for item in alone:  # to see whose fault it was
                self._ask([item])
            return None
        [(index, example, _)] = alone
        self._told[index] = self._tell(worker.Said("error", cause, cause), example)
        if self._method == "verify":
            self._judge.check_errors(still=self._added - len(self._told))
        return None


def judge(task: Task, pairs: Pairs) -> list[Verdict]:
    """Return one verdict a pair of example and response, in the same order."""
    with Judge(task) as one:
        return one.judge(pairs)


def _verdict(judge: Judge, said: worker.Said, example: Example) -> Verdict:
    if said.outcome == "wrong value":
        raise _wrong_value(judge.task, "verify", said.reason, allowed="a Verdict or a bool")
    if said.outcome == "error":
        verdict = judge._counted(said, example)
    else:
        verdict = Verdict.passed(said.reason) if said.outcome == "pass" else Verdict.failed(said.reason)
    judge.counts[verdict.outcome] += 1
    return verdict


def _leak(judge: Judge, said: worker.Said, example: Example) -> bool | None:
    if said.outcome == "wrong value":
        raise _wrong_value(judge.task, "leaks", said.reason, allowed="a bool")
    if said.outcome == "error":
        judge.leak_errors += 1
        return None
    return said.outcome == "pass"


def _wrong_value(task: Task, method: str, shown: str, *, allowed: str) -> TaskError:
    return TaskError(
        f"task `{task.name}`: `{method}` returned {shown}; it should return {allowed}",
        f"some way through `{method}` ends without a `return`"
        if shown == "None"
        else "write bool(...) around a value such as numpy.bool_",
    )


def verifier_hash(task: Task) -> str:
    """Return a hash of the source that judges: of the task's class and those it inherits from, up to `Task`.

    It covers every Python file of a class's package, or its one file; not what these import from elsewhere.
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
