"""Rescoring: judge every recorded verdict of a run or a failure dataset again, with the verifier as it is now."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict, ValidationError

from r3core.episode import Answer, Episode, Reflection, Text
from r3core.errors import RunError, TaskError, UsageError
from r3core.evaluation.outcomes import every_answer
from r3core.evaluation.result import Scores, scores
from r3core.failures import Failure, read_failures, write_failures
from r3core.plugins.discovery import get_task
from r3core.progress import progress
from r3core.protocol import malformed_calls, response, with_leak
from r3core.runs import RunRecord, each_value
from r3core.sections import Limits
from r3core.task import Example, Frozen, Task, Verdict
from r3core.verification.judge import Judge, verifier_hash

_BATCH = 512  # rows in memory at a time; a row may hold a whole episode
_MAX_EXAMPLES = 3  # changed verdicts of each kind in each file that are listed; all are counted
_DATASET = "failures"  # the file of a failure dataset, without its ending
_FAILURES = "failures/failures"  # the same in a run
_TRAINING = "train-episodes"
_EVALUATION = "evaluate-"


class Changed(Frozen):
    """A verdict that has changed."""

    id: str
    """The example's id."""
    before: str
    now: str
    reason: str
    """The verifier's reason for the new verdict."""
    text: str
    """The text that was judged."""


class Tally(Frozen):
    """The verdicts of one kind in one file."""

    file: str
    kind: str
    """`attempt`, `retry`, `retry` and the name of a control, or `leak`: the test of a reflection."""
    judged: int
    changed: dict[str, int]
    """Number of changed verdicts by old and new outcome, for example `fail -> pass`."""
    examples: list[Changed]
    """The first few changed verdicts."""


class Evaluated(Frozen):
    """One model's scores in an evaluation, by the recorded verdicts and by the new ones."""

    file: str
    before: Scores
    now: Scores
    unretried: int
    """Attempts that passed before and fail now: they were not retried, so no second try counts them."""


class Verifier(Frozen):
    """The version and the source hash of a verifier."""

    version: str | None = None
    hash: str | None = None
    """None where it was not recorded."""


class Written(Frozen):
    """The new failure dataset of those failures that still fail."""

    folder: str
    failures: int
    of: int
    """Number of failures in the source."""


class Rescored(Frozen):
    """The result of rescoring a run or a failure dataset."""

    source: str
    task: str
    stages: list[str]
    """The finished stages of a run; the rows that unfinished ones have written so far are judged too."""
    before: Verifier
    """The verifier that judged the failures."""
    now: Verifier
    judged: int
    changed: int
    tallies: list[Tally]
    evaluated: list[Evaluated]
    written: Written | None = None


class _Trained(Frozen):
    """A row of train-episodes.jsonl: one reflection and its retries, or a new attempt."""

    model_config = ConfigDict(extra="ignore")

    id: str
    reflection: Reflection | None
    attempt: Answer | None = None
    retries: list[Answer]


class _Recorded(NamedTuple):
    """A recorded verdict; that of a leak test is a bool, or None when the test failed to give one."""

    kind: str
    example: Example
    turn: Text
    verdict: Verdict | bool | None


@dataclass
class _File:
    """One rescored file: counts by kind of verdict, and the rows that are needed again."""

    name: str
    judged: Counter[str] = field(default_factory=Counter)
    changed: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    examples: dict[str, list[Changed]] = field(default_factory=lambda: defaultdict(list))
    before: list[Episode] = field(default_factory=list)
    """The episodes of an evaluation, from which its scores follow; empty for other files."""
    now: list[Episode] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    """Those that still fail."""

    def count(self, recorded: _Recorded, now: Verdict | bool | None) -> None:
        kind, before, after = recorded.kind, _outcome(recorded.verdict), _outcome(now)
        self.judged[kind] += 1
        if before == after:
            return
        self.changed[kind][f"{before} -> {after}"] += 1
        if len(self.examples[kind]) < _MAX_EXAMPLES:
            reason = now.reason if isinstance(now, Verdict) else ""
            changed = Changed(id=recorded.example.id, before=before, now=after, reason=reason, text=recorded.turn.text)
            self.examples[kind].append(changed)

    def tallies(self) -> Iterator[Tally]:
        for kind, judged in self.judged.items():
            changed = dict(self.changed[kind].most_common())
            yield Tally(file=self.name, kind=kind, judged=judged, changed=changed, examples=self.examples[kind])

    def evaluated(self) -> Evaluated:
        unretried = sum(episode.failed and "reflect" not in episode.retries for episode in self.now)
        return Evaluated(file=self.name, before=scores(self.before), now=scores(self.now), unretried=unretried)


