"""The episodes of a run for its page: counts over all of them, and the texts of a bounded random sample.

The order of the sample is a function of the problems' ids alone, so that pages of several runs show the same problems.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from jinja2.utils import htmlsafe_json_dumps

from r3core.console import visible
from r3core.episode import Answer, Episode, Reflection, Text
from r3core.evaluation.outcomes import reflections_of, solved
from r3core.failures import Failure
from r3core.files import digest
from r3core.groups import Group, groups_of, trained_rows
from r3core.recorded import Change, Key, change, messages_of
from r3core.runs import RunRecord, each_value
from r3core.task import Example, Message, Task

MAX_PROBLEMS = 1_000
"""Problems whose texts are in the page; the counts are always over all of them."""
MAX_BYTES = 3_000_000
"""Size of those texts, for the runs of a page together; as much again at most for the groups of training."""
MAX_STEPS, GROUPS_PER_STEP = 40, 4
"""Training steps with groups in the page, evenly spaced from the first to the last, and groups of each."""
MAX_CHARACTERS = 6_000
"""Characters of one text; of a longer one, the middle is left out."""
OF_EACH = 50
"""Problems of each kind of change that come first in the sample."""

State = Literal["first", "fixed", "not fixed", "unjudged"]


class Counts(NamedTuple):
    """The outcomes of all episodes of a file, and the tokens that were generated for them, by turn."""

    outcomes: dict[Key, bool | None]
    """Whether either try passed, None where that could not be judged."""
    tokens: Counter[str]
    reflections: int
    """Number of reflections."""


def count(run: RunRecord, name: str) -> Counts:
    """Return the outcomes and the tokens of all episodes in `NAME.jsonl`."""
    outcomes: dict[Key, bool | None] = {}
    tokens: Counter[str] = Counter()
    reflections = 0
    for episode in each_value(Episode, run.rows(name), name):
        reflections += len(reflections_of(episode))
        outcomes[episode.example.id, episode.sample] = solved(episode)
        tokens["attempts"] += episode.attempt.tokens
        tokens["reflections"] += sum(one.tokens for one in reflections_of(episode))
        tokens["retries"] += sum(one.retry.tokens for one in episode.rounds)
        for arm, retry in episode.retries.items():
            tokens["retries" if arm == "reflect" else "controls"] += retry.tokens
        tokens["controls"] += sum(again.tokens for again in episode.resamples)
    return Counts(outcomes, tokens, reflections)


def changes(base: Counts, trained: Counts) -> dict[Key, Change]:
    """Return the change of every problem that both models attempted."""
    return {key: change(one, trained.outcomes.get(key)) for key, one in base.outcomes.items()}


def chosen(keys: Iterable[Key], kinds: dict[Key, Change]) -> list[Key]:
    """Return up to MAX_PROBLEMS problems in a random order, the first ones of each kind of change before the rest."""
    shuffled = sorted(keys, key=lambda key: digest(f"page:{key[0]}:{key[1]}", length=16))
    of_kind: Counter[str] = Counter()
    first: list[Key] = []
    rest: list[Key] = []
    for key in shuffled:
        kind = kinds.get(key, "")
        of_kind[kind] += 1
        (first if of_kind[kind] <= OF_EACH else rest).append(key)
    return [*first, *rest][:MAX_PROBLEMS]


def episodes(run: RunRecord, name: str, keys: set[Key]) -> dict[Key, Episode]:
    """Return the episodes of these problems from `NAME.jsonl`."""
    rows = (row for row in run.rows(name) if (row["example"]["id"], row.get("sample", 0)) in keys)
    return {(one.example.id, one.sample): one for one in each_value(Episode, rows, name)}


def side(episode: Episode) -> dict[str, Any]:
    """Return the turns of one model at one problem, as the page's script reads them."""
    given: dict[str, Any] = {"state": _state(episode), "attempt": _turn(episode.attempt)}
    if episode.reflection is not None:
        given["reflection"] = _turn(episode.reflection)
    if episode.retries:
        given["retries"] = {arm: _turn(retry) for arm, retry in episode.retries.items()}
    if episode.rounds:
        given["rounds"] = [{"reflection": _turn(one.reflection), "retry": _turn(one.retry)} for one in episode.rounds]
    return given


def problem(task: Task | None, example: Example, sample: int) -> dict[str, Any]:
    """Return what the page shows of a problem beside its turns; the prompt as the task builds it, where it can."""
    answer = "" if example.answer is None else json.dumps(example.answer, ensure_ascii=False)
    return {
        "id": shown(example.id),
        "sample": sample,
        "prompt": [{"role": shown(one["role"]), "text": shown(one["content"])} for one in messages_of(task, example)],
        "answer": shown(answer),
    }


