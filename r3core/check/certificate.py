"""The certificate of a verifier: which checks it passed, with counts, and for which state of its code."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, get_args

from pydantic import JsonValue, ValidationError

from r3core.check.fixtures import Fixture, fixtures_hash
from r3core.console import visible
from r3core.environment import environment
from r3core.files import atomic_write, digest
from r3core.stats import Rate
from r3core.task import Frozen, Task
from r3core.verification.judge import verifier_hash

if TYPE_CHECKING:
    from r3core.sections import Limits

Group = Literal["data", "references", "formats", "fixtures", "probes", "every text"]
GROUPS: tuple[Group, ...] = get_args(Group)
Status = Literal["ok", "broken", "waived", "refused", "noted"]
_COLOURS: dict[Status, str] = {
    "ok": "green",
    "broken": "bold red",
    "waived": "yellow",
    "refused": "yellow",
    "noted": "yellow",
}
_SHOWN = 160  # maximum number of characters of a response in the printed table


class Counterexample(Frozen):
    """A response that the verifier judged wrongly."""

    example: str
    """The example's id."""
    response: str
    verdict: str
    """The verdict with its reason; empty for a finding about data, where `response` is the prompt."""
    fixture: Fixture | None = None
    """The counterexample as a fixture, where the expected outcome is known."""


class Finding(Frozen):
    """The result of one check of a verifier or its data."""

    group: Group
    name: str
    held: Rate
    """How many of the tries had the expected result."""
    status: Status
    """`waived`: a probe passes by design. `refused`: a format of right answers fails by a rule that the prompt states.
    `noted`: information for the author, no reason to distrust the verifier."""
    why: str = ""
    """The reason for a waiver, the meaning of a note, or advice."""
    counterexamples: list[Counterexample] = []
    """The first few."""


class Certificate(Frozen):
    """The result of `r3 check` for a task."""

    task: str
    task_options: dict[str, JsonValue]
    task_version: str
    state: str
    """A hash of everything that the certificate depends on; when it changes, the certificate is out of date."""
    verifier_hash: str
    fixtures_hash: str | None
    outcome: Literal["pass", "fail"]
    findings: list[Finding]
    not_checked: list[str]
    """What was not checked, and why."""
    data: dict[str, JsonValue]
    """Problems and prompt lengths in characters, by split."""
    limits: dict[str, JsonValue]
    seed: int
    seconds: float
    environment: dict[str, Any]

    @property
    def broken(self) -> list[Finding]:
        """The findings for which the verifier cannot be trusted."""
        return [finding for finding in self.findings if finding.status == "broken"]

    def text(self) -> str:
        """Return the certificate as JSON, the content of its file."""
        return self.model_dump_json(indent=2) + "\n"

    def summary(self) -> str:
        """Return the outcome in one line."""
        tried = sum(finding.held.total for finding in self.findings)
        counts = Counter(finding.status for finding in self.findings)
        excused = [f", {counts[status]} {status}" for status in ("waived", "refused", "noted") if counts[status]]
        broken = ", ".join(f"`{finding.name}`" for finding in self.broken)
        result = f"does not hold: {broken}" if broken else "all hold" + "".join(excused)
        return f"{self.outcome}: {len(self.findings)} checks, {tried:,} tries, {result}"


def state_of(task: Task, limits: Limits) -> str:
    """Return a hash of everything that a certificate of this task depends on."""
    from r3core import __version__

    parts = {
        "name": task.name,
        "version": task.version,
        "options": task.options(),
        "files": {name: _hash(value) for name, value in task if isinstance(value, Path) and value.is_file()},
        "verifier": verifier_hash(task),
        "fixtures": fixtures_hash(task),
        "waived": task.waived,
        "refuses": task.refuses,
        "limits": limits.model_dump(exclude={"workers", "max_errors", "max_group_errors"}),
        "r3core": __version__,
        "python": environment()["python"],
    }
    return digest(json.dumps(parts, sort_keys=True), length=16)


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def cached_certificate(task: Task, limits: Limits) -> Certificate | None:
    """Return the cached certificate of a task in its present state, or None."""
    path = _path(task, state_of(task, limits))
    try:
        certificate = Certificate.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return certificate if path == _path(task, certificate.state) else None


def cache_certificate(task: Task, certificate: Certificate) -> Path | None:
    """Write a certificate to the cache for later runs, and return its path; None when that is not possible."""
    path = _path(task, certificate.state)
    try:
        atomic_write(path, certificate.text())
    except OSError:  # a read-only home directory must not stop a run
        return None
    return path


def cache_folder() -> Path:
    """Return the cache directory: the environment variable R3_CACHE, or the system's default."""
    from platformdirs import user_cache_path

    root = os.environ.get("R3_CACHE")
    return Path(root) if root else user_cache_path("r3core")


def _path(task: Task, state: str) -> Path:
    return cache_folder() / "certificates" / f"{task.name}-{state}.json"


def print_certificate(certificate: Certificate, to: TextIO) -> None:
    """Print a certificate as a table, with counterexamples below it; control characters in model text are escaped."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=to, highlight=False, width=None if to.isatty() else 120)
    table = Table(title=Text(f"{certificate.task}: can its verifier be trusted?"), title_justify="left")
    for heading in ("", "check", "held", "95% interval", ""):
        table.add_column(heading)
    group = ""
    for finding in certificate.findings:
        held = finding.held
        interval = f"{100 * held.low:.1f} to {100 * held.high:.1f}%" if held.total else ""
        count = f"{held.passed:,} of {held.total:,}"
        status = Text(finding.status, style=_COLOURS[finding.status])
        table.add_row(finding.group if finding.group != group else "", Text(finding.name), count, interval, status)
        group = finding.group
    console.print(table)
    for line in _explained(certificate):
        console.print(Text(line))
    for gap in certificate.not_checked:
        console.print(Text(f"- not checked: {visible(gap)}"))
    if certificate.broken:
        console.print(
            "hint: `r3 verify` judges one response; --save-fixtures FILE saves these as fixtures; a probe that "
            "passes by design belongs, with the reason, into the class attribute `waived`",
            markup=False,
        )
    console.print(Text(f"{certificate.summary()} in {certificate.seconds:.0f} s"))


def _explained(certificate: Certificate) -> Iterator[str]:
    """Yield the lines below the table: findings with their reasons, those with the same one together, and examples."""
    together: dict[tuple[str, ...], list[Finding]] = {}
    for finding in certificate.findings:
        if finding.why or finding.status == "broken":
            one = finding.name if finding.status == "broken" else ""
            together.setdefault((finding.status, finding.why, one), []).append(finding)
    for (status, why, _), findings in together.items():
        names = ", ".join(finding.name for finding in findings)
        yield f"- {names} ({status}): {visible(why)}" if why else f"- {names} does not hold:"
        for finding in findings:
            if status == "broken":
                yield from map(_shown, finding.counterexamples)
            elif status == "noted" and finding.group == "formats":
                yield from map(_shown, finding.counterexamples[:1])


def _shown(one: Counterexample) -> str:
    response = visible(repr(one.response[:_SHOWN]))
    more = "... (shortened)" if len(one.response) > _SHOWN else ""
    return f"    {visible(one.example)}: {response}{more}{f' -> {visible(one.verdict)}' if one.verdict else ''}"
