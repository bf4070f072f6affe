"""How many tokens and seconds training needs.

    python benchmarks/efficiency.py gain --folder runs/efficiency    # hours on two cores; run again to resume
    python benchmarks/efficiency.py posterior

`gain` trains Countdown's built-in model with several settings and seeds, on the failures that each seed mines, and
evaluates on 500 problems of the validation split on the way. It prints the generated tokens and the seconds of training
until the second try has gained 10 and 20 points (linear between two evaluations), and the last gain. Tokens are those
of reflections and retries in `train-episodes.jsonl`, seconds those of the steps, without evaluations.

`posterior` simulates how many groups are mixed with `train.order` random and posterior, on failures whose pass rates
are known.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

SETTINGS: dict[str, list[str]] = {
    "128 x G16, 60 steps (the default before)": [
        "grpo.per_device_train_batch_size=128",
        "grpo.num_iterations=1",
        "grpo.max_steps=60",
        "train.anchor=0",
        "evaluate.every=10",
    ],
    "64 x G16, each generation used twice, 80 steps": ["train.anchor=0", "evaluate.every=10"],
    "32 x G8, 120 steps": [
        "grpo.per_device_train_batch_size=32",
        "grpo.num_generations=8",
        "grpo.num_iterations=1",
        "grpo.max_steps=120",
        "train.anchor=0",
        "evaluate.every=30",
    ],
    "the second with train.anchor=10 (default)": ["evaluate.every=10"],
    "the default with loss_type=dr_grpo": ["grpo.loss_type=dr_grpo", "grpo.scale_rewards='none'", "evaluate.every=10"],
}
"""The compared settings by name, each with what it sets beside the built-in model's own settings."""
GAINS = (10.0, 20.0)
COMMON = ["evaluate.every_limit=500", "grpo.save_strategy='no'"]


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    gain = commands.add_parser("gain")
    gain.add_argument("--folder", type=Path, required=True, help="folder of the run directories")
    gain.add_argument("--seeds", default="0,1,2")
    gain.add_argument("--json", type=Path, help="file for the figures; those of other settings stay in it")
    gain.add_argument("--only", action="append", help="part of the name of a setting; repeatable")
    commands.add_parser("posterior")
    arguments = parser.parse_args()
    if arguments.command == "gain":
        names = [name for name in SETTINGS if not arguments.only or any(part in name for part in arguments.only)]
        seeds = [int(seed) for seed in arguments.seeds.split(",")]
        found = [measured(arguments.folder, name, seed) for seed in seeds for name in names]
        if arguments.json and arguments.json.exists():
            found += [row for row in json.loads(arguments.json.read_text()) if row["setting"] not in names]
            found.sort(key=lambda row: (row["seed"], list(SETTINGS).index(row["setting"])))
        print(table(found))
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    else:
        print(simulated())


