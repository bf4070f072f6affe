"""The run directory: what was asked for, what was done, and how far it got. It survives a kill at any moment."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import to_json

from r3core.errors import BusyError, RunError, UsageError

T = TypeVar("T")
Value = TypeVar("Value", bound=BaseModel)

_LIBRARIES = ("r3core", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "tokenizers", "numpy")
_BEFORE_RESULTS = ("config.json", "environment.json", "sessions.jsonl", "clock.jsonl", "certificate.json")
_RESOLVED = "grpo_resolved"
_MANY_DIFFERENCES = 8  # more are counted, not listed


class RunRecord:
    """What a run directory holds, to be read only: no lock is taken, and the run may be going on.

    A `name` is that of a file in the directory without its ending; it may have folders in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of `NAME.jsonl`, none when there is no such file; a torn last row is left out."""
        return list(self.rows(name))

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the same rows one by one, for files that are too large for the memory."""
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
        """Return the facts with which a stage was finished, or None when it was not."""
        facts: dict[str, Any] | None = self.read_json(f"stages/{stage}")
        return facts

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent in each stage, over all interruptions."""
        total: dict[str, float] = {}
        for row in self.read("clock"):
            total[row["stage"]] = total.get(row["stage"], 0.0) + row["seconds"]
        return total


class Run(RunRecord):
    """A run directory that this process alone writes, until the `with` block ends or the process does."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        super().__init__(path)
        self._lock = lock
        self._whole: set[Path] = set()  # files of rows that end with a whole row

    @classmethod
    def open(cls, path: Path, config: Mapping[str, JsonValue]) -> Run:
        """Lock a run directory, which is made when there is none.

        Raises BusyError when another process holds it, UsageError when it belongs to another configuration.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path, _locked(path))
        except OSError as error:
            raise UsageError(f"`{path}` cannot be the run directory: {error.strerror}") from None
        try:
            run._begin(json.loads(to_json(config, inf_nan_mode="null")))
        except BaseException:
            run.close()
            raise
        return run

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes have the directory."""
        self._lock.release()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let other processes write the directory during the block, and lock it again after it."""
        self._lock.release()
        try:
            yield
        finally:
            self._lock = _locked(self.path)
            self._whole.clear()

    def append(self, name: str, rows: Iterable[BaseModel | Mapping[str, Any]]) -> None:
        """Add rows to `NAME.jsonl`, on disk when this returns; NaN and infinities become null."""
        path = self.path / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path not in self._whole:
            _drop_torn_row(path)
            self._whole.add(path)
        written = b"".join(to_json(row, inf_nan_mode="null") + b"\n" for row in rows)
        if not written:
            return
        self._whole.discard(path)  # until the write is known to be complete
        with path.open("ab") as file:
            file.write(written)
            file.flush()
            os.fsync(file.fileno())
        self._whole.add(path)

    def drop(self, name: str, unwanted: Callable[[dict[str, Any]], bool]) -> None:
        """Remove rows from `NAME.jsonl`, as what resumes from a checkpoint makes them again."""
        path = self.path / f"{name}.jsonl"
        rows = self.read(name)
        kept = [row for row in rows if not unwanted(row)]
        if len(kept) < len(rows):
            _replace(path, b"".join(to_json(row) + b"\n" for row in kept))

    def extend(
        self,
        name: str,
        items: Sequence[T],
        make: Callable[[Iterator[tuple[int, Sequence[T]]]], Iterable[Sequence[BaseModel]]],
        *,
        size: int,
        each: int = 1,
        done: Callable[[int], None],
    ) -> list[dict[str, Any]]:
        """Return the rows of `NAME.jsonl`, `each` of them an item, after making and adding those that are missing.

        `make(batches)` turns numbered batches of at most `size` items into their rows, batch by batch in order, and
        must make the same rows from the same batch: a batch that a kill cut in two is made again, and only its missing
        rows are added. `done` is called with the number of a batch's items when its rows are on disk.
        """
        have = len(self.read(name))
        starts = [start for start in range(0, len(items), size) if have < min(start + size, len(items)) * each]
        batches = ((start // size, items[start : start + size]) for start in starts)
        for start, rows in zip(starts, make(batches), strict=True):
            self.append(name, rows[max(0, have - start * each) :])
            done(min(size, len(items) - start))
        return self.read(name)

    def write_json(self, name: str, value: Any) -> Path:
        """Put a value into `NAME.json`, and return its path; a reader finds the old value or the new one."""
        path = self.path / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, to_json(value, indent=2, inf_nan_mode="null") + b"\n")
        return path

    def finish(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Mark a stage as done, with what is to be known of it."""
        self.write_json(f"stages/{stage}", facts)

    @contextmanager
    def clock(self, stage: str) -> Iterator[Callable[[], None]]:
        """Add the time of the block to a stage; calling what it yields saves the time so far.

        A kill loses the time since the last such call.
        """
        since = monotonic()

        def tick() -> None:
            nonlocal since
            now = monotonic()
            self.append("clock", [{"stage": stage, "seconds": now - since}])
            since = now

        try:
            yield tick
        finally:
            tick()

    def note_resolved(self, options: Mapping[str, Any]) -> None:
        """Add to config.json what TRL made of the options under `grpo`, its defaults included; it decides nothing."""
        self.write_json("config", (self.read_json("config") or {}) | {_RESOLVED: options})

    def _begin(self, config: dict[str, Any]) -> None:
        before = self.read_json("config")
        if isinstance(before, dict) and _RESOLVED in before:
            config = config | {_RESOLVED: before[_RESOLVED]}
        if before is not None and before != config and self._has_results():
            raise UsageError(
                f"`{self.path}` holds a run with another configuration: {_differences(before, config)}",
                "use another --output-dir, or the configuration in its config.json",
            )
        if before != config:
            self.write_json("config", config)
        here = environment()
        self.write_json("environment", here)
        self.append("sessions", [{"pid": os.getpid(), **here}])

    def _has_results(self) -> bool:
        """Tell whether anything came of the run yet; nothing did when its model, say, could not be loaded."""
        return any(path.name not in _BEFORE_RESULTS and path.name[0] != "." for path in self.path.iterdir())


