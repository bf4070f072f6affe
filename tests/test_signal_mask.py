"""Groups without signal in the loss: how they pull where there is a KL term, and how they are left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import password
import pytest
import torch
from transformers import AutoModelForCausalLM

from r3core.config import Config
from r3core.runs import Run
from r3core.train import grpo_config
from r3core.training.signal_mask import with_signal, without_equal_groups
from r3core.training.trainer import ReflectionTrainer

MIXED = [1.0, 0.0, None, 0.0]
EQUAL: list[list[float | None]] = [[1.0, 1.0, 1.0, 1.0], [None, None, None, None], [0.0, None, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("rewards", "failure", "expected"),
    [
        ([1.0, 0.0], [4, 4], [True, True]),
        ([1.0, 1.0, 0.0, 0.5], [4, 4, 2, 2], [False, False, True, True]),
        ([None, 1.0, None, None], [0, 0, 1, 1], [False] * 4),
        ([0.5, 0.5, 0.5, None, 0.0, 1.0], [0, 0, 0, 1, 1, 1], [False] * 3 + [True] * 3),
        ([], [], []),
    ],
)
def test_a_group_has_signal_when_its_rewards_differ(
    rewards: list[float | None], failure: list[int], expected: list[bool]
) -> None:
    assert with_signal(rewards, failure) == expected


def test_a_mask_that_is_there_already_stays() -> None:
    completions = torch.tensor([[1, 1, 0], [1, 1, 1]])
    scored = {"completion_mask": completions, "tool_mask": torch.tensor([[0, 1, 1], [0, 1, 1]])}
    assert without_equal_groups(scored, [True, False])["tool_mask"].tolist() == [[0, 1, 1], [0, 0, 0]]
    assert without_equal_groups({"completion_mask": completions}, [False, True])["tool_mask"].tolist() == [
        [0, 0, 0],
        [1, 1, 1],
    ]


class Scripted(ReflectionTrainer):
    """A trainer whose rewards follow a script, and that records the gradient of every row's log-probabilities."""

    script: Sequence[float | None] = ()

    def _record(self, samples: Any, rewards: Any, *, log_metric: Any) -> None:
        self.rewards = self.rewards | {"reflection": list(self.script)}
        super()._record(samples, list(self.script), log_metric=log_metric)

    def _get_per_token_logps_and_entropies(self, *args: Any, **named: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **named)
        if torch.is_grad_enabled():
            found[0].retain_grad()
            self.logps = found[0]  # (B, tokens)
        return found

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        self.inputs = inputs
        return super()._compute_loss(model, inputs)


def gradients(folder: Path, model: Path, rewards: Sequence[float | None], *, drop: bool, **grpo: Any) -> Any:
    """Train one step away from the reference; return gradients (B, tokens), advantages (B,) and metrics."""
    values = password.config(steps=1, per_device_train_batch_size=8, num_generations=4).model_dump()
    values["grpo"] |= grpo | {"save_strategy": "no"}
    values["train"] = {"drop_equal_groups": drop}
    values["model"] = str(model)
    protocol = password.protocol(Config.model_validate(values))
    policy = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        for weights in policy.parameters():  # else the KL term has no gradient: the policy is still the reference
            weights.add_(0.05 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)))
    with Run.open(folder, {}) as run:
        trainer = Scripted(
            run,
            protocol,
            password.failures(),
            model=policy,
            tokenizer=password.tokenizer(),
            args=grpo_config(protocol, run.path / "checkpoints", on_cpu=True),
        )
        trainer.script = rewards
        trainer.train()
    return trainer.logps.grad, trainer.inputs["advantages"], trainer.state.log_history[0]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    password.beginner(steps=0).save_pretrained(folder)
    password.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "equal"),
    [("dapo", 0), ("dapo", 1), ("dapo", 2), ("grpo", 0), ("dr_grpo", 1), ("cispo", 2), ("sapo", 0)],
)
def test_a_group_without_signal_pulls_by_the_kl_term_unless_it_is_dropped(
    loss: str, equal: int, reference: Path, tmp_path: Path
) -> None:
    rewards = [*EQUAL[equal], *MIXED]
    options = {"beta": 0.1, "loss_type": loss}
    pulled, advantages, _ = gradients(tmp_path / "with", reference, rewards, drop=False, **options)
    dropped, same, metrics = gradients(tmp_path / "without", reference, rewards, drop=True, **options)
    assert torch.equal(advantages, same), "the two trainings differ in more than the option"
    rows = pulled.abs().sum(1) > 0
    assert rows.all(), "every row pulls by its KL term"
    left_out = dropped.abs().sum(1) == 0
    assert left_out.sum() == 4, "the group without signal, and not the unjudged row of the mixed one"
    assert not (left_out & (advantages != 0)).any()
    assert torch.equal(dropped[~left_out], pulled[~left_out])
    assert metrics["kl"] > 0


@pytest.mark.slow
def test_without_a_kl_term_a_group_without_signal_has_no_gradient(reference: Path, tmp_path: Path) -> None:
    rewards = [*EQUAL[0], 1.0, 0.0, 0.0, 1.0]
    kept, advantages, _ = gradients(tmp_path / "kept", reference, rewards, drop=False, beta=0.0)
    dropped, _, _ = gradients(tmp_path / "dropped", reference, rewards, drop=True, beta=0.0)
    assert torch.equal(kept.abs().sum(1) > 0, advantages != 0)
    assert torch.equal(kept, dropped)


@pytest.mark.slow
def test_a_batch_without_any_signal_moves_no_weight(reference: Path, tmp_path: Path) -> None:
    rewards = [*EQUAL[0], *EQUAL[1]]
    pulled, _, moving = gradients(tmp_path / "with", reference, rewards, drop=False, beta=0.1)
    dropped, _, still = gradients(tmp_path / "without", reference, rewards, drop=True, beta=0.1)
    assert pulled.abs().sum() > 0
    assert moving["grad_norm"] > 0
    assert dropped.abs().sum() == 0
    assert still["grad_norm"] == 0
    assert still["loss"] == 0
