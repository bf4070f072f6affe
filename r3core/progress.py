"""How far a stage has come: a bar where a person watches, plain lines where nobody does, and what a stall waits for.

Where standard error is a terminal, a stage is a bar with its main figure and the time left. Elsewhere (a batch job, CI,
`2>&1 | tee`) it prints a line at its start and its end, and in between:

- a line for each further 10%, never sooner than 30 seconds after the one before;
- where nothing was finished for a minute, a line with what the stage waits for and since when; the next ones follow
  after 2, 4 and 8 minutes, and then every 8, until 10% more is done;
- a line after 8 minutes without one, so that a slow stage is never silent for longer.

All of it goes to standard error, from the process of rank 0 alone, and `--quiet` turns it off.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any, TextIO

from r3core.activity import current
from r3core.distributed import rank

LINE_SECONDS = 30.0
"""Minimum time between two lines."""
STALL_SECONDS = 60.0
"""Time without a finished item after which a stage reports what it waits for; doubles with each report."""
MAX_SILENCE_SECONDS = 480.0
"""Maximum time without a line, and between two reports of a stall."""
_LINES = 10  # lines per stage, at most, beside those about what it waits for
_POLL_SECONDS = 1.0

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


class Stage:
    """How far a stage has come: finished items of its total, the main figure, rate and time left.

    A clock `now` in seconds can be given for tests.
    """

    def __init__(
        self, label: str, total: int, *, done: int = 0, unit: str = "items", now: Callable[[], float] = monotonic
    ) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        """What is counted, in the plural."""
        self.done = self.done_before = min(done, total)
        """Number of finished items, and how many of them an earlier session finished."""
        self.figure = ""
        """The main figure, ready to print, such as `first try 41.2%`."""
        self.now = now
        self.started_at = self.advanced_at = now()
        self.advanced: Callable[[], None] = lambda: None
        """Called after each advance, by the thread that does the work."""

    def advance(self, count: int = 1, *, figure: str = "") -> None:
        """Add finished items, and set the main figure if one is given."""
        self.reach(self.done + count, figure=figure)

    def reach(self, done: int, *, figure: str = "") -> None:
        """Set the number of finished items, and the main figure if one is given."""
        self.figure = figure or self.figure
        if done > self.done:
            self.done = min(done, self.total)
            self.advanced_at = self.now()
        self.advanced()

    @property
    def seconds(self) -> float:
        """How long the stage has taken in this session."""
        return self.now() - self.started_at

    @property
    def rate(self) -> float | None:
        """Finished items per second in this session; None until the first one is finished."""
        took = self.advanced_at - self.started_at
        finished = self.done - self.done_before
        return finished / took if finished and took > 0 else None

    @property
    def left(self) -> float | None:
        """Estimated seconds until the stage ends, None while that is unknown."""
        rate = self.rate
        if rate is None:
            return None
        return max(0.0, (self.total - self.done) / rate - (self.now() - self.advanced_at))

    @property
    def stalled(self) -> float:
        """Seconds since an item was last finished."""
        return self.now() - self.advanced_at

    def waits(self) -> str:
        """Return what the stage waits for and since when; empty where that is unknown."""
        activity = current()
        return "" if activity is None else f"waiting for {activity} for {duration(self.now() - activity.since)}"


class Lines:
    """The lines of a stage in a log; those at its start and its end only if it is `announced`."""

    def __init__(self, stage: Stage, *, announced: bool = True, stream: TextIO | None = None) -> None:
        self.stage = stage
        self.announced = announced
        self.stream = stream
        self.printed_at = stage.started_at
        self.printed_done = stage.done
        self.patience = STALL_SECONDS
        self._lock = Lock()  # two threads decide whether a line is due

    def start(self) -> None:
        """Print the line at the start of the stage."""
        stage = self.stage
        before = f", {stage.done_before:,} done before" if stage.done_before else ""
        if self.announced and stage.total:
            self._print(f"{stage.total:,} {stage.unit}{before}")

    def advanced(self) -> None:
        """Print a line if 10% more is done, and the last line is old enough."""
        with self._lock:
            stage = self.stage
            if stage.done >= stage.total or stage.now() - self.printed_at < LINE_SECONDS:
                return
            if (stage.done - self.printed_done) * _LINES >= stage.total:
                self.patience = STALL_SECONDS
                self.printed_done = stage.done
                self._print(_count(stage), _rate(stage), _left(stage), stage.figure)

    def tick(self) -> None:
        """Print what the stage waits for, if it does not advance or was silent for long; called each second."""
        with self._lock:
            stage = self.stage
            silence, stalled = stage.now() - self.printed_at, stage.stalled >= self.patience
            if silence < (self.patience if stalled else MAX_SILENCE_SECONDS):
                return
            if stalled:
                self.patience = min(2 * self.patience, MAX_SILENCE_SECONDS)
            stall = f"nothing finished for {duration(stage.stalled)}" if stage.stalled >= STALL_SECONDS else ""
            figures = (_count(stage), _rate(stage), _left(stage), stage.figure) if stage.total else ()
            self._print(*figures, stall, stage.waits())

    def end(self, *, complete: bool) -> None:
        """Print the line at the end of the stage; `complete` is false when an error or the user stopped it."""
        stage = self.stage
        if not self.announced or not stage.total:
            return
        took = f"{'in' if complete else 'after'} {duration(stage.seconds)}"
        ended = f"{_count(stage)} {took}" if complete else f"stopped at {_count(stage)} {took}"
        self._print(ended, _rate(stage), stage.figure)

    def _print(self, *parts: str) -> None:
        self.printed_at = self.stage.now()
        stream = self.stream or sys.stderr
        with suppress(OSError, ValueError):  # whoever read the lines has closed the pipe; the stage continues
            # one call, so that lines of several threads do not mix
            stream.write(f"{self.stage.label}: {', '.join(part for part in parts if part)}\n")
            stream.flush()


@contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """Turn bars and lines off for the block."""
    token = _quiet.set(on or is_quiet())
    try:
        yield
    finally:
        _quiet.reset(token)


def is_quiet() -> bool:
    """Return whether bars and lines are turned off."""
    return _quiet.get()


@contextmanager
def progress(label: str, total: int, *, done: int = 0, unit: str = "items") -> Iterator[Stage]:
    """Show the progress of the block, which advances the yielded stage; see this module for what is printed where."""
    stage = Stage(label, total, done=done, unit=unit)
    if is_quiet() or rank() > 0:
        yield stage
        return
    with _bar(stage) if _on_terminal() and total else _lines(Lines(stage)):
        yield stage


@contextmanager
def watched(label: str) -> Iterator[None]:
    """Print what the block waits for when it takes minutes, on a terminal too; for work that cannot be counted."""
    if is_quiet() or rank() > 0:
        yield
        return
    with _lines(Lines(Stage(label, 0), announced=False)):
        yield


@contextmanager
def _lines(lines: Lines) -> Iterator[None]:
    ended = Event()

    def watch() -> None:
        while not ended.wait(_POLL_SECONDS):
            lines.tick()

    watching = Thread(target=watch, name=f"progress of {lines.stage.label}", daemon=True)
    lines.stage.advanced = lines.advanced
    lines.start()
    watching.start()
    complete = False
    try:
        yield
        complete = True
    finally:
        ended.set()
        watching.join()
        lines.end(complete=complete)


def _on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _bar(stage: Stage) -> AbstractContextManager[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Task as Row
    from rich.text import Text

    class Now(ProgressColumn):
        """The time left and the main figure, which change between two advances as well."""

        max_refresh = 0.5

        def render(self, task: Row) -> Text:
            return Text(bar_text(stage))

    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), Now())
    shown = Progress(*columns, console=Console(stderr=True))
    row = shown.add_task(stage.label, total=stage.total, completed=stage.done)
    stage.advanced = lambda: shown.update(row, completed=stage.done)
    return shown


def bar_text(stage: Stage) -> str:
    """Return what stands behind the bar of a stage: time left, main figure, and what a stall waits for."""
    waits = stage.waits() if stage.stalled >= STALL_SECONDS and stage.done < stage.total else ""
    return ", ".join(part for part in (_left(stage), stage.figure, waits) if part)


def duration(seconds: float) -> str:
    """Return a duration for people.

    >>> [duration(9.6), duration(130), duration(3900)]
    ['10s', '2m 10s', '1h 05m']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02}m"


def percent(part: int, whole: int) -> str:
    """Return a part of a whole as a percentage with one decimal, `-` of nothing.

    >>> [percent(3, 8), percent(0, 0)]
    ['37.5%', '-']
    """
    return f"{part / whole:.1%}" if whole else "-"


def _count(stage: Stage) -> str:
    return f"{stage.done:,}/{stage.total:,} ({stage.done / stage.total:.0%})"


def _rate(stage: Stage) -> str:
    """Return the rate per second, minute or hour: the first of these in which it is at least 1."""
    if stage.rate is None:
        return ""
    per = next((one for one in _PER if stage.rate * one >= 1), 3600)
    return f"{stage.rate * per:.1f}/{_PER[per]}"


_PER = {1: "s", 60: "min", 3600: "h"}


def _left(stage: Stage) -> str:
    return "" if stage.left is None or stage.done >= stage.total else f"{duration(stage.left)} left"
