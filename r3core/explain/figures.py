"""The recorded figures of a run that a diagnosis examines: those of the stages that have a record, finished or not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from r3core.config import Config
from r3core.episode import CONTROLS, Arm, Episode
from r3core.evaluation.drift import NAME as DRIFT
from r3core.evaluation.drift import Drift
from r3core.evaluation.outcomes import solved
from r3core.evaluation.result import Paired, Result, Scores, compare, scores
from r3core.explain.slim import without_texts
from r3core.forecast import Forecast, group_size
from r3core.groups import trained_rows
from r3core.objective import Turn
from r3core.runs import RunRecord, each_value, value_of
from r3core.stats import Difference, Rate, clustered, wilson
from r3core.task import Frozen

_MARKS = {
    "a thought before": r"</think>",
    "a thought with the answer before": r"</think>",
    "a label before": r"(?i)\banswer\W{0,4}:",
    "in a code fence": r"```",
    "in code marks": r"(?<!`)`[^`\n]+`(?!`)",
    "bold": r"\*\*[^*\n]+\*\*",
    "in quotes": r'^\s*".*"\s*$|>\s*".*"\s*<',
    "in dollar signs": r"\$[^$\n]+\$",
    "in a LaTeX box": r"\\boxed\b",
    "other signs": r"[\u00d7\u00f7\u2212]",
    "LaTeX signs": r"\\(?:times|div|cdot|frac)\b",
    "= and the result behind": r"[0-9)] *= *-?[0-9]",
    "digits in groups": r"\b[0-9]{1,3}(?:,[0-9]{3})+\b",
}
"""Format of `r3 check` -> what an answer in that format contains. Other formats cannot be recognized in a text."""
_SEARCHED = 20_000  # characters of an answer that are searched for marks


class Step(NamedTuple):
    """What TRL logged for one training step; None where a figure is missing."""

    step: int
    finite: bool
    """Whether loss and gradient norm are finite."""
    learning_rate: float | None
    entropy: float | None
    kl: float | None
    read_by_retry: float | None
    importance_ratio: float | None


class Group(NamedTuple):
    """The counts of one group: the reflections on one failure in one step."""

    step: int
    failure: int
    """Index of the failure, in the order of training."""
    reflections: int
    distinct: int
    """Number of different texts among them."""
    judged: int
    """Reflections with a reward."""
    reward: float
    """Sum of the rewards."""
    levels: int
    """Number of different rewards."""
    tokens: int
    truncated: int
    cut_in_thought: int
    """Truncated reflections that were still thinking."""
    rewarded: int
    """Reflections with a reward above 0."""
    rewarded_leaks: int
    """Those of them that contain a passing answer."""
    retries: int
    retries_truncated: int
    errors: int
    """Retries that the verifier could not judge."""


class Side(Frozen):
    """The evaluation of one model, as far as it got."""

    scores: Scores
    against: dict[Arm, Difference] = {}
    """Retry after the reflection minus the control, on the same failures; only where the episodes are recorded."""


class Check(Frozen):
    """A finding of the certificate that does not hold."""

    group: str
    name: str
    status: str
    held: Rate
    marked: Rate | None = None
    """Share of the failed attempts in mining that look like this format; None if a text does not show it."""
    marked_passes: Rate | None = None
    """The same share of the attempts that passed."""


class Figures(Frozen):
    """Everything that a diagnosis reads; None and empty where a run has no record of it."""

    stages: dict[str, bool] = {}
    """Stage with a record -> whether it is finished."""
    attempts_passed: Rate | None = None
    """Attempts in mining that passed."""
    attempts_truncated: Rate | None = None
    failures: int = 0
    forecast: Forecast | None = None
    weights_changed: float | None = None
    """Share of the weights that training changed in the saved model."""
    steps: list[Step] = []
    groups: list[Group] = []
    base: Side | None = None
    trained: Side | None = None
    paired: Paired | None = None
    greedy: Paired | None = None
    """The same under greedy decoding, where it was evaluated beside sampling."""
    drift: Drift | None = None
    """How training shifted the probabilities of tokens in the base's attempts."""
    mean_square: float | None = None
    """Mean over problems of the squared change of the second try."""
    problems: int = 0
    """Number of problems that both models attempted."""
    in_split: int | None = None
    """Number of problems in the evaluated split, where all of them were read."""
    validation: list[tuple[int, Rate]] = []
    """(step, second tries that passed) of each evaluation during training."""
    checks: list[Check] = []
    certified: bool = False
    """Whether there is a certificate."""


