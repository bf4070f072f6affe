"""What `r3 compare` reads of a run: the outcomes of its evaluation, its settings and the tokens it generated."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from r3core.config import Config
from r3core.console import visible
from r3core.episode import CONTROLS, Answer, Episode
from r3core.errors import UsageError
from r3core.evaluation.decoding import GREEDY
from r3core.evaluation.outcomes import every_answer, reflections_of, solved
from r3core.files import digest
from r3core.groups import Trained, trained_rows
from r3core.recorded import config_of, open_record, status_of
from r3core.runs import RunRecord, each_value
from r3core.task import Frozen

CROSS = {"by_base": "base", "by_trained": "trained"}
"""The rows of the cross table: fix rates after reflections by one model; its columns are the model that retries."""
TRIES = ("first", "second", "fix")
GREEDY_TRIES = {f"{GREEDY}-{measure}": measure for measure in TRIES}
"""The measures of greedy decoding, with those of sampling."""
MEASURES = (
    *(one for measure in TRIES for one in (measure, f"{GREEDY}-{measure}")),
    *(*CONTROLS, "leaks", *CROSS),
)
"""The rates of a model: its two tries and its fix rates after a reflection, sampled and greedy; its fix rates after the
controls, the share of its reflections that contain the answer, and its fix rates in the cross table."""
DEFAULT = "default"
"""Stands for a setting that is not in the record of a run."""
_LONGEST = 40  # characters of the value of a setting

Outcomes = dict[str, dict[str, list[bool]]]
"""measure -> problem id -> whether each of its samples passed; samples without a verdict are left out."""


class Tokens(Frozen):
    """Tokens that a run generated; the forecast and the cross table are not counted."""

    mining: int | None
    """Attempts of mining, also of shared mining, which each run needed; None where their number is not recorded."""
    training: int | None
    """All turns that training sampled; None where the run has trained nothing itself."""
    charged: int | None = None
    """The share of mining that training has to account for (`train.budget_tokens`); None where it was not counted."""
    validation: int | None
    """Evaluations during training (`evaluate.every`); None without them."""
    evaluation: int


class Evaluated(NamedTuple):
    """A run with a result."""

    folder: Path
    config: Config
    settings: dict[str, str]
    """Every setting but the seed, and its value."""
    problems: dict[str, str]
    """The problems of the evaluation: id -> digest of prompt and answer."""
    sides: dict[str, Outcomes]
    """`base`, and `trained` where there is a trained model."""
    tokens: Tokens
    verifier: str | None

    @property
    def compared(self) -> Outcomes:
        """The outcomes of the model that is compared with those of other runs: the trained one, if there is one."""
        return self.sides.get("trained", self.sides["base"])


def read_runs(folders: Sequence[Path]) -> list[Evaluated]:
    """Return the runs in some folders, each folder once.

    Raises:
        UsageError: a folder is not a run directory or has no result, two are the same training, or the runs do not
            evaluate the same problems.
    """
    runs = [_read(folder) for folder in {folder.resolve(): folder for folder in folders}.values()]
    _check_distinct(runs)
    _check_problems(runs)
    return runs


def settings_text(settings: Mapping[str, str], keys: Sequence[str]) -> str:
    """Return some of the settings of a run, for example `grpo.beta=0.1, train.retries=2`."""
    return ", ".join(f"{key}={visible(settings.get(key, DEFAULT), longest=_LONGEST)}" for key in keys)


def differing(runs: Sequence[Evaluated]) -> list[str]:
    """Return the settings that are not the same in all runs."""
    keys = sorted({key for run in runs for key in run.settings})
    return [key for key in keys if len({run.settings.get(key, DEFAULT) for run in runs}) > 1]


def _read(folder: Path) -> Evaluated:
    run = open_record(folder)
    status = status_of(run)
    if not status.evaluated:
        done = ", ".join(status.finished) or "no stage"
        if status.in_progress:
            raise UsageError(
                f"`{folder}` has no result yet (finished: {done}), and is in progress", "wait until it has finished"
            )
        raise UsageError(
            f"`{folder}` has no result: its evaluation is not finished (finished: {done})",
            f"finish it: r3 {'eval' if 'train' in status.finished else 'run'} --output-dir {folder}",
        )
    config, stored = config_of(folder), run.read_json("config")
    sides: dict[str, Outcomes] = {}
    problems: dict[str, str] = {}
    evaluation = 0
    for name in ("base", "trained"):
        outcomes, of_side, generated = _side(run, f"evaluate-{name}")
        if of_side:
            greedy, _, of_greedy = _side(run, f"evaluate-{name}-{GREEDY}")
            sides[name] = outcomes | {measure: greedy[sampled] for measure, sampled in GREEDY_TRIES.items()}
            problems |= of_side
            evaluation += generated + of_greedy
    if "trained" in sides:
        _add_cross(run, sides)
    if "base" not in sides:
        raise UsageError(f"`{folder}` has a result, but no evaluate-base.jsonl", "restore the file, or evaluate again")
    settings = {key: value for key, value in _leaves(config.record()) if key != "seed"}
    if isinstance(trained := stored.get("trained"), str):
        settings["trained"] = trained
    card = run.read_json("failures/card") or {}
    mining = _total(int(row["attempt"]["tokens"]) for row in run.rows("mine"))
    tokens = Tokens(
        mining=card.get("counts", {}).get("tokens") if mining is None else mining,
        training=_training(run),
        charged=_charged(run),
        validation=_total(int(row["tokens"]) for row in run.rows("validation")),
        evaluation=evaluation,
    )
    return Evaluated(folder, config, settings, problems, sides, tokens, card.get("verifier_hash"))


def _side(run: RunRecord, name: str) -> tuple[Outcomes, dict[str, str], int]:
    outcomes: Outcomes = {measure: defaultdict(list) for measure in MEASURES}
    problems: dict[str, str] = {}
    tokens = 0
    for episode in each_value(Episode, run.rows(name), name):
        identity = episode.example.id
        shown = episode.example.model_dump(mode="json", include={"prompt", "answer"})
        problems[identity] = digest(json.dumps(shown, sort_keys=True), length=16)
        for measure, passed in _judged(episode):
            outcomes[measure][identity].append(passed)
        tokens += sum(turn.tokens for turn in (*every_answer(episode), *reflections_of(episode)))
    return {measure: dict(of) for measure, of in outcomes.items()}, problems, tokens


def _add_cross(run: RunRecord, sides: dict[str, Outcomes]) -> None:
    """Add the cross table, where the run has one: both models' reflections on the base's failures, by who retries."""
    for measure, by in CROSS.items():
        for then, outcomes in sides.items():
            if by == then == "base":
                found = outcomes["fix"] if (run.path / "cross-base-trained.jsonl").exists() else {}
            else:
                found = _side(run, f"cross-{by}-{then}")[0]["fix"]
            outcomes[measure] = found


def _judged(episode: Episode) -> Iterator[tuple[str, bool]]:
    """Yield each measure of an episode and its outcome, where the verifier could judge it."""
    tries: list[tuple[str, bool | None]] = [("first", _passed(episode.attempt)), ("second", solved(episode))]
    if episode.failed:
        tries += [("fix" if arm == "reflect" else arm, _passed(retry)) for arm, retry in episode.retries.items()]
        tries.append(("leaks", episode.reflection.leaked if episode.reflection else None))
    yield from ((measure, passed) for measure, passed in tries if passed is not None)


def _passed(answer: Answer) -> bool | None:
    return None if answer.verdict.outcome == "error" else answer.verdict.outcome == "pass"


def _total(counts: Iterable[int]) -> int | None:
    found = list(counts)
    return sum(found) if found else None


def _training(run: RunRecord) -> int | None:
    """Return the tokens that training generated: those it has counted, or those of the rows of an earlier version."""
    counted = _counted(run, "tokens/generated")
    return _total(_generated(row) for row in trained_rows(run)) if counted is None else counted


def _charged(run: RunRecord) -> int | None:
    return _counted(run, "tokens/mining")


def _counted(run: RunRecord, metric: str) -> int | None:
    """Return the value of a cumulative metric after the last step, None for a run that does not have it."""
    return max((int(row[metric]) for row in run.rows("train") if row.get(metric) is not None), default=None)


def _generated(row: Trained) -> int:
    """Return the tokens of a reflection in training and of its retries."""
    return (row.reflection.tokens if row.reflection else 0) + sum(retry.tokens for retry in row.retries)


def _check_distinct(runs: Sequence[Evaluated]) -> None:
    seen: dict[str, Path] = {}
    for run in runs:
        key = json.dumps([run.config.seed, run.settings], sort_keys=True)
        if key in seen:
            raise UsageError(
                f"`{seen[key]}` and `{run.folder}` are the same training: equal settings, seed {run.config.seed}",
                "name one of them; a repetition needs another --seed",
            )
        seen[key] = run.folder


def _check_problems(runs: Sequence[Evaluated]) -> None:
    """Raise a UsageError that lists how the evaluations of the runs differ."""
    first, found = runs[0], []
    for run in runs[1:]:
        if run.config.task != first.config.task:
            found.append(f"`{run.folder}` is of the task {run.config.task}, `{first.folder}` of {first.config.task}")
        if run.config.evaluate.split != first.config.evaluate.split:
            found.append(
                f"`{run.folder}` evaluates the split {run.config.evaluate.split}, `{first.folder}` "
                f"{first.config.evaluate.split}"
            )
        only, missing = run.problems.keys() - first.problems.keys(), first.problems.keys() - run.problems.keys()
        if only or missing:
            found.append(
                f"`{run.folder}` has {len(run.problems):,} problems, `{first.folder}` {len(first.problems):,}: "
                f"{len(only):,} are only in the former, {len(missing):,} only in the latter, for example "
                f"{visible(min(only | missing), longest=_LONGEST)}"
            )
        shared = run.problems.keys() & first.problems.keys()
        if changed := [name for name in shared if run.problems[name] != first.problems[name]]:
            found.append(
                f"`{run.folder}` has {len(changed):,} problems with the id, but another prompt or answer than in "
                f"`{first.folder}`, for example {visible(min(changed), longest=_LONGEST)}"
            )
    if found:
        raise UsageError(
            f"the runs are not evaluated on the same problems, so they cannot be compared: {'; '.join(found)}",
            "evaluate them with the same task, task options, evaluate.split, evaluate.order and evaluate.limit",
        )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
