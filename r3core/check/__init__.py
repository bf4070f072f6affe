"""Checks of a verifier: do right answers pass, do wrong ones fail, and can every text be judged?"""

from __future__ import annotations

import random
import sys
from io import StringIO
from time import perf_counter

from r3core.check import formats, probes
from r3core.check.certificate import (
    GROUPS,
    Certificate,
    Finding,
    cache_certificate,
    cached_certificate,
    print_certificate,
    state_of,
)
from r3core.check.context import Checking
from r3core.check.data import check_data
from r3core.check.fixtures import fixtures_hash
from r3core.check.formats import check_formats
from r3core.check.probes import frame_of
from r3core.check.references import check_fixtures, check_references
from r3core.check.run_probes import check_probes
from r3core.check.stability import check_every_text
from r3core.environment import environment
from r3core.errors import RunError, TaskError, did_you_mean
from r3core.sections import Limits
from r3core.task import Task
from r3core.verification.judge import Judge, verifier_hash


def check_task(task: Task, *, seed: int = 0, limits: Limits | None = None) -> Certificate:
    """Check a task's verifier and its data, without a model, and return the certificate.

    Raises:
        TaskError: a plugin error that leaves nothing to check.
    """
    started_at = perf_counter()
    limits = limits or Limits()
    _check_names(task)
    tolerant = limits.model_copy(update={"max_errors": 1.0})
    with Judge(task, tolerant) as judge, Judge(task, tolerant.alone(), fresh=True) as fresh:
        checking = Checking(task, judge, fresh=fresh, random=random.Random(seed))
        _run_checks(checking, seed)
    broken = any(finding.status == "broken" for finding in checking.findings)
    return Certificate(
        task=task.name,
        task_options=task.options(),
        task_version=task.version,
        state=state_of(task, limits),
        verifier_hash=verifier_hash(task),
        fixtures_hash=fixtures_hash(task),
        outcome="fail" if broken else "pass",
        findings=sorted(checking.findings, key=lambda finding: GROUPS.index(finding.group)),
        not_checked=checking.not_checked,
        data=checking.facts,
        limits=limits.model_dump(mode="json"),
        seed=seed,
        seconds=perf_counter() - started_at,
        environment=environment(),
    )


def _check_names(task: Task) -> None:
    """Raise TaskError when the task waives an unknown probe, or refuses an unknown format."""
    for listed, verb, kind, names in (
        (task.waived, "waives", "probe", probes.NAMES),
        (task.refuses, "refuses", "format", formats.NAMES),
    ):
        for name in listed:
            if name not in names:
                message = f"task `{task.name}` {verb} `{name}`, which is not a {kind}"
                raise TaskError(message, *did_you_mean(name, [*names]), f"the {kind}s: {', '.join(names)}")


def _run_checks(checking: Checking, seed: int) -> None:
    """Run all checks in order: the probes are derived from the references and fixtures that passed."""
    splits = check_data(checking)
    known = [example for examples in splits.values() for example in examples]
    references, fixtures = check_references(checking, splits), check_fixtures(checking, known)
    right = references or fixtures
    if not right:
        checking.not_checked.append(
            "whether right answers pass, and the probes derived from right answers: "
            "the task has no `reference` and no fixture that must pass"
        )
    frame = frame_of([response for _, response in right])
    check_probes(checking, right, known, frame=frame)
    check_formats(checking, right, frame=frame)
    check_every_text(checking, right, known, frame=frame, seed=seed)


def assert_certified(task: Task) -> None:
    """Raise AssertionError, with the printed certificate, unless the task passes every check."""
    certificate = check_task(task)
    if certificate.broken:
        table = StringIO()
        print_certificate(certificate, table)
        raise AssertionError(f"the verifier of task `{task.name}` cannot be trusted\n{table.getvalue()}")


def certificate_of(task: Task, limits: Limits) -> Certificate:
    """Return the certificate of a task, passed or not: the cached one of its present state, or a new one."""
    certificate = cached_certificate(task, limits)
    if certificate is None:
        print(f"checking the verifier of `{task.name}`, once (`r3 check` shows more)", file=sys.stderr)
        certificate = check_task(task, limits=limits)
        cache_certificate(task, certificate)
    return certificate


def require_passed(certificate: Certificate, spec: str) -> None:
    """Raise RunError, with what does not hold, unless the verifier passed; `spec` is the value of `--task`."""
    if certificate.broken:
        raise RunError(
            f"the verifier of task `{certificate.task}` does not pass `r3 check`; {certificate.summary()}",
            *(f"{one.name}: {_shown(one)}" for one in certificate.broken[:3]),
            f"`r3 check {spec}` shows all findings; fix the verifier, or train without a certificate: --uncertified",
        )


def _shown(finding: Finding) -> str:
    first = finding.counterexamples[0] if finding.counterexamples else None
    example = f"; {first.response[:80]!r} of example {first.example}: {first.verdict[:80]}" if first else ""
    return f"held {finding.held.passed} of {finding.held.total} times{example}"
