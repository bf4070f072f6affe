"""Measure the verdicts of the function calling task, beside the plain comparison of the same calls in Python.

`make bench` runs it. Both judge the same responses, as many of each kind below, to generated requests that need one or
two calls: calls of ordinary size. The plain comparison is `json.loads(response) == answer`: it knows no tags, no
defaults, no order, takes true for 1, and checks no schema, so it stands for the least that a verdict can cost. The
rates are medians over rounds that take turns, by the process's own time, so that other work on the machine matters
little. Ours should make 5,000 verdicts a second. Exits with 1 when it does not.
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
    """Return one response of a kind for every problem."""
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
    said = json.dumps(calls)
    return said[:-1] if kind == "not JSON" else said


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
    """Judge responses by nothing but Python's own comparison."""
    return [_plain(response) == example.answer for example, response in responses]


def _plain(response: str) -> Any:
    try:
        return json.loads(response)
    except ValueError:
        return None


def measure(judges: dict[str, Callable[[Responses], list[bool]]], responses: Responses) -> dict[str, float]:
    """Return the median verdicts/s of each judge, in rounds that take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in judges}
    for _ in range(ROUNDS):
        for name, judge in judges.items():
            began = time.process_time()
            judge(responses)
            seconds[name].append(time.process_time() - began)
    return {name: len(responses) / statistics.median(times) for name, times in seconds.items()}


def main() -> int:
    """Print both rates for each kind of response and for all."""
    task = Apigen(calls=(1, 2), distractors=2, nested=True, terse=False)
    examples = list(islice(task.load("test"), PROBLEMS))
    judges = {"r3": our_judge(task), "plain": plain_judge}
    mixed: list[tuple[Example, str]] = []
    for kind in KINDS:
        responses = responses_of(kind, examples)
        for name, judge in judges.items():  # also brings both to their usual speed
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
    """Print one line."""
    print(f"{kind:16}  r3 {rates['r3']:9,.0f}/s  plain comparison {rates['plain']:9,.0f}/s")


if __name__ == "__main__":
    sys.exit(main())
