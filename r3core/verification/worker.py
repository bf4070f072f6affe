"""What a worker process does: it judges answers under limits, and dies rather than go beyond one."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import io
import multiprocessing
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
SPOILED = 88
"""The exit code of a worker in which not even this module works any more, after what the task's code has done."""
GROWN = 89
"""The exit code of a worker that has kept so much memory that it makes room for another one."""
NOT_READY, WARMING_UP, ALL_JUDGED = -1, -2, -3
"""What stands at a chunk's place in `places` before its first answer is reached, and after its last one."""
WARM_UP_SECONDS = 60.0
"""Time to load the task, and for a worker's first answer, judged for nobody: verifiers import libraries there."""
_PRINTED = 1_000_000  # characters that a verifier may print for one answer
_LONGEST_REASON = 300


class Said(NamedTuple):
    """What came of one answer, in a form that is quick to send."""

    outcome: str
    """`pass`, `fail` or `error`; `wrong value`, when the task's method returned something that it must not; or
    `unloadable`, for all answers of the chunk."""
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

    def close(self) -> None:
        """Stay open: the next verdict prints too."""

    def write(self, text: str) -> int:
        self.written += len(text)
        if self.written > _PRINTED:
            raise _TooMuchOutput
        return len(text)


sources: dict[str, bytes] = {}
"""Module -> content of the file that it was made from, for the modules that came with a task to this process."""
_setting: Setting | None = None
_pid = 0
_task: Task | None = None
_usual_memory = 0  # bytes of address space, after the warm-up
_most_memory = resource.RLIM_INFINITY  # the same, while a verdict is made
_output = _Output()


def start(setting: Setting) -> None:
    """Prepare the process, in which nothing is heard or seen of what a verifier prints."""
    global _setting, _pid
    _setting, _pid = setting, os.getpid()
    os.environ.clear()
    os.environ.update(setting.environment)
    with suppress(OSError):  # the folder is gone
        os.chdir(setting.folder)
    _take_along()
    end = os._exit
    os._exit = lambda status: end(status or (0 if _copied() else ENDED_ITSELF))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)


def _take_along() -> None:
    """See to it that processes which a verifier starts end with this one, and this one with the main process."""
    os.setpgid(0, 0)  # a group of its own, which the main process ends when this process has died
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1) if _copied() else os.killpg(0, signal.SIGKILL))
    main = multiprocessing.parent_process()
    assert main is not None
    with suppress(OSError):  # Linux sends SIGIO to the group when the pipe from the main process is closed
        fcntl.fcntl(main.sentinel, fcntl.F_SETOWN, -_pid)
        fcntl.fcntl(main.sentinel, fcntl.F_SETFL, os.O_ASYNC)


def judge(place: int, method: str, pairs: Sequence[bytes], *, warm_up: bool) -> tuple[list[Said], float]:
    """Return what a method of the task (`verify` or `leaks`) says of the first of the pairs, and the seconds it took.

    When they take longer together than one answer may, the rest is left to another call: so a chunk has a time limit.
    Each pair is pickled for itself: a verifier that changes an example changes it for nobody else.
    """
    assert _setting is not None
    with redirect_stdout(_output), redirect_stderr(_output):
        try:
            task = _task or _load(place, pairs[0], warm_up=warm_up)
        except BaseException as error:  # whatever the task's module does
            return [Said("unloadable", _reason(error))], 0.0
        said: list[Said] = []
        began = perf_counter()
        try:
            _make_room()
            asked = getattr(task, method)
            for index, pair in enumerate(pairs):
                _setting.places[place] = index
                said.append(_limited(asked, pair, method))
                if perf_counter() - began > _setting.seconds:
                    break
        except BaseException:
            os._exit(SPOILED)
        _setting.places[place] = ALL_JUDGED
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


def _limited(asked: Callable[[Example, str], object], pair: bytes, method: str) -> Said:
    """Call a method of the task. The kernel ends this process when that takes too long, in Python code or in C."""
    assert _setting is not None
    _output.written = 0
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # an earlier verdict may have changed it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, _setting.seconds)
    _hold_memory(_most_memory)
    try:
        said = _said(asked(*pickle.loads(pair)), method)
    except MemoryError:
        os._exit(TOO_MUCH_MEMORY)  # the process may be in any state
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: here they are the verifier's errors
        said = Said("error", _reason(error), type(error).__name__)
    finally:
        if _copied():
            os._exit(0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _hold_memory(resource.RLIM_INFINITY)
    if _output.written > _PRINTED:
        return Said("error", f"it printed more than {_PRINTED:,} characters", "it printed too much")
    return said


def _copied() -> bool:
    """Tell whether this process is not the worker but a copy of it, which the verifier made by a fork."""
    return os.getpid() != _pid


def _hold_memory(most: int) -> None:
    with suppress(ValueError, OSError):  # the verifier has set a lower limit, for good
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _said(value: object, method: str) -> Said:
    if isinstance(value, bool):
        return Said("pass" if value else "fail")
    if not isinstance(value, Verdict) or method != "verify":
        return Said("wrong value", shortened(repr(value)))
    outcome, reason = value.outcome, value.reason
    if outcome not in ("pass", "fail", "error") or not isinstance(reason, str):  # it was made by `model_construct`
        return Said("wrong value", shortened(repr(value)))
    reason = shortened(reason)
    return Said(outcome, reason, reason if outcome == "error" else "")


def _load(place: int, pair: bytes, *, warm_up: bool) -> Task:
    """Load the task and use it once: only then is it known what its code takes of memory."""
    global _task, _usual_memory
    assert _setting is not None
    signal.setitimer(signal.ITIMER_REAL, WARM_UP_SECONDS)
    task = _setting.load()
    if _setting.days:
        _put_the_clock_forward(_setting.days)
    if warm_up:
        _setting.places[place] = WARMING_UP
        with suppress(BaseException):  # whatever is wrong will be seen in the first verdict too
            example, _ = pickle.loads(pair)
            task.verify(example, task.reference(example) or "")
        if _copied():
            os._exit(0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    _task, _usual_memory = task, _memory()
    return task


def _make_room() -> None:
    """Say how much memory a verdict may take up to; a process in which verdicts have kept too much of it ends."""
    global _most_memory
    assert _setting is not None
    if used := _memory():
        if used > _usual_memory + _setting.memory:
            os._exit(GROWN)
        _most_memory = used + _setting.memory


def _memory() -> int:
    """Return the bytes of address space in use; 0 elsewhere than on Linux, where the kernel does not limit it."""
    used = Path("/proc/self/statm")
    return int(used.read_text().split()[0]) * resource.getpagesize() if used.exists() else 0


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
        sources[module] = code
        exec(compile(code, path, "exec"), vars(made))  # the task's own code, as it was when the run began
    task: Task = pickle.loads(pickled)
    return task


def _reason(error: BaseException) -> str:
    try:
        message = str(error)[:_LONGEST_REASON]
    except BaseException:  # the exception is the task's own, and its text is computed by the task's code
        message = "(its message cannot be shown)"
    return shortened(f"{type(error).__name__}: {message}" if message else type(error).__name__)


def shortened(text: str) -> str:
    """Return a text that is short enough for a reason, and can be written to a file: without lone surrogates."""
    cut = text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"
    return cut.encode("utf-8", "backslashreplace").decode()