class Follower(Run):
    """The run directory in a process that trains with others, and is not the one that writes: nothing is written."""

    def __init__(self, path: Path) -> None:
        RunRecord.__init__(self, path)

    def close(self) -> None:
        """Do nothing: no lock is held."""

    def append(self, name: str, rows: Iterable[BaseModel | Mapping[str, Any]]) -> None:
        """Let the rows go."""

    def drop(self, name: str, unwanted: Callable[[dict[str, Any]], bool]) -> None:
        """Leave that to the process that writes."""

    def write_json(self, name: str, value: Any) -> Path:
        """Let the value go."""
        return self.path / f"{name}.json"


def values_of(kind: type[Value], rows: Iterable[Mapping[str, Any]], name: str) -> list[Value]:
    """Return the rows of `NAME.jsonl` as values; RunError when one of them is none."""
    return list(each_value(kind, rows, name))


def each_value(kind: type[Value], rows: Iterable[Mapping[str, Any]], name: str) -> Iterator[Value]:
    """Yield the same values one by one."""
    for number, row in enumerate(rows, start=1):
        try:
            yield kind.model_validate(row)
        except ValidationError:
            raise RunError(f"line {number} of {name}.jsonl is no {kind.__name__}", "start a new run") from None


def environment() -> dict[str, Any]:
    """Return the versions, the machine and the time, without importing any of the libraries named."""
    plugins = {point.dist.name: point.dist.version for point in metadata.entry_points(group="r3") if point.dist}
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "plugins": dict(sorted(plugins.items())),
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name))},
        "command": sys.argv,
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _locked(path: Path) -> FileLock:
    lock = FileLock(path / ".lock", thread_local=False)
    holder = path / ".lock.pid"  # a file of its own: some versions of filelock empty the lock file before they fail
    try:
        lock.acquire(blocking=False)
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


def _replace(path: Path, content: bytes) -> None:
    """Put a content into a file, on disk when this returns; a reader finds the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _drop_torn_row(path: Path) -> None:
    """Cut off what a kill left behind the last whole row."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        rows = file.read()
        end = rows.rfind(b"\n") + 1
        if end < len(rows):
            file.truncate(end)
            os.fsync(file.fileno())


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = dict(_leaves(before)), dict(_leaves(now))
    changed = [key for key in sorted(old | new) if old.get(key, ...) != new.get(key, ...)]
    listed = [f"{key} was {_shown(old, key)}, now {_shown(new, key)}" for key in changed[:_MANY_DIFFERENCES]]
    more = len(changed) - len(listed)
    return "; ".join(listed + ([f"and {more} more"] if more else []))


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return json.dumps(leaves[key]) if key in leaves else "not set"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
