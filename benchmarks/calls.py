"""Measure the speed of function calling verdicts, beside a plain comparison of the same calls in Python.

`make bench` runs it. Both judge the same responses, in equal numbers of each kind below, to generated requests that
need one or two calls of ordinary size. The plain comparison is `json.loads(response) == answer`: it has no tags, no
defaults, no order and no schema, and accepts true for 1, so it is a lower bound of the cost of a verdict. The rates are
medians over alternating rounds, in CPU time of the process, so that other load on the machine matters little. The
requirement is 5,000 verdicts/s; the exit code is 1 below it.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from r3_plugin_apigen.task import Apigen
from r3core import Example

PROBLEMS = 250
ROUNDS = 11
REQUIRED = 5_000.0
KINDS = ("right", "wrong value", "schema violation", "wrong tool", "not JSON")

Responses = Sequence[tuple[Example, str]]


def responses_of(kind: str, examples: Sequence[Example]) -> Responses:
    """Return one response of a kind per problem."""
    return [(example, _response(kind, example)) for example in examples]


def _response(kind: str, example: Example) -> str:
    calls: Any = json.loads(json.dumps(example.answer))
    tools: Any = example.info["tools"]
    if kind == "wrong value":
        arguments = calls[-1]["arguments"]
        arguments.update([(name, _changed(value)) for name, value in arguments.items()][:1])
    elif kind == "schema violation":
        calls[-1]["arguments"]["unheard_of"] = 1
    elif kind == "wrong tool":
        used = [call["name"] for call in calls]
        calls[-1]["name"] = next(tool["name"] for tool in tools if tool["name"] not in used)
    text = json.dumps(calls)
    return text[:-1] if kind == "not JSON" else text


def _changed(value: Any) -> Any:
    if isinstance(value, bool | dict):
        return None
    return value + 1 if isinstance(value, int | float) else value + value[:1]


def our_judge(task: Apigen) -> Callable[[Responses], list[bool]]:
    """Return our verifier as a function of responses."""

    def judge(responses: Responses) -> list[bool]:
        return [task.verify(example, response).outcome == "pass" for example, response in responses]

    return judge


def plain_judge(responses: Responses) -> list[bool]:
    """Judge responses by Python's `==` alone."""
    return [_plain(response) == example.answer for example, response in responses]


def _plain(response: str) -> Any:
    try:
        return json.loads(response)
    except ValueError:
        return None


def measure(judges: dict[str, Callable[[Responses], list[bool]]], responses: Responses) -> dict[str, float]:
    """Return the median verdicts/s of each judge, over alternating rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in judges}
    for _ in range(ROUNDS):
        for name, judge in judges.items():
            started = time.process_time()
            judge(responses)
            seconds[name].append(time.process_time() - started)
    return {name: len(responses) / statistics.median(times) for name, times in seconds.items()}


def main() -> int:
    """Print both rates for each kind of response and for all."""
    task = Apigen(calls=(1, 2), distractors=2, nested=True, terse=False)
    examples = list(islice(task.load("test"), PROBLEMS))
    judges = {"r3": our_judge(task), "plain": plain_judge}
    mixed: list[tuple[Example, str]] = []
    for kind in KINDS:
        responses = responses_of(kind, examples)
        for name, judge in judges.items():  # also warms both up
            if set(judge(responses)) != {kind == "right"}:
                print(f"{name} does not judge the responses of the kind `{kind}` as expected", file=sys.stderr)
                return 1
        report(kind, measure(judges, responses))
        mixed += responses
    random.Random(0).shuffle(mixed)
    rates = measure(judges, mixed)
    report("all", rates)
    if rates["r3"] < REQUIRED:
        print(f"{rates['r3']:,.0f} verdicts/s is below {REQUIRED:,.0f}", file=sys.stderr)
    return int(rates["r3"] < REQUIRED)


def report(kind: str, rates: dict[str, float]) -> None:
    """Print the rates for one kind of response."""
    print(f"{kind:16}  r3 {rates['r3']:9,.0f}/s  plain comparison {rates['plain']:9,.0f}/s")


if __name__ == "__main__":
    sys.exit(main())
