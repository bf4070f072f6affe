"""Every broken verifier fails the check that is meant for it, and every sound one passes all checks."""

from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import unstable_verifiers
import verifiers

from r3core import Task, TaskError
from r3core.check import check_task
from r3core.check.certificate import Certificate
from r3core.sections import Limits

pytestmark = pytest.mark.slow

LIMITS = Limits(seconds=1, memory_mb=256, workers=2)
SOUND: list[type[Task]] = [
    verifiers.Sound,
    verifiers.Tagged,
    verifiers.Json,
    verifiers.YesOrNo,
    verifiers.Words,
    verifiers.NoReference,
    unstable_verifiers.UsesUpTheExample,
]
BROKEN: list[tuple[type[Task], str]] = [
    (verifiers.NothingPasses, "empty"),
    (verifiers.Substring, "retracted"),
    (verifiers.Within, "prefix of the answer"),
    (verifiers.FirstNumber, "right then wrong"),
    (verifiers.LastNumber, "wrong then right"),
    (verifiers.AnyLine, "right then wrong"),
    (verifiers.OnlyTheBeginning, "right then wrong"),
    (verifiers.OnlyTheEnd, "wrong then right"),
    (verifiers.LastTag, "wrong then right"),
    (verifiers.AnythingInTheTag, "contradicting inside"),
    (verifiers.Prefix, "prefix of the answer"),
    (verifiers.Similar, "near number"),
    (verifiers.Wildcard, "wildcards"),
    (verifiers.Tolerant, "near number"),
    (verifiers.OneOff, "near number"),
    (verifiers.NotANumber, "not a number"),
    (verifiers.Claims, "fake verdict"),
    (verifiers.Calculates, "prompt echoed"),
    (verifiers.LongIsGood, "one megabyte"),
    (verifiers.IgnoresExample, "another's answer"),
    (verifiers.DigitsOfAnyScript, "look-alikes"),
    (verifiers.Compatible, "look-alikes"),
    (verifiers.Invisible, "zero-width"),
    (verifiers.Uncommented, "hidden in a comment"),
    (verifiers.ErrorsPass, "empty"),
    (verifiers.Evaluates, "code in a response is not run"),
    (verifiers.EvaluatesWithoutBuiltins, "power bomb"),
    (unstable_verifiers.Counts, "the same verdict again"),
    (unstable_verifiers.RemembersTheLast, "the same verdict in another order"),
    (unstable_verifiers.CachesByResponse, "the same verdict in another order"),
    (unstable_verifiers.OnlyOnce, "the same verdict again"),
    (unstable_verifiers.Guesses, "the same verdict again"),
    (unstable_verifiers.EveryOtherDay, "the same verdict at another time"),
    (unstable_verifiers.Weekend, "the same verdict at another time"),
    (unstable_verifiers.Expires, "the same verdict at another time"),
    (unstable_verifiers.OrderOfASet, "the same verdict in a fresh process"),
    (unstable_verifiers.LongNumbers, "huge numbers"),
    (unstable_verifiers.Infinite, "huge numbers"),
    (unstable_verifiers.Recursive, "deep nesting"),
    (unstable_verifiers.Encodes, "a verdict for every text"),
    (unstable_verifiers.SlowPattern, "one megabyte"),
    (unstable_verifiers.ExplosivePattern, "one megabyte"),
    (unstable_verifiers.EatsMemory, "one megabyte"),
    (unstable_verifiers.PrintsMuch, "one megabyte"),
    (unstable_verifiers.Exits, "empty"),
    (unstable_verifiers.Waives, "huge numbers"),
    (unstable_verifiers.WrongReference, "references of `train` pass"),
    (unstable_verifiers.WrongVariants, "the task's variants"),
    (unstable_verifiers.WrongFixtures, "what must fail"),
    (unstable_verifiers.SharedProblem, "no problem is in two splits"),
    (unstable_verifiers.SharedId, "ids are unique"),
    (unstable_verifiers.Shuffled, "the same problems when loaded again"),
    (unstable_verifiers.OrderedByHash, "the same problems in a fresh process"),
    (unstable_verifiers.NoTest, "train and test have problems"),
]
WITHOUT_COUNTEREXAMPLES = {
    "train and test have problems",
    "the same problems when loaded again",
    "the same problems in a fresh process",
}
"""Findings about whole splits."""


@pytest.fixture(scope="module")
def certificates() -> Iterator[dict[type[Task], Future[Certificate]]]:
    """The certificates of all of them, computed by two processes: a check mostly waits for its workers."""
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(2, get_context("spawn")) as pool:
        patch.delenv("PYTHONHASHSEED", raising=False)
        tasks = [*SOUND, *(task for task, _ in BROKEN)]
        yield {task: pool.submit(check_task, task(), limits=LIMITS) for task in tasks}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("task", SOUND, ids=lambda task: task.__name__)
def test_a_sound_verifier_passes(task: type[Task], certificates: dict[type[Task], Future[Certificate]]) -> None:
    certificate = certificates[task].result()
    assert [finding.name for finding in certificate.broken] == []
    assert certificate.outcome == "pass"
    waived = {finding.name: finding.why for finding in certificate.findings if finding.status == "waived"}
    assert waived == task.waived


@pytest.mark.parametrize(("task", "name"), BROKEN, ids=[task.__name__ for task, _ in BROKEN])
def test_a_broken_verifier_fails(
    task: type[Task], name: str, certificates: dict[type[Task], Future[Certificate]]
) -> None:
    certificate = certificates[task].result()
    assert certificate.outcome == "fail"
    caught = {finding.name: finding for finding in certificate.broken}
    assert name in caught
    assert caught[name].held.passed < caught[name].held.total
    assert bool(caught[name].counterexamples) == (name not in WITHOUT_COUNTEREXAMPLES)


def test_a_waiver_excuses_a_pass_and_no_error(certificates: dict[type[Task], Future[Certificate]]) -> None:
    status = {finding.name: finding.status for finding in certificates[unstable_verifiers.Waives].result().findings}
    assert status["near number"] == "waived"
    assert status["huge numbers"] == "broken"


def test_the_certificate_of_a_task_without_references_lists_what_was_not_checked(
    certificates: dict[type[Task], Future[Certificate]],
) -> None:
    certificate = certificates[verifiers.NoReference].result()
    assert any(gap.startswith("whether right answers pass") for gap in certificate.not_checked)
    assert "negated" not in [finding.name for finding in certificate.findings]
    assert "refusal" in [finding.name for finding in certificate.findings]


def test_a_waiver_of_an_unknown_probe_is_an_error() -> None:
    with pytest.raises(TaskError, match=r"waives `emty`, which is not a probe\nhint: did you mean `empty`\?"):
        check_task(unstable_verifiers.WaivesTheUnknown())
