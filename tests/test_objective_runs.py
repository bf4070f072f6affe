"""Training with other objectives, the anchor and a token budget: what is learned, and how it resumes after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import password
import pytest
import torch
from kills import assert_same_training, killed
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from r3core.config import Config
from r3core.episode import Answer, Episode
from r3core.errors import RunError
from r3core.generation.chat import encode
from r3core.groups import Trained, trained_rows
from r3core.objective import OBJECTIVES
from r3core.runs import Run, RunRecord
from r3core.task import Verdict
from r3core.train import train

pytestmark = pytest.mark.slow

OTHERS = [name for name in OBJECTIVES if name != "reflection"]


def trained(path: Path, config: Config, *, model: LlamaForCausalLM, attempts: list[Episode] | None = None) -> Run:
    with Run.open(path, config.record()) as run:
        if attempts and not run.read("mine"):
            run.append("mine", attempts)
        train(run, password.protocol(config), password.failures(), model=model, tokenizer=password.tokenizer())
    return run


@pytest.mark.parametrize("objective", ["attempt", "reflection+retry", "erl"])
def test_each_objective_learns_what_it_rewards(objective: str, tmp_path: Path) -> None:
    config = password.config(steps=60, train={"objective": objective})
    run = trained(tmp_path / "run", config, model=password.beginner())
    rewards = [row["reward"] for row in run.read("train")]
    assert sum(rewards[:3]) / 3 < 0.35, "the model should begin near chance, which is 1/8"
    assert sum(rewards[-10:]) / 10 > 0.8


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_trains_an_adapter_and_no_other_weight(objective: str, tmp_path: Path) -> None:
    folder = password.saved(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(folder)
    train = {"objective": objective, "merge": False, "shuffle_rewards": True}
    config = password.config(steps=4, learning_rate=5e-3, temperature=1.0, lora={"r": 4}, train=train)
    run = trained(tmp_path / "run", config, model=model)
    assert any(row["grad_norm"] > 0 for row in run.read("train"))
    adapter = AutoModelForCausalLM.from_pretrained(run.path / "model")
    base = AutoModelForCausalLM.from_pretrained(folder)
    ids = base.dummy_inputs["input_ids"]
    assert (adapter(input_ids=ids).logits - base(input_ids=ids).logits).abs().max() > 1e-4
    weights = {name.replace(".base_layer", ""): weight for name, weight in adapter.state_dict().items()}
    for name, weight in base.state_dict().items():
        assert torch.equal(weights[name], weight), name


def test_retries_after_one_reflection_are_a_group(tmp_path: Path) -> None:
    config = password.config(steps=2, train={"objective": "retry"}, temperature=1.0, num_generations=8)
    run = trained(tmp_path / "run", config, model=password.beginner())
    rows = list(trained_rows(run))
    groups = [rows[start : start + 8] for start in range(0, len(rows), 8)]
    assert {len({one.reflection and one.reflection.text for one in group}) for group in groups} == {1}
    assert len({group[0].reflection and group[0].reflection.text for group in groups}) > 1
    assert {one.reward for one in rows} <= {0.0, 1.0}


USED = ("tokens/generated", "tokens/prompt", "tokens/trained", "tokens/mining", "forward_passes")


def outcome_of(run: RunRecord) -> list[tuple[Any, ...]]:
    names = ("step", "loss", "grad_norm", "reward", "retry/reward", *USED)
    return [tuple(row.get(name) for name in names) for row in run.read("train")]


@pytest.mark.parametrize("objective", OTHERS)
def test_killed_training_resumes_with_the_results_of_an_undisturbed_run(objective: str, tmp_path: Path) -> None:
    options = password.KILLED | {"train": {"objective": objective}, "temperature": 1.0}
    config = password.config(**options)
    undisturbed = trained(tmp_path / "undisturbed", config, model=password.beginner())
    killed(tmp_path / "run", 4, **options)
    run = trained(tmp_path / "run", config, model=password.beginner())
    assert len(run.read("sessions")) == 2
    assert outcome_of(run) == outcome_of(undisturbed)
    assert_same_training(run, undisturbed)


def generated(row: Trained) -> int:
    turns = [row.attempt, row.reflection, *row.retries]
    return sum(turn.tokens + (turn.stopped == "end") for turn in turns if turn is not None)


@pytest.mark.parametrize("objective", ["reflection", "attempt", "erl"])
def test_tokens_are_counted_and_a_budget_ends_training(objective: str, tmp_path: Path) -> None:
    config = password.config(**(password.KILLED | {"train": {"objective": objective, "budget_tokens": 200}}))
    run = trained(tmp_path / "run", config, model=password.beginner())
    steps = run.read("train")
    rows = list(trained_rows(run))
    for step in steps:
        so_far = [row for row in rows if row.step <= step["step"]]
        assert step["tokens/generated"] == sum(map(generated, so_far))
        # one token in each attempt of mining, and one attempt per failure
        assert step["tokens/mining"] == (0 if objective != "reflection" else len({row.id for row in so_far}))
    spent = [step["tokens/generated"] + step["tokens/mining"] for step in steps]
    assert all(tokens < 200 for tokens in spent[:-1])
    assert spent[-1] >= 200
    assert len(steps) < 10, "the budget ended nothing: the test shows nothing"
    assert all(step["tokens/trained"] > 0 for step in steps)
    again = trained(tmp_path / "run", config, model=password.beginner())
    assert again.read("train") == steps, "the spent budget allows no further step"


def test_a_budget_that_is_not_reached_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = password.config(steps=1, train={"budget_tokens": 10**9})
    trained(tmp_path / "run", config, model=password.beginner())
    assert "note: training ended at grpo.max_steps=1" in capsys.readouterr().err


def mined(model: LlamaForCausalLM) -> list[Episode]:
    """Return every attempt at every door, right or wrong, as mining records them."""
    tokenizer = password.tokenizer()
    return [
        Episode(
            example=example,
            attempt=Answer(
                text=word,
                tokens=1,
                token_ids=tokenizer.encode(word, add_special_tokens=False),
                verdict=Verdict.passed() if word == example.answer else Verdict.failed(),
            ),
        )
        for example in password.Doors().load("train")
        for word in password.WORDS
    ]


def divergence(base: LlamaForCausalLM, model: LlamaForCausalLM) -> float:
    """Return the mean KL(base || model) of the first token of an attempt, and of the one after it, by hand."""
    tokenizer, protocol = password.tokenizer(), password.protocol(password.config(steps=1))
    found = []
    for episode in mined(base):
        prompt = encode(tokenizer, protocol.attempt_request(episode.example))
        ids = torch.tensor([prompt + (episode.attempt.token_ids or [])])
        with torch.no_grad():
            p, q = (one(input_ids=ids).logits[0, len(prompt) - 1 :].log_softmax(-1) for one in (base, model))
        found += (p.exp() * (p - q)).sum(-1).tolist()
    return sum(found) / len(found)


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_the_anchor_holds_first_attempts_to_the_base(lora: dict[str, Any] | None, tmp_path: Path) -> None:
    folder = password.saved(tmp_path / "base")
    found = {}
    for weight in (0.0, 5.0):
        model = AutoModelForCausalLM.from_pretrained(folder)
        torch.manual_seed(0)
        config = password.config(steps=20, learning_rate=5e-3, lora=lora, train={"anchor": weight})
        run = trained(tmp_path / f"run{weight}", config, model=model, attempts=mined(model))
        rows = run.read("train")
        found[weight] = divergence(
            AutoModelForCausalLM.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(run.path / "model")
        )
        assert ("anchor/kl" in rows[0]) == (weight > 0)
        if weight:
            assert rows[0]["anchor/kl"] == pytest.approx(0, abs=1e-6), "nothing has been updated before the first step"
            assert rows[-1]["anchor/kl"] > 1e-6
        assert "kl" not in rows[0], "TRL's own KL term stays off"
    assert found[5.0] < 0.5 * found[0.0]


def test_an_anchor_without_attempts_is_an_error(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(password.saved(tmp_path / "base"))
    with pytest.raises(RunError, match="requires the tokens of the mined attempts"):
        trained(tmp_path / "run", password.config(steps=1, train={"anchor": 1.0}), model=model)
