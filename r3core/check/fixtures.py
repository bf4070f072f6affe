"""Fixtures: responses of which a task's author knows whether they must pass or must fail."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from r3core.errors import TaskError, UsageError
from r3core.files import digest
from r3core.task import Example, Frozen, Task


class Fixture(Frozen):
    """One row of a task's file of fixtures."""

    example: Example | str
    """The problem, or the id of one in the task's data."""
    response: str
    outcome: Literal["pass", "fail"]
    """What the verifier must say."""
    why: str = ""
    """What the row is there for."""


def read_fixtures(task: Task) -> list[Fixture]:
    """Return the rows of a task's file of fixtures, none when it has no such file; TaskError when a row is none."""
    path = task.fixtures
    if path is None:
        return []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise TaskError(f"the fixtures of task `{task.name}` cannot be read: `{path}`: {error.strerror}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(Fixture.model_validate_json(line))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            where = ".".join(map(str, fault["loc"]))
            raise TaskError(
                f"line {number} of `{path}` is no fixture: {where + ': ' if where else ''}{fault['msg']}",
                'write {"example": {"id": ...} or an id, "response": "...", "outcome": "pass" or "fail", "why": "..."}',
            ) from None
    return rows


def placed(task: Task, fixtures: Sequence[Fixture], known: Iterable[Example]) -> list[tuple[Example, Fixture]]:
    """Return fixtures with their examples; TaskError when one names an id that the task's data do not have."""
    by_id = {example.id: example for example in known}
    found = []
    for fixture in fixtures:
        example = by_id.get(fixture.example) if isinstance(fixture.example, str) else fixture.example
        if example is None:
            raise TaskError(
                f"a fixture of task `{task.name}` is about example {fixture.example!r}, which the data do not have",
                "write the whole example into the fixture, as a JSON object",
            )
        found.append((example, fixture))
    return found


def add_fixtures(path: Path, fixtures: Iterable[Fixture]) -> int:
    """Add rows to a file of fixtures, but none that is in it already, and return how many were new."""
    try:
        there = path.read_bytes() if path.exists() else b""
        known = set(there.split(b"\n"))
        rows = [row for row in dict.fromkeys(f.model_dump_json().encode() for f in fixtures) if row not in known]
        start = b"" if not there or there.endswith(b"\n") else b"\n"
        with path.open("ab") as file:
            file.write(start + b"".join(row + b"\n" for row in rows))
    except OSError as error:
        raise UsageError(f"`{path}` cannot be written: {error.strerror}") from None
    return len(rows)


def fixtures_hash(task: Task) -> str | None:
    """Return a hash of the task's file of fixtures, or None when it has none."""
    if task.fixtures is None or not task.fixtures.is_file():
        return None
    return digest(task.fixtures.read_bytes(), length=16)
