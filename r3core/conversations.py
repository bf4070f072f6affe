"""The recorded episodes of a run as conversations that match a filter, read without a lock and without a model."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Literal, NamedTuple

from r3core.episode import Answer, Arm, Episode, Reflection, Text
from r3core.errors import RunError, UsageError, did_you_mean
from r3core.evaluation.outcomes import solved
from r3core.failures import Failure
from r3core.forecast import group_size
from r3core.groups import TRAINED, Group, groups_of, trained_rows
from r3core.recorded import Key, change, config_of
from r3core.runs import RunRecord, each_value
from r3core.task import Example, Frozen

Model = Literal["base", "trained"]
Changed = Literal["newly fixed", "newly broken"]
_MAX_LISTED = 12  # error categories in an error message


class Tried(NamedTuple):
    """One reflection on a failure, with its retries."""

    reflection: Reflection
    retries: list[Answer]
    reward: float | None = None
    """The reward of training; None outside of training, and where no retry could be judged."""


class Conversation(NamedTuple):
    """One recorded episode, or a group of training: an attempt with one reflection or with several."""

    heading: str
    """The example's id, with the stage or the model, which distinguishes it from others at the same example."""
    example: Example
    attempt: Answer | None
    """None where the attempt is not recorded."""
    tried: list[Tried]
    controls: dict[Arm, Answer]
    key: Key
    further: list[Tried] = []
    """Further rounds of the same conversation, each after a failed retry."""
    trains: bool = False
    """Whether it is a group of training."""

    @property
    def answers(self) -> list[Answer]:
        """The attempt and the retries, those of the controls left out."""
        tried = (*self.tried, *self.further)
        return [*([self.attempt] if self.attempt else []), *(retry for one in tried for retry in one.retries)]

    @property
    def state(self) -> str:
        """What became of it; for a group of training, whether any of its reflections led to a retry that passed."""
        if self.attempt is not None and self.attempt.verdict.outcome != "fail":
            return "passed at the first try" if self.attempt.verdict.outcome == "pass" else "not judged"
        outcomes = {retry.verdict.outcome for one in self.tried for retry in one.retries}
        if not self.tried:
            return "not retried"
        return "fixed" if "pass" in outcomes else "not fixed" if "fail" in outcomes else "not judged"


class Wanted(Frozen):
    """Which recorded episodes are wanted; a field at its default excludes none."""

    fixed: bool | None = None
    """Whether the retry after the reflection passes."""
    change: Changed | None = None
    """How training changed the outcome after both tries."""
    category: str | None = None
    """Error category of the attempt or of the retry."""
    leaked: bool = False
    """Only those whose reflection contains the answer."""
    truncated: bool = False
    """Only those with a turn that the token limit cut off."""
    example: str | None = None
    """Id of the example."""

    def matches(self, one: Conversation) -> bool:
        """Return whether a conversation is wanted; its `change` is not looked at."""
        turns: list[Text] = [*one.answers, *(tried.reflection for tried in (*one.tried, *one.further))]
        return (
            (self.fixed is None or one.state == ("fixed" if self.fixed else "not fixed"))
            and (self.category is None or self.category in {answer.verdict.kind for answer in one.answers})
            and (not self.leaked or any(tried.reflection.leaked for tried in one.tried))
            and (not self.truncated or any(turn.stopped == "length" for turn in turns))
            and (self.example is None or self.example == one.example.id)
        )

    def describe(self) -> str:
        """Return the filter as text for an error message."""
        parts = [{True: "fixed", False: "not fixed", None: ""}[self.fixed], self.change or ""]
        parts += ["with the answer in the reflection" if self.leaked else "", "cut off" if self.truncated else ""]
        parts += [f"of error category `{self.category}`" if self.category is not None else ""]
        parts += [f"of example `{self.example}`" if self.example is not None else ""]
        return ", ".join(filter(None, parts)) or "recorded"


def find(run: RunRecord, wanted: Wanted, *, count: int, model: Model | None = None) -> list[list[Conversation]]:
    """Return up to `count` recorded conversations that match; with a `change`, each of both models at the problem.

    They are those of the evaluation, of the trained model by default; before the evaluation, the groups of training,
    the latest first; before training, the failures.

    Raises:
        UsageError: the model was not evaluated.
        RunError: nothing matches; the hints say what there is.
    """
    evaluated = [name for name in ("base", "trained") if _rows(run, f"evaluate-{name}")]
    if (model or wanted.change) and not evaluated:
        raise UsageError(f"`{run.path}` was not evaluated yet", "run `r3 eval` first")
    if model and model not in evaluated:
        raise UsageError(f"`{run.path}` has no evaluation of the {model} model", f"choose: {', '.join(evaluated)}")
    if wanted.change:
        return _changed(run, wanted, count=count, evaluated=evaluated)
    chosen: Model | None = model or ("trained" if "trained" in evaluated else "base" if evaluated else None)
    found = filter(wanted.matches, conversations(run, chosen))
    latest_first = chosen is None and _rows(run, TRAINED)
    matching = reversed(deque(found, maxlen=count)) if latest_first else islice(found, count)
    return [[one] for one in matching] or _nothing(conversations(run, chosen), wanted)


