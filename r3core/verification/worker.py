"""The code that runs in a worker process: it judges responses under limits, and dies rather than exceed one.

A verifier may hang in C code, use up the memory or crash the interpreter; no handler in the same process can recover
from that reliably. The main process learns why a worker died from the exit code (SIGALRM is the time limit), and on
which response from `progress`, an array in shared memory: each chunk of responses has a slot in it, where the worker
writes the index of the response that it is about to judge.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import io
import linecache
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

from r3core.task import Example, Limit, Split, Task, Verdict

EXIT_MEMORY = 86  # a worker's exit code: the verifier needed more memory than the limit
EXIT_ZERO = 87  # the task's code ended the process with 0, which pebble would take for an orderly end
EXIT_UNUSABLE = 88  # the task's code left the process in a state in which not even this module works
EXIT_GROWN = 89  # earlier verdicts left so much memory allocated that a new worker has to take over

NOT_READY, WARMING_UP, ALL_JUDGED = -1, -2, -3
"""Values of a slot of `progress` before the first response of a chunk is reached, and after the last one."""
WARM_UP_SECONDS = 60.0
"""Time limit for loading the task and for a first verdict that is thrown away: verifiers import libraries there."""
_MAX_PRINTED = 1_000_000  # characters per response
_MAX_REASON = 300


class WorkerResult(NamedTuple):
    """The result of judging one response, as a tuple because that is quick to send."""

    outcome: str
    """`pass`, `fail` or `error`; `wrong value` when the task's method returned a value of another type; `unloadable`
    for a whole chunk."""
    reason: str = ""
    kind: str = ""
    """The verdict's error category; of an error, what errors are counted by: the exception's type or the reason."""
    limit: Limit | None = None


class Settings(NamedTuple):
    """What a new worker receives from the main process."""

    load: Callable[[], Task]
    seconds: float
    """Time limit per response."""
    memory: int
    """Memory limit per response, in bytes."""
    progress: MutableSequence[int]
    """Shared with the main process: slot of a chunk -> index of the response that is being judged."""
    environment: Mapping[str, str]
    folder: str
    """Working directory."""
    days: float = 0.0
    """By how many days the clock that the task sees is ahead."""


class _TooMuchOutput(BaseException):
    """Not an Exception, so that a verifier does not catch it by accident."""


class _Output(io.TextIOBase):
    """Discards and counts what a verifier prints."""

    written = 0

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Stay open: the verifier may print again for the next response."""

    def write(self, text: str) -> int:
        self.written += len(text)
        if self.written > _MAX_PRINTED:
            raise _TooMuchOutput
        return len(text)


_settings: Settings | None = None
_pid = 0
_task: Task | None = None
_memory_after_warm_up = 0  # bytes of address space
_max_memory = resource.RLIM_INFINITY  # bytes of address space, while a response is judged
_output = _Output()


def start(settings: Settings) -> None:
    """Prepare the process; what a verifier prints is discarded."""
    global _settings, _pid
    _settings, _pid = settings, os.getpid()
    # The fork server has the environment and the directory of its own start, which may be long ago.
    os.environ.clear()
    os.environ.update(settings.environment)
    with suppress(OSError):  # the folder is gone
        os.chdir(settings.folder)
    _end_with_main_process()
    end = os._exit
    os._exit = lambda status: end(status or (0 if _is_fork() else EXIT_ZERO))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)


def _end_with_main_process() -> None:
    """Make processes that a verifier starts end with this worker, and the worker end with the main process.

    All of them are one process group, which ends in three ways: pebble stops the worker with SIGTERM; after a crash
    the main process kills the group (`pool.end_group`); when the main process was killed, the kernel sends SIGIO, whose
    default action ends a process, even one that is stuck in C code.
    """
    os.setpgid(0, 0)
    # A copy of the worker that the verifier forked shares this handler and the group; it must not kill the worker.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1) if _is_fork() else os.killpg(0, signal.SIGKILL))
    main = multiprocessing.parent_process()
    assert main is not None
    with suppress(OSError):  # Linux sends SIGIO when the main process's end of this pipe is closed
        fcntl.fcntl(main.sentinel, fcntl.F_SETOWN, -_pid)  # negative: to the whole group
        fcntl.fcntl(main.sentinel, fcntl.F_SETFL, os.O_ASYNC)


def judge(slot: int, method: str, pairs: Sequence[bytes], *, warm_up: bool) -> tuple[list[WorkerResult], float]:
    """Return the results of a task's method (`verify` or `leaks`) for the first of the pairs, and the seconds it took.

    When they take longer together than one response may, the rest is left to another call: so a chunk has a time limit.
    Each pair is pickled separately: a verifier that changes an example changes it for no other response.
    """
    assert _settings is not None
    with redirect_stdout(_output), redirect_stderr(_output):
        try:
            task = _task or _load(slot, pairs[0], warm_up=warm_up)
        except BaseException as error:  # whatever the task's module does
            return [WorkerResult("unloadable", _describe(error))], 0.0
        results: list[WorkerResult] = []
        started_at = perf_counter()
        try:
            _set_memory_limit()
            function = getattr(task, method)
            for index, pair in enumerate(pairs):
                _settings.progress[slot] = index  # before the call: this is how a dead worker's response is identified
                results.append(_call_under_limits(function, pair, method))
                if perf_counter() - started_at > _settings.seconds:
                    break
        except BaseException:
            os._exit(EXIT_UNUSABLE)
        _settings.progress[slot] = ALL_JUDGED
    return results, perf_counter() - started_at


