"""Mining: attempts at a task's problems, and the failures among them as a data set of its own."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError

from r3core.config import Config, Limits, Mine
from r3core.dataset import Taken, problems_to_mine
from r3core.episode import Answer, Episode
from r3core.errors import ConfigError, RunError, UsageError
from r3core.generation import Generator
from r3core.protocol import Make, Protocol, seed_of
from r3core.reward import judged
from r3core.runs import Run, environment, values_of
from r3core.screen import progress_bar
from r3core.task import Example, Frozen, Message, Task
from r3core.truncation import limit_of, warn_if_truncated
from r3core.verification import Judge, verifier_hash


class Failure(Frozen):
    """A failed attempt, with all that is needed to reflect on it: one row of a set of failures."""

    id: str
    prompt: list[Message]
    """The conversation that the attempt continued."""
    answer: JsonValue = None
    info: dict[str, JsonValue] = {}
    sample: int
    attempt: Answer
    passed: int
    """How many of the attempts at this problem passed."""
    samples: int
    """How many attempts at this problem were judged."""

    def episode(self) -> Episode:
        """Return the episode that a reflection on this failure continues."""
        example = Example(id=self.id, prompt=self.prompt, answer=self.answer, info=self.info)
        return Episode(example=example, sample=self.sample, attempt=self.attempt)


def check_splits(config: Config) -> None:
    """Raise ConfigError when a model would be evaluated on the split whose failures it is trained on."""
    split, owner = config.mine.split, "`mine.split` is"
    if (folder := config.mine.failures) is not None:
        try:
            provenance = read_failures(folder)[1]
        except UsageError:  # a dry run may name a folder that is still to be made; mining says what is wrong with it
            return
        split, owner = provenance.get("mine", {}).get("split"), f"the failures in `{folder}` are from"
    if split == config.evaluate.split:
        raise ConfigError(
            f"`evaluate.split` cannot be {split!r}: {owner} the same split, and a model must not be evaluated on what "
            "it was trained on",
            "evaluate on another split: --set evaluate.split=test, or validation",
        )


def mine(run: Run, protocol: Protocol, make: Make) -> list[Failure]:
    """Attempt every problem, write all episodes and the failure dataset; resumes where it was stopped."""
    config = protocol.config
    examples, taken = problems_to_mine(protocol.task, config)
    samples = config.mine.samples
    size = max(1, config.batch_size // samples)
    with run.clock("mine") as tick, progress_bar("mine", len(examples), done=len(run.read("mine")) // samples) as bar:

        def done(count: int) -> None:
            bar(count)
            tick()

        rows = run.extend("mine", examples, partial(make, attempted), size=size, each=samples, done=done)
    episodes = values_of(Episode, rows, "mine")
    failures = select(protocol, episodes)
    counts = _counts(episodes, failures, taken)
    limit = limit_of(config, "attempt")
    warn_if_truncated(config, "attempt", counts["truncated"], total=len(episodes))
    write_failures(run.path / "failures", failures, card(protocol, counts))
    if (left_out := counts["left_out"]) and not config.mine.keep_truncated:
        print(f"left out: {left_out:,} attempts cut off at {limit}", file=sys.stderr)
    if overlong := counts["overlong"]:
        print(f"left out: {overlong:,} attempts whose prompt does not fit the model's context", file=sys.stderr)
    if not failures:
        cut = f"{left_out:,} attempts were cut off at {limit}: raise it, or --set mine.keep_truncated=true"
        raise RunError(
            f"none of the {len(episodes)} attempts is a failure to learn from under `mine.keep={config.mine.keep}`",
            *([cut] if left_out else []),
            "mine more problems (--set mine.limit=...) or harder ones, or widen the bounds on the pass rate",
        )
    run.finish("mine", counts)
    return failures


def attempted(protocol: Protocol, generator: Generator, number: int, batch: Sequence[Example]) -> list[Episode]:
    """Return the attempts at one batch of problems."""
    config = protocol.config
    seed = seed_of(config.seed, "mine", number)
    return protocol.attempt(batch, generator, seed=seed, samples=config.mine.samples)


def select(protocol: Protocol, episodes: Iterable[Episode]) -> list[Failure]:
    """Return one failure per problem, its first, for the problems that the rule of the configuration keeps.

    An attempt that was cut off before it gave a right answer is, like an error, neither passed nor failed, and counts
    in no pass rate; with `mine.keep_truncated` it is a failure like others.
    """
    rule: Mine = protocol.config.mine
    problems: dict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        wrong = episode.failed if rule.keep_truncated else judged(episode.attempt) is False
        if wrong or judged(episode.attempt):
            problems[episode.example.id].append(episode)
    kept = []
    for tried in problems.values():
        failed = [episode for episode in tried if episode.failed]
        passed = len(tried) - len(failed)
        rate = passed / len(tried)
        if not failed or (rule.keep == "all-failed" and passed) or not rule.min_pass_rate <= rate <= rule.max_pass_rate:
            continue
        first = failed[0]
        kept.append(
            Failure(
                id=first.example.id,
                prompt=list(protocol.attempt_request(first.example)),
                answer=first.example.answer,
                info=first.example.info,
                sample=first.sample,
                attempt=first.attempt,
                passed=passed,
                samples=len(tried),
            )
        )
    return kept


def card(protocol: Protocol, counts: dict[str, Any]) -> dict[str, Any]:
    """Return the provenance of a set of failures."""
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


def write_failures(folder: Path, failures: Sequence[Failure], provenance: dict[str, Any]) -> None:
    """Write a set of failures: `failures.jsonl`, `card.json`, and a README.md that `datasets` reads as its card."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(failure.model_dump_json() + "\n" for failure in failures)
    text = json.dumps(provenance, indent=2, ensure_ascii=False)
    readme = (
        "---\nconfigs:\n- config_name: default\n  data_files: failures.jsonl\ntags: [r3, failures]\n---\n\n"
        f"# Failures of {provenance['model']} on {provenance['task']}\n\n"
        "Failed attempts, one a problem. `prompt` is the conversation that `attempt` continued; `passed` of `samples` "
        "attempts at the problem passed.\n\n"
        f"```json\n{text}\n```\n"
    )
    for name, content in (("failures.jsonl", rows), ("README.md", readme), ("card.json", text + "\n")):
        partial = folder / f".{name}.partial"
        partial.write_text(content, encoding="utf-8")
        partial.replace(folder / name)


