"""Judging again: all the verdicts that a run recorded, by the verifier as it is now."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict, ValidationError

from r3core.config import Limits
from r3core.console import progress_bar
from r3core.episode import Answer, Episode, Reflection
from r3core.errors import RunError, TaskError, UsageError
from r3core.evaluate import Scores, scores
from r3core.failures import Failure, read_failures, write_failures
from r3core.plugins.discovery import get_task
from r3core.protocol import with_leak
from r3core.runs import RunRecord, each_value
from r3core.task import Example, Frozen, Task, Verdict
from r3core.verification.judge import Judge, verifier_hash

_ROWS = 512  # judged at a time; a row may hold a whole episode
_TOLD = 3  # changed verdicts of each kind in each file; the others are counted
_FAILURES = "failures/failures"
_TRAINING = "train-episodes"
_EVALUATION = "evaluate-"


class Changed(Frozen):
    """A verdict that is another now."""

    id: str
    """The example's."""
    before: str
    now: str
    reason: str
    """What the verifier says now."""
    text: str
    """What was judged."""


class Tally(Frozen):
    """The verdicts of one kind in one file of a run."""

    file: str
    kind: str
    """`attempt`, `retry`, `retry` and the name of a control, or `leak`: the test of a reflection."""
    judged: int
    changed: dict[str, int]
    """Before and now, for example `fail -> pass`, and how many."""
    examples: list[Changed]
    """The first of them."""


class Evaluated(Frozen):
    """What one model does in an evaluation, by the verdicts that were recorded and by those of now."""

    file: str
    before: Scores
    now: Scores
    unretried: int
    """Attempts that passed before and fail now: nothing was tried after them, so they count in no second try."""


class Verifier(Frozen):
    """Which verifier judged."""

    version: str | None = None
    hash: str | None = None
    """None where it is not recorded."""


class Rescored(Frozen):
    """What judging a run again has shown."""

    run: str
    task: str
    stages: list[str]
    """The stages that were finished; what others have recorded so far is judged too."""
    before: Verifier
    """That of the run's failures."""
    now: Verifier
    judged: int
    changed: int
    tallies: list[Tally]
    evaluated: list[Evaluated]


class _Trained(Frozen):
    """A row of what training recorded: one reflection and its retries."""

    model_config = ConfigDict(extra="ignore")

    id: str
    reflection: Reflection
    retries: list[Answer]


class _Judged(NamedTuple):
    """A verdict that was recorded; that of a leak test is a bool, or None when it could not be made."""

    kind: str
    example: Example
    text: str
    verdict: Verdict | bool | None


def is_run(folder: Path) -> bool:
    """Tell a run directory from a set of failures."""
    return not (folder / "failures.jsonl").exists() and ((folder / "config.json").exists() or bool(_files_of(folder)))


def rescore_run(folder: Path, *, spec: str | None = None, options: dict[str, Any] | None = None) -> Rescored:
    """Judge again all that a run recorded, and return what changed; the run stays as it is, and may be going on.

    The task is the run's own; `spec` names another in its place, and `options` replace some of its options.
    """
    record = RunRecord(folder)
    task, limits = _task_of(record, spec=spec, options=options or {})
    card = record.read_json("failures/card")
    card = card if isinstance(card, dict) else {}
    if not (files := _files_of(folder)):
        raise UsageError(f"`{folder}` has recorded no verdict yet", "wait until its mining has begun")
    counts: dict[tuple[str, str], _Count] = defaultdict(_Count)
    with Judge(task, limits) as judge:
        evaluated = [one for name in files if (one := _rescore_file(record, name, judge, counts))]
    tallies = [
        Tally(file=file, kind=kind, judged=of.judged, changed=dict(of.changed.most_common()), examples=of.examples)
        for (file, kind), of in counts.items()
    ]
    return Rescored(
        run=str(folder),
        task=task.name,
        stages=[stage for stage in ("mine", "train", "evaluate") if record.done(stage) is not None],
        before=Verifier(version=card.get("verifier_version"), hash=card.get("verifier_hash")),
        now=Verifier(version=task.version, hash=verifier_hash(task)),
        judged=sum(tally.judged for tally in tallies),
        changed=sum(sum(tally.changed.values()) for tally in tallies),
        tallies=tallies,
        evaluated=evaluated,
    )


