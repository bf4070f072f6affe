"""Every broken verifier of the gallery fails the check that is meant for it, and every sound one passes all checks."""

from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

import gallery
import gallery_odd
import pytest

from r3core import Task, TaskError
from r3core.check import check_task
from r3core.check.certificate import Certificate
from r3core.config import Limits

pytestmark = pytest.mark.slow

LIMITS = Limits(seconds=1, memory_mb=256, workers=2)
SOUND: list[type[Task]] = [
    gallery.Sound,
    gallery.Tagged,
    gallery.Json,
    gallery.YesOrNo,
    gallery.Words,
    gallery.NoReference,
    gallery_odd.UsesUpTheExample,
]
BROKEN: list[tuple[type[Task], str]] = [
    (gallery.NothingPasses, "empty"),
    (gallery.Substring, "retracted"),
    (gallery.Within, "prefix of the answer"),
    (gallery.FirstNumber, "right then wrong"),
    (gallery.LastNumber, "wrong then right"),
    (gallery.AnyLine, "right then wrong"),
    (gallery.OnlyTheBeginning, "right then wrong"),
    (gallery.OnlyTheEnd, "wrong then right"),
    (gallery.LastTag, "wrong then right"),
    (gallery.AnythingInTheTag, "contradicting inside"),
    (gallery.Prefix, "prefix of the answer"),
    (gallery.Similar, "near number"),
    (gallery.Wildcard, "wildcards"),
    (gallery.Tolerant, "near number"),
    (gallery.OneOff, "near number"),
    (gallery.NotANumber, "not a number"),
    (gallery.Claims, "fake verdict"),
    (gallery.Calculates, "prompt echoed"),
    (gallery.LongIsGood, "one megabyte"),
    (gallery.IgnoresExample, "another's answer"),
    (gallery.DigitsOfAnyScript, "look-alikes"),
    (gallery.Compatible, "look-alikes"),
    (gallery.Invisible, "zero-width"),
    (gallery.Uncommented, "hidden in a comment"),
    (gallery.ErrorsPass, "empty"),
    (gallery.Evaluates, "code in a response is not run"),
    (gallery.EvaluatesWithoutBuiltins, "power bomb"),
    (gallery_odd.Counts, "the same verdict again"),
    (gallery_odd.RemembersTheLast, "the same verdict in another order"),
    (gallery_odd.CachesByResponse, "the same verdict in another order"),
    (gallery_odd.OnlyOnce, "the same verdict again"),
    (gallery_odd.Guesses, "the same verdict again"),
    (gallery_odd.EveryOtherDay, "the same verdict at another time"),
    (gallery_odd.Weekend, "the same verdict at another time"),
    (gallery_odd.Expires, "the same verdict at another time"),
    (gallery_odd.OrderOfASet, "the same verdict in a fresh process"),
    (gallery_odd.LongNumbers, "huge numbers"),
    (gallery_odd.Infinite, "huge numbers"),
    (gallery_odd.Recursive, "deep nesting"),
    (gallery_odd.Encodes, "a verdict for every text"),
    (gallery_odd.SlowPattern, "one megabyte"),
    (gallery_odd.ExplosivePattern, "one megabyte"),
    (gallery_odd.EatsMemory, "one megabyte"),
    (gallery_odd.PrintsMuch, "one megabyte"),
    (gallery_odd.Exits, "empty"),
    (gallery_odd.Waives, "huge numbers"),
    (gallery_odd.WrongReference, "references of `train` pass"),
    (gallery_odd.WrongVariants, "the task's variants"),
    (gallery_odd.WrongFixtures, "what must fail"),
    (gallery_odd.SharedProblem, "no problem is in two splits"),
    (gallery_odd.SharedId, "ids are unique"),
    (gallery_odd.Shuffled, "the same problems when loaded again"),
    (gallery_odd.OrderedByHash, "the same problems in a fresh process"),
    (gallery_odd.NoTest, "train and test have problems"),
]
WITHOUT_COUNTEREXAMPLES = {
    "train and test have problems",
    "the same problems when loaded again",
    "the same problems in a fresh process",
}
"""Findings about whole splits."""


@pytest.fixture(scope="module")
def certificates() -> Iterator[dict[type[Task], Future[Certificate]]]:
    """The certificates of the whole gallery, computed by two processes: a check mostly waits for its workers."""
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
    status = {finding.name: finding.status for finding in certificates[gallery_odd.Waives].result().findings}
    assert status["near number"] == "waived"
    assert status["huge numbers"] == "broken"


def test_the_certificate_of_a_task_without_references_lists_what_was_not_checked(
    certificates: dict[type[Task], Future[Certificate]],
) -> None:
    certificate = certificates[gallery.NoReference].result()
    assert any(gap.startswith("whether right answers pass") for gap in certificate.not_checked)
    assert "negated" not in [finding.name for finding in certificate.findings]
    assert "refusal" in [finding.name for finding in certificate.findings]


def test_a_waiver_of_an_unknown_probe_is_an_error() -> None:
    with pytest.raises(TaskError, match=r"waives `emty`, which is not a probe\nhint: did you mean `empty`\?"):
        check_task(gallery_odd.WaivesTheUnknown())
