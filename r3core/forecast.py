"""The forecast after mining: what training on a failure dataset may gain and cost, from a few reflections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from heapq import nsmallest
from time import perf_counter

from r3core import stats
from r3core.config import Config
from r3core.episode import Answer, Episode
from r3core.executor import Executor
from r3core.failures import Failure
from r3core.generation.generator import Generator
from r3core.progress import percent, progress
from r3core.protocol import Protocol, seed_of
from r3core.reward import attempt_reward, judged, reward_of
from r3core.runs import Run
from r3core.stats import Rate, Share
from r3core.task import Frozen
from r3core.truncation import warn_if_truncated

GROUPS = (2, 4, 8, 16, 32, 64)
"""The group sizes that the forecast compares, beside the one that is set."""
_SAMPLES = 4  # of each probed failure


class Forecast(Frozen):
    """What training on a failure dataset may gain and cost; every share has a 95% confidence interval."""

    failures: int
    """Number of failures to train on."""
    probed: int
    """Size of the random sample of failures; each was reflected on a few times."""
    retries: int
    """Retries after each reflection."""
    fix_rate: Rate
    """Answers that passed, of those with a verdict: retries, or attempts where no retry is sampled."""
    reward: Share
    """The mean reward of a sample: of a reflection, a retry or an attempt, as the objective has it."""
    signal: dict[int, Share]
    """Group size -> expected share of groups in which at least two rewards differ."""
    unrewarded: Rate
    """Samples without a reward, because no answer has a verdict."""
    reflections_truncated: Rate
    """Reflections that the token limit of training cut off."""
    retries_truncated: Rate
    """Retries that the token limit cut off."""
    tokens: float
    """Mean number of tokens of one sample, with all turns that are generated for it."""
    seconds: float
    """Seconds per sample in which one process generates and judges all its turns, in batches."""


def forecast(
    run: Run, protocol: Protocol, failures: Sequence[Failure], *, executor: Executor, model: str
) -> Forecast | None:
    """Sample a few times for some of the failures, as training would; None if `mine.probe` is 0."""
    config = protocol.config
    probed = nsmallest(config.mine.probe, failures, key=lambda failure: seed_of(config.seed, "probe", failure.id))
    if not probed:
        return None
    batch = [failure.episode() for failure in probed for _ in range(_SAMPLES)]
    started_at = perf_counter()
    with run.clock("forecast"), progress("forecast", len(batch), unit="samples") as stage:
        [episodes] = executor.map(sampled, [(0, batch)], model=model)
        outcomes = [judged(answer) for _, answer in _answers(episodes)]
        fixed = percent(outcomes.count(True), len(outcomes) - outcomes.count(None))
        stage.advance(len(batch), figure=f"fixed {fixed}")
    seconds = perf_counter() - started_at
    result = _forecast(config, episodes, failures=len(failures), seconds=seconds)
    _warn(config, result)
    run.write_json("forecast", result)
    return result


def sampled(protocol: Protocol, generator: Generator, number: int, batch: Sequence[Episode]) -> list[Episode]:
    """Return the samples of the probed failures: with several retries, each is repeated with every retry.

    All of them are one batch, and the trained turns are sampled as in training.
    """
    objective = protocol.config.objective
    trained = replace(protocol, config=protocol.config.as_trained())
    reflect, retry = (seed_of(protocol.config.seed, "probe", turn) for turn in ("reflect", "retry"))
    episodes = list(batch)
    if objective.first == "attempt":
        examples = [episode.example for episode in batch]
        episodes = trained.attempt(examples, generator, seed=seed_of(protocol.config.seed, "probe", "attempt"))
    if not objective.retries:
        return episodes
    if objective.first == "retry":  # one reflection for all samples of a failure
        shared = trained.reflect(episodes[::_SAMPLES], generator, seed=reflect)
        episodes = [episode for episode in shared for _ in range(_SAMPLES)]
    else:
        episodes = trained.reflect(episodes, generator, seed=reflect)
    repeated = [episode for episode in episodes for _ in range(protocol.config.train.retries)]
    return trained.retry(repeated, generator, seed=retry)


def group_size(config: Config) -> int:
    """Return the number of reflections per failure in training, `num_generations`."""
    return int(config.grpo_options().get("num_generations", 8))


def _forecast(config: Config, episodes: Sequence[Episode], *, failures: int, seconds: float) -> Forecast:
    objective, retries = config.objective, config.train.retries if config.objective.retries else 1
    each = [episodes[start : start + retries] for start in range(0, len(episodes), retries)]  # a row per sample
    ids = [group[0].example.id for group in each]
    given = [
        attempt_reward(group[0])
        if objective.first == "attempt"
        else reward_of(group, reward_leaks=config.train.reward_leaks)
        for group in each
    ]
    rewards: dict[str, list[float]] = {problem: [] for problem in ids}
    for problem, reward in zip(ids, given, strict=True):
        if reward is not None:
            rewards[problem].append(reward)
    shared = _SAMPLES if objective.first == "retry" else 1  # samples of one reflection
    written = [(group[0].example.id, group[0].reflection) for group in each[::shared] if group[0].reflection]
    answers = _answers(episodes)
    passed = [(problem, judged(answer)) for problem, answer in answers]
    generated = [*[reflection for _, reflection in written], *[answer for _, answer in answers]]
    if objective.first == "attempt" and objective.retries:
        generated += [group[0].attempt for group in each]
    tokens = sum(turn.tokens for turn in generated)
    return Forecast(
        failures=failures,
        probed=len(rewards),
        retries=retries,
        fix_rate=stats.clustered([(problem, right) for problem, right in passed if right is not None]),
        reward=stats.mean_reward(list(rewards.values())),
        signal={
            group: stats.expected_signal(list(rewards.values()), group)
            for group in sorted({*GROUPS, group_size(config)})
        },
        unrewarded=stats.clustered([(problem, reward is None) for problem, reward in zip(ids, given, strict=True)]),
        reflections_truncated=stats.clustered(
            [(problem, reflection.stopped == "length") for problem, reflection in written]
        ),
        retries_truncated=stats.clustered([(problem, answer.stopped == "length") for problem, answer in answers]),
        tokens=tokens / len(each),
        seconds=seconds / len(each),
    )


def _answers(episodes: Sequence[Episode]) -> list[tuple[str, Answer]]:
    """Return the answers that decide rewards, with the ids of their problems: retries, or attempts without any."""
    retries = [(e.example.id, e.retries["reflect"]) for e in episodes if "reflect" in e.retries]
    return retries or [(episode.example.id, episode.attempt) for episode in episodes]


def _warn(config: Config, result: Forecast) -> None:
    cut = result.reflections_truncated, result.retries_truncated
    warn_if_truncated(config, "reflection", cut[0].passed, total=cut[0].total, by=" of the forecast", training=True)
    warn_if_truncated(config, "retry", cut[1].passed, total=cut[1].total, by=" of the forecast", training=True)
