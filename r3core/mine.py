"""Mining: attempts at a task's problems, and the failures among them as a failure dataset."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from r3core.config import Config
from r3core.dataset import Selection, problems_to_mine
from r3core.environment import environment
from r3core.episode import Episode
from r3core.errors import ConfigError, RunError, UsageError
from r3core.executor import Executor, Tally, episodes_of
from r3core.failures import Failure, read_failures, write_failures
from r3core.generation.generator import Generator
from r3core.progress import percent
from r3core.protocol import Protocol, seed_of
from r3core.reward import judged
from r3core.runs import Run
from r3core.sections import Mine
from r3core.task import Example
from r3core.truncation import limit_of, warn_if_truncated
from r3core.verification.judge import verifier_hash


def check_splits(config: Config) -> None:
    """Raise ConfigError when a model would be evaluated on the split whose failures it is trained on.

    That goes for the evaluation of the run and, with `evaluate.every`, for those during training.
    """
    split, owner = config.mine.split, "`mine.split` is"
    if (folder := config.mine.failures) is not None:
        try:
            provenance = read_failures(folder)[1]
        except UsageError:  # a dry run may name a folder that does not exist yet; mining raises what is wrong with it
            return
        split, owner = provenance.get("mine", {}).get("split"), f"the failures in `{folder}` are from"
    if split == config.evaluate.split:
        raise ConfigError(
            f"`evaluate.split` cannot be {split!r}: {owner} the same split, and a model must not be evaluated on what "
            "it was trained on",
            "evaluate on another split: --set evaluate.split=test, or validation",
        )
    if split == "validation" and config.evaluate.every is not None:
        raise ConfigError(
            f"`evaluate.every` cannot be {config.evaluate.every}: it evaluates on the validation split, and {owner} "
            "that split",
            "mine another split: --set mine.split=train, or set evaluate.every=null",
        )


def mine(run: Run, protocol: Protocol, executor: Executor, *, model: str) -> list[Failure]:
    """Attempt every problem with a model, write all episodes and the failure dataset; resumes an interrupted run."""
    config = protocol.config
    examples, taken = problems_to_mine(protocol.task, config)
    samples = config.mine.samples
    with run.clock("mine") as tick:
        episodes = episodes_of(
            run,
            executor,
            attempted,
            examples,
            name="mine",
            label="mine",
            unit="problems",
            model=model,
            size=max(1, config.batch_size // samples),
            each=samples,
            tally=_tally(),
            tick=tick,
        )
    failures = select(protocol, episodes)
    counts = _counts(episodes, failures, taken)
    limit = limit_of(config, "attempt")
    warn_if_truncated(config, "attempt", counts["truncated"], total=len(episodes))
    write_failures(run.path / "failures", failures, card(protocol, counts))
    if (left_out := counts["left_out"]) and not config.mine.keep_truncated:
        print(f"left out: {left_out:,} attempts cut off at {limit}", file=sys.stderr)
    if thinking := counts["cut_in_thought"]:
        print(f"left out: {thinking:,} attempts cut off in their thinking, at {limit}", file=sys.stderr)
    if overlong := counts["overlong"]:
        print(f"left out: {overlong:,} attempts whose prompt does not fit the model's context", file=sys.stderr)
    if not failures:
        raise RunError(
            f"none of the {len(episodes)} attempts is a failure to learn from under `mine.keep={config.mine.keep}`",
            *([f"{thinking:,} attempts were cut off in their thinking at {limit}: raise it"] if thinking else []),
            *(
                [f"{left_out:,} attempts were cut off at {limit}: raise it, or set mine.keep_truncated=true"]
                if left_out
                else []
            ),
            "mine more problems (mine.limit) or harder ones, or widen the bounds on the pass rate",
        )
    run.finish("mine", counts)
    return failures


def _tally() -> Tally:
    """Return what counts the failures so far, and the share of attempts that pass."""
    outcomes: Counter[str] = Counter()

    def add(new: Iterable[Episode]) -> str:
        outcomes.update(episode.attempt.verdict.outcome for episode in new)
        failed, passed = outcomes["fail"], outcomes["pass"]
        return f"{failed:,} failures, pass rate {percent(passed, passed + failed)}"

    return add


def attempted(protocol: Protocol, generator: Generator, number: int, batch: Sequence[Example]) -> list[Episode]:
    """Return the attempts at one batch of problems."""
    config = protocol.config
    seed = seed_of(config.seed, "mine", number)
    return protocol.attempt(batch, generator, seed=seed, samples=config.mine.samples)


def select(protocol: Protocol, episodes: Iterable[Episode]) -> list[Failure]:
    """Return one failure per problem, its first, for the problems that the rule of the configuration keeps.

    An attempt that was cut off before a correct answer is, like an error, neither passed nor failed, and does not
    count in a pass rate; with `mine.keep_truncated` it is a failure like others.
    """
    rule: Mine = protocol.config.mine
    problems: dict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        wrong = episode.failed if rule.keep_truncated else judged(episode.attempt) is False
        if wrong or judged(episode.attempt):
            problems[episode.example.id].append(episode)
    failures = []
    for tried in problems.values():
        failed = [episode for episode in tried if episode.failed]
        passed = len(tried) - len(failed)
        rate = passed / len(tried)
        if not failed or (rule.keep == "all-failed" and passed) or not rule.min_pass_rate <= rate <= rule.max_pass_rate:
            continue
        first = failed[0]
        prompt = protocol.attempt_request(first.example)
        failures.append(
            Failure(
                id=first.example.id,
                example_prompt=first.example.prompt,
                prompt=prompt.messages,
                tools=prompt.tools,
                answer=first.example.answer,
                info=first.example.info,
                sample=first.sample,
                attempt=first.attempt,
                passed=passed,
                samples=len(tried),
            )
        )
    return failures


def _counts(episodes: Sequence[Episode], failures: Sequence[Failure], taken: Selection) -> dict[str, Any]:
    """Return the counts of a mining; an attempt that was cut off and did not pass is both truncated and left out."""
    cut = [episode for episode in episodes if episode.attempt.stopped == "length"]
    overlong = sum(episode.attempt.stopped == "overlong" for episode in episodes)
    outcomes = [episode.attempt.verdict.outcome for episode in episodes if not episode.attempt.unanswered]
    return {
        "problems": taken.taken,
        **({"problems_in_split": taken.read} if taken.whole else {}),
        "attempts": len(episodes),
        **{kind: outcomes.count(kind) for kind in ("pass", "fail", "error")},
        "overlong": overlong,
        "cut_in_thought": sum(episode.attempt.cut_in_thought for episode in episodes),
        "truncated": len(cut),
        "left_out": sum(episode.failed for episode in cut),
        "tokens": sum(episode.attempt.tokens for episode in episodes),
        "failures": len(failures),
    }


def card(protocol: Protocol, counts: dict[str, Any]) -> dict[str, Any]:
    """Return the provenance of a failure dataset."""
    config = protocol.config
    return {
        "task": config.task,
        "task_options": config.task_options,
        "verifier_version": protocol.task.version,
        "verifier_hash": verifier_hash(protocol.task),
        "model": config.model or "built-in",
        "revision": config.revision,
        "sampling": config.sampling.attempt.model_dump(),
        "seed": config.seed,
        "feedback": config.feedback,
        "mine": config.mine.model_dump(mode="json", exclude={"failures"}),
        "counts": counts,
        "environment": {key: value for key, value in environment().items() if key != "command"},
    }