@dataclass
class _Count:
    """What becomes a Tally, while a file is read."""

    judged: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    examples: list[Changed] = field(default_factory=list)

    def add(self, judged: _Judged, now: Verdict | bool | None) -> None:
        self.judged += 1
        before, after = _outcome(judged.verdict), _outcome(now)
        if before == after:
            return
        self.changed[f"{before} -> {after}"] += 1
        if len(self.examples) < _TOLD:
            reason = now.reason if isinstance(now, Verdict) else ""
            changed = Changed(id=judged.example.id, before=before, now=after, reason=reason, text=judged.text)
            self.examples.append(changed)


def _task_of(record: RunRecord, *, spec: str | None, options: dict[str, Any]) -> tuple[Task, Limits]:
    """Return the task of a run and the limits of its verifier, under which no share of errors is too large."""
    said = record.read_json("config") or record.read_json("failures/card")
    said = said if isinstance(said, dict) else {}
    name, recorded = spec or said.get("task"), said.get("task_options", {})
    if not isinstance(name, str) or not isinstance(recorded, dict):
        raise UsageError(
            f"`{record.path}` does not say which task it is of: no config.json in it does", "name the task with --task"
        )
    try:
        limits = Limits.model_validate(said.get("judge", {})).model_copy(update={"max_errors": 1.0})
    except ValidationError:
        raise UsageError(f"`{record.path / 'config.json'}` is no configuration of this version of r3") from None
    try:
        return get_task(name, **{**recorded, **options}), limits
    except TaskError as error:
        more = "--task names the task in another place, --task-option sets one of its options"
        raise TaskError(f"the task of `{record.path}` cannot be had: {error.message}", *error.hints, more) from error


def _files_of(folder: Path) -> list[str]:
    """Return the names of the files in a run that hold verdicts, in the order in which they come into being."""
    later = [path.stem for kind in ("evaluate", "cross") for path in sorted(folder.glob(f"{kind}-*.jsonl"))]
    names = ["mine", _FAILURES, _TRAINING, *later]
    return [name for name in names if (folder / f"{name}.jsonl").exists()]


def _rescore_file(
    record: RunRecord, name: str, judge: Judge, counts: dict[tuple[str, str], _Count]
) -> Evaluated | None:
    """Judge a file again, some rows at a time, and return its scores if it is one of an evaluation."""
    before: list[Episode] = []
    now: list[Episode] = []
    rows = _rows(record, name)
    with progress_bar(name, _lines(record.path / f"{name}.jsonl")) as bar:
        while batch := list(islice(rows, _ROWS)):
            recorded = [judged for _, judgements in batch for judged in judgements]
            again = _judged_again(judge, recorded)
            for judged, verdict in zip(recorded, again, strict=True):
                counts[name, judged.kind].add(judged, verdict)
            verdicts = iter(again)
            for episode, judgements in batch:
                rejudged = list(islice(verdicts, len(judgements)))
                if episode is not None:
                    before.append(episode)
                    now.append(_with(episode, rejudged))
            bar(len(batch))
    if not name.startswith(_EVALUATION):
        return None
    unretried = sum(episode.failed and "reflect" not in episode.retries for episode in now)
    return Evaluated(file=name, before=scores(before), now=scores(now), unretried=unretried)


