from collections.abc import Callable, Iterable

import pytest

from r3core import Example, RunError, Split, Task, TaskError, Verdict
from r3core.verification import Judge, judge


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def give(value: object) -> Callable[[], object]:
    return lambda: value


def throw(error: BaseException) -> Callable[[], object]:
    def call() -> object:
        raise error

    return call


def dive() -> object:
    return dive()


SAYS: dict[str, Callable[[], object]] = {
    "right": give(Verdict.passed()),
    "wrong": give(Verdict.failed("too small")),
    "true": give(True),
    "false": give(False),
    "unsure": give(Verdict.error("no table for this problem")),
    "divide": throw(ZeroDivisionError("division by zero")),
    "exit": throw(SystemExit(3)),
    "memory": throw(MemoryError()),
    "deep": dive,
    "long": throw(ValueError("x" * 1000)),
    "unprintable": throw(Unprintable()),
    "stop": throw(KeyboardInterrupt()),
    "text": give("pass"),
    "nothing": give(None),
    "number": give(1),
}


class Toy(Task):
    """A verifier that does what the response says."""

    name = "toy"

    def load(self, split: Split) -> Iterable[Example]:
        return []

    def verify(self, example: Example, response: str) -> Verdict | bool:
        return SAYS[response]()  # type: ignore[return-value]  # wrong values are what is tested


def pairs(*responses: str) -> list[tuple[Example, str]]:
    return [(Example(id=f"{index}"), response) for index, response in enumerate(responses)]


def test_verdicts_come_in_order_and_a_bool_is_one() -> None:
    assert judge(Toy(), pairs("wrong", "right", "false", "true")) == [
        Verdict.failed("too small"),
        Verdict.passed(),
        Verdict.failed(),
        Verdict.passed(),
    ]


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("unsure", "no table for this problem"),
        ("divide", "ZeroDivisionError: division by zero"),
        ("exit", "SystemExit: 3"),
        ("memory", "MemoryError"),
        ("deep", "RecursionError: maximum recursion depth exceeded"),
        ("long", "ValueError: " + "x" * 287 + "…"),
        ("unprintable", "Unprintable: (its message cannot be shown)"),
    ],
)
def test_a_broken_verifier_is_an_error_and_never_a_fail(response: str, reason: str) -> None:
    before, verdict, after = judge(Toy(), pairs("right", response, "right"))
    assert verdict.outcome == "error"
    assert verdict.reason.startswith(reason)
    assert len(verdict.reason) <= 300
    assert before.outcome == after.outcome == "pass"


def test_the_user_can_interrupt_a_verifier() -> None:
    with pytest.raises(KeyboardInterrupt):
        judge(Toy(), pairs("stop"))


@pytest.mark.parametrize(("response", "value"), [("text", "'pass'"), ("nothing", "None"), ("number", "1")])
def test_any_other_value_is_the_author_s_mistake(response: str, value: str) -> None:
    with pytest.raises(TaskError) as caught:
        judge(Toy(), pairs(response))
    assert f"task `toy`: `verify` returned {value}" in str(caught.value)
    assert "a Verdict or a bool" in str(caught.value)


def test_a_response_that_is_too_long_fails_unread() -> None:
    with Judge(Toy(), longest=5) as one:
        verdicts = one.judge(pairs("right", "divide"))
        assert one.leaks(pairs("divide")) == [False]
    assert verdicts == [Verdict.passed(), Verdict.failed("response of 6 characters is longer than the limit of 5")]


def test_outcomes_errors_and_time_are_counted() -> None:
    with Judge(Toy()) as one:
        one.judge(pairs("right", "wrong", "divide", "divide", "unsure"))
        one.judge(pairs("right"))
    assert one.counts == {"pass": 2, "fail": 1, "error": 3}
    assert one.reasons == {"ZeroDivisionError": 2, "no table for this problem": 1}
    assert one.seconds > 0


def test_a_leak_is_a_reflection_that_the_verifier_accepts() -> None:
    with Judge(Toy()) as one:
        assert one.leaks(pairs("right", "wrong", "true", "divide")) == [True, False, True, None]
    assert one.leak_errors == 1
    assert one.counts == {}


def test_a_task_s_own_leak_test_must_say_yes_or_no() -> None:
    class Vague(Toy):
        def leaks(self, example: Example, reflection: str) -> bool:
            return "maybe"  # type: ignore[return-value]  # the mistake that is tested

    with Judge(Vague()) as one, pytest.raises(TaskError, match="`leaks` returned 'maybe'"):
        one.leaks(pairs("right"))


def test_too_many_errors_end_the_run_with_the_commonest_reasons() -> None:
    with Judge(Toy()) as one:
        one.judge(pairs(*["right"] * 30, *["divide"] * 3, "memory", "memory", "exit", "exit", "unsure"))
        with pytest.raises(RunError) as caught:
            one.check_errors()
    said = str(caught.value)
    assert "the verifier of task `toy` could not judge 8 of 38 responses; at most 5% are tolerated" in said
    assert "hint: 3 times ZeroDivisionError: division by zero (first on example '30')" in said
    assert said.count("hint:") == 3


@pytest.mark.parametrize(
    "responses", [["divide"] * 19, ["divide"] + ["right"] * 19, ["wrong"] * 40], ids=["few", "at the limit", "wrong"]
)
def test_few_errors_are_tolerated(responses: list[str]) -> None:
    with Judge(Toy()) as one:
        one.judge(pairs(*responses))
        one.check_errors()
