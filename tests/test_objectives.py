"""The objectives of training: which turns each trains, with which advantages and gradients, on a tiny model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from even import RecordingTrainer, bare_model, even_protocol, trainer_in
from pydantic import ValidationError
from toy import Toy

from r3core.config import resolve
from r3core.errors import ConfigError
from r3core.failures import Failure
from r3core.generation.chat import encode
from r3core.groups import Trained
from r3core.objective import OBJECTIVES, Objective, Segment
from r3core.protocol import Protocol
from r3core.reward import judged
from r3core.runs import Run, RunRecord

GROUP, ROWS = 8, 16
Rewards = Sequence[float | None]


class Recording(RecordingTrainer):
    """A trainer that records the gradient of the loss with respect to the log-probability of each token."""

    def _get_per_token_logps_and_entropies(self, *args: Any, **named: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **named)
        if torch.is_grad_enabled():
            found[0].retain_grad()
            self.logps = [*getattr(self, "logps", []), found[0]]  # (rows, tokens) of each pass
        return found


def by_hand(rewards: Rewards) -> list[float]:
    """Return the advantages of one group: (reward - mean) / (standard deviation of a sample + 0.0001)."""
    known = [reward for reward in rewards if reward is not None]
    if len(known) < 2:
        return [0.0] * len(rewards)
    mean = sum(known) / len(known)
    deviation = (sum((reward - mean) ** 2 for reward in known) / (len(known) - 1)) ** 0.5
    return [0.0 if reward is None else (reward - mean) / (deviation + 1e-4) for reward in rewards]


def reward(answer: Any) -> float | None:
    passed = judged(answer)
    return None if passed is None else float(passed)


def trained(
    folder: Path, objective: str, *, model: Any, tokenizer: Any, kind: Any = Recording, retries: int = 1, **grpo: Any
) -> tuple[Any, Protocol, list[Failure]]:
    """Train one step of two groups of eight samples, and return the trainer."""
    protocol, failures = even_protocol(**grpo)
    train = protocol.config.train.model_copy(update={"objective": objective, "retries": retries})
    protocol = replace(protocol, config=protocol.config.model_copy(update={"train": train}))
    with Run.open(folder / "run", {}) as run:
        trainer = trainer_in(run, protocol, failures, model=model, tokenizer=tokenizer, kind=kind)
        trainer.train()
    return trainer, protocol, failures


def with_end(turn: Any, tokenizer: Any) -> tuple[int, ...]:
    return (*turn.token_ids, *([tokenizer.eos_token_id] if turn.stopped == "end" else []))


def expected_rows(
    objective: str, samples: Sequence[Trained], protocol: Protocol, failures: Sequence[Failure], *, tokenizer: Any
) -> Counter[tuple[tuple[int, ...], tuple[int, ...], float]]:
    """Return the trained rows by hand: prompt, tokens, and advantage; how often each occurs."""
    by_id = {failure.id: failure.episode() for failure in failures}
    rows: Counter[tuple[tuple[int, ...], tuple[int, ...], float]] = Counter()

    def add(prompt: Any, turn: Any, advantage: float) -> None:
        rows[tuple(encode(tokenizer, prompt)), with_end(turn, tokenizer), round(advantage, 3)] += 1

    for group in (samples[start : start + GROUP] for start in range(0, len(samples), GROUP)):
        episodes = [by_id[one.id].model_copy(update={"attempt": one.attempt or by_id[one.id].attempt}) for one in group]
        firsts = by_hand([reward(one.attempt) if one.attempt else None for one in group])
        means: Rewards = [
            None if not (of := [r for retry in one.retries if (r := reward(retry)) is not None]) else sum(of) / len(of)
            for one in group
        ]
        seconds = by_hand(means)
        for one, episode, first, second in zip(group, episodes, firsts, seconds, strict=True):
            if objective in ("attempt", "erl"):
                add(protocol.attempt_request(episode.example), one.attempt, first)
            if objective in ("reflection", "reflection+retry", "erl") and one.reflection:
                add(protocol.reflection_request(episode), one.reflection, second)
            if objective not in ("retry", "reflection+retry", "erl") or not one.retries:
                continue
            own = by_hand([reward(retry) for retry in one.retries]) if len(one.retries) > 1 else [second]
            for retry, advantage in zip(one.retries, own, strict=True):
                add(protocol.retry_request(episode, one.reflection), retry, advantage)
                if objective == "erl":
                    add(protocol.attempt_request(episode.example), retry, reward(retry) or 0.0)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "retries"),
    [*[(name, 1) for name in OBJECTIVES], ("reflection", 3), ("reflection+retry", 3), ("erl", 2)],
)
def test_each_objective_trains_its_turns_with_the_gradient_computed_by_hand(
    tmp_path: Path, tiny_tokenizer: Any, objective: str, retries: int
) -> None:
    model = bare_model(tiny_tokenizer)
    trainer, protocol, failures = trained(tmp_path, objective, model=model, tokenizer=tiny_tokenizer, retries=retries)
    samples = [Trained.model_validate(row) for row in RunRecord(tmp_path / "run").read("train-episodes")]
    assert len(samples) == ROWS
    expected = expected_rows(objective, samples, protocol, failures, tokenizer=tiny_tokenizer)
    found: Counter[Any] = Counter()
    passes = list(zip(trainer.losses, trainer.logps, strict=True))
    masks = [inputs["completion_mask"] * inputs.get("tool_mask", 1) for inputs, _ in passes]
    total = sum(int(mask.sum()) for mask in masks)
    for (inputs, logps), mask in zip(passes, masks, strict=True):
        # the loss is the mean over all trained tokens of -advantage * log-probability, in its gradient
        gradient = -inputs["advantages"][:, None] * mask / total
        torch.testing.assert_close(logps.grad, gradient.to(logps.grad.dtype), rtol=1e-4, atol=1e-9)
        for row in range(len(mask)):
            prompt = tuple(inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()].tolist())
            ids = tuple(inputs["completion_ids"][row][mask[row].bool()].tolist())
            if ids:
                found[prompt, ids, round(inputs["advantages"][row].item(), 3)] += 1
    assert {(p, i): n for (p, i, _), n in found.items()} == {(p, i): n for (p, i, _), n in expected.items()}
    for row in found:
        assert any(row[:2] == other[:2] and row[2] == pytest.approx(other[2], abs=2e-3) for other in expected)
    assert total == sum(len(ids) * count for (_, ids, _), count in expected.items())
    assert any(advantage for _, _, advantage in expected), "every group is equal: the test shows nothing"


class Scripted(RecordingTrainer):
    """A trainer whose rewards follow a script, by turn."""

    script: Mapping[str, Rewards] = {}

    def reward_retries(self, *args: Any, **named: Any) -> list[float | None]:
        super().reward_retries(*args, **named)
        self.rewards = {turn: list(self.script.get(turn, of)) for turn, of in self.rewards.items()}
        return self._own_rewards(self.segment)


GROUPS = [*[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], *[1.0, None, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]
# means 1/4 and 2/7; standard deviations (1.5 / 7) ** 0.5 = 0.46291 and (10 / 7 / 6) ** 0.5 = 0.48795
OF_GROUPS = [*[1.6198] * 2, *[-0.5399] * 6, *[1.4635] * 2, 0.0, *[-0.5854] * 5]
PAIRS = [0.0, 1.0] + [1.0, 1.0] * 15
OF_PAIRS = [-0.7070, 0.7070, *[0.0] * 30]  # mean 1/2, standard deviation 0.70711 of the two retries


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "retries", "script", "advantages"),
    [
        ("reflection", 1, {"reflection": GROUPS}, OF_GROUPS),
        ("retry", 1, {"retry": GROUPS}, OF_GROUPS),
        ("attempt", 1, {"attempt": GROUPS}, OF_GROUPS),
        ("reflection+retry", 1, {"reflection": GROUPS, "retry": GROUPS}, OF_GROUPS * 2),
        ("reflection+retry", 2, {"reflection": GROUPS, "retry": PAIRS}, OF_GROUPS + OF_PAIRS),
        (
            "erl",
            1,
            {"attempt": [0.0] * 16, "reflection": GROUPS, "retry": GROUPS},
            # no attempt is right: no advantage; the retries under the task's prompt have their rewards
            [0.0] * 16 + OF_GROUPS * 2 + [reward or 0.0 for reward in GROUPS],
        ),
    ],
)
def test_advantages_of_each_objective_are_those_computed_by_hand(
    tmp_path: Path,
    tiny_tokenizer: Any,
    objective: str,
    retries: int,
    script: dict[str, Rewards],
    advantages: list[float],
) -> None:
    model = tiny.tiny_model(tiny_tokenizer, spread=0.3)
    kind = type("Kind", (Scripted,), {"script": script})
    trainer, *_ = trained(tmp_path, objective, model=model, tokenizer=tiny_tokenizer, kind=kind, retries=retries)
    found = [value for inputs in trainer.losses for value in inputs["advantages"].tolist()]
    assert sorted(found) == pytest.approx(sorted(advantages), abs=1e-3)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([Segment(turn="retry", prompt="task")], "the first segment is sampled in groups"),
        ([Segment(turn="reflection", baseline=False)], "the first segment is sampled in groups"),
        ([Segment(turn="retry"), Segment(turn="reflection")], "no turn before the first segment's, retry, is sampled"),
        ([Segment(turn="retry"), Segment(turn="retry", baseline=False)], "two segments have the same turn"),
        ([], "at least 1 item"),
    ],
)
def test_an_objective_that_cannot_be_sampled_is_refused(segments: list[Segment], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Objective(name="new", segments=tuple(segments), formula="")


def test_an_objective_knows_its_turns_and_rows() -> None:
    found = {name: (one.first, one.turns, one.rows(retries=2)) for name, one in OBJECTIVES.items()}
    assert found == {
        "reflection": ("reflection", ("reflection",), 1),
        "retry": ("retry", ("retry",), 2),
        "reflection+retry": ("reflection", ("reflection", "retry"), 3),
        "attempt": ("attempt", ("attempt",), 1),
        "erl": ("attempt", ("attempt", "reflection", "retry"), 6),
    }


PLUGIN = """
from r3core import Objective, Segment, hookimpl

