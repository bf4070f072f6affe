"""How many tokens and seconds training needs, and what it costs beside plain TRL.

    python benchmarks/efficiency.py gain --folder runs/efficiency    # hours on two cores; run again to resume
    python benchmarks/efficiency.py step-time
    python benchmarks/efficiency.py generation
    python benchmarks/efficiency.py posterior

`gain` trains Countdown's built-in model with several settings and seeds, on the failures that each seed mines, and
evaluates on 500 problems of the validation split on the way. It prints the generated tokens and the seconds of training
until the second try has gained 10 and 20 points (linear between two evaluations), and the last gain. Tokens are those
of reflections and retries in `train-episodes.jsonl`, seconds those of the steps, without evaluations.

`step-time` trains the same model by r3 and by TRL's own `GRPOTrainer` in turn, in one process: the same batch,
reflections and retries of the same maximum lengths. TRL generates its own completions, and its reward function
generates a retry with `model.generate`, as one would write it without r3.

`generation` measures what two things would save at most in a training step: retries that continue from the cache of
their reflections (the seconds in which the prompts of retries are computed), and retries that begin while other
reflections are still written (forward passes of the decoding).

`posterior` simulates how many groups are mixed with `train.order` random and posterior, on failures whose pass rates
are known.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter, defaultdict
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
    gain.add_argument("--json", type=Path, help="file for the figures")
    gain.add_argument("--only", action="append", help="part of the name of a setting; repeatable")
    times = commands.add_parser("step-time")
    times.add_argument("--steps", type=int, default=8)
    shares = commands.add_parser("generation")
    shares.add_argument("--batches", type=int, default=10)
    commands.add_parser("posterior")
    arguments = parser.parse_args()
    if arguments.command == "gain":
        names = [name for name in SETTINGS if not arguments.only or any(part in name for part in arguments.only)]
        seeds = [int(seed) for seed in arguments.seeds.split(",")]
        found = [measured(arguments.folder, name, seed) for seed in seeds for name in names]
        print(table(found))
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    elif arguments.command == "step-time":
        print(step_times(arguments.steps))
    elif arguments.command == "generation":
        print(generation_shares(arguments.batches))
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


def step_times(steps: int) -> str:
    """Return a table of the seconds and tokens of a step, by r3 and by plain TRL in turn."""
    import tempfile
    from contextlib import redirect_stdout

    from r3core import get_task
    from r3core.config import model_of, resolve
    from r3core.console import quiet_libraries
    from r3core.pipeline import Pipeline

    quiet_libraries()
    task = get_task("countdown")
    with tempfile.TemporaryDirectory() as name, redirect_stdout(sys.stderr):
        options = [f"output_dir={name}", "mine.limit=256", "mine.probe=0", "grpo.save_strategy=no"]
        config = resolve(task, overrides=options)
        with Pipeline.open(task, config) as stages:
            failures = stages.mine()
            trainers = {
                "r3": reflection_trainer(stages, failures, model_of(config, task)),
                "plain TRL": plain_trainer(stages, failures, model_of(config, task)),
            }
            results: dict[str, list[tuple[float, int]]] = {name: [] for name in trainers}
            loops = {name: iter(loop_of(trainer)) for name, trainer in trainers.items()}
            for _ in range(steps + 1):
                for name, loop in loops.items():
                    results[name].append(next(loop))
    return times_table({name: rows[1:] for name, rows in results.items()})  # the first step warms up


def generation_shares(batches: int) -> str:
    """Return a table of the seconds and forward passes of both turns of a training step, and the two bounds."""
    import tempfile
    from contextlib import redirect_stdout
    from dataclasses import replace

    from r3core import get_task
    from r3core.config import model_of, resolve
    from r3core.pipeline import Pipeline

    task = get_task("countdown")
    with tempfile.TemporaryDirectory() as name, redirect_stdout(sys.stderr):
        config = resolve(task, overrides=[f"output_dir={name}", "mine.limit=256", "mine.probe=0"])
        group, rows = config.grpo["num_generations"], config.grpo["per_device_train_batch_size"]
        with Pipeline.open(task, config) as stages:
            failures = stages.mine()
            generator: Any = stages.engine.open(model_of(config, task))
            protocol = replace(stages.protocol, config=config.as_trained())
            forwards = Forwards(generator.model)
            together = 0
            for number in range(batches + 1):
                if number == 1:
                    forwards.clear()  # the first batch warms up
                    together = 0
                chosen = [
                    failures[(number * (rows // group) + index) % len(failures)] for index in range(rows // group)
                ]
                episodes = [failure.episode() for failure in chosen for _ in range(group)]
                forwards.turn = "reflections"
                episodes = protocol.reflect(episodes, generator, seed=number)
                forwards.turn = "retries"
                episodes = protocol.retry(episodes, generator, seed=number)
                together += max(_tokens(e.reflection) + _tokens(e.retries.get("reflect")) for e in episodes)
    return forwards.table(together)


def _tokens(turn: Any) -> int:
    return turn.tokens if turn else 0


class Forwards:
    """Seconds and number of a model's forward passes, by turn and by whether they compute prompts."""

    def __init__(self, model: Any) -> None:
        from time import perf_counter

        self.turn = ""
        self.seconds: defaultdict[tuple[str, bool], float] = defaultdict(float)
        self.passes: Counter[tuple[str, bool]] = Counter()
        started_at = 0.0

        def before(_: Any, args: Any, kwargs: Any) -> None:
            nonlocal started_at
            started_at = perf_counter()

        def after(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            key = (self.turn, ids.shape[1] > 1)
            self.seconds[key] += perf_counter() - started_at
            self.passes[key] += 1

        model.register_forward_pre_hook(before, with_kwargs=True)
        model.register_forward_hook(after, with_kwargs=True)

    def clear(self) -> None:
        """Forget what was measured so far."""
        self.seconds.clear()
        self.passes.clear()

    def table(self, together: int) -> str:
        """Return the measured figures; `together` is the number of decoding passes if retries began at once."""
        lines = [
            "| turn | prompts, share of the forward seconds | decoding, share | decoding passes |",
            "| --- " * 4 + "|",
        ]
        whole = sum(self.seconds.values())
        for turn in ("reflections", "retries"):
            prompts, decoding = (self.seconds[turn, of] / whole for of in (True, False))
            lines.append(f"| {turn} | {prompts:.0%} | {decoding:.0%} | {self.passes[turn, False]} |")
        passes = self.passes["reflections", False] + self.passes["retries", False]
        return "\n".join(
            [
                *lines,
                "",
                f"decoding passes if each retry began when its reflection ends: at least {together} of {passes}",
            ]
        )


def reflection_trainer(stages: Any, failures: Any, model: str) -> Any:
    """Return r3's trainer."""
    from r3core.generation.models import load
    from r3core.train import grpo_config
    from r3core.training.trainer import ReflectionTrainer

    loaded, tokenizer = load(stages.protocol.config, model, dtype="float32")
    args = grpo_config(stages.protocol, stages.run.path / "r3", on_cpu=True)
    return ReflectionTrainer(stages.run, stages.protocol, failures, model=loaded, tokenizer=tokenizer, args=args)


def plain_trainer(stages: Any, failures: Any, model: str) -> Any:
    """Return TRL's own trainer on the same requests, with a reward function that generates a retry."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    from r3core.generation.models import load
    from r3core.train import grpo_config
    from r3core.training.prompt_dataset import prompt_dataset

    protocol = stages.protocol
    loaded, tokenizer = load(protocol.config, model, dtype="float32")
    generator: Any = loaded
    sampling = protocol.config.sampling.retry

    def fixed(completions: list[Any], failure: list[int], log_metric: Any, **_: Any) -> list[float | None]:
        episodes = [failures[index].episode() for index in failure]
        texts = [completion[0]["content"] for completion in completions]
        chats = [
            [
                *protocol.reflection_request(episode).messages,
                {"role": "assistant", "content": text},
                {"role": "user", "content": protocol.task.wording.retry},
            ]
            for episode, text in zip(episodes, texts, strict=True)
        ]
        inputs: Any = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True, padding_side="left"
        )
        written = generator.generate(
            **inputs, do_sample=True, temperature=sampling.temperature, top_k=0, max_new_tokens=sampling.max_tokens
        )[:, inputs["input_ids"].shape[1] :]
        log_metric("retries/tokens", float((written != tokenizer.pad_token_id).sum()))
        answers = tokenizer.batch_decode(written, skip_special_tokens=True)
        verdicts = [protocol.task.verify(e.example, text) for e, text in zip(episodes, answers, strict=True)]
        return [float(getattr(verdict, "outcome", verdict) in (True, "pass")) for verdict in verdicts]

    return GRPOTrainer(
        model=loaded,
        processing_class=tokenizer,
        reward_funcs=fixed,
        args=grpo_config(protocol, stages.run.path / "trl", on_cpu=True),
        train_dataset=prompt_dataset(protocol, failures, 8),
    )


def loop_of(trainer: Any) -> Any:
    """Yield the seconds and the generated tokens of one training step after the other."""
    from time import perf_counter

    import torch

    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-6)
    while True:
        for batch in trainer.get_train_dataloader():
            started_at = perf_counter()
            trainer.training_step(trainer.model, batch, None)
            optimizer.step()
            optimizer.zero_grad()
            took = perf_counter() - started_at
            metrics = trainer._metrics["train"]
            tokens = metrics["completions/mean_length"][-1] * trainer.args.per_device_train_batch_size
            if getattr(trainer, "recorded", None):
                tokens += sum(answer.tokens for row in trainer.recorded for answer in row["retries"])
            else:
                tokens += metrics["retries/tokens"][-1]
            yield took, round(tokens)


def times_table(results: dict[str, list[tuple[float, int]]]) -> str:
    """Return a Markdown table of the medians, and the ratio of the first to the second."""
    from statistics import median

    lines = ["| | seconds per step, median | tokens generated per step |", "| --- | --- | --- |"]
    medians = {name: median(seconds for seconds, _ in rows) for name, rows in results.items()}
    for name, rows in results.items():
        lines.append(f"| {name} | {medians[name]:.2f} | {fmean(tokens for _, tokens in rows):,.0f} |")
    first, second = medians
    ratio = median(one[0] / other[0] for one, other in zip(results[first], results[second], strict=True))
    return "\n".join([*lines, "", f"ratio, median over pairs of steps: {ratio:.2f}"])


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
