"""What this process is waiting for at the moment: the engine, the verifier workers, or another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from time import monotonic

ENGINE = "the engine"
WORKERS = "the verifier workers"
PROCESS = "another process"
STEP = "the training step"


@dataclass
class Activity:
    """Something that this process waits for, for example 37 of 128 attempts by the engine."""

    what: str
    """Such as `the engine`."""
    detail: str
    """What it does, such as `attempts` or `loading the model`."""
    total: int
    """Number of items that it works on; 0 when they are not counted."""
    since: float
    """When it started, on the clock of `time.monotonic`."""
    done: int = 0
    """Number of items that are finished."""

    def __str__(self) -> str:
        amount = f"{self.done:,} of {self.total:,} " if self.total else ""
        return f"{self.what} ({amount}{self.detail})" if self.detail else self.what


_running: list[Activity] = []  # the innermost last
_lock = Lock()  # a watching thread reads while others write


@contextmanager
def waiting_for(
    what: str, detail: str = "", *, total: int = 0, now: Callable[[], float] = monotonic
) -> Iterator[Activity]:
    """Name what the block waits for, so that a stage which does not advance can report it."""
    activity = Activity(what, detail, total, now())
    with _lock:
        _running.append(activity)
    try:
        yield activity
    finally:
        with _lock:
            _running[:] = [one for one in _running if one is not activity]


def current() -> Activity | None:
    """Return the innermost block of `waiting_for` that is running, None without one."""
    with _lock:
        return _running[-1] if _running else None
