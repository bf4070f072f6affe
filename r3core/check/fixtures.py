"""Fixtures: responses for which the task's author states whether they must pass or fail."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from r3core.errors import TaskError, UsageError
from r3core.files import digest
from r3core.task import Example, Frozen, Task


class Fixture(Frozen):
    """One row of a task's fixture file."""

    example: Example | str
    """The example, or the id of one in the task's data."""
    response: str
    outcome: Literal["pass", "fail"]
    """The expected outcome of the verdict."""
    why: str = ""
    """What the row tests."""


def read_fixtures(task: Task) -> list[Fixture]:
    """Return the rows of a task's fixture file, an empty list when it has no such file.

    Raises:
        TaskError: the file cannot be read, or a row is not a valid fixture.
    """
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
                f"line {number} of `{path}` is not a valid fixture: {where + ': ' if where else ''}{fault['msg']}",
                'write {"example": {"id": ...} or an id, "response": "...", "outcome": "pass" or "fail", "why": "..."}',
            ) from None
    return rows


def with_examples(task: Task, fixtures: Sequence[Fixture], known: Iterable[Example]) -> list[tuple[Example, Fixture]]:
    """Return fixtures with their examples.

    Raises:
        TaskError: a fixture has an id that is not in the task's data.
    """
    by_id = {example.id: example for example in known}
    found = []
    for fixture in fixtures:
        example = by_id.get(fixture.example) if isinstance(fixture.example, str) else fixture.example
        if example is None:
            raise TaskError(
                f"a fixture of task `{task.name}` has the unknown example id {fixture.example!r}",
                "write the whole example into the fixture, as a JSON object",
            )
        found.append((example, fixture))
    return found


def add_fixtures(path: Path, fixtures: Iterable[Fixture]) -> int:
    """Append fixtures that are not yet in a file, and return how many were new."""
    try:
        content = path.read_bytes() if path.exists() else b""
        known = set(content.split(b"\n"))
        rows = [row for row in dict.fromkeys(f.model_dump_json().encode() for f in fixtures) if row not in known]
        start = b"" if not content or content.endswith(b"\n") else b"\n"
        with path.open("ab") as file:
            file.write(start + b"".join(row + b"\n" for row in rows))
    except OSError as error:
        raise UsageError(f"`{path}` cannot be written: {error.strerror}") from None
    return len(rows)


def fixtures_hash(task: Task) -> str | None:
    """Return a hash of the task's fixture file, or None when it has none."""
    if task.fixtures is None or not task.fixtures.is_file():
        return None
    return digest(task.fixtures.read_bytes(), length=16)