def figures_of(run: RunRecord, config: Config) -> Figures:
    """Return the figures of a run directory, of whatever stages have left a record there.

    Raises:
        RunError: a file is damaged.
    """
    certificate = run.read_json("certificate")
    groups = list(_groups((row.model_dump() for row in trained_rows(run)), group_size(config), config.objective.first))
    evaluated = _evaluated(run, config)
    present = {
        "mine": bool(run.done("mine")) or (run.path / "mine.jsonl").exists(),
        "train": bool(groups) or run.done("train") is not None,
        "evaluate": "base" in evaluated,
    }
    return Figures(
        stages={stage: run.done(stage) is not None for stage, recorded in present.items() if recorded},
        forecast=value_of(Forecast, run, "forecast"),
        weights_changed=(run.done("train") or {}).get("weights_changed"),
        steps=[_step(row) for row in run.rows("train")],
        groups=groups,
        validation=list(_validation(run.rows("validation"))),
        certified=certificate is not None,
        drift=value_of(Drift, run, DRIFT),
        **_mined(run, certificate or {}),
        **evaluated,
    )


def _step(row: Mapping[str, Any]) -> Step:
    names = ("learning_rate", "entropy", "kl", "reflections/read_by_retry", "sampling/importance_sampling_ratio/mean")
    finite = all(row[name] is not None for name in ("loss", "grad_norm") if name in row)  # NaN is recorded as null
    return Step(row["step"], finite, *map(row.get, names))


def _groups(rows: Iterable[Mapping[str, Any]], size: int, first: Turn) -> Iterator[Group]:
    """Yield the groups of train-episodes.jsonl, which has the samples of a group one after the other."""
    index: dict[str, int] = {}
    for (step, failure), found in groupby(rows, key=lambda row: (row["step"], row["id"])):
        reflections = list(found)
        for start in range(0, len(reflections), size):  # an epoch may end and begin with the same failure
            group = reflections[start : start + size]
            yield _group(step, index.setdefault(failure, len(index)), group, first)


def _group(step: int, failure: int, rows: Sequence[Mapping[str, Any]], first: Turn) -> Group:
    """Return the figures of a group; what it has of reflections is about the turn that is sampled in groups."""
    texts = [(next(iter(row["retries"]), None) if first == "retry" else row[first]) or {} for row in rows]
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    cut = [text for text in texts if text.get("stopped") == "length"]
    retries = [retry for row in rows for retry in row["retries"]]
    good = [row for row in rows if row["reward"]]
    return Group(
        step=step,
        failure=failure,
        reflections=len(rows),
        distinct=len({text.get("text") for text in texts}),
        judged=len(rewards),
        reward=round(sum(rewards), 6),
        levels=len(set(rewards)),
        tokens=sum(text.get("tokens", 0) for text in texts),
        truncated=len(cut),
        cut_in_thought=sum(not text.get("thought_closed", True) for text in cut),
        rewarded=len(good),
        rewarded_leaks=sum(bool((row["reflection"] or {}).get("leaked")) for row in good),
        retries=len(retries),
        retries_truncated=sum(retry.get("stopped") == "length" for retry in retries),
        errors=sum(_is_error(retry) for retry in retries),
    )


def _is_error(retry: Mapping[str, Any]) -> bool:
    """Return whether the verifier failed on a retry; one without an answer never reached it."""
    answered = retry.get("stopped") not in ("overlong", "skipped") and retry.get("thought_closed", True)
    return bool(answered and retry["verdict"]["outcome"] == "error")