def read_failures(folder: Path) -> tuple[list[Failure], dict[str, Any]]:
    """Return a set of failures and its provenance; UsageError when the folder holds none."""
    rows, provenance = folder / "failures.jsonl", folder / "card.json"
    if not rows.exists() and (folder / "failures").is_dir():
        return read_failures(folder / "failures")
    if not rows.exists() or not provenance.exists():
        raise UsageError(
            f"`{folder}` holds no set of failures: failures.jsonl and card.json should be in it",
            "make one with `r3 mine`, and name its folder or the run directory",
        )
    try:
        # not `splitlines`: model text may hold other line separators
        failures = [Failure.model_validate_json(line) for line in rows.read_bytes().split(b"\n")[:-1]]
    except ValidationError as error:
        raise UsageError(f"`{rows}` has a row that is no failure: {error.errors()[0]['msg']}") from None
    return failures, _provenance(provenance)


def _provenance(path: Path) -> dict[str, Any]:
    """Return what a card says; UsageError when it leaves out what others rely on."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        said = None
    if not isinstance(said, dict) or not {"task", "task_options", "verifier_hash", "counts"} <= said.keys():
        raise UsageError(f"`{path}` is no card of a set of failures", "make the set anew with `r3 mine`")
    return said


def rescore_failures(
    task: Task, failures: Sequence[Failure], provenance: dict[str, Any], *, output: Path | None
) -> dict[str, Any]:
    """Judge failures by the verifier as it is now, and return what changed; what still fails is written to `output`."""
    with Judge(task, Limits(max_errors=1.0)) as judge:
        verdicts = judge.judge([(failure.episode().example, failure.attempt.text) for failure in failures])
    changed = [
        {"id": failure.id, "answer": failure.attempt.text, "now": verdict.outcome, "reason": verdict.reason}
        for failure, verdict in zip(failures, verdicts, strict=True)
        if verdict.outcome != "fail"
    ]
    if output is not None:
        still = [
            failure.model_copy(update={"attempt": failure.attempt.model_copy(update={"verdict": verdict})})
            for failure, verdict in zip(failures, verdicts, strict=True)
            if verdict.outcome == "fail"
        ]
        judged_by = {"verifier_version": task.version, "verifier_hash": verifier_hash(task)}
        counts = provenance["counts"] | {"failures": len(still), "no longer failures": len(changed)}
        write_failures(output, still, provenance | judged_by | {"counts": counts})
    return {"judged": len(failures), "unchanged": len(failures) - len(changed), "changed": changed}


def _counts(episodes: Sequence[Episode], failures: Sequence[Failure], taken: Taken) -> dict[str, Any]:
    """Return what mining found; an attempt that was cut off and did not pass is both truncated and left out."""
    cut = [episode for episode in episodes if episode.attempt.stopped == "length"]
    outcomes = [episode.attempt.verdict.outcome for episode in episodes if episode.attempt.stopped != "overlong"]
    return {
        "problems": taken.taken,
        **({"problems_in_split": taken.read} if taken.whole else {}),
        "attempts": len(episodes),
        **{kind: outcomes.count(kind) for kind in ("pass", "fail", "error")},
        "overlong": len(episodes) - len(outcomes),
        "truncated": len(cut),
        "left_out": sum(episode.failed for episode in cut),
        "failures": len(failures),
    }
