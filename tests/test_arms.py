from __future__ import annotations

from typing import Any

import pytest

from r3core import Example, Verdict
from r3core.episode import Answer, Episode, Reflection
from r3core.evaluation.arms import against, cost, equal_tokens
from r3core.stats import paired

VERDICTS = {"p": Verdict.passed(), "f": Verdict.failed("no"), "e": Verdict.error("broken")}


def answer(outcome: str, *, tokens: int = 10, **fields: Any) -> Answer:
    return Answer(text="?", tokens=tokens, verdict=VERDICTS[outcome], **fields)


def failure(problem: str, retry: str, *resamples: str, sample: int = 0, none: str = "f") -> Episode:
    """Return a failure with a reflection of 15 tokens, a retry of 5, and fresh attempts of 10 tokens each."""
    first, *more = [answer(outcome) for outcome in resamples] or [None]
    retries: dict[Any, Answer] = {"reflect": answer(retry, tokens=5), "none": answer(none, tokens=7)}
    return Episode(
        example=Example(id=problem),
        sample=sample,
        attempt=answer("f"),
        reflection=Reflection(text="Hm.", tokens=15),
        retries=retries | ({"resample": first} if first else {}),
        resamples=tuple(one for one in more if one),
    )


def test_the_reflection_is_compared_on_the_failures_that_both_arms_retried() -> None:
    episodes = [
        failure("a", "p"),
        failure("b", "p", none="p"),
        failure("c", "f"),
        failure("d", "p"),
        failure("e", "e"),  # not judged after the reflection
        failure("f", "p", none="e"),  # not judged without one
        Episode(example=Example(id="g"), attempt=answer("p")),
    ]
    without = {"a": [False], "b": [True], "c": [False], "d": [False]}
    reflected = {"a": [True], "b": [True], "c": [False], "d": [True]}
    assert against(episodes, "none") == paired(without, reflected)
    assert against(episodes, "none").difference == pytest.approx(2 / 4)
    assert against(episodes, "shuffled") == paired({}, {})  # an arm that no failure has


def test_samples_of_a_problem_are_compared_as_one_problem() -> None:
    episodes = [failure("a", "p", sample=0), failure("a", "f", sample=1), failure("b", "p", none="p")]
    assert against(episodes, "none").difference == pytest.approx((0.5 + 0.0) / 2)


def test_a_cost_counts_what_follows_the_attempt() -> None:
    episodes = [failure("a", "p", "f"), failure("b", "f", "p")]
    found = {arm: cost(episodes, arm) for arm in ("reflect", "none", "resample")}  # type: ignore[arg-type]
    assert [(one.tokens, one.verdicts) for one in found.values() if one] == [(20.0, 1.0), (7.0, 1.0), (10.0, 1.0)]
    assert cost(episodes, "shuffled") is None


def test_a_retry_without_an_answer_costs_no_verdict() -> None:
    skipped = failure("a", "e")
    retry = answer("e", tokens=0, stopped="skipped")
    episodes = [failure("b", "p"), skipped.model_copy(update={"retries": {"reflect": retry}})]
    found = cost(episodes, "reflect")
    assert found
    assert (found.tokens, found.verdicts) == ((20 + 15) / 2, 0.5)


def test_resampling_has_as_many_attempts_as_the_tokens_of_the_reflection_allow() -> None:
    found = equal_tokens([failure("a", "p", "p", "f", "f"), failure("b", "f", "f", "f", "f")])
    assert found
    assert found.fix
    assert found.difference
    assert (found.attempts, found.resamples) == (2.0, 3)
    assert found.fix.rate == pytest.approx((2 / 3 + 0) / 2)  # two of the three pairs of fresh attempts have the pass
    assert found.difference.difference == pytest.approx(1 / 2 - 1 / 3)


def test_a_fraction_of_an_attempt_counts_by_its_share() -> None:
    long = failure("a", "p", "p", "f", "f").model_copy(update={"reflection": Reflection(text="Hm.", tokens=20)})
    found = equal_tokens([long])
    assert found
    assert found.fix
    assert found.attempts == 2.5
    assert found.fix.rate == pytest.approx((2 / 3 + 1) / 2)


def test_with_too_few_resamples_only_the_number_of_attempts_is_known() -> None:
    found = equal_tokens([failure("a", "p", "p"), failure("b", "f", "f")])
    assert found
    assert (found.attempts, found.resamples, found.fix, found.difference) == (2.0, 1, None, None)


def test_a_failure_with_too_few_judged_resamples_is_left_out() -> None:
    episodes = [failure("a", "p", "p", "f"), failure("b", "p", "f", "e"), failure("c", "e", "f", "f")]
    found = equal_tokens(episodes)
    assert found
    assert found.fix
    assert found.difference
    assert found.fix.rate == 1.0  # of "a" alone
    assert found.difference.difference == 0.0


def test_without_resamples_there_is_nothing_at_equal_tokens() -> None:
    assert equal_tokens([failure("a", "p")]) is None
    assert equal_tokens([]) is None


def test_an_episode_without_further_resamples_has_the_fields_that_it_always_had() -> None:
    short, long = failure("a", "p", "f"), failure("a", "p", "f", "p")
    assert "resamples" not in short.model_dump(mode="json")
    assert '"resamples"' not in short.model_dump_json()
    assert [one["tokens"] for one in long.model_dump(mode="json")["resamples"]] == [10]
    for episode in (short, long):
        assert Episode.model_validate_json(episode.model_dump_json()) == episode
