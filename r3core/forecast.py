"""The forecast after mining: what training on a failure dataset may gain and cost, from a few reflections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from heapq import nsmallest
from time import perf_counter
from typing import Any

from r3core import stats
from r3core.config import Config
from r3core.episode import Episode
from r3core.executor import Executor
from r3core.failures import Failure
from r3core.generation.generator import Generator
from r3core.progress import percent, progress
from r3core.protocol import Protocol, seed_of
from r3core.reward import judged, reward_of
from r3core.runs import Run
from r3core.stats import Rate, Share
from r3core.task import Frozen
from r3core.truncation import warn_if_truncated

GROUPS = (2, 4, 8, 16, 32, 64)
"""The group sizes that the forecast compares, beside the one that is set."""
_REFLECTIONS = 4  # on each probed failure


class Forecast(Frozen):
    """What training on a failure dataset may gain and cost; every share has a 95% confidence interval."""

    failures: int
    """Number of failures to train on."""
    probed: int
    """Size of the random sample of failures; each was reflected on a few times."""
    retries: int
    """Retries after each reflection."""
    fix_rate: Rate
    """Retries that passed, of those with a verdict."""
    reward: Share
    """The mean reward of a reflection."""
    signal: dict[int, Share]
    """Group size -> expected share of groups in which at least two rewards differ."""
    unrewarded: Rate
    """Reflections without a reward, because no retry has a verdict."""
    reflections_truncated: Rate
    """Reflections that the token limit of training cut off."""
    retries_truncated: Rate
    """Retries that the token limit cut off."""
    tokens: float
    """Mean number of tokens of one reflection and all its retries."""
    seconds: float
    """Seconds per reflection in which one process generates and judges it and all its retries, in batches."""


def forecast(
    run: Run, protocol: Protocol, failures: Sequence[Failure], *, executor: Executor, model: str
) -> Forecast | None:
    """Reflect a few times on a random sample of the failures as training would; None if `mine.probe` is 0."""
    config = protocol.config
    probed = nsmallest(config.mine.probe, failures, key=lambda failure: seed_of(config.seed, "probe", failure.id))
    if not probed:
        return None
    batch = [failure.episode() for failure in probed for _ in range(_REFLECTIONS)]
    started_at = perf_counter()
    with run.clock("forecast"), progress("forecast", len(batch), unit="reflections") as stage:
        [episodes] = executor.map(reflected, [(0, batch)], model=model)
        outcomes = [judged(episode.retries["reflect"]) for episode in episodes]
        fixed = percent(outcomes.count(True), len(outcomes) - outcomes.count(None))
        stage.advance(len(batch), figure=f"fixed {fixed}")
    seconds = perf_counter() - started_at
    result = _forecast(config, episodes, failures=len(failures), seconds=seconds)
    _warn(config, result)
    run.write_json("forecast", result)
    return result


def reflected(protocol: Protocol, generator: Generator, number: int, batch: Sequence[Episode]) -> list[Episode]:
    """Return the probed failures with a reflection, each repeated for every retry, and with that retry.

    All of them are one batch. Reflections are sampled as in training.
    """
    config = protocol.config
    trained = replace(protocol, config=as_trained(config))
    episodes = trained.reflect(batch, generator, seed=seed_of(config.seed, "probe", "reflect"))
    repeated = [episode for episode in episodes for _ in range(config.train.retries)]
    return protocol.retry(repeated, generator, seed=seed_of(config.seed, "probe", "retry"))


def as_trained(config: Config) -> Config:
    """Return a configuration whose reflections are sampled by the options under `grpo`, as in training."""
    options = config.grpo_options()
    sampling: dict[str, Any] = {
        "temperature": options["temperature"],
        "top_p": options["top_p"],
        "top_k": options["top_k"] or 0,
        "max_tokens": options["max_completion_length"] or 256,
    }
    turns = config.sampling
    reflection = turns.reflection.model_copy(update=sampling)
    return config.model_copy(update={"sampling": turns.model_copy(update={"reflection": reflection})})


def group_size(config: Config) -> int:
    """Return the number of reflections per failure in training, `num_generations`."""
    return int(config.grpo_options().get("num_generations", 8))


def _forecast(config: Config, episodes: Sequence[Episode], *, failures: int, seconds: float) -> Forecast:
    retries = config.train.retries
    each = [episodes[start : start + retries] for start in range(0, len(episodes), retries)]  # a row per reflection
    ids = [group[0].example.id for group in each]
    given = [reward_of(group, reward_leaks=config.train.reward_leaks) for group in each]
    rewards: dict[str, list[float]] = {problem: [] for problem in ids}
    for problem, reward in zip(ids, given, strict=True):
        if reward is not None:
            rewards[problem].append(reward)
    written = [group[0].reflection for group in each if group[0].reflection]
    answers = [(episode.example.id, episode.retries["reflect"]) for episode in episodes]
    passed = [(problem, judged(answer)) for problem, answer in answers]
    tokens = sum(reflection.tokens for reflection in written) + sum(answer.tokens for _, answer in answers)
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
            [(problem, text.stopped == "length") for problem, text in zip(ids, written, strict=True)]
        ),
        retries_truncated=stats.clustered([(problem, answer.stopped == "length") for problem, answer in answers]),
        tokens=tokens / len(each),
        seconds=seconds / len(each),
    )


def _warn(config: Config, result: Forecast) -> None:
    cut = result.reflections_truncated, result.retries_truncated
    warn_if_truncated(config, "reflection", cut[0].passed, total=cut[0].total, by=" of the forecast", training=True)
    warn_if_truncated(config, "retry", cut[1].passed, total=cut[1].total, by=" of the forecast", training=True)