@hookimpl
def r3_objectives():
    return [Objective(name="both-ways", segments=[Segment(turn="reflection"), Segment(turn="retry")], formula="r2")]
"""


@pytest.mark.usefixtures("imports_restored")
def test_a_plugin_adds_an_objective(install: Callable[..., None]) -> None:
    install("ways", PLUGIN)
    config = resolve(Toy(), overrides=["train.objective=both-ways", "model=nowhere"])
    assert config.objective.turns == ("reflection", "retry")
    with pytest.raises(ConfigError, match=r"cannot be 'both-way': available are attempt, both-ways") as e:
        resolve(Toy(), overrides=["train.objective=both-way", "model=nowhere"])
    assert e.value.hints == ("did you mean `both-ways`?",)


@pytest.mark.usefixtures("imports_restored")
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (PLUGIN.replace("return [Objective", "return [str"), "did not return a list of objectives"),
        (PLUGIN.replace("return [Objective(", "return [dict("), "returned something that is not an objective"),
        (PLUGIN.replace("both-ways", "erl"), "its objective `erl` has the name of another one"),
    ],
)
def test_a_broken_objective_is_reported(install: Callable[..., None], source: str, reason: str) -> None:
    install("ways", source)
    with pytest.raises(ConfigError) as caught:
        resolve(Toy(), overrides=["train.objective=nothing", "model=nowhere"])
    assert any("the objectives of r3-plugin-ways" in hint and reason in hint for hint in caught.value.hints)
    assert resolve(Toy(), overrides=["train.objective=erl", "model=nowhere"]).objective == OBJECTIVES["erl"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.objective=retry", "train.retries=2"], "`train.retries` cannot be 2 with `train.objective=retry`"),
        (["train.objective=attempt", "train.retries=2"], "`train.retries` cannot be 2 with `train.objective=attempt`"),
        (["train.objective=attempt", "train.reward_leaks=false"], "`train.reward_leaks` cannot be false"),
        (["train.objective=retry", "train.tokens=answer-of-reflection"], "it trains no reflections"),
    ],
)
def test_a_setting_without_a_meaning_under_an_objective_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(Toy(), overrides=[*settings, "model=nowhere"])
