"""Run directories with a few recorded rows, as a run on the toy task leaves them, without a model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import toy
from pydantic import BaseModel

from r3core.config import configure
from r3core.dataset import Selection
from r3core.environment import environment
from r3core.episode import CONTROLS, Answer, Arm, Episode, Reflection
from r3core.evaluation.result import Result, compare, greedy_scores, scores
from r3core.failures import Failure, write_failures
from r3core.files import atomic_write
from r3core.settings import nested
from r3core.task import Example, Verdict

TASK = f"{toy.__file__}:Toy"


def verdict(outcome: str, *, reason: str = "", kind: str = "") -> Verdict:
    """Return a verdict; the reason and the error category are those of a failure only."""
    return Verdict.failed(reason, kind=kind) if outcome == "fail" else Verdict.model_validate({"outcome": outcome})


def answer(outcome: str, text: str, *, reason: str = "", kind: str = "", **fields: Any) -> Answer:
    """Return an attempt or a retry with its verdict."""
    judged = verdict(outcome, reason=reason, kind=kind)
    return Answer(text=text, tokens=max(1, len(text) // 4), verdict=judged, **fields)


def episode(
    name: str,
    outcomes: str = "fail pass",
    *,
    attempt: str = "8",
    reflection: str = "One too many.",
    retry: str = "7",
    reason: str = "it should be 7",
    kind: str = "",
    leaked: bool | None = False,
    prompt: str = "Say 7.",
    controls: bool = False,
    **fields: Any,
) -> Episode:
    """Return an episode; `outcomes` are those of the attempt and, where it failed, of the retry."""
    first, _, second = outcomes.partition(" ")
    tried = answer(first, attempt, reason=reason, kind=kind, **fields)
    example = Example(id=name, prompt=prompt, answer="7")
    if not second:
        return Episode(example=example, attempt=tried)
    arms: tuple[Arm, ...] = ("reflect", *(CONTROLS if controls else ()))
    retries = {arm: answer(second if arm == "reflect" else "fail", retry, reason=reason, kind=kind) for arm in arms}
    reflected = Reflection(text=reflection, tokens=max(1, len(reflection) // 4), leaked=leaked)
    return Episode(example=example, attempt=tried, reflection=reflected, retries=retries)


def group(name: str, rewards: Sequence[float], *, step: int = 1, **fields: Any) -> list[dict[str, Any]]:
    """Return the rows of a training group: one reflection per reward, each with a retry."""
    rows = []
    for index, reward in enumerate(rewards):
        made = episode(name, f"fail {'pass' if reward else 'fail'}", **{"reflection": f"Reflection {index}."} | fields)
        row = {"step": step, "id": name, "reflection": made.reflection, "retries": [made.retries["reflect"]]}
        rows.append(row | {"reward": reward})
    return rows


def metrics(steps: int) -> list[dict[str, Any]]:
    """Return the metrics of a training in which the reward rises."""
    share = [step / max(1, steps - 1) for step in range(steps)]
    return [
        {
            "step": step,
            "loss": -0.1,
            "grad_norm": 0.5,
            "learning_rate": 1e-4,
            "kl": 0.01 * rise,
            "reward": 0.2 + 0.5 * rise,
            "reward_std": 0.4,
            "completions/mean_length": 9.0 + rise,
            "groups/all_right": 0.1 * rise,
            "groups/all_wrong": 0.2 - 0.1 * rise,
            "groups/mixed": 0.8,
            "groups/unjudged": 0.0,
            "reflections/leak_rate": 0.02,
            "reflections/truncated": 0.01,
            "retries/truncated": 0.0,
            "seconds/generation": 0.8,
            "seconds/verification": 0.1,
            "seconds/training": 1.2,
            "seconds/rest": 0.3,
            "step_time": 2.4,
        }
        for step, rise in enumerate(share, start=1)
    ]


def write_run(
    folder: Path,
    *,
    mined: Sequence[Episode] = (),
    groups: Sequence[dict[str, Any]] = (),
    steps: int = 0,
    base: Sequence[Episode] = (),
    trained: Sequence[Episode] = (),
    greedy: tuple[Sequence[Episode], Sequence[Episode]] = ((), ()),
    finished: Iterable[str] = ("mine", "train", "evaluate"),
    task: str = TASK,
    settings: Mapping[str, Any] = {},
) -> Path:
    """Write a run directory with these rows, and return it; a stage in `finished` has its facts."""
    config = configure(toy.Toy(), nested({"task": task, "output_dir": folder, "model": "tiny", **settings}))
    _json(folder / "config.json", config.record())
    _json(folder / "environment.json", environment())
    _rows(folder / "sessions.jsonl", [{"pid": 1, **environment()}])
    _rows(folder / "clock.jsonl", [{"stage": stage, "seconds": 10.0} for stage in ("mine", "train", "evaluate")])
    for name, rows in (("mine", mined), ("train", metrics(steps)), ("train-episodes", groups)):
        if rows:
            _rows(folder / f"{name}.jsonl", rows)
    failed = [one for one in mined if one.failed]
    _write_failures(folder / "failures", failed)
    facts: dict[str, dict[str, Any]] = {
        "mine": {"problems": len(mined), "attempts": len(mined), "failures": len(failed)},
        "train": {"steps": steps, "failures": len(failed)},
        "evaluate": {"problems": len(base), "trained": bool(trained)},
    }
    beside = zip(("base-greedy", "trained-greedy"), greedy, strict=True)
    for name, evaluated in (("base", base), ("trained", trained), *beside):
        if evaluated:
            _rows(folder / f"evaluate-{name}.jsonl", evaluated)
    if base and "evaluate" in finished:
        _json(folder / "result.json", result(base, trained, greedy).model_dump(mode="json"))
    for stage in finished:
        _json(folder / "stages" / f"{stage}.json", facts[stage])
    return folder


def result(
    base: Sequence[Episode],
    trained: Sequence[Episode] = (),
    greedy: tuple[Sequence[Episode], Sequence[Episode]] = ((), ()),
) -> Result:
    """Return the result of an evaluation with these episodes; `greedy` are those of base and trained model."""
    beside = {name: episodes for name, episodes in zip(("base", "trained"), greedy, strict=True) if episodes}
    controls = CONTROLS if any("none" in one.retries for one in base) else ()
    return Result(
        base=scores(base, controls),
        trained=scores(trained, controls) if trained else None,
        paired=compare(base, trained) if trained else None,
        problems=Selection(taken=len(base), read=len(base), order="random", whole=True),
        greedy=greedy_scores(beside) if beside else None,
    )


def _write_failures(folder: Path, failed: Sequence[Episode]) -> None:
    failures = [
        Failure(
            id=one.example.id,
            example_prompt=one.example.prompt,
            prompt=[{"role": "user", "content": one.example.prompt}],
            answer=one.example.answer,
            sample=one.sample,
            attempt=one.attempt,
            passed=0,
            samples=1,
        )
        for one in failed
    ]
    card = {"task": TASK, "task_options": {}, "model": "tiny", "verifier_hash": "0", "counts": {}}
    write_failures(folder, failures, card)


def _rows(path: Path, rows: Iterable[Any]) -> None:
    atomic_write(path, "".join(json.dumps(row, default=_plain) + "\n" for row in rows))


def _json(path: Path, value: Any) -> None:
    atomic_write(path, json.dumps(value, default=_plain, indent=2) + "\n")


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)
