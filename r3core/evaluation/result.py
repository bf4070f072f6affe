"""The result of an evaluation: the rates of each model, paired differences, and the correction of their tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from r3core.dataset import Selection
from r3core.episode import Answer, Arm, Episode
from r3core.evaluation.arms import Cost, EqualTokens, against, cost, difference, equal_tokens, fix_rate, rate
from r3core.evaluation.outcomes import (
    attempts_of,
    every_answer,
    first_try,
    passed,
    reflections_of,
    repeated,
    solved,
    solved_within,
)
from r3core.evaluation.pass_at import pass_at, pass_at_differences
from r3core.objective import Turn
from r3core.stats import Difference, Rate, Share, holm, wilson
from r3core.task import Frozen


class Scores(Frozen):
    """The rates of one model on the held-out problems, each with its confidence interval."""

    first: Rate
    """Attempts that passed."""
    second: Rate
    """Problems solved by the attempt or, after a reflection, by the retry."""
    fix: Rate
    """Retries that passed, of the first attempts that failed."""
    first_at: dict[int, Share] = {}
    """pass@k of the first try by k, with several samples per problem."""
    second_at: dict[int, Share] = {}
    """pass@k of the second try by k: at least one of k samples is solved by its attempt or its retry."""
    controls: dict[Arm, Rate]
    """The same fix rate, over the same failures, with something else in the reflection's place."""
    against: dict[Arm, Difference] = {}
    """The fix rate after a reflection minus that of each control, on the same failures."""
    costs: dict[Arm, Cost] = {}
    """Tokens and verdicts per failure of the reflection with its retry (`reflect`), and of each control."""
    equal_tokens: EqualTokens | None = None
    """Plain resampling with as many tokens as reflection and retry; None without the control `resample`."""
    within: dict[int, Rate] = {}
    """Problems solved within k attempts of one conversation, by k; empty with one round (`protocol.rounds`)."""
    repeated: dict[int, Rate] = {}
    """Answers at the k-th attempt that are equal to an earlier one of the same conversation, by k; likewise."""
    leaks: Rate
    """Reflections that give the answer away, of those that could be tested."""
    fix_without_leak: Rate
    """The fix rate over the failures whose reflection did not give the answer away."""
    attempts_truncated: Rate = wilson(0, 0)
    """Attempts that the token limit cut off; they count as passed or failed like others."""
    truncated: Rate
    """Reflections that the token limit cut off."""
    retries_truncated: Rate = wilson(0, 0)
    """Retries after a reflection that the token limit cut off; they count as passed or failed like others."""
    errors: int
    """Answers that the verifier could not judge; they count in no rate."""
    overlong: int = 0
    """Turns that were not generated, as their conversation does not fit the model's context; they count in no rate."""
    cut_in_thought: int = 0
    """Turns that the token limit cut off in their thinking: they have no answer, and count in no rate of answers."""
    first_error_categories: dict[str, int] = {}
    """Failed attempts per error category (`Verdict.kind`), the most frequent first; empty for a task without them."""
    second_error_categories: dict[str, int] = {}
    """The same for the retries after a reflection."""


class Paired(Frozen):
    """Trained minus base, over the same problems."""

    first: Difference
    second: Difference
    first_at: dict[int, Difference] = {}
    """pass@k of the first try by k, with several samples per problem."""
    second_at: dict[int, Difference] = {}
    """pass@k of the second try by k."""
    within: dict[int, Difference] = {}
    """Problems solved within k attempts of one conversation, by k from 3 on."""


class Greedy(Frozen):
    """The tries of both models under greedy decoding, one per problem, on the same problems."""

    base: Scores
    trained: Scores | None = None
    paired: Paired | None = None


class Result(Frozen):
    """The outcome of an evaluation: what `--json` prints."""

    base: Scores
    trained: Scores | None = None
    paired: Paired | None = None
    cross: dict[str, dict[str, Rate]] | None = None
    """Fix rates over the base's failures: reflections by -> retries by -> rate."""
    reflections: dict[str, Difference] | None = None
    """The rows of `cross` compared, trained minus base reflections on the same failures: retries by -> difference."""
    problems: Selection | None = None
    """Which problems of the split were attempted."""
    also: dict[str, Result] = {}
    """The results on other tasks (`evaluate.also`), by their names."""
    greedy: Greedy | None = None
    """The same under greedy decoding, without controls; None unless `evaluate.decoding` is `both`."""


def greedy_scores(episodes: Mapping[str, Sequence[Episode]]) -> Greedy:
    """Return the scores of greedy episodes, by model."""
    sides = {name: scores(found) for name, found in episodes.items()}
    return Greedy(**sides, paired=compare(episodes["base"], episodes["trained"]) if "trained" in episodes else None)


NAMES = ("base", "trained")


def with_holm(result: Result) -> Result:
    """Return the result with every p-value but that of the primary endpoint adjusted by Holm's method, in `p_holm`.

    The primary endpoint is the second try, trained minus base: `paired.second`.
    """
    adjusted = iter(holm([one.p for one in secondary(result)]))
    return _each_secondary(result, lambda one: one.model_copy(update={"p_holm": next(adjusted)}))


