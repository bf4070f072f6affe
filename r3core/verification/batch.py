"""A batch of responses that are being judged, and what happens to it when a worker dies."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, wait
from concurrent.futures.process import BrokenProcessPool
from math import ceil
from time import perf_counter
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from pebble import ProcessExpired

from r3core.activity import WORKERS, waiting_for
from r3core.errors import RunError
from r3core.task import Example
from r3core.verification import worker
from r3core.verification.pool import MAIN_GUARD, Future, cause_of, end_group, limit_of, unloadable, workers_of

if TYPE_CHECKING:
    from r3core.verification.judge import Judge

T = TypeVar("T")
_MIN_CHUNK, _MAX_CHUNK = 8, 64  # responses that a worker receives at a time
_MAX_LOST_WORKERS = 5  # workers that may end without a verdict, one after the other
_LOST_CHUNK_SECONDS = 60.0  # interval of the checks whether a chunk was lost


class _Chunk(NamedTuple):
    """Responses of a batch that were submitted together, to be judged by one worker."""

    items: Sequence[tuple[int, Example, str]]
    slot: int
    """Where its worker writes the index of the response that is being judged: `Pool.progress`."""
    future: Future
    restarts: int
    """`Pool.restarts` when it was submitted: another number means that its workers are gone."""


class Batch(Generic[T]):
    """Responses that are being judged; created by a Judge.

    Invariant: every index that was added has either a result or a place in one unfinished chunk. When a worker dies,
    its chunk is split: the response it died on gets a result, the others are submitted again.
    """

    def __init__(
        self,
        judge: Judge,
        method: str,
        convert: Callable[[worker.WorkerResult, Example], T],
        *,
        too_long: Callable[[str], T],
    ) -> None:
        self._judge = judge
        self._method = method
        self._convert = convert
        self._too_long = too_long
        self._chunks: deque[_Chunk] = deque()
        self._results: dict[int, T] = {}
        self._added = 0
        self._lost_workers = 0

    def add(self, items: Iterable[tuple[int, Example, str]]) -> None:
        """Submit items of (index in the results, example, response); does not wait for their verdicts."""
        started_at = perf_counter()
        limit = self._judge.limits.characters
        short = []
        for index, example, response in items:
            self._added += 1
            if len(response) <= limit:
                short.append((index, example, response))
                continue
            reason = f"response of {len(response)} characters is longer than the limit of {limit}"
            self._results[index] = self._too_long(reason)
        size = min(max(ceil(len(short) / (4 * workers_of(self._judge.limits))), _MIN_CHUNK), _MAX_CHUNK)
        for start in range(0, len(short), size):
            self._submit(short[start : start + size])
        self._judge.seconds += perf_counter() - started_at

    def set_result(self, index: int, result: T) -> None:
        """Set the result of a response that is not passed to the verifier."""
        self._added += 1
        self._results[index] = result

    def result(self) -> list[T]:
        """Wait for the remaining responses, and return all results in the order of their indices."""
        started_at = perf_counter()
        try:
            with waiting_for(WORKERS, "answers", total=self._added) as activity:
                while self._chunks:
                    activity.done = len(self._results)
                    self._collect(self._chunks.popleft())
        finally:
            self._judge.seconds += perf_counter() - started_at
        return [self._results[index] for index in sorted(self._results)]

    def _submit(self, items: Sequence[tuple[int, Example, str]], *, warm_up: bool = True) -> None:
        pairs = [(example, response) for _, example, response in items]
        slot, future = self._judge.pool.schedule(self._method, pairs, warm_up=warm_up)
        self._chunks.append(_Chunk(items, slot, future, self._judge.pool.restarts))

    def _collect(self, chunk: _Chunk) -> None:
        """Wait for a chunk, store its results, and submit again what its worker left out or died before."""
        pool = self._judge.pool
        try:
            # A chunk may be lost with a worker that died after taking it: then no worker is busy, and it is not done.
            while not chunk.future.done() and not (wait([chunk.future], _LOST_CHUNK_SECONDS).done or pool.idle):
                pass
            results, seconds = chunk.future.result(timeout=0)
        except ProcessExpired as death:
            end_group(death.pid)
            return self._worker_died(chunk, death.exitcode)
        except TimeoutError:  # pebble's timeout ended the worker if the future is done; else the chunk was lost
            return self._worker_died(chunk, -signal.SIGALRM) if chunk.future.done() else self._submit_again(chunk)
        except (BrokenProcessPool, CancelledError):
            return self._submit_again(chunk)
        except Exception as error:
            if chunk.restarts != pool.restarts or not pool.active:  # the pipe was closed while the chunk was being sent
                return self._submit_again(chunk)
            raise unloadable(self._judge.task, f"{type(error).__name__}: {error}") from error
        if results[0].outcome == "unloadable":
            raise unloadable(self._judge.task, results[0].reason)
        self._lost_workers = 0
        self._judge.worker_seconds += seconds
        for (index, example, _), result in zip(chunk.items, results, strict=False):
            self._results[index] = self._convert(result, example)
        if len(results) < len(chunk.items):
            self._submit(chunk.items[len(results) :])

    def _submit_again(self, chunk: _Chunk) -> None:
        """Submit a lost chunk to new workers; the old ones ended while idle, or one took the chunk with it.

        All workers are replaced once per loss: the other chunks of the same workers find that `restarts` has changed.
        """
        if chunk.restarts == self._judge.pool.restarts:
            self._lost_workers += 1
            if self._lost_workers > _MAX_LOST_WORKERS:
                raise RunError(
                    f"the worker processes of task `{self._judge.task.name}` end while they are idle",
                    MAIN_GUARD,
                    "a task may not start threads or timers that outlive a verdict",
                )
            self._judge.pool.restart()
        self._submit(chunk.items)

    def _worker_died(self, chunk: _Chunk, code: int) -> None:
        """Find the response on which a worker died, give it the verdict `error`, and submit the others again."""
        items, last = chunk.items, self._judge.pool.progress[chunk.slot]
        cause = cause_of(code, self._judge.limits)
        if last == worker.WARMING_UP:  # the reference broke the verifier; the responses may not
            return self._submit(items, warm_up=False)
        if last == worker.NOT_READY:
            self._lost_workers += code != worker.EXIT_GROWN
            if code == -signal.SIGALRM or self._lost_workers > _MAX_LOST_WORKERS:
                raise unloadable(self._judge.task, cause)
            return self._submit(items)
        if last == worker.ALL_JUDGED:  # one of them broke what the worker needs to send its results
            suspects, cause = items, f"after its verdict, {cause}"
        else:
            suspects = [items[last]]
            for others in (items[:last], items[last + 1 :]):
                if others:
                    self._submit(others)
        # Memory may have been left by earlier responses, and what broke the results by any of them. A response is only
        # blamed when a worker dies on it alone.
        if len(items) > 1 and (last == worker.ALL_JUDGED or code == worker.EXIT_MEMORY):
            for item in suspects:
                self._submit([item])
            return None
        [(index, example, _)] = suspects
        self._results[index] = self._convert(worker.WorkerResult("error", cause, cause, limit_of(code)), example)
        if self._method == "verify":
            self._judge.check_errors(pending=self._added - len(self._results))
        return None