def measured(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """Train with a setting and a seed, unless that is done, and return its figures."""
    mined = folder / f"mine-{seed}"
    run_r3("mine", mined, seed, ["mine.probe=0"])
    path = folder / f"{list(SETTINGS).index(name)}-{seed}"
    run_r3("train", path, seed, [*SETTINGS[name], *COMMON], "--failures", str(mined))
    return {"setting": name, "seed": seed, **figures(path)}


def run_r3(command: str, path: Path, seed: int, settings: list[str], *rest: str) -> None:
    """Run a command of r3 that a file beside its run directory marks as finished."""
    mark = path.with_name(f"{path.name}.finished")
    if mark.exists():
        return
    sets = [word for setting in settings for word in ("--set", setting)]
    base = ["--task", "countdown", "--seed", str(seed), "--output-dir", str(path), "--quiet"]
    done = subprocess.run([sys.executable, "-m", "r3core", command, *base, *sets, *rest], stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"r3 {command} failed in {path}")
    mark.touch()


def figures(path: Path) -> dict[str, Any]:
    """Return the curve of a run: after each evaluation, tokens and seconds so far and the second try in percent."""
    tokens: Counter[int] = Counter()
    for row in rows_of(path / "train-episodes.jsonl"):
        turns = [row["reflection"], *row["retries"]]
        tokens[row["step"]] += sum(turn["tokens"] for turn in turns if turn)
    seconds = {row["step"]: row["step_time"] for row in rows_of(path / "train.jsonl")}
    curve = [
        {
            "step": step,
            "tokens": sum(count for each, count in tokens.items() if each <= step),
            "seconds": round(sum(took for each, took in seconds.items() if each <= step), 1),
            "second": 100 * row["second"]["rate"],
            "fix": 100 * row["fix"]["rate"],
        }
        for row in rows_of(path / "validation.jsonl")
        for step in (row["step"],)
    ]
    return {"curve": curve, "reached": {f"{gain:g}": reached(curve, gain) for gain in GAINS}}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of a run directory."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def reached(curve: list[dict[str, Any]], gain: float) -> dict[str, float] | None:
    """Return tokens and seconds at which the second try has gained a number of points; None if it never does.

    >>> reached([{"tokens": 0, "seconds": 0, "second": 40}, {"tokens": 8, "seconds": 4, "second": 60}], 10)
    {'tokens': 4.0, 'seconds': 2.0}
    """
    goal = curve[0]["second"] + gain
    for before, after in pairwise(curve):
        if after["second"] >= goal:
            share = (goal - before["second"]) / (after["second"] - before["second"])
            return {key: before[key] + share * (after[key] - before[key]) for key in ("tokens", "seconds")}
    return None


def table(found: list[dict[str, Any]]) -> str:
    """Return a Markdown table with a row per setting and seed, and the means of a setting over its seeds."""
    shown = [f"tokens to +{gain:g}" for gain in GAINS] + [f"seconds to +{gain:g}" for gain in GAINS]
    lines = ["| " + " | ".join(["setting", "seed", *shown, "all tokens", "second try, last", "fix rate, last"]) + " |"]
    lines.append("| --- " * 9 + "|")
    for name in dict.fromkeys(row["setting"] for row in found):
        rows = [row for row in found if row["setting"] == name]
        values = [values_of(row) for row in rows]
        for row, numbers in zip(rows, values, strict=True):
            lines.append(f"| {name} | {row['seed']} | " + " | ".join(map(number, numbers)) + " |")
        if len(rows) > 1:
            columns = zip(*values, strict=True)
            means = [None if None in column else fmean(value or 0.0 for value in column) for column in columns]
            lines.append(f"| {name} | mean | " + " | ".join(map(number, means)) + " |")
    return "\n".join(lines)


def values_of(row: dict[str, Any]) -> list[float | None]:
    """Return the figures of a run in the order of the table's columns."""
    points = [row["reached"][f"{gain:g}"] for gain in GAINS]
    last = row["curve"][-1]
    reached = [point and point[key] for key in ("tokens", "seconds") for point in points]
    return [*reached, last["tokens"], last["second"], last["fix"]]


def number(value: float | None) -> str:
    """Return a figure as text."""
    if value is None:
        return "not reached"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


POOLS = {"5%": (0.2, 3.8), "30%": (0.6, 1.4), "95%": (3.8, 0.2)}
"""Mean fix rate of a simulated pool of failures, and the beta distribution of the pass rates in it."""


def simulated(failures: int = 512, at_a_time: int = 16, generations: int = 150, seeds: int = 5) -> str:
    """Return a table of the share of mixed groups, by the order in which failures are trained on."""
    lines = ["| mean fix rate | G | mixed groups, random | posterior |", "| --- | --- | --- | --- |"]
    for name, (a, b) in POOLS.items():
        for group in (8, 16):
            shares = [
                fmean(
                    mixed_share(order, (a, b), (failures, at_a_time, group, generations), seed=seed)
                    for seed in range(seeds)
                )
                for order in ("random", "posterior")
            ]
            lines.append(f"| {name} | {group} | {shares[0]:.0%} | {shares[1]:.0%} |")
    return "\n".join(lines)


def mixed_share(order: str, beta: tuple[float, float], sizes: tuple[int, int, int, int], *, seed: int) -> float:
    """Return the share of mixed groups in a simulated training that changes no pass rate."""
    import numpy as np

    from r3core.training.posterior import Verdicts
    from r3core.training.sampler import PosteriorSampler

    failures, at_a_time, group, generations = sizes
    generator = np.random.default_rng(seed)
    rates = generator.beta(*beta, failures)
    verdicts = Verdicts([str(index) for index in range(failures)])
    sampler = PosteriorSampler(range(failures), group, at_a_time, 1, True, seed, verdicts=verdicts, lag=2)
    mixed = 0
    for number in range(generations):
        if order == "posterior":
            chosen = sampler.draw(number)
        else:
            chosen = [int(index) for index in generator.permutation(failures)[:at_a_time]]
        rewards = {index: generator.random(group) < rates[index] for index in chosen}
        mixed += sum(0 < passed.sum() < group for passed in rewards.values())
        verdicts.add([{"id": str(index), "reward": float(one)} for index, row in rewards.items() for one in row])
    return mixed / (generations * at_a_time)


if __name__ == "__main__":
    main()
