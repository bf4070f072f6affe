"""What a training step takes: beside plain TRL, and by turn of the generation.

    python benchmarks/step_time.py trl
    python benchmarks/step_time.py generation

`trl` trains Countdown's built-in model by r3 and by TRL's own `GRPOTrainer` in turn, in one process: the same batch,
reflections and retries of the same maximum lengths. TRL generates its own completions, and its reward function
generates a retry with `model.generate`, as one would write it without r3.

`generation` measures what two things would save at most in a training step: retries that continue from the cache of
their reflections (the seconds in which the prompts of retries are computed), and retries that begin while other
reflections are still written (forward passes of the decoding).
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from statistics import fmean
from typing import Any


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("trl").add_argument("--steps", type=int, default=8)
    commands.add_parser("generation").add_argument("--batches", type=int, default=10)
    arguments = parser.parse_args()
    print(step_times(arguments.steps) if arguments.command == "trl" else generation_shares(arguments.batches))


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


if __name__ == "__main__":
    main()
