"""Compare the speed of verdicts on Countdown answers with that of reasoning-gym's Countdown scorer.

`make bench` runs it, in an environment of its own with reasoning-gym 0.1.25: nothing else needs that package.

Both judge the same answers, a quarter of each kind below: reasoning-gym gets the bare answer, ours the whole response
with its tags, and returns a verdict with a reason. The rates are medians over alternating rounds. First the bare
verifiers in this process, in CPU time, so that other load on the machine matters little: ours must be 15 times as fast.
Then, as in a run, batches of 1,000 answers through the worker processes with all their limits, against reasoning-gym's
scorer without limits in this process, by the clock: ours must be 5 times as fast on two processors. The exit code is 1
when a requirement is not met. reasoning-gym executes the answers that it scores; these ones are harmless.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any

from r3_plugin_countdown.task import Countdown
from r3core import Example
from r3core.verification.judge import Judge

PROBLEMS = 250
ROUNDS = 11
REQUIRED = 15.0
REQUIRED_OF_WORKERS = 5.0
KINDS = ("right", "wrong value", "wrong numbers", "malformed")

Answers = Sequence[tuple[Example, str]]


def answers_of(kind: str, examples: Sequence[Example], rng: random.Random) -> Answers:
    """Return one bare answer of a kind per problem."""
    return [(example, _answer(kind, example, rng)) for example in examples]


def _answer(kind: str, example: Example, rng: random.Random) -> str:
    numbers: Any = example.info["numbers"]
    solution = str(example.info["solution"])
    if kind == "right":
        return solution
    if kind == "wrong value":
        return str(" + ".join(map(str, numbers)) + " - 0" * (sum(numbers) == example.answer))
    if kind == "wrong numbers":
        return f"{solution} + {rng.randint(1, 20)}"
    broken = [f"({solution}", f"{solution} = {example.answer}", f"{solution} +", solution.replace(" ", " $ ")]
    return rng.choice(broken)


def our_judge(task: Countdown) -> Callable[[Answers], list[bool]]:
    """Return our verifier as a function of answers."""

    def judge(answers: Answers) -> list[bool]:
        return [task.verify(example, f"<answer>{answer}</answer>").outcome == "pass" for example, answer in answers]

    return judge


def their_judge() -> Callable[[Answers], list[bool]]:
    """Return reasoning-gym's scorer as a function of answers."""
    from reasoning_gym.games.countdown import CountdownDataset

    score = CountdownDataset.score_answer
    dataset = SimpleNamespace()  # the scorer reads no field of its dataset

    def judge(answers: Answers) -> list[bool]:
        return [score(dataset, answer, {"metadata": example.info}) == 1.0 for example, answer in answers]

    return judge


def workers_judge(judge: Judge) -> Callable[[Answers], list[bool]]:
    """Return a run's judge, with its worker processes, as a function of answers."""

    def judged(answers: Answers) -> list[bool]:
        verdicts = judge.judge([(example, f"<answer>{answer}</answer>") for example, answer in answers])
        return [verdict.outcome == "pass" for verdict in verdicts]

    return judged


def measure(
    judges: dict[str, Callable[[Answers], list[bool]]],
    answers: Answers,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """Return the median answers/s of each judge, over alternating rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in judges}
    for _ in range(ROUNDS):
        for name, judge in judges.items():
            started = clock()
            judge(answers)
            seconds[name].append(clock() - started)
    return {name: len(answers) / statistics.median(times) for name, times in seconds.items()}


def main() -> int:
    """Print both rates for each kind of answer and for all, and their ratio."""
    task = Countdown(numbers=(3, 4))
    examples = list(islice(task.load("test"), PROBLEMS))
    judges = {"r3": our_judge(task), "reasoning-gym": their_judge()}
    rng = random.Random(0)
    mixed: list[tuple[Example, str]] = []
    for kind in KINDS:
        answers = answers_of(kind, examples, rng)
        for name, judge in judges.items():  # also warms both up
            if set(judge(answers)) != {kind == "right"}:
                print(f"{name} does not judge the answers of the kind `{kind}` as expected", file=sys.stderr)
                return 1
        report(kind, measure(judges, answers))
        mixed += answers
    rng.shuffle(mixed)
    ratio = report("all", measure(judges, mixed))
    with Judge(task) as workers:
        unprotected = judges["reasoning-gym"]
        judges = {"r3": workers_judge(workers), "reasoning-gym": unprotected}
        if judges["r3"](mixed) != unprotected(mixed):  # also starts the workers
            print("the workers do not judge the answers as reasoning-gym does", file=sys.stderr)
            return 1
        ratio_of_workers = report("by workers", measure(judges, mixed, time.perf_counter))
    for measured, required in ((ratio, REQUIRED), (ratio_of_workers, REQUIRED_OF_WORKERS)):
        if measured < required:
            print(f"a ratio of {measured:.1f} is below {required:g}", file=sys.stderr)
    return int(ratio < REQUIRED or ratio_of_workers < REQUIRED_OF_WORKERS)


def report(kind: str, rates: dict[str, float]) -> float:
    """Print the rates for one kind of answer, and return their ratio."""
    ratio = rates["r3"] / rates["reasoning-gym"]
    print(f"{kind:13}  r3 {rates['r3']:9,.0f}/s  reasoning-gym {rates['reasoning-gym']:7,.0f}/s  ratio {ratio:5.1f}")
    return ratio


if __name__ == "__main__":
    sys.exit(main())