def groups(run: RunRecord, size: int) -> tuple[list[dict[str, Any]], Counter[str], int]:
    """Return a sample of the groups of training, the tokens that training generated by turn, and the number of groups.

    A group has the step, the failure and its G reflections in the order of their rewards; G is `size`.
    """
    steps: dict[int, list[tuple[str, int]]] = defaultdict(list)
    tokens: Counter[str] = Counter()
    for group in groups_of(trained_rows(run), size):
        steps[group.step].append((group.id, group.number))
        for row in group.rows:
            tokens["reflections"] += row.reflection.tokens if row.reflection else 0
            tokens["retries"] += sum(retry.tokens for retry in row.retries)
            if row.attempt is not None:
                tokens["attempts"] += row.attempt.tokens
    total = sum(map(len, steps.values()))
    wanted = {step: set(_shuffled(steps[step])[:GROUPS_PER_STEP]) for step in _spaced(sorted(steps))}
    rows = (row for row in trained_rows(run) if row.step in wanted)
    failures = _failures(run, {identity for chosen in wanted.values() for identity, _ in chosen})
    sampled = [
        _group(group, failures.get(group.id))
        for group in groups_of(rows, size)
        if (group.id, group.number) in wanted[group.step]
    ]
    return sampled, tokens, total


def shown(text: str) -> str:
    """Return a text for the page: control and format characters escaped, the middle of a long one left out."""
    if len(text) > MAX_CHARACTERS:
        half = MAX_CHARACTERS // 2
        left_out = f"\n[... {len(text) - 2 * half:,} characters are not shown ...]\n"
        text = text[:half] + left_out + text[-half:]
    return visible(text, keep="\n\t")


def within(entries: Sequence[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    """Return the first entries, as many as fit `size` bytes of JSON."""
    fitting: list[dict[str, Any]] = []
    for entry in entries:
        size -= len(htmlsafe_json_dumps(entry))
        if size < 0:
            break
        fitting.append(entry)
    return fitting


def _turn(turn: Text) -> dict[str, Any]:
    given: dict[str, Any] = {"text": shown(turn.text), "tokens": turn.tokens}
    if turn.thinking is not None:
        given["thinking"] = shown(turn.thinking)
    if turn.stopped != "end":
        given["stopped"] = turn.stopped
    if isinstance(turn, Answer):
        verdict = turn.verdict
        given |= {"outcome": verdict.outcome, "reason": shown(verdict.reason), "category": shown(verdict.kind)}
    elif isinstance(turn, Reflection) and turn.leaked is not None:
        given["leaked"] = turn.leaked
    return {name: value for name, value in given.items() if value != ""} | {"text": given["text"]}


def _group(group: Group, failure: Failure | None) -> dict[str, Any]:
    return {
        "step": group.step,
        "id": shown(group.id),
        **({} if group.only else {"number": group.number}),
        "prompt": [] if failure is None else _texts(failure.prompt),
        **({} if failure is None else {"attempt": _turn(failure.attempt)}),
        "reflections": [
            {
                **({} if row.attempt is None else {"attempt": _turn(row.attempt)}),
                **({} if row.reflection is None else {"reflection": _turn(row.reflection)}),
                "retries": [_turn(retry) for retry in row.retries],
                "reward": row.reward,
            }
            for row in group.ranked
        ],
    }


def _failures(run: RunRecord, ids: set[str]) -> dict[str, Failure]:
    found = each_value(Failure, run.rows("failures/failures"), "failures/failures")
    return {failure.id: failure for failure in found if failure.id in ids}


def _shuffled(groups: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    return sorted(groups, key=lambda group: (digest(f"page:{group[0]}", length=16), group[1]))


def _spaced(steps: Sequence[int]) -> list[int]:
    """Return up to MAX_STEPS of the steps, evenly spaced, with the first and the last."""
    if len(steps) <= MAX_STEPS:
        return list(steps)
    return [steps[round(place * (len(steps) - 1) / (MAX_STEPS - 1))] for place in range(MAX_STEPS)]


def _state(episode: Episode) -> State:
    passed = solved(episode)
    if passed is None:
        return "unjudged"
    if not episode.failed:
        return "first"
    return "fixed" if passed else "not fixed"


def _texts(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": shown(str(one["role"])), "text": shown(str(one["content"]))} for one in messages]
