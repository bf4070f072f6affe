"""Evaluation: base and trained model on the same held-out problems, with controls and paired tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from r3core.config import Config
from r3core.dataset import Selection
from r3core.episode import Arm, Episode
from r3core.evaluation.arms import difference, fix_rate
from r3core.evaluation.decoding import GREEDY, controls_of, decoded, greedy_beside
from r3core.evaluation.outcomes import first_try, passed, solved
from r3core.evaluation.result import NAMES, Result, Scores, compare, greedy_scores, scores, truncated, with_holm
from r3core.executor import Executor, Tally, episodes_of
from r3core.generation.generator import Generator
from r3core.progress import percent
from r3core.protocol import Protocol, seed_of
from r3core.runs import Run
from r3core.stats import Difference
from r3core.task import Example
from r3core.truncation import warn_if_truncated


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
        cross={by: {then: fix_rate(cells[by, then], "reflect") for then in NAMES} for by in NAMES} if cells else None,
        reflections=compare_reflections(cells) if cells else None,
        problems=problems,
        greedy=greedy_scores(greedily) if greedily else None,
    )
    return with_holm(result)


def _warn_if_truncated(config: Config, sides: dict[str, Scores]) -> None:
    """Warn of each kind of turn once, for the model of which more were cut off."""
    for turn in ("attempt", "reflection", "retry"):
        name, cut = max(((name, truncated(side)[turn]) for name, side in sides.items()), key=lambda of: of[1].rate)
        warn_if_truncated(config, turn, cut.passed, total=cut.total, by=f" of the {name} model")


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
        tally=tally({"first try": first_try, "second try": solved}),
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
    together = [arm for arm in arms if arm != "resample"]
    episodes = protocol.retries(episodes, generator, seed=seed("retries"), arms=together)
    for index in range(2, config.protocol.rounds + 1):
        episodes = protocol.another_round(episodes, generator, seed=seed(f"round {index}"))
    if "resample" in arms:
        count = 1 if config.evaluate.decoding == "greedy" else config.evaluate.resamples
        episodes = protocol.resample(episodes, generator, seed=seed("resample"), count=count)
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
    return {then: difference(cells["base", then], cells["trained", then], _fixed) for then in NAMES}


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


def _fixed(episode: Episode) -> bool | None:
    return passed(episode.retries.get("reflect"))


def _leaked(episode: Episode) -> bool | None:
    return episode.reflection.leaked if episode.reflection else None
