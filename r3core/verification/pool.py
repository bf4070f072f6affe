"""Worker processes: begun from a clean server process, fed by pebble's pool, replaced when one of them dies."""

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

from r3core.config import Limits
from r3core.distributed import local_world_size
from r3core.errors import TaskError
from r3core.plugins.discovery import FILE_MODULE
from r3core.task import Example, Split, Task
from r3core.verification import worker

Pair = tuple[Example, str]
Future = ProcessFuture[tuple[list[worker.Said], float]]
"""What will hold the result of `worker.judge`."""
_PLACES = 65_536  # more chunks than this are never under way
_MOST_WORKERS = 8
MAIN_GUARD = 'a script that judges puts its main part under `if __name__ == "__main__":`'


class Pool:
    """Pebble's pool of workers for one task, and what the main process shares with them."""

    def __init__(self, task: Task, limits: Limits, *, days: float, fresh: bool) -> None:
        context = _context(task, fresh=fresh)
        self.places = context.RawArray("i", _PLACES)
        self.start = 0
        """How often the workers were replaced."""
        self._next = count()
        self._under_way: set[Future] = set()
        self._timeout = worker.WARM_UP_SECONDS + 3 * limits.seconds  # should a verifier undo the worker's own limit
        load = partial(_itself, task) if context.get_start_method() == "fork" else loader(task)
        memory = limits.memory_mb * 2**20
        setting = worker.Setting(load, limits.seconds, memory, self.places, dict(os.environ), str(Path.cwd()), days)
        self._new = partial(ProcessPool, workers_of(limits), 0, worker.start, [setting], context)
        self._pool = self._new()
        self._end = weakref.finalize(self, _end, self._pool)

    def schedule(self, method: str, pairs: Sequence[Pair], *, warm_up: bool) -> tuple[int, Future]:
        """Hand pairs to the workers; returns the chunk's place in `places`, and what will hold the result.

        A new worker judges the first of them for nobody, to warm up.
        """
        if not self._pool.active:
            self.restart()
        place = next(self._next) % _PLACES
        self.places[place] = worker.NOT_READY
        future = self._pool.schedule(worker.judge, [place, method, _Packed(pairs)], {"warm_up": warm_up}, self._timeout)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return place, future

    def digests(self, counts: Mapping[Split, int]) -> dict[Split, str]:
        """Return a hash of the first problems of each split, as a worker loads them."""
        told: dict[Split, str] = self._pool.schedule(worker.digests, [counts], timeout=self._timeout).result()
        return told

    @property
    def active(self) -> bool:
        """Whether jobs can be handed in."""
        return bool(self._pool.active)

    @property
    def idle(self) -> bool:
        """Whether no worker is at work: a chunk that is still waited for was lost with a worker that had taken it."""
        return not any(future.running() for future in tuple(self._under_way))

    def restart(self) -> None:
        """Replace all workers; what they were asked is cancelled."""
        self.close()
        self._pool = self._new()
        self._end = weakref.finalize(self, _end, self._pool)
        self.start += 1

    def close(self) -> None:
        self._end()
        for future in tuple(self._under_way):
            future.cancel()  # type: ignore[no-untyped-call]


class _Packed:
    """Pairs that are pickled each for itself, and only when a worker takes them."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = pairs

    def __reduce__(self) -> tuple[type[list[bytes]], tuple[list[bytes]]]:
        return list, ([pickle.dumps(pair) for pair in self._pairs],)


def _end(pool: ProcessPool) -> None:
    pool.stop()  # type: ignore[no-untyped-call]
    pool.join()


def workers_of(limits: Limits) -> int:
    """Return how many worker processes the limits ask for; those that train on one machine share its processors."""
    return limits.workers or max(1, min((os.cpu_count() or 1) // local_world_size(), _MOST_WORKERS))


def portable(task: Task) -> bool:
    """Tell whether a process that knows nothing of this one could load the task: its class lies in a module."""
    module = type(task).__module__
    if module == "__main__" or "<locals>" in type(task).__qualname__:
        return False
    return module.startswith(FILE_MODULE) or _can_be_found(module)


def _can_be_found(name: str) -> bool:
    """Tell whether a fresh process would import this very module; what this one has imported does not count."""
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
    """Return how workers are started: from a clean server process, which knows no torch, GPU or threads.

    Only a task of this very process (of a notebook, of a test) needs workers that are copies of it.
    """
    if not portable(task):
        return multiprocessing.get_context("fork")
    if fresh:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["r3core.verification.forkserver"])
    return context


def loader(task: Task) -> Callable[[], Task]:
    """Return what loads the task in another process, even where the file that it was made from is not."""
    module = type(task).__module__
    source = None
    if module.startswith(FILE_MODULE):
        path = str(sys.modules[module].__file__)
        source = (path, worker.sources[module] if module in worker.sources else Path(path).read_bytes())
    try:
        return partial(worker.load_pickled, pickle.dumps(task), module, source)
    except Exception as error:  # whatever the task's own values say to it
        raise TaskError(
            f"task `{task.name}` cannot be sent to a worker process: {type(error).__name__}: {error}",
            "keep nothing in a task but its options; open files and make locks where they are used",
        ) from error


def _itself(task: Task) -> Task:
    return task


def cause_of(code: int, limits: Limits) -> str:
    """Return in words what a worker's exit code says of the verifier."""
    if code == worker.TOO_MUCH_MEMORY:
        return f"it needed more than {limits.memory_mb:,} MB of memory"
    if code == -signal.SIGALRM:
        return f"it gave no verdict within {limits.seconds:g} s"
    if code == worker.ENDED_ITSELF:
        return "it ended its process (exit code 0)"
    if code == worker.SPOILED:
        return "it left its process unusable"
    if code < 0:
        known = {one.value: one.name for one in signal.Signals}
        return f"it crashed its process ({known.get(-code, f'signal {-code}')})"
    return f"it ended its process (exit code {code})"


def end_group(leader: int) -> None:
    """End the processes that a worker has left behind when it died."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def unloadable(task: Task, cause: str) -> TaskError:
    return TaskError(
        f"task `{task.name}` cannot be used in a worker process: {cause}",
        MAIN_GUARD,
    )