def rescore(
    source: Path, *, spec: str | None = None, options: dict[str, Any] | None = None, output: Path | None = None
) -> Rescored:
    """Judge all recorded verdicts of a run or a failure dataset again, and return what has changed.

    The source is only read, and a run may still be in progress. The task is the recorded one; `spec` names another, and
    `options` replace some of its options. Failures that still fail are written to `output` as a failure dataset.
    """
    record, names = RunRecord(source), _files_of(source)
    if not names and not (source / "config.json").exists():
        raise UsageError(f"`{source}` is neither a run directory nor a failure dataset")
    card = record.read_json("card" if names == [_DATASET] else "failures/card")
    card = card if isinstance(card, dict) else {}
    task, limits = _task_of(record, card, spec=spec, options=options or {})
    if not names:
        raise UsageError(f"`{source}` has not recorded any verdict yet", "wait until mining has started")
    dataset = read_failures(source) if output is not None else None
    with Judge(task, limits) as judge:
        files = [_rescore_file(record, name, judge) for name in names]
    now = Verifier(version=task.version, hash=verifier_hash(task))
    failing = [failure for file in files for failure in file.failures]
    tallies = [tally for file in files for tally in file.tallies()]
    return Rescored(
        source=str(source),
        task=task.name,
        stages=[stage for stage in ("mine", "train", "evaluate") if record.done(stage) is not None],
        before=Verifier(version=card.get("verifier_version"), hash=card.get("verifier_hash")),
        now=now,
        judged=sum(tally.judged for tally in tallies),
        changed=sum(sum(tally.changed.values()) for tally in tallies),
        tallies=tallies,
        evaluated=[file.evaluated() for file in files if file.name.startswith(_EVALUATION)],
        written=_write(output, failing, dataset=dataset, verifier=now) if output and dataset else None,
    )


def _write(
    output: Path, failing: list[Failure], *, dataset: tuple[list[Failure], dict[str, Any]], verifier: Verifier
) -> Written:
    """Write the failures of a dataset that still fail, with its provenance and the verifier that judged them now."""
    failures, provenance = dataset
    counts = {"failures": len(failing), "no longer failures": len(failures) - len(failing)}
    judged_by = {"verifier_version": verifier.version, "verifier_hash": verifier.hash}
    write_failures(output, failing, provenance | judged_by | {"counts": provenance["counts"] | counts})
    return Written(folder=str(output), failures=len(failing), of=len(failures))


def _task_of(
    record: RunRecord, card: dict[str, Any], *, spec: str | None, options: dict[str, Any]
) -> tuple[Task, Limits]:
    """Return the task and the limits of its verifier; many errors are a result here, so their share has no limit."""
    config = record.read_json("config") or card
    config = config if isinstance(config, dict) else {}
    name, recorded = spec or config.get("task"), config.get("task_options", {})
    if not isinstance(name, str) or not isinstance(recorded, dict):
        raise UsageError(f"`{record.path}` does not record its task in config.json or card.json", "name it with --task")
    try:
        limits = Limits.model_validate(config.get("judge", {})).model_copy(update={"max_errors": 1.0})
    except ValidationError:
        raise UsageError(f"`{record.path / 'config.json'}` is not a configuration of this version of r3") from None
    try:
        return get_task(name, **{**recorded, **options}), limits
    except TaskError as error:
        hint = "--task names the task when it is elsewhere now, --task-option sets one of its options"
        raise TaskError(f"the task of `{record.path}` cannot be loaded: {error.message}", *error.hints, hint) from error


def _files_of(source: Path) -> list[str]:
    """Return the names of the files that hold verdicts, in the order in which a run writes them."""
    evaluations = [path.stem for kind in ("evaluate", "cross") for path in sorted(source.glob(f"{kind}-*.jsonl"))]
    names = [_DATASET, "mine", _FAILURES, _TRAINING, *evaluations]
    return [name for name in names if (source / f"{name}.jsonl").exists()]


def _rescore_file(record: RunRecord, name: str, judge: Judge) -> _File:
    """Judge the verdicts of a file again, a batch of rows at a time."""
    file = _File(name)
    rows = _rows(record, name)
    with progress(f"rescore {name}", _count_lines(record.path / f"{name}.jsonl"), unit="rows") as stage:
        while batch := list(islice(rows, _BATCH)):
            recorded = [one for _, of_row in batch for one in of_row]
            verdicts = _judge_again(judge, recorded)
            for one, verdict in zip(recorded, verdicts, strict=True):
                file.count(one, verdict)
            remaining = iter(verdicts)
            for value, of_row in batch:
                _collect(file, value, list(islice(remaining, len(of_row))))
            stage.advance(len(batch))
    return file


