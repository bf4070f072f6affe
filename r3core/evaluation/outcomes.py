"""The outcomes of one episode: whether its tries pass, which k attempts solve it, and answers that are repeated."""

from __future__ import annotations

from collections.abc import Iterable

from r3core.episode import Answer, Episode, Reflection


def passed(answer: Answer | None) -> bool | None:
    """Return whether an answer passes; None without an answer, and when it could not be judged."""
    if answer is None or answer.verdict.outcome == "error":
        return None
    return answer.verdict.outcome == "pass"


def first_try(episode: Episode) -> bool | None:
    """Return whether the attempt passed; None when that could not be judged."""
    return passed(episode.attempt)


def solved(episode: Episode) -> bool | None:
    """Return whether either of the two attempts passed; None when that could not be judged."""
    if episode.failed:
        return passed(episode.retries.get("reflect"))
    return passed(episode.attempt)


def attempts_of(episodes: Iterable[Episode]) -> range:
    """Return the numbers of the attempts, 1 to k, in conversations of several rounds; empty where all have one."""
    most = max((len(one.rounds) for one in episodes), default=0)
    return range(1, most + 3) if most else range(0)


def solved_within(episode: Episode, attempts: int) -> bool | None:
    """Return whether one of the first attempts of a conversation passes; None when that is not known.

    It is not known where an attempt could not be judged, or was not made.
    """
    outcomes = [answer.verdict.outcome for answer in episode.answers[:attempts]]
    if "pass" in outcomes:
        return True
    return False if outcomes == ["fail"] * attempts else None


def repeated(episode: Episode, attempt: int) -> bool | None:
    """Return whether an attempt's answer is equal to an earlier one of its conversation; None without that attempt."""
    answers = [answer.text.strip() for answer in episode.answers[:attempt] if not answer.unanswered]
    return answers[-1] in answers[:-1] if len(answers) == attempt else None


def every_answer(episode: Episode) -> list[Answer]:
    """Return the attempt and all retries, with those of the controls and of further rounds."""
    return [episode.attempt, *episode.retries.values(), *episode.resamples, *(one.retry for one in episode.rounds)]


def reflections_of(episode: Episode) -> list[Reflection]:
    """Return the reflections of a conversation in their order."""
    return [*([episode.reflection] if episode.reflection else []), *(one.reflection for one in episode.rounds)]
