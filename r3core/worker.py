"""What a worker process does: it judges answers under limits, and dies rather than go beyond one."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, MutableSequence, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from r3core.task import Example, Split, Task, Verdict

TOO_MUCH_MEMORY = 86
"""The exit code of a worker whose verifier needed more memory than it may have."""
ENDED_ITSELF = 87
"""The exit code of a worker that the task's code ended with 0, which pebble would take for an orderly end."""
NOT_READY = -1
"""What stands at a chunk's place in `places` until its first answer is reached."""
WARM_UP_SECONDS = 60.0
"""Time for the first answer of a worker, which is not judged for anybody: verifiers import libraries there."""
_PRINTED = 1_000_000  # characters that a verifier may print for one answer
_LONGEST_REASON = 300


class Said(NamedTuple):
    """What came of one answer, in a form that is quick to send."""

    outcome: str
    """`pass`, `fail` or `error`; or `wrong value`, when the task's method returned something that it must not."""
    reason: str = ""
    kind: str = ""
    """What errors are counted by: an exception's type, or the task's own reason."""


class Setting(NamedTuple):
    """All that a worker needs to know, as it is sent to a new one."""

    load: Callable[[], Task]
    seconds: float
    memory: int
    """Bytes."""
    places: MutableSequence[int]
    """Shared with the main process: which answer of a chunk is being judged, at the chunk's place."""
    environment: Mapping[str, str]
    folder: str
    days: float = 0.0
    """How far the clock that the task sees is put forward."""


class _TooMuchOutput(BaseException):
    """Not an Exception, so that a verifier does not catch it by accident."""


class _Output(io.TextIOBase):
    """Swallows what a verifier prints, and counts it."""

    written = 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.written += len(text)
        if self.written > _PRINTED:
            raise _TooMuchOutput
        return len(text)


_setting: Setting | None = None
_task: Task | None = None
_most_memory = resource.RLIM_INFINITY  # bytes of address space, while a verdict is made
_output = _Output()


def start(setting: Setting) -> None:
    """Prepare the process, in which nothing is heard or seen of what a verifier prints."""
    global _setting
    _setting = setting
    os.environ.clear()
    os.environ.update(setting.environment)
    with suppress(OSError):  # the folder is gone
        os.chdir(setting.folder)
    end = os._exit
    os._exit = lambda status: end(status or ENDED_ITSELF)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)


def judge(place: int, method: str, pairs: Sequence[tuple[Example, str]]) -> tuple[list[Said], float]:
    """Return what a method of the task (`verify` or `leaks`) says of the first of the pairs, and the seconds it took.

    When they take longer together than one answer may, the rest is left to another call: so a chunk has a time limit.
    """
    assert _setting is not None
    with redirect_stdout(_output), redirect_stderr(_output):
        task = _ready(pairs[0][0])
        asked = getattr(task, method)
        said: list[Said] = []
        began = perf_counter()
        for index, (example, response) in enumerate(pairs):
            _setting.places[place] = index
            said.append(_limited(asked, example, response, method))
            if perf_counter() - began > _setting.seconds:
                break
    return said, perf_counter() - began


def digests(counts: Mapping[Split, int]) -> dict[Split, str]:
    """Return a hash of the first problems of each split, as many as are asked for."""
    assert _setting is not None
    with redirect_stdout(_output), redirect_stderr(_output):
        task = _setting.load()
        return {split: digest(islice(task.load(split), count)) for split, count in counts.items()}


def digest(examples: Iterable[Example]) -> str:
    """Return a hash of some problems, in their order."""
    whole = hashlib.sha256()
    for example in examples:
        whole.update(example.model_dump_json().encode() + b"\n")
    return whole.hexdigest()


def _limited(asked: Callable[[Example, str], object], example: Example, response: str, method: str) -> Said:
    """Call a method of the task. The kernel ends this process when that takes too long, in Python code or in C."""
    assert _setting is not None
    _output.written = 0
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # an earlier verdict may have changed it
    signal.setitimer(signal.ITIMER_REAL, _setting.seconds)
    resource.setrlimit(resource.RLIMIT_AS, (_most_memory, resource.RLIM_INFINITY))
    try:
        value = asked(example, response)
    except MemoryError:
        os._exit(TOO_MUCH_MEMORY)  # the process may be in any state
    except _TooMuchOutput:
        value = None
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: here they are the verifier's errors
        return Said("error", _reason(error), type(error).__name__)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if _output.written > _PRINTED:
        return Said("error", f"it printed more than {_PRINTED:,} characters", "it printed too much")
    return _said(value, method)


def _said(value: object, method: str) -> Said:
    if isinstance(value, bool):
        return Said("pass" if value else "fail")
    if not isinstance(value, Verdict) or method != "verify":
        return Said("wrong value", shortened(repr(value)))
    reason = shortened(value.reason)
    return Said(value.outcome, reason, reason if value.outcome == "error" else "")


def _ready(example: Example) -> Task:
    """Return the task, loaded and used once: only then is it known what its code takes of memory."""
    global _task, _most_memory
    assert _setting is not None
    if _task is None:
        signal.setitimer(signal.ITIMER_REAL, WARM_UP_SECONDS)
        task = _setting.load()
        if _setting.days:
            _put_the_clock_forward(_setting.days)
        with suppress(BaseException):  # whatever is wrong will be seen in the first verdict too
            task.verify(example, task.reference(example) or "")
        signal.setitimer(signal.ITIMER_REAL, 0)
        used = Path("/proc/self/statm")
        if used.exists():  # elsewhere than on Linux the kernel does not hold a limit of the address space
            _most_memory = int(used.read_text().split()[0]) * resource.getpagesize() + _setting.memory
        _task = task
    return _task


def _put_the_clock_forward(days: float) -> None:
    from datetime import UTC, datetime, timedelta

    import time_machine

    time_machine.travel(datetime.now(UTC) + timedelta(days=days), tick=True).start()


def load_pickled(pickled: bytes, module: str, source: tuple[str, bytes] | None) -> Task:
    """Return a task from its pickle; `source` is path and content of the file that its module was made from, if any."""
    if source is not None and module not in sys.modules:
        path, code = source
        spec = importlib.util.spec_from_file_location(module, path)
        assert spec is not None
        made = sys.modules[module] = importlib.util.module_from_spec(spec)
        exec(compile(code, path, "exec"), vars(made))  # the task's own code, as it was when the run began
    task: Task = pickle.loads(pickled)
    return task


def _reason(error: BaseException) -> str:
    try:
        message = str(error)
    except Exception:  # the exception is the task's own, and its text is computed by the task's code
        message = "(its message cannot be shown)"
    return shortened(f"{type(error).__name__}: {message}" if message else type(error).__name__)


def shortened(text: str) -> str:
    """Return a text that is short enough for a reason, and can be written to a file: without lone surrogates."""
    cut = text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"
    return cut.encode("utf-8", "backslashreplace").decode()
