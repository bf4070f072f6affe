"""Evaluation: base and trained model on the same held-out problems, with controls and paired tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from r3core.arms import Cost, EqualTokens, against, cost, difference, equal_tokens, fix_rate, passed, rate
from r3core.config import Config
from r3core.dataset import Selection
from r3core.decoding import GREEDY, controls_of, decoded, greedy_beside
from r3core.episode import Answer, Arm, Episode
from r3core.executor import Executor, Tally, episodes_of
from r3core.generation.generator import Generator
from r3core.progress import percent
from r3core.protocol import Protocol, seed_of
from r3core.repeated import pass_at, pass_at_differences
from r3core.rounds import attempts_of, every_answer, reflections_of, repeated, solved_within
from r3core.runs import Run
from r3core.stats import Difference, Rate, Share, holm, wilson
from r3core.task import Example, Frozen
from r3core.truncation import TurnKind, warn_if_truncated


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


def evaluate(
    run: Run,
    protocol: Protocol,
    examples: Sequence[Example],
    *,
    executor: Executor,
    base: str,
    trained: str | None = None,
    problems: Selection | None = None,
) -> Result:
    """Evaluate one or two models on the same problems with the same seeds; resumes an interrupted run."""
    models = {"base": base} | ({"trained": trained} if trained else {})
    episodes: dict[str, list[Episode]] = {}
    greedily: dict[str, list[Episode]] = {}
    with run.clock("evaluate") as tick:
        for name, model in models.items():
            evaluate_model = partial(_episodes, run, protocol, examples, executor=executor, model=model, tick=tick)
            episodes[name] = evaluate_model(name)
            if greedy_beside(protocol.config):
                greedily[name] = evaluate_model(f"{name}-{GREEDY}")
        cells = None
        if protocol.config.evaluate.cross and trained:
            cells = _cross(run, protocol, episodes["base"], executor=executor, models=models, tick=tick)
    controls = controls_of(protocol.config)
    sides = {name: scores(found, controls) for name, found in episodes.items()}
    _warn_if_truncated(protocol.config, sides)
    result = Result(
        base=sides["base"],
        trained=sides.get("trained"),
        paired=compare(episodes["base"], episodes["trained"]) if trained else None,
        cross={by: {then: fix_rate(cells[by, then], "reflect") for then in _NAMES} for by in _NAMES} if cells else None,
        reflections=compare_reflections(cells) if cells else None,
        problems=problems,
        greedy=greedy_scores(greedily) if greedily else None,
    )
    return with_holm(result)


def greedy_scores(episodes: Mapping[str, Sequence[Episode]]) -> Greedy:
    """Return the scores of greedy episodes, by model."""
    sides = {name: scores(found) for name, found in episodes.items()}
    return Greedy(**sides, paired=compare(episodes["base"], episodes["trained"]) if "trained" in episodes else None)


_NAMES = ("base", "trained")


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
    sides = {name: side(getattr(result, name)) for name in _NAMES}
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


def truncated(side: Scores) -> dict[TurnKind, Rate]:
    """Return the share of each kind of turn that the token limit cut off."""
    return {"attempt": side.attempts_truncated, "reflection": side.truncated, "retry": side.retries_truncated}


def _warn_if_truncated(config: Config, sides: dict[str, Scores]) -> None:
    """Warn of each kind of turn once, for the model of which more were cut off."""
    for turn in ("attempt", "reflection", "retry"):
        name, cut = max(((name, truncated(side)[turn]) for name, side in sides.items()), key=lambda of: of[1].rate)
        warn_if_truncated(config, turn, cut.passed, total=cut.total, by=f" of the {name} model")


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
        first_at=pass_at(episodes, _first),
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


def solved(episode: Episode) -> bool | None:
    """Return whether either of the two attempts passed; None when that could not be judged."""
    if episode.failed:
        return passed(episode.retries.get("reflect"))
    return passed(episode.attempt)


def compare(before: Sequence[Episode], after: Sequence[Episode]) -> Paired:
    """Return the paired differences, over the problems that could be judged on both sides."""
    return Paired(
        first=difference(before, after, _first),
        second=difference(before, after, solved),
        first_at=pass_at_differences(before, after, _first),
        second_at=pass_at_differences(before, after, solved),
        within={k: difference(before, after, partial(solved_within, attempts=k)) for k in attempts_of(before) if k > 2},
    )


def _episodes(
    run: Run,
    protocol: Protocol,
    examples: Sequence[Example],
    name: str,
    *,
    executor: Executor,
    model: str,
    tick: Callable[[], None],
) -> list[Episode]:
    """Return the episodes of one model, with every arm of each; `name` is `base`, `trained-greedy` and so on."""
    config = protocol.config
    beside = name.endswith(GREEDY)
    samples = 1 if beside else config.evaluate.samples
    return episodes_of(
        run,
        executor,
        evaluated_greedily if beside else evaluated,
        examples,
        name=f"evaluate-{name}",
        label=f"eval {name}",
        unit="problems",
        model=model,
        size=max(1, config.batch_size // samples),
        each=samples,
        tally=tally({"first try": _first, "second try": solved}),
        tick=tick,
    )


def tally(judged: dict[str, Callable[[Episode], bool | None]]) -> Tally:
    """Return what counts the episodes that pass so far, in each of several respects."""
    counts: dict[str, Counter[bool | None]] = {name: Counter() for name in judged}

    def add(new: Iterable[Episode]) -> str:
        for episode in new:
            for name, judge in judged.items():
                counts[name][judge(episode)] += 1
        return ", ".join(f"{name} {percent(of[True], of[True] + of[False])}" for name, of in counts.items())

    return add


def evaluated(protocol: Protocol, generator: Generator, number: int, batch: Sequence[Example]) -> list[Episode]:
    """Return the episodes of one batch of problems, with a retry for every arm."""
    protocol = _decoding(protocol)
    config = protocol.config
    arms: list[Arm] = ["reflect", *controls_of(config)]

    def seed(what: str) -> int:  # the same for base and trained
        return seed_of(config.seed, "evaluate", number, what)

    episodes = protocol.attempt(batch, generator, seed=seed("attempt"), samples=config.evaluate.samples)
    episodes = protocol.reflect(episodes, generator, seed=seed("reflection"))
    for arm in arms:
        episodes = protocol.retry(episodes, generator, seed=seed(arm), arm=arm)
    for index in range(2, config.protocol.rounds + 1):
        episodes = protocol.another_round(episodes, generator, seed=seed(f"round {index}"))
    for index in range(2, config.evaluate.resamples + 1 if "resample" in arms else 0):
        again = protocol.retry(episodes, generator, seed=seed(f"resample {index}"), arm="resample")
        episodes = [_with_resample(episode, other) for episode, other in zip(episodes, again, strict=True)]
    return episodes


def evaluated_greedily(
    protocol: Protocol, generator: Generator, number: int, batch: Sequence[Example]
) -> list[Episode]:
    """Return the episodes of one batch under greedy decoding: one attempt per problem, and no controls."""
    once = protocol.config.evaluate.model_copy(
        update={"decoding": "greedy", "samples": 1, "controls": False, "resamples": 1}
    )
    alone = replace(protocol, config=protocol.config.model_copy(update={"evaluate": once}))
    return evaluated(alone, generator, number, batch)


def _decoding(protocol: Protocol) -> Protocol:
    """Return the protocol with the sampling parameters of the evaluation."""
    return replace(protocol, config=decoded(protocol.config))


def _with_resample(episode: Episode, other: Episode) -> Episode:
    """Return an episode with one more fresh attempt, which `other` has as its control `resample`."""
    if not episode.failed:
        return episode
    return episode.model_copy(update={"resamples": (*episode.resamples, other.retries["resample"])})


def _cross(
    run: Run,
    protocol: Protocol,
    base: Sequence[Episode],
    *,
    executor: Executor,
    models: dict[str, str],
    tick: Callable[[], None],
) -> dict[tuple[str, str], list[Episode]]:
    """Return the base's failures with reflections by base or trained x retries by base or trained.

    The trained model writes its reflections on those failures first; the order needs each model in memory once.
    """
    failed = [episode for episode in base if episode.failed]

    def stage(name: str, episodes: Sequence[Episode], *, by: str, function: Callable[..., Any]) -> list[Episode]:
        return episodes_of(
            run,
            executor,
            partial(function, name=name),
            episodes,
            name=f"cross-{name}",
            label=f"cross {name}",
            unit="failures",
            model=models[by],
            size=protocol.config.batch_size,
            tally=tally({"leaks": _leaked} if function is reflected else {"fixed": _fixed}),
            tick=tick,
        )

    reflections = stage("trained", failed, by="trained", function=reflected)
    return {
        ("base", "trained"): stage("base-trained", failed, by="trained", function=retried),
        ("trained", "trained"): stage("trained-trained", reflections, by="trained", function=retried),
        ("trained", "base"): stage("trained-base", reflections, by="base", function=retried),
        ("base", "base"): failed,
    }


def compare_reflections(cells: Mapping[tuple[str, str], Sequence[Episode]]) -> dict[str, Difference]:
    """Return, by who retries, the fix rate after the trained model's reflections minus that after the base's.

    `cells` are the episodes of the cross table: (reflections by, retries by) -> the base's failures.
    """
    return {then: difference(cells["base", then], cells["trained", then], _fixed) for then in _NAMES}


def reflected(
    protocol: Protocol, generator: Generator, number: int, batch: Sequence[Episode], *, name: str
) -> list[Episode]:
    """Return a batch of failures with new reflections, for the stage `name` of the cross table."""
    seed = seed_of(protocol.config.seed, "cross", number, name)
    return _decoding(protocol).reflect(batch, generator, seed=seed)


def retried(
    protocol: Protocol, generator: Generator, number: int, batch: Sequence[Episode], *, name: str
) -> list[Episode]:
    """Return a batch of failures with new retries, for the stage `name` of the cross table."""
    bare = [episode.model_copy(update={"retries": {}, "resamples": (), "rounds": ()}) for episode in batch]
    seed = seed_of(protocol.config.seed, "cross", number, name)
    return _decoding(protocol).retry(bare, generator, seed=seed)


def _error_categories(answers: Iterable[Answer]) -> dict[str, int]:
    verdicts = [answer.verdict for answer in answers if answer.verdict.outcome == "fail"]
    return dict(Counter(verdict.kind for verdict in verdicts if verdict.kind).most_common())


def _first(episode: Episode) -> bool | None:
    return passed(episode.attempt)


def _fixed(episode: Episode) -> bool | None:
    return passed(episode.retries.get("reflect"))


def _leaked(episode: Episode) -> bool | None:
    return episode.reflection.leaked if episode.reflection else None