def _collect(file: _File, value: Episode | Failure | _Trained, verdicts: Sequence[Any]) -> None:
    if isinstance(value, Failure) and _outcome(verdicts[0]) == "fail":
        attempt = value.attempt.model_copy(update={"verdict": verdicts[0]})
        file.failures.append(value.model_copy(update={"attempt": attempt}))
    elif isinstance(value, Episode) and file.name.startswith(_EVALUATION):
        file.before.append(value)
        file.now.append(_with_verdicts(value, verdicts))


def _rows(record: RunRecord, name: str) -> Iterator[tuple[Episode | Failure | _Trained, list[_Recorded]]]:
    """Yield each row of a file with its recorded verdicts."""
    rows = record.rows(name)
    if name in (_DATASET, _FAILURES):
        for failure in each_value(Failure, rows, name):
            yield failure, _of_episode(failure.episode())
    elif name == _TRAINING:
        examples = {failure.id: failure.episode().example for failure in read_failures(record.path)[0]}
        for row in each_value(_Trained, rows, name):
            yield row, _of_training(row, examples)
    else:
        for episode in each_value(Episode, rows, name):
            yield episode, _of_episode(episode)


def _of_episode(episode: Episode) -> list[_Recorded]:
    retries = {"retry" if arm == "reflect" else f"retry {arm}": answer for arm, answer in episode.retries.items()}
    resamples = [("retry resample", answer) for answer in episode.resamples]
    further = [(f"retry {place}", one.retry) for place, one in enumerate(episode.rounds, start=2)]
    answers = [("attempt", episode.attempt), *retries.items(), *resamples, *further]
    return _recorded(episode.example, answers, episode.reflection)


def _of_training(row: _Trained, examples: dict[str, Example]) -> list[_Recorded]:
    if row.id not in examples:
        raise RunError(f"{_TRAINING}.jsonl has a reflection on {row.id!r}, which is not among the run's failures")
    attempts = [] if row.attempt is None else [("attempt", row.attempt)]
    retries = [("retry", answer) for answer in row.retries]
    return _recorded(examples[row.id], attempts + retries, row.reflection)


def _recorded(
    example: Example, answers: Sequence[tuple[str, Answer]], reflection: Reflection | None
) -> list[_Recorded]:
    verdicts = [_Recorded(kind, example, answer, answer.verdict) for kind, answer in answers]
    return [*verdicts, _Recorded("leak", example, reflection, reflection.leaked)] if reflection else verdicts


def _judge_again(judge: Judge, recorded: Sequence[_Recorded]) -> list[Verdict | bool | None]:
    """Return new verdicts; what has no answer was not judged before, and is not judged now."""
    verdicts, leaks = judge.verdicts(), judge.leaks()
    rows = [
        (index, one.example, response(judge.task, one.turn))
        for index, one in enumerate(recorded)
        if not one.turn.unanswered
    ]
    verdicts.add(row for row in rows if recorded[row[0]].kind != "leak" and not recorded[row[0]].turn.malformed)
    leaks.add(row for row in rows if recorded[row[0]].kind == "leak")
    answers, tests = iter(verdicts.result()), iter(leaks.result())
    return [
        one.verdict
        if one.turn.unanswered
        else next(tests)
        if one.kind == "leak"
        else (malformed_calls(one.turn) or next(answers))
        for one in recorded
    ]


def _with_verdicts(episode: Episode, verdicts: Sequence[Any]) -> Episode:
    """Return an episode with other verdicts, in the order of `_of_episode`."""
    attempt, *later = [
        answer.model_copy(update={"verdict": verdict})
        for answer, verdict in zip(every_answer(episode), verdicts, strict=False)
    ]
    retries = dict(zip(episode.retries, later, strict=False))
    resamples = later[len(retries) : len(retries) + len(episode.resamples)]
    further = zip(episode.rounds, later[len(retries) + len(resamples) :], strict=True)
    rounds = tuple(one.model_copy(update={"retry": retry}) for one, retry in further)
    changed = {"attempt": attempt, "retries": retries, "resamples": tuple(resamples), "rounds": rounds}
    again = episode.model_copy(update=changed)
    return with_leak(again, verdicts[-1]) if episode.reflection else again


def _outcome(verdict: Verdict | bool | None) -> str:
    if isinstance(verdict, Verdict):
        return verdict.outcome
    return "error" if verdict is None else "leak" if verdict else "no leak"


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
