"""The reward of a reflection, computed from its retries, and the metrics of a batch of rewards; no torch, no TRL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, groupby
from random import Random

from r3core.config import Config
from r3core.episode import Answer, Episode, Reflection
from r3core.objective import Turn


def judged(answer: Answer) -> bool | None:
    """Return whether an answer passed; None for a verifier error, and for a failed answer that was cut off.

    An answer that passes although the token limit cut off the text after it is complete.
    """
    outcome = answer.verdict.outcome
    if outcome == "error" or (outcome == "fail" and answer.stopped == "length"):
        return None
    return outcome == "pass"


def attempt_reward(episode: Episode) -> float | None:
    """Return the reward of an attempt, its verdict as 0 or 1; None when that is unknown."""
    passed = judged(episode.attempt)
    return None if passed is None else float(passed)


def retry_rewards(retried: Sequence[Episode], *, reward_leaks: bool = True) -> list[float | None]:
    """Return the rewards of the retries after one reflection, each 0, 1, or None when its verdict is unknown.

    `retried` has the reflection's episode once per retry; an episode without a retry has None. Without `reward_leaks`,
    retries after a reflection that gives the answer away earn 0, and None when that is unknown.
    """
    reflection = retried[0].reflection
    leaked = reflection.leaked if reflection else None
    rewards: list[float | None] = []
    for episode in retried:
        passed = judged(episode.retries["reflect"]) if "reflect" in episode.retries else None
        unknown = passed is None or (not reward_leaks and leaked is None)
        rewards.append(None if unknown else float(bool(passed) and (reward_leaks or not leaked)))
    return rewards


def reward_of(retried: Sequence[Episode], *, reward_leaks: bool = True) -> float | None:
    """Return the reward of one reflection, in [0, 1]: the mean reward of its judged retries; see `retry_rewards`."""
    return mean_reward(retry_rewards(retried, reward_leaks=reward_leaks))


def mean_reward(rewards: Iterable[float | None]) -> float | None:
    """Return the mean of the known rewards, None without any."""
    known = [reward for reward in rewards if reward is not None]
    return sum(known) / len(known) if known else None


def is_broken(episodes: Sequence[Episode]) -> bool:
    """Return whether the verifier failed on a retry of a reflection; one without an answer never reached it."""
    return any(_is_error(retry) for episode in episodes for retry in _retries(episode))


def is_broken_attempt(episode: Episode) -> bool:
    """Return whether the verifier failed on the attempt."""
    return _is_error(episode.attempt)


def _is_error(answer: Answer) -> bool:
    return not answer.unanswered and answer.verdict.outcome == "error"


def _retries(episode: Episode) -> list[Answer]:
    return [episode.retries["reflect"]] if "reflect" in episode.retries else []


def without_broken_groups(
    rewards: Sequence[float | None], failure: Sequence[int], broken: Sequence[bool], *, max_share: float
) -> list[float | None]:
    """Return the rewards, with None for every row of a group when a share above `max_share` of it is broken.

    TRL gives a None row the advantage 0 and a failing row a negative one. In a group with few verdicts, these would
    make failing less likely than breaking the verifier. All three sequences have P * G rows: `failure` identifies the
    group of each, and rows of a group are adjacent; `broken` marks rows whose None comes from the verifier, and not
    from a retry that was cut off.
    """
    result: list[float | None] = []
    for _, rows in groupby(zip(failure, rewards, broken, strict=True), key=lambda row: row[0]):
        group = list(rows)
        too_many = sum(is_broken for _, _, is_broken in group) > max_share * len(group)
        result += [None if too_many else reward for _, reward, _ in group]
    return result


def rewards_by_turn(
    config: Config, samples: Sequence[Sequence[Episode]], failure: Sequence[int], *, seed: int
) -> dict[Turn, list[float | None]]:
    """Return the rewards of the turns of P * G samples: of each attempt, of each reflection, of each of its k retries.

    `samples` has the episodes of each sample, one per retry; `failure` identifies its group, and samples of a group are
    adjacent. With `train.shuffle_rewards`, samples exchange their rewards; `seed` decides how.
    """
    limit = config.judge.max_group_errors
    attempts = [attempt_reward(sample[0]) for sample in samples]
    broken = [is_broken_attempt(sample[0]) for sample in samples]
    attempts = without_broken_groups(attempts, failure, broken, max_share=limit)
    retries = [retry_rewards(sample, reward_leaks=config.train.reward_leaks) for sample in samples]
    means = [mean_reward(of) for of in retries]
    broken = [mean is None and is_broken(sample) for mean, sample in zip(means, samples, strict=True)]
    left = without_broken_groups(means, failure, broken, max_share=limit)
    retries = [[None] * len(of) if mean is None else of for mean, of in zip(left, retries, strict=True)]
    if config.train.shuffle_rewards:
        Random(seed).shuffle(attempts)
        Random(seed).shuffle(retries)
    return {
        "attempt": attempts,
        "reflection": [mean_reward(of) for of in retries],
        "retry": list(chain.from_iterable(retries)),
    }


def batch_metrics(
    rewards: Sequence[float | None],
    failure: Sequence[int],
    retried: Sequence[Sequence[Episode]],
    *,
    first: Turn = "reflection",
) -> dict[str, float]:
    """Return the metrics of P * G samples that are logged beside TRL's own; all are shares, in [0, 1].

    `failure` identifies the group of each row; `retried` has the episodes of each sample, one per retry. Those of
    attempts are there if `first`, the turn that is sampled in groups, is the attempt.
    """
    groups = [
        {reward for _, reward in rows if reward is not None}
        for _, rows in groupby(zip(failure, rewards, strict=True), key=lambda row: row[0])
    ]
    judged_groups = [group for group in groups if group]
    reflections: list[Reflection] = [episodes[0].reflection for episodes in retried if episodes[0].reflection]
    tested = [reflection.leaked for reflection in reflections if reflection.leaked is not None]
    retries = [retry for episodes in retried for episode in episodes for retry in _retries(episode)]
    attempts = [episodes[0].attempt for episodes in retried] if first == "attempt" else []
    of_attempts = {
        "attempts/truncated": _share(attempt.stopped == "length" for attempt in attempts),
        "attempts/unjudged": _share(judged(attempt) is None for attempt in attempts),
    }
    return {
        **(of_attempts if attempts else {}),
        "groups/mixed": _share(len(group) > 1 for group in judged_groups),
        "groups/all_right": _share(group == {1.0} for group in judged_groups),
        "groups/all_wrong": _share(group == {0.0} for group in judged_groups),
        "groups/unjudged": _share(not group for group in groups),  # of all groups; the other three of the judged ones
        "reflections/leak_rate": _share(tested),
        "reflections/truncated": _share(reflection.stopped == "length" for reflection in reflections),
        "reflections/cut_in_thought": _share(reflection.cut_in_thought for reflection in reflections),
        "retries/truncated": _share(retry.stopped == "length" for retry in retries),
        "retries/cut_in_thought": _share(retry.cut_in_thought for retry in retries),
        "retries/unjudged": _share(judged(retry) is None for retry in retries),
    }


def _share(values: Iterable[bool]) -> float:
    """Return the share of true values, 0 for no values."""
    listed = list(values)
    return sum(listed) / max(1, len(listed))