def secondary(result: Result) -> list[Difference]:
    """Return every comparison of a result but the primary endpoint."""
    found: list[Difference] = []

    def collect(one: Difference) -> Difference:
        found.append(one)
        return one

    _each_secondary(result, collect)
    return found


def _each_secondary(result: Result, change: Callable[[Difference], Difference]) -> Result:
    """Return the result with every comparison but the primary endpoint changed, always in the same order."""

    def side(scores: Scores | None) -> Scores | None:
        if scores is None:
            return None
        update: dict[str, Any] = {"against": {arm: change(one) for arm, one in scores.against.items()}}
        if scores.equal_tokens and (one := scores.equal_tokens.difference):
            update["equal_tokens"] = scores.equal_tokens.model_copy(update={"difference": change(one)})
        return scores.model_copy(update=update)

    first = result.paired and _paired(result.paired, change)
    sides = {name: side(getattr(result, name)) for name in NAMES}
    also = {name: _each_of_another(one, change) for name, one in result.also.items()}
    reflections = result.reflections and {then: change(one) for then, one in result.reflections.items()}
    update: dict[str, Any] = {**sides, "paired": first, "reflections": reflections, "also": also}
    if result.greedy and (pair := result.greedy.paired):
        tries = _paired(pair, change).model_copy(update={"second": change(pair.second)})
        update["greedy"] = result.greedy.model_copy(update={"paired": tries})
    return result.model_copy(update=update)


def _each_of_another(result: Result, change: Callable[[Difference], Difference]) -> Result:
    """Return the result on another task with both of its comparisons changed."""
    if (pair := result.paired) is None:
        return result
    tries = _paired(pair, change).model_copy(update={"second": change(pair.second)})
    return result.model_copy(update={"paired": tries})


def _paired(tries: Paired, change: Callable[[Difference], Difference]) -> Paired:
    """Return the differences of both tries with all but that of the second one changed."""
    first = change(tries.first)
    at = {name: {k: change(one) for k, one in getattr(tries, name).items()} for name in _BY_K}
    return tries.model_copy(update={"first": first, **at})


_BY_K = ("first_at", "second_at", "within")


def truncated(side: Scores) -> dict[Turn, Rate]:
    """Return the share of each kind of turn that the token limit cut off."""
    return {"attempt": side.attempts_truncated, "reflection": side.truncated, "retry": side.retries_truncated}


def scores(episodes: Sequence[Episode], controls: Sequence[Arm] = ()) -> Scores:
    """Return the rates of one model's episodes, with those of some controls; samples of one problem are clustered."""
    failed = [episode for episode in episodes if episode.failed]
    reflected = [(e, e.reflection) for e in failed if e.reflection]
    answers = [a for e in episodes for a in every_answer(e)]
    arms: tuple[Arm, ...] = ("reflect", *controls)
    turns = [*answers, *(one for e in failed for one in reflections_of(e))]
    return Scores(
        first=rate((e, passed(e.attempt)) for e in episodes),
        second=rate((e, solved(e)) for e in episodes),
        fix=fix_rate(failed, "reflect"),
        first_at=pass_at(episodes, first_try),
        second_at=pass_at(episodes, solved),
        controls={arm: fix_rate(failed, arm) for arm in controls},
        against={arm: against(failed, arm) for arm in controls},
        costs={arm: found for arm in arms if (found := cost(failed, arm))},
        equal_tokens=equal_tokens(failed) if "resample" in controls else None,
        within={k: rate((e, solved_within(e, k)) for e in episodes) for k in attempts_of(episodes)},
        repeated={k: rate((e, repeated(e, k)) for e in episodes) for k in attempts_of(episodes) if k > 1},
        leaks=rate((e, reflection.leaked) for e, reflection in reflected),
        fix_without_leak=fix_rate([e for e, reflection in reflected if reflection.leaked is False], "reflect"),
        attempts_truncated=rate((e, e.attempt.stopped == "length") for e in episodes),
        truncated=rate((e, reflection.stopped == "length") for e, reflection in reflected),
        retries_truncated=rate((e, r.stopped == "length") for e in failed if (r := e.retries.get("reflect"))),
        errors=sum(one.verdict.outcome == "error" and not one.unanswered for one in answers),
        overlong=sum(turn.stopped == "overlong" for turn in turns),
        cut_in_thought=sum(turn.cut_in_thought for turn in turns),
        first_error_categories=_error_categories(episode.attempt for episode in failed),
        second_error_categories=_error_categories(e.retries["reflect"] for e in failed if "reflect" in e.retries),
    )


def compare(before: Sequence[Episode], after: Sequence[Episode]) -> Paired:
    """Return the paired differences, over the problems that could be judged on both sides."""
    return Paired(
        first=difference(before, after, first_try),
        second=difference(before, after, solved),
        first_at=pass_at_differences(before, after, first_try),
        second_at=pass_at_differences(before, after, solved),
        within={k: difference(before, after, partial(solved_within, attempts=k)) for k in attempts_of(before) if k > 2},
    )


def _error_categories(answers: Iterable[Answer]) -> dict[str, int]:
    verdicts = [answer.verdict for answer in answers if answer.verdict.outcome == "fail"]
    return dict(Counter(verdict.kind for verdict in verdicts if verdict.kind).most_common())
