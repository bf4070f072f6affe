"""Worker processes: forked from a clean server process, fed by pebble's pool, replaced when one of them dies."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from pebble import ProcessFuture, ProcessPool

from r3core.distributed import local_world_size
from r3core.errors import TaskError
from r3core.plugins.discovery import FILE_MODULE
from r3core.sections import Limits
from r3core.task import Example, Limit, Split, Task
from r3core.verification import worker

Pair = tuple[Example, str]
Future = ProcessFuture[tuple[list[worker.WorkerResult], float]]
"""The future of a call of `worker.judge`."""
_SLOTS = 65_536  # there are never more unfinished chunks than this
_MAX_WORKERS = 8
MAIN_GUARD = 'in a script, put the code that calls the judge under `if __name__ == "__main__":`'


class Pool:
    """Pebble's pool of workers for one task, and the memory that the main process shares with them."""

    def __init__(self, task: Task, limits: Limits, *, days: float, fresh: bool) -> None:
        context = _context(task, fresh=fresh)
        # Slot of a chunk -> index of the response that its worker is judging. Shared memory without a lock is enough:
        # each slot has one writer, and the main process reads it only after that worker has died.
        self.progress = context.RawArray("i", _SLOTS)
        self.restarts = 0
        """How many times all workers were replaced."""
        self._next = count()
        self._unfinished: set[Future] = set()
        # Only for a verifier that disables the worker's own time limit: pebble kills its worker from outside.
        self._timeout = worker.WARM_UP_SECONDS + 3 * limits.seconds
        load = partial(_itself, task) if context.get_start_method() == "fork" else loader(task)
        memory = limits.memory_mb * 2**20
        settings = worker.Settings(load, limits.seconds, memory, self.progress, dict(os.environ), str(Path.cwd()), days)
        self._start = partial(ProcessPool, workers_of(limits), 0, worker.start, [settings], context)
        self._pool = self._start()
        self._end = weakref.finalize(self, _end, self._pool)

    def schedule(self, method: str, pairs: Sequence[Pair], *, warm_up: bool) -> tuple[int, Future]:
        """Submit a chunk of pairs; returns its slot in `progress`, and the future of its results.

        With `warm_up`, a new worker first calls the verifier once and throws the verdict away.
        """
        if not self._pool.active:
            self.restart()
        slot = next(self._next) % _SLOTS
        self.progress[slot] = worker.NOT_READY
        future = self._pool.schedule(worker.judge, [slot, method, _Packed(pairs)], {"warm_up": warm_up}, self._timeout)
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        return slot, future

    def digests(self, counts: Mapping[Split, int]) -> dict[Split, str]:
        """Return a hash of the first examples of each split, as a worker loads them."""
        result: dict[Split, str] = self._pool.schedule(worker.digests, [counts], timeout=self._timeout).result()
        return result

    @property
    def active(self) -> bool:
        """Whether chunks can be submitted."""
        return bool(self._pool.active)

    @property
    def idle(self) -> bool:
        """Whether no worker is running a chunk; one that is unfinished all the same was lost with a worker."""
        return not any(future.running() for future in tuple(self._unfinished))

    def restart(self) -> None:
        """Replace all workers, and cancel the unfinished chunks."""
        self.close()
        self._pool = self._start()
        self._end = weakref.finalize(self, _end, self._pool)
        self.restarts += 1

    def close(self) -> None:
        self._end()
        for future in tuple(self._unfinished):
            future.cancel()  # type: ignore[no-untyped-call]


class _Packed:
    """Pairs that are pickled separately, and only when a worker takes them.

    It unpickles as a list of bytes, so that the worker unpickles each pair under the limits of its response.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = pairs

    def __reduce__(self) -> tuple[type[list[bytes]], tuple[list[bytes]]]:
        return list, ([pickle.dumps(pair) for pair in self._pairs],)


def _end(pool: ProcessPool) -> None:
    pool.stop()  # type: ignore[no-untyped-call]
    pool.join()


def workers_of(limits: Limits) -> int:
    """Return the number of worker processes; the training processes of one machine share its processors."""
    return limits.workers or max(1, min((os.cpu_count() or 1) // local_world_size(), _MAX_WORKERS))


def portable(task: Task) -> bool:
    """Return whether a new interpreter can load the task, because its class is defined in a module it can import."""
    module = type(task).__module__
    if module == "__main__" or "<locals>" in type(task).__qualname__:
        return False
    return module.startswith(FILE_MODULE) or _can_be_found(module)


def _can_be_found(name: str) -> bool:
    """Return whether a new interpreter would import this very module, whatever is in `sys.modules` here."""
    path: Any = None
    spec = None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        whole = ".".join(parts[:end])
        found = (finder.find_spec(whole, path) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None:
            return False
        path = spec.submodule_search_locations
    return spec is not None and spec.origin == getattr(sys.modules[name], "__file__", None)


def _context(task: Task, *, fresh: bool) -> Any:
    """Return the start method of the workers: a fork of a clean server process, which has no torch, GPU or threads.

    A fork of this process would inherit gigabytes of address space and locks that another thread holds; only a task
    that is defined in this process alone (in a notebook, in a test) needs it. `fresh` starts a new interpreter for each
    worker, so that sets and hashes have another order.
    """
    if not portable(task):
        return multiprocessing.get_context("fork")
    if fresh:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["r3core.verification.forkserver"])
    return context


def loader(task: Task) -> Callable[[], Task]:
    """Return a function that loads the task in another process, even if its source file has changed meanwhile."""
    module = type(task).__module__
    source = None
    if module.startswith(FILE_MODULE):
        spec = sys.modules[module].__spec__
        assert spec is not None
        source = (str(spec.origin), spec.loader_state)
    try:
        return partial(worker.load_pickled, pickle.dumps(task), module, source)
    except Exception as error:  # pickling calls code of the task's own values
        raise TaskError(
            f"task `{task.name}` cannot be sent to a worker process: {type(error).__name__}: {error}",
            "a task may hold only its options; open files and create locks where they are used",
        ) from error


def _itself(task: Task) -> Task:
    return task


def limit_of(code: int) -> Limit | None:
    """Return the limit that a worker exceeded, by its exit code."""
    return {worker.EXIT_MEMORY: Limit.MEMORY, -signal.SIGALRM: Limit.TIME}.get(code)


def cause_of(code: int, limits: Limits) -> str:
    """Return a description of why a worker ended, by its exit code."""
    if code == worker.EXIT_MEMORY:
        return f"it needed more than {limits.memory_mb:,} MB of memory"
    if code == -signal.SIGALRM:
        return f"it gave no verdict within {limits.seconds:g} s"
    if code == worker.EXIT_ZERO:
        return "it ended its process (exit code 0)"
    if code == worker.EXIT_UNUSABLE:
        return "it left its process unusable"
    if code < 0:
        names = {one.value: one.name for one in signal.Signals}
        return f"it crashed its process ({names.get(-code, f'signal {-code}')})"
    return f"it ended its process (exit code {code})"


def end_group(leader: int) -> None:
    """Kill the processes that a dead worker has left behind; they are in its process group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def unloadable(task: Task, cause: str) -> TaskError:
    return TaskError(
        f"task `{task.name}` cannot be used in a worker process: {cause}",
        MAIN_GUARD,
    )