def digests(counts: Mapping[Split, int]) -> dict[Split, str]:
    """Return a hash of the first examples of each split; `counts` is how many of each."""
    assert _settings is not None
    with redirect_stdout(_output), redirect_stderr(_output):
        task = _settings.load()
        return {split: digest(islice(task.load(split), count)) for split, count in counts.items()}


def digest(examples: Iterable[Example]) -> str:
    """Return a hash of examples, in their order."""
    return hashlib.sha256(b"\n".join(example.model_dump_json().encode() for example in examples)).hexdigest()


def _call_under_limits(function: Callable[[Example, str], object], pair: bytes, method: str) -> WorkerResult:
    """Call a method of the task; when that takes too long, in Python code or in C, the kernel ends this process.

    A Python handler of SIGALRM would not run before C code returns, and a verifier could catch what it raises; the
    default action ends the process. What an earlier response did to the signal is undone first.
    """
    assert _settings is not None
    _output.written = 0
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, _settings.seconds)
    _limit_address_space(_max_memory)
    try:
        result = _result_of(function(*pickle.loads(pair)), method)
    except MemoryError:
        os._exit(EXIT_MEMORY)  # the process may be in any state
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: here they are the verifier's errors
        result = WorkerResult("error", _describe(error), type(error).__name__)
    finally:
        if _is_fork():
            os._exit(0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _limit_address_space(resource.RLIM_INFINITY)
    if _output.written > _MAX_PRINTED:
        reason = f"it printed more than {_MAX_PRINTED:,} characters"
        return WorkerResult("error", reason, "it printed too much", Limit.OUTPUT)
    return result


def _is_fork() -> bool:
    """Return whether this is a copy of the worker, made by the verifier's `os.fork`: it must not send a result too."""
    return os.getpid() != _pid


def _limit_address_space(maximum: int) -> None:
    with suppress(ValueError, OSError):  # the verifier has set a lower limit, which cannot be raised again
        resource.setrlimit(resource.RLIMIT_AS, (maximum, resource.RLIM_INFINITY))


def _result_of(value: object, method: str) -> WorkerResult:
    if isinstance(value, bool):
        return WorkerResult("pass" if value else "fail")
    if not isinstance(value, Verdict) or method != "verify":
        return WorkerResult("wrong value", shortened(repr(value)))
    outcome, reason, kind = value.outcome, value.reason, value.kind
    if outcome not in ("pass", "fail", "error") or not all(isinstance(text, str) for text in (reason, kind)):
        return WorkerResult("wrong value", shortened(repr(value)))  # `model_construct` does not validate
    reason = shortened(reason)
    return WorkerResult(outcome, reason, reason if outcome == "error" else shortened(kind))


def _load(slot: int, pair: bytes, *, warm_up: bool) -> Task:
    """Load the task and call its verifier once, so that what it imports does not count as a response's memory."""
    global _task, _memory_after_warm_up
    assert _settings is not None
    signal.setitimer(signal.ITIMER_REAL, WARM_UP_SECONDS)
    task = _settings.load()
    if _settings.days:
        _advance_clock(_settings.days)
    if warm_up:
        _settings.progress[slot] = WARMING_UP
        with suppress(BaseException):  # whatever is wrong shows in the first verdict too
            example, _ = pickle.loads(pair)
            task.verify(example, task.reference(example) or "")
        if _is_fork():
            os._exit(0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    _task, _memory_after_warm_up = task, _address_space()
    return task


def _set_memory_limit() -> None:
    """Set how much memory the next responses may use; end the process if earlier ones left too much allocated."""
    global _max_memory
    assert _settings is not None
    if used := _address_space():
        if used > _memory_after_warm_up + _settings.memory:
            os._exit(EXIT_GROWN)
        _max_memory = used + _settings.memory


def _address_space() -> int:
    """Return the bytes of address space in use; 0 on systems other than Linux, where it is not limited."""
    used = Path("/proc/self/statm")
    return int(used.read_text().split()[0]) * resource.getpagesize() if used.exists() else 0


def _advance_clock(days: float) -> None:
    from datetime import UTC, datetime, timedelta

    import time_machine

    time_machine.travel(datetime.now(UTC) + timedelta(days=days), tick=True).start()


def load_pickled(pickled: bytes, module: str, source: tuple[str, bytes] | None) -> Task:
    """Return a task from its pickle; `source` is path and content of its module's source file, for a task of a file."""
    if source is not None and module not in sys.modules:
        path, code = source
        spec = importlib.util.spec_from_file_location(module, path)
        assert spec is not None
        created = sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader_state = code
        # Pydantic reads docstrings of fields from the source of the class: not from a file that was changed meanwhile.
        linecache.cache[path] = len(code), None, importlib.util.decode_source(code).splitlines(keepends=True), path
        exec(compile(code, path, "exec"), vars(created))  # the task's own code, as it was when the run started
    task: Task = pickle.loads(pickled)
    return task


def _describe(error: BaseException) -> str:
    try:
        message = str(error)[:_MAX_REASON]
    except BaseException:  # the exception is the task's own, and its text is computed by the task's code
        message = "(its message cannot be shown)"
    return shortened(f"{type(error).__name__}: {message}" if message else type(error).__name__)


def shortened(text: str) -> str:
    """Return a text cut to the maximum length of a reason, with lone surrogates escaped: no file can hold them."""
    cut = text if len(text) <= _MAX_REASON else text[: _MAX_REASON - 1] + "…"
    return cut.encode("utf-8", "backslashreplace").decode()
