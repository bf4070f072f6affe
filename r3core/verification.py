"""Verdicts: the one place where a task's verifier is called, and where its failures are caught and counted."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Self

from r3core.errors import RunError, TaskError
from r3core.task import Example, Outcome, Task, Verdict

LONGEST_RESPONSE = 200_000
"""Characters; a longer response is not shown to a verifier."""
_LONGEST_REASON = 300
Pairs = Sequence[tuple[Example, str]]


class Judge:
    """Judges responses to one task, and keeps count.

    A verifier that raises gives the verdict `error`, never `fail`. A response of more than `longest` characters is the
    model's doing and fails unread.
    """

    def __init__(self, task: Task, *, longest: int = LONGEST_RESPONSE) -> None:
        self.task = task
        self.longest = longest
        self.seconds = 0.0
        """Time spent in verification so far."""
        self.counts: Counter[Outcome] = Counter()
        """How many responses passed, failed or could not be judged."""
        self.reasons: Counter[str] = Counter()
        """How often each kind of error came: the exception's type, or the reason that the task gave."""
        self.leak_errors = 0
        """How many reflections could not be tested for a leak."""
        self._seen: dict[str, str] = {}  # kind of error -> the first of them, with its example

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def judge(self, pairs: Pairs) -> list[Verdict]:
        """Return one verdict a pair of example and response, in the same order.

        Raises TaskError when the verifier returns something that is neither a Verdict nor a bool.
        """
        began = perf_counter()
        try:
            verdicts = [self._verdict(example, response) for example, response in pairs]
        finally:
            self.seconds += perf_counter() - began
        self.counts.update(verdict.outcome for verdict in verdicts)
        return verdicts

    def leaks(self, pairs: Pairs) -> list[bool | None]:
        """Return whether each reflection gives its example's answer away; None when that could not be judged."""
        began = perf_counter()
        try:
            return [self._leak(example, reflection) for example, reflection in pairs]
        finally:
            self.seconds += perf_counter() - began

    def check_errors(self, *, limit: float = 0.05, least: int = 20) -> None:
        """Raise RunError when more than this share of the responses so far, at least so many, could not be judged."""
        total, errors = self.counts.total(), self.counts["error"]
        if total < least or errors <= limit * total:
            return
        raise RunError(
            f"the verifier of task `{self.task.name}` could not judge {errors} of {total} responses; "
            f"at most {limit:.0%} are tolerated",
            *(f"{count} times {self._seen[kind]}" for kind, count in self.reasons.most_common(3)),
        )

    def _verdict(self, example: Example, response: str) -> Verdict:
        if len(response) > self.longest:
            return Verdict.failed(f"response of {len(response)} characters is longer than the limit of {self.longest}")
        said, error = _guarded(lambda: self.task.verify(example, response))
        if error is not None:
            return self._counted(type(error).__name__, _reason(error), example)
        if isinstance(said, bool):
            return Verdict.passed() if said else Verdict.failed()
        if not isinstance(said, Verdict):
            raise _wrong_value(self.task, "verify", said, allowed="a Verdict or a bool")
        if said.outcome == "error":
            return self._counted(_shortened(said.reason), _shortened(said.reason), example)
        return said

    def _leak(self, example: Example, reflection: str) -> bool | None:
        if len(reflection) > self.longest:
            return False
        said, error = _guarded(lambda: self.task.leaks(example, reflection))
        if error is not None:
            self.leak_errors += 1
            return None
        if not isinstance(said, bool):
            raise _wrong_value(self.task, "leaks", said, allowed="a bool")
        return said

    def _counted(self, kind: str, reason: str, example: Example) -> Verdict:
        self.reasons[kind] += 1
        self._seen.setdefault(kind, f"{reason} (first on example {example.id!r})")
        return Verdict.error(reason)


def judge(task: Task, pairs: Pairs) -> list[Verdict]:
    """Return one verdict a pair of example and response, in the same order."""
    with Judge(task) as one:
        return one.judge(pairs)


def _guarded(call: Callable[[], object]) -> tuple[object, BaseException | None]:
    """Return what a task's code returned, or what it raised; only KeyboardInterrupt gets through.

    A SystemExit, a RecursionError and a MemoryError of a verifier are its errors, and no reason to end a run.
    """
    try:
        return call(), None
    except (Exception, SystemExit) as error:
        return None, error


def _reason(error: BaseException) -> str:
    try:
        message = str(error)
    except Exception:  # the exception is the task's own, and its text is computed by the task's code
        message = "(its message cannot be shown)"
    return _shortened(f"{type(error).__name__}: {message}" if message else type(error).__name__)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"


def _wrong_value(task: Task, method: str, value: object, *, allowed: str) -> TaskError:
    return TaskError(
        f"task `{task.name}`: `{method}` returned {_shortened(repr(value))}; it should return {allowed}",
        "write bool(...) around a value such as numpy.bool_",
    )


def verifier_hash(task: Task) -> str:
    """Return a hash of the source that judges: every Python file of the task's package, or its one file."""
    module = sys.modules[type(task).__module__]
    source = Path(module.__file__ or "")
    top = sys.modules.get(module.__name__.partition(".")[0])
    packaged = top is not None and top is not module and hasattr(top, "__path__")
    files = sorted(source.parent.glob("*.py")) if packaged else [source]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