def conversations(run: RunRecord, model: Model | None) -> Iterator[Conversation]:
    """Yield the recorded conversations of a model's evaluation, or without a model those of training or mining.

    They are in the order in which they were recorded.
    """
    if model is not None:
        yield from map(_of_episode, _episodes(run, f"evaluate-{model}"), _repeated(f", {model} model"))
    elif _rows(run, TRAINED):
        yield from _groups(run)
    elif _rows(run, "failures/failures"):
        failures = each_value(Failure, run.rows("failures/failures"), "failures/failures")
        yield from (_of_episode(failure.episode(), ", mined") for failure in failures)
    else:
        mined = (episode for episode in _episodes(run, "mine") if episode.failed)
        yield from map(_of_episode, mined, _repeated(", mined"))


def _changed(run: RunRecord, wanted: Wanted, *, count: int, evaluated: list[str]) -> list[list[Conversation]]:
    """Return the conversations of both models at problems that one solved and the other did not."""
    if len(evaluated) < 2:
        raise UsageError(f"`{run.path}` has no evaluation of a trained model to compare with the base")
    before = {_key(episode): solved(episode) for episode in _episodes(run, "evaluate-base")}
    changes: Counter[str] = Counter()
    keys: list[Key] = []
    for episode in _episodes(run, "evaluate-trained"):
        how = change(before.get(_key(episode)), solved(episode))
        changes[how] += 1
        if how == wanted.change and wanted.matches(_of_episode(episode, "")):
            keys.append(_key(episode))
    if not keys:
        found = ", ".join(f"{changes[one]:,} {one}" for one in ("newly fixed", "newly broken"))
        raise RunError(f"no episode is {wanted.describe()}", f"of {len(before):,} problems: {found}")
    sides = [
        {one.key: one for one in conversations(run, model) if one.key in set(keys[:count])}
        for model in ("base", "trained")
    ]
    return [[side[key] for side in sides] for key in keys[:count]]


def _nothing(found: Iterable[Conversation], wanted: Wanted) -> list[list[Conversation]]:
    """Raise RunError with the counts of what there is."""
    states: Counter[str] = Counter()
    categories: Counter[str] = Counter()
    leaked = truncated = 0
    for one in found:
        states[one.state] += 1
        categories.update({answer.verdict.kind for answer in one.answers if answer.verdict.kind})
        leaked += Wanted(leaked=True).matches(one)
        truncated += Wanted(truncated=True).matches(one)
    if not states:
        raise RunError("the run has no episode yet", "run `r3 run` or `r3 mine` first")
    counts = {**states, "with the answer in the reflection": leaked, "cut off": truncated}
    there = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    listed = ", ".join(f"`{name}` ({count:,})" for name, count in categories.most_common(_MAX_LISTED))
    raise RunError(
        f"none of {states.total():,} episodes is {wanted.describe()}",
        f"there are: {there}",
        f"error categories: {listed}" if listed else "the verifier names no error categories",
        *(did_you_mean(wanted.category, list(categories)) if wanted.category else ()),
    )


def _of_episode(episode: Episode, of: str) -> Conversation:
    retries = dict(episode.retries)
    own = retries.pop("reflect", None)
    tried = [Tried(episode.reflection, [own] if own else [])] if episode.reflection else []
    sample = f" (attempt {episode.sample + 1})" if episode.sample else ""
    heading = f"{episode.example.id}{sample}{of}"
    further = [Tried(one.reflection, [one.retry]) for one in episode.rounds]
    return Conversation(heading, episode.example, episode.attempt, tried, retries, _key(episode), further)


def _groups(run: RunRecord) -> Iterator[Conversation]:
    """Yield the groups of training, each with its reflections in the order of their rewards."""
    failures = {
        failure.id: failure.episode()
        for failure in each_value(Failure, run.rows("failures/failures"), "failures/failures")
    }
    for group in groups_of(trained_rows(run), group_size(config_of(run.path))):
        yield _of_group(group, failures.get(group.id))


def _of_group(group: Group, failure: Episode | None) -> Conversation:
    number = "" if group.only else f", group {group.number}"
    return Conversation(
        heading=f"{group.id}, step {group.step} of training{number}",
        example=failure.example if failure else Example(id=group.id),
        attempt=failure.attempt if failure else None,
        tried=[Tried(row.reflection, row.retries, row.reward) for row in group.ranked if row.reflection is not None],
        controls={},
        key=(group.id, group.step),
        trains=True,
    )


def _episodes(run: RunRecord, name: str) -> Iterator[Episode]:
    yield from each_value(Episode, run.rows(name), name)


def _key(episode: Episode) -> Key:
    return episode.example.id, episode.sample


def _rows(run: RunRecord, name: str) -> bool:
    """Return whether `NAME.jsonl` has a row."""
    return next(run.rows(name), None) is not None


def _repeated(text: str) -> Iterator[str]:
    while True:
        yield text
