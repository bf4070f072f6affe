"""The run directory: a run's configuration, its results, and its progress. A run that was killed at any moment resumes.

What makes that possible:
- One process writes at a time: it holds the lock `.lock`, which the operating system frees when the process dies.
- `*.jsonl` files are append-only. A row is complete when its newline is written; a kill can leave one torn last row,
  which readers ignore and the next append cuts off.
- `*.json` files are replaced atomically: readers find the old value or the new one.
- A stage is finished when `stages/NAME.json` exists. Until then, it continues from the rows that are there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Self, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import to_json

from r3core.environment import environment
from r3core.errors import BusyError, RunError, UsageError
from r3core.files import atomic_write, cut_off_torn_row
from r3core.settings import leaves

T = TypeVar("T")
Value = TypeVar("Value", bound=BaseModel)

_NOT_RESULTS = (
    *("config.json", "environment.json", "sessions.jsonl", "clock.jsonl", "certificate.json", "template.json"),
    *("report.html", "tables", "charts"),
)
_REPAIRS = {
    "result": "restore the file, or remove it and stages/evaluate.json: `r3 eval` makes it again from recorded episodes"
}
"""What to do about a damaged file, beside what holds for every one."""
_RESOLVED = "grpo_resolved"
_PATIENCE = 30.0  # seconds in which processes that were killed must free the lock
_MAX_DIFFERENCES = 8  # listed in an error message; more are counted


class RunRecord:
    """A run directory for reading: takes no lock, and the run may be in progress.

    A `name` is a file's path in the directory without its ending, for example `failures/card`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of `NAME.jsonl`, an empty list when there is no such file; a torn last row is ignored."""
        return list(self.rows(name))

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the same rows one by one, for files that do not fit in memory."""
        path = self.path / f"{name}.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n"):
                    yield _row(path, number, line)

    def read_json(self, name: str) -> Any:
        """Return the value in `NAME.json`, or None when there is no such file."""
        path = self.path / f"{name}.json"
        try:
            return json.loads(path.read_bytes()) if path.exists() else None
        except ValueError:
            raise RunError(f"`{path}` is not JSON", "restore the file, or start a new run") from None

    def done(self, stage: str) -> dict[str, Any] | None:
        """Return the facts of a finished stage, or None when it is not finished."""
        facts: dict[str, Any] | None = self.read_json(f"stages/{stage}")
        return facts

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent in each stage, summed over all sessions."""
        total: dict[str, float] = {}
        for row in self.read("clock"):
            total[row["stage"]] = total.get(row["stage"], 0.0) + row["seconds"]
        return total


class Run(RunRecord):
    """A run directory for writing, locked until the `with` block or the process ends."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        super().__init__(path)
        self._lock = lock
        self._untorn: set[Path] = set()  # files that are known to end with a complete row

    @classmethod
    def open(cls, path: Path, config: Mapping[str, JsonValue]) -> Run:
        """Lock a run directory, and create it if it is missing.

        Raises:
            BusyError: another process has locked it.
            UsageError: it holds results of another configuration, or is not a directory.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path, _locked(path))
        except OSError as error:
            raise UsageError(f"`{path}` cannot be used as the run directory: {error.strerror}") from None
        try:
            run._start_session(json.loads(to_json(config, inf_nan_mode="null")))
        except BaseException:
            run.close()
            raise
        return run

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Unlock the directory."""
        self._lock.release()

    @contextmanager
    def unlocked(self) -> Iterator[None]:
        """Unlock the directory for the block, in which other processes write it, and lock it again afterwards."""
        self._lock.release()
        try:
            yield
        finally:
            self._lock = _locked(self.path, patience=_PATIENCE)
            self._untorn.clear()  # the other processes may have been killed

    def append(self, name: str, rows: Iterable[BaseModel | Mapping[str, Any]]) -> None:
        """Append rows to `NAME.jsonl`; they are on disk when this returns. NaN and infinities become null."""
        path = self.path / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = b"".join(to_json(row, inf_nan_mode="null") + b"\n" for row in rows)
        if not content:
            return
        if path not in self._untorn:
            cut_off_torn_row(path)
        self._untorn.discard(path)  # a write may fail half way, for example on a full disk
        with path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._untorn.add(path)

    def drop(self, name: str, unwanted: Callable[[dict[str, Any]], bool]) -> None:
        """Remove rows from `NAME.jsonl`: those of steps after a checkpoint, which training makes again.

        This is the one exception to append-only.
        """
        path = self.path / f"{name}.jsonl"
        rows = self.read(name)
        remaining = [row for row in rows if not unwanted(row)]
        if len(remaining) < len(rows):
            atomic_write(path, b"".join(to_json(row) + b"\n" for row in remaining))

    def extend(
        self,
        name: str,
        items: Sequence[T],
        make: Callable[[Iterator[tuple[int, Sequence[T]]]], Iterable[Sequence[Value]]],
        *,
        size: int,
        each: int = 1,
        done: Callable[[Sequence[Value]], None],
    ) -> list[dict[str, Any]]:
        """Return the rows of `NAME.jsonl`, `each` per item, after making and appending the missing ones.

        `make(batches)` turns numbered batches of at most `size` items into their rows, batch by batch in order, and
        must make the same rows from the same batch: a batch of which a kill left only some rows is made again, and only
        its missing rows are appended. `done` is called with a batch's new rows when they are on disk.
        """
        have = len(self.read(name))  # rows are in the order of the items, so their number is the progress
        starts = [start for start in range(0, len(items), size) if have < min(start + size, len(items)) * each]
        batches = ((start // size, items[start : start + size]) for start in starts)
        for start, rows in zip(starts, make(batches), strict=True):
            missing = rows[max(0, have - start * each) :]
            self.append(name, missing)
            done(missing)
        return self.read(name)

    def write_json(self, name: str, value: Any) -> Path:
        """Write a value to `NAME.json`, and return its path."""
        path = self.path / f"{name}.json"
        atomic_write(path, to_json(value, indent=2, inf_nan_mode="null") + b"\n")
        return path

    def finish(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Mark a stage as finished, with facts about its result."""
        self.write_json(f"stages/{stage}", facts)

    @contextmanager
    def clock(self, stage: str) -> Iterator[Callable[[], None]]:
        """Add the duration of the block to a stage's time; calling the yielded function saves the time so far.

        A kill loses the time since the last call.
        """
        since = monotonic()

        def save() -> None:
            nonlocal since
            now = monotonic()
            self.append("clock", [{"stage": stage, "seconds": now - since}])
            since = now

        try:
            yield save
        finally:
            save()

    def record_resolved(self, options: Mapping[str, Any]) -> None:
        """Add TRL's resolved options, defaults included, to config.json, for people: nothing reads them again."""
        self.write_json("config", (self.read_json("config") or {}) | {_RESOLVED: options})

    def _start_session(self, config: dict[str, Any]) -> None:
        before = self.read_json("config")
        if isinstance(before, dict) and _RESOLVED in before:
            config = config | {_RESOLVED: before[_RESOLVED]}
        if before is not None and before != config and self.has_results():
            raise UsageError(
                f"`{self.path}` holds a run with another configuration: {_differences(before, config)}",
                "use another --output-dir, or the configuration in its config.json",
            )
        if before != config:
            self.write_json("config", config)
        current = environment()
        self.write_json("environment", current)
        self.append("sessions", [{"pid": os.getpid(), **current}])

    def has_results(self) -> bool:
        """Return whether the run has results; it has none when, for example, its model could not be loaded."""
        return any(path.name not in _NOT_RESULTS and path.name[0] != "." for path in self.path.iterdir())