def _rows(record: RunRecord, name: str) -> Iterator[tuple[Episode | None, list[_Judged]]]:
    """Yield what each row of a file recorded, and the whole episode where scores follow from it."""
    rows = record.rows(name)
    if name == _FAILURES:
        for failure in each_value(Failure, rows, name):
            yield None, _of_episode(failure.episode())
    elif name == _TRAINING:
        examples = {failure.id: failure.episode().example for failure in read_failures(record.path)[0]}
        for row in each_value(_Trained, rows, name):
            yield None, _of_training(row, examples)
    else:
        for episode in each_value(Episode, rows, name):
            yield episode if name.startswith(_EVALUATION) else None, _of_episode(episode)


def _of_episode(episode: Episode) -> list[_Judged]:
    example, reflection = episode.example, episode.reflection
    answers = {"attempt": episode.attempt}
    answers |= {"retry" if arm == "reflect" else f"retry {arm}": answer for arm, answer in episode.retries.items()}
    judged = [_Judged(kind, example, answer.text, answer.verdict) for kind, answer in answers.items()]
    return [*judged, _Judged("leak", example, reflection.text, reflection.leaked)] if reflection else judged


def _of_training(row: _Trained, examples: dict[str, Example]) -> list[_Judged]:
    if row.id not in examples:
        raise RunError(f"{_TRAINING}.jsonl has a reflection on {row.id!r}, which is none of the run's failures")
    example = examples[row.id]
    judged = [_Judged("retry", example, answer.text, answer.verdict) for answer in row.retries]
    return [*judged, _Judged("leak", example, row.reflection.text, row.reflection.leaked)]


def _judged_again(judge: Judge, recorded: Sequence[_Judged]) -> list[Verdict | bool | None]:
    verdicts, leaks = judge.verdicts(), judge.leaks()
    verdicts.add((index, one.example, one.text) for index, one in enumerate(recorded) if one.kind != "leak")
    leaks.add((index, one.example, one.text) for index, one in enumerate(recorded) if one.kind == "leak")
    answers, tests = iter(verdicts.result()), iter(leaks.result())
    return [next(tests) if one.kind == "leak" else next(answers) for one in recorded]


def _with(episode: Episode, verdicts: Sequence[Any]) -> Episode:
    """Return an episode with other verdicts, in the order of `_of_episode`."""
    attempt, *others = [
        answer.model_copy(update={"verdict": verdict})
        for answer, verdict in zip((episode.attempt, *episode.retries.values()), verdicts, strict=False)
    ]
    changed = {"attempt": attempt, "retries": dict(zip(episode.retries, others, strict=True))}
    again = episode.model_copy(update=changed)
    return with_leak(again, verdicts[-1]) if episode.reflection else again


def _outcome(verdict: Verdict | bool | None) -> str:
    if isinstance(verdict, Verdict):
        return verdict.outcome
    return "error" if verdict is None else "leak" if verdict else "no leak"


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def rescore_failures(
    task: Task, failures: Sequence[Failure], provenance: dict[str, Any], *, output: Path | None
) -> dict[str, Any]:
    """Judge failures by the verifier as it is now, and return what changed; what still fails is written to `output`."""
    with Judge(task, Limits(max_errors=1.0)) as judge:
        verdicts = judge.judge([(failure.episode().example, failure.attempt.text) for failure in failures])
    changed = [
        {"id": failure.id, "answer": failure.attempt.text, "now": verdict.outcome, "reason": verdict.reason}
        for failure, verdict in zip(failures, verdicts, strict=True)
        if verdict.outcome != "fail"
    ]
    if output is not None:
        still = [
            failure.model_copy(update={"attempt": failure.attempt.model_copy(update={"verdict": verdict})})
            for failure, verdict in zip(failures, verdicts, strict=True)
            if verdict.outcome == "fail"
        ]
        judged_by = {"verifier_version": task.version, "verifier_hash": verifier_hash(task)}
        counts = provenance["counts"] | {"failures": len(still), "no longer failures": len(changed)}
        write_failures(output, still, provenance | judged_by | {"counts": counts})
    return {"judged": len(failures), "unchanged": len(failures) - len(changed), "changed": changed}
