"""Checks of a verifier: is what is right passed, is what is wrong failed, and can every text be judged?"""

from __future__ import annotations

import random
import sys
from io import StringIO
from time import perf_counter

from r3core.check.certificate import GROUPS, Certificate, Finding, keep, kept, print_certificate, state_of
from r3core.check.context import Checking
from r3core.check.data import check_data
from r3core.check.fixtures import fixtures_hash
from r3core.check.probes import NAMES, frame_of
from r3core.check.references import check_fixtures, check_references
from r3core.check.run_probes import check_probes
from r3core.check.stability import check_every_text
from r3core.config import Limits
from r3core.environment import environment
from r3core.errors import RunError, TaskError, did_you_mean
from r3core.task import Task
from r3core.verification.judge import Judge, verifier_hash


def check_task(task: Task, *, seed: int = 0, limits: Limits | None = None) -> Certificate:
    """Return the certificate of a task: what was tried on its verifier and its data, and what came of it.

    No model is needed. Raises TaskError when the task's author made a mistake that leaves nothing to check.
    """
    began = perf_counter()
    limits = limits or Limits()
    for name in task.waived:
        if name not in NAMES:
            said = f"task `{task.name}` waives `{name}`, which is no probe"
            raise TaskError(said, *did_you_mean(name, [*NAMES]), f"the probes: {', '.join(NAMES)}")
    tolerant = limits.model_copy(update={"max_errors": 1.0})
    with Judge(task, tolerant) as judge, Judge(task, tolerant.alone(), fresh=True) as fresh:
        checking = Checking(task, judge, fresh=fresh, random=random.Random(seed))
        _ask(checking, seed)
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
        seconds=perf_counter() - began,
        environment=environment(),
    )


def _ask(checking: Checking, seed: int) -> None:
    """Ask all questions, one after the other: what passed in one of them is what the next ones start from."""
    splits = check_data(checking)
    known = [example for examples in splits.values() for example in examples]
    references, fixtures = check_references(checking, splits), check_fixtures(checking, known)
    right = references or fixtures
    if not right:
        checking.not_checked.append(
            "whether right answers pass: the task has no `reference` and no fixture that must pass; "
            "nor the probes that are made from right answers"
        )
    frame = frame_of([response for _, response in right])
    check_probes(checking, right, known, frame=frame)
    check_every_text(checking, right, known, frame=frame, seed=seed)


def assert_certified(task: Task) -> None:
    """Raise AssertionError, with the table of what does not hold, unless the task passes every check."""
    certificate = check_task(task)
    if certificate.broken:
        told = StringIO()
        print_certificate(certificate, told)
        raise AssertionError(f"the verifier of task `{task.name}` is not to be trusted\n{told.getvalue()}")


def certified(task: Task, limits: Limits) -> Certificate:
    """Return the certificate of a task, passed or not: made now, unless one of its present state was kept."""
    certificate = kept(task, limits)
    if certificate is None:
        print(f"checking the verifier of `{task.name}`, once (`r3 check` shows more)", file=sys.stderr)
        certificate = check_task(task, limits=limits)
        keep(task, certificate)
    return certificate


def demand(certificate: Certificate, spec: str) -> None:
    """Raise RunError, with what does not hold, unless a certificate is one of a verifier that passed.

    `spec` is what `--task` takes.
    """
    if certificate.broken:
        raise RunError(
            f"the verifier of task `{certificate.task}` does not pass `r3 check`; {certificate.summary()}",
            *(f"{one.name}: {_told(one)}" for one in certificate.broken[:3]),
            f"`r3 check {spec}` shows all of it; mend it, or say --uncertified to train on its verdicts all the same",
        )


def _told(finding: Finding) -> str:
    first = finding.counterexamples[0] if finding.counterexamples else None
    said = f"; {first.response[:80]!r} of example {first.example} was {first.said[:80]}" if first else ""
    return f"held {finding.held.passed} of {finding.held.total} times{said}"