class ReadOnlyRun(Run):
    """The run directory in a training process other than that of rank 0: takes no lock, and writes nothing."""

    def __init__(self, path: Path) -> None:
        RunRecord.__init__(self, path)

    def close(self) -> None:
        """Do nothing: there is no lock."""

    def append(self, name: str, rows: Iterable[BaseModel | Mapping[str, Any]]) -> None:
        """Do nothing."""

    def drop(self, name: str, unwanted: Callable[[dict[str, Any]], bool]) -> None:
        """Do nothing."""

    def write_json(self, name: str, value: Any) -> Path:
        """Do nothing, and return the path."""
        return self.path / f"{name}.json"


def values_of(kind: type[Value], rows: Iterable[Mapping[str, Any]], name: str) -> list[Value]:
    """Return the rows of `NAME.jsonl` as values; RunError when one is invalid."""
    return list(each_value(kind, rows, name))


def each_value(kind: type[Value], rows: Iterable[Mapping[str, Any]], name: str) -> Iterator[Value]:
    """Yield the same values one by one."""
    for number, row in enumerate(rows, start=1):
        try:
            yield kind.model_validate(row)
        except ValidationError:
            raise RunError(f"line {number} of {name}.jsonl is not a valid {kind.__name__}", "start a new run") from None


def value_of(kind: type[Value], run: RunRecord, name: str) -> Value | None:
    """Return the value in `NAME.json`, None when there is no such file; RunError when it is invalid."""
    stored = run.read_json(name)
    try:
        return None if stored is None else kind.model_validate(stored)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "the whole value"
        raise RunError(
            f"`{run.path / f'{name}.json'}` is not a valid {kind.__name__}: {where}: {error.errors()[0]['msg']}",
            _REPAIRS.get(name, "restore the file, or remove it"),
            "the recorded episodes are not affected: `r3 rescore` still reads them",
        ) from None


def _locked(path: Path, *, patience: float = 0) -> FileLock:
    lock = FileLock(path / ".lock", thread_local=False)
    holder = path / ".lock.pid"  # not the lock file itself: some versions of filelock empty it before they fail
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        pid = holder.read_text() if holder.exists() else "unknown"
        raise BusyError(
            f"the run directory `{path}` is in use by process {pid}", "wait for it, or use another --output-dir"
        ) from None
    holder.write_text(str(os.getpid()))
    return lock


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError:
        raise RunError(f"line {number} of {path} is not JSON", "remove the line, or start a new run") from None
    return row


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = dict(leaves(before)), dict(leaves(now))
    changed = [key for key in sorted(old | new) if old.get(key, ...) != new.get(key, ...)]
    listed = [f"{key} was {_shown(old, key)}, now {_shown(new, key)}" for key in changed[:_MAX_DIFFERENCES]]
    more = len(changed) - len(listed)
    return "; ".join(listed + ([f"and {more} more"] if more else []))


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return json.dumps(leaves[key]) if key in leaves else "not set"