def _mined(run: RunRecord, certificate: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of mining, with those of the formats that the verifier refuses; they share one pass."""
    wrong = [one for one in certificate.get("findings", []) if one["status"] in ("broken", "noted", "refused")]
    formats = {one["name"]: re.compile(_MARKS[one["name"]]) for one in wrong if one["name"] in _MARKS}
    tried: list[tuple[str, bool]] = []
    cut: list[tuple[str, bool]] = []
    marks: dict[tuple[str, bool], list[tuple[str, bool]]] = {}
    for row in run.rows("mine"):
        problem, attempt = row["example"]["id"], row["attempt"]
        cut.append((problem, attempt.get("stopped") == "length"))
        if (outcome := attempt["verdict"]["outcome"]) == "error":
            continue
        tried.append((problem, outcome == "pass"))
        for name, mark in formats.items():
            found = mark.search(attempt["text"][:_SEARCHED]) is not None
            marks.setdefault((name, outcome == "pass"), []).append((problem, found))
    checks = [
        Check(
            **{key: one[key] for key in ("group", "name", "status", "held")},
            marked=clustered(marks[one["name"], False]) if (one["name"], False) in marks else None,
            marked_passes=clustered(marks.get((one["name"], True), [])) if one["name"] in formats else None,
        )
        for one in wrong
    ]
    card = run.read_json("failures/card") or {}
    counts = run.done("mine") or card.get("counts", {})
    return {
        "attempts_passed": clustered(tried) if tried else None,
        "attempts_truncated": clustered(cut) if cut else _counted(counts),
        "failures": counts.get("failures", 0),
        "checks": checks,
    }


def _counted(counts: Mapping[str, Any]) -> Rate | None:
    """Return the share of truncated attempts by the counts of a failure dataset, mined elsewhere."""
    return wilson(counts["truncated"], counts["attempts"]) if {"truncated", "attempts"} <= counts.keys() else None


def _evaluated(run: RunRecord, config: Config) -> dict[str, Any]:
    """Return the figures of the evaluation: from its episodes, or from its result without them."""
    result = value_of(Result, run, "result")
    sides = {name: _episodes(run, name) for name in _SIDES}
    if not sides["base"]:
        if result is None:
            return {}
        from_result = {
            name: Side(scores=found, against=found.against)
            for name in _SIDES
            if (found := getattr(result, name)) is not None
        }
        return {**from_result, "paired": result.paired, "greedy": result.greedy and result.greedy.paired}
    controls = CONTROLS if config.evaluate.controls else ()
    figures: dict[str, Any] = {name: _side(found, controls) for name, found in sides.items() if found}
    if result and result.greedy:
        figures["greedy"] = result.greedy.paired
    if result and result.problems and result.problems.whole:
        figures["in_split"] = result.problems.read
    if sides["trained"]:
        changes = _changes(sides["base"], sides["trained"])
        figures["paired"] = compare(sides["base"], sides["trained"])
        figures["problems"] = len(changes)
        figures["mean_square"] = sum(change * change for change in changes) / max(1, len(changes))
    return figures


_SIDES = ("base", "trained")


def _episodes(run: RunRecord, side: str) -> list[Episode]:
    name = f"evaluate-{side}"
    return list(without_texts(each_value(Episode, run.rows(name), name)))


def _side(episodes: Sequence[Episode], controls: Sequence[Arm]) -> Side:
    recorded = [arm for arm in controls if any(arm in one.retries for one in episodes)]  # later versions have more
    found = scores(episodes, recorded)
    return Side(scores=found, against=found.against)


def _changes(before: Sequence[Episode], after: Sequence[Episode]) -> list[float]:
    """Return the change of each problem's pass rate after both tries."""
    old, new = (_passed_share(side) for side in (before, after))
    return [new[problem] - old[problem] for problem in old if problem in new]


def _passed_share(episodes: Sequence[Episode]) -> dict[str, float]:
    outcomes: dict[str, list[bool]] = {}
    for episode in episodes:
        if (passed := solved(episode)) is not None:
            outcomes.setdefault(episode.example.id, []).append(passed)
    return {problem: sum(passed) / len(passed) for problem, passed in outcomes.items()}


def _validation(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, Rate]]:
    """Yield the second tries of evaluations during training, of rows that have them."""
    for row in rows:
        second = row.get("second")
        if isinstance(second, Mapping) and {"passed", "total", "rate", "low", "high"} <= second.keys():
            yield row["step"], Rate.model_validate({key: second[key] for key in Rate.model_fields})
