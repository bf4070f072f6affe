"""Training in a run directory: what is learned and logged, and how it resumes after a kill."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import password
import pytest
import torch
from kills import assert_same_training, assert_same_weights, killed
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from r3core import Example, RunError, Task
from r3core.config import Config
from r3core.generation.transformers import TransformersGenerator
from r3core.runs import Run, RunRecord
from r3core.sections import Limits
from r3core.train import train
from r3core.training.checkpoints import last_checkpoint
from r3core.training.precision import rounding_warning, training_dtype
from r3core.training.trackers import EPISODES

pytestmark = pytest.mark.slow

LEARNING: dict[str, Any] = {"steps": 60}
OWN_METRICS = {
    f"train/{name}"
    for name in (
        "groups/mixed",
        "groups/unjudged",
        "reflections/leak_rate",
        "reflections/read_by_retry",
        "retries/truncated",
        "retries/unjudged",
        "seconds/generation",
        "seconds/verification",
        "seconds/training",
    )
}
"""Metrics of r3 that trackers receive beside TRL's own."""


def trained(path: Path, config: Config, *, model: LlamaForCausalLM | None = None, task: Task | None = None) -> Run:
    model = model or password.beginner()
    with Run.open(path, config.record()) as run:
        train(
            run,
            password.protocol(config, task),
            password.failures(),
            model=model,
            tokenizer=password.tokenizer(),
        )
    return run


def rates(model: LlamaForCausalLM, config: Config) -> tuple[float, float]:
    """Return the shares of reflections that name the password, and of retries that pass, over 40 per failure."""
    generator = TransformersGenerator(model, password.tokenizer())
    protocol = password.protocol(config)
    episodes = [failure.episode() for failure in password.failures() for _ in range(40)]
    episodes = protocol.reflect(episodes, generator, seed=1)
    episodes = protocol.retry(episodes, generator, seed=2)
    named = sum(episode.reflection is not None and episode.reflection.text == "red" for episode in episodes)
    passed = sum(episode.retries["reflect"].verdict.outcome == "pass" for episode in episodes)
    return named / len(episodes), passed / len(episodes)


def test_training_learns_the_reflections_that_make_the_retry_pass(tmp_path: Path) -> None:
    config = password.config(**LEARNING)
    model = password.beginner()
    named, passed = rates(model, config)
    assert named < 0.2, "the model should begin near chance, which is 1/8"
    assert passed < 0.2, "the model should begin near chance, which is 1/8"
    run = trained(tmp_path / "run", config, model=model)
    named, passed = rates(model, config)
    assert named > 0.5
    assert passed > 0.9
    rewards = [row["reward"] for row in run.read("train")]
    assert sum(rewards[:3]) / 3 < 0.3
    assert sum(rewards[-10:]) / 10 > 0.9
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert rates(saved, config) == (named, passed)


def test_shuffled_rewards_teach_nothing(tmp_path: Path) -> None:
    config = password.config(**LEARNING, train={"shuffle_rewards": True})
    model = password.beginner()
    trained(tmp_path / "run", config, model=model)
    named, passed = rates(model, config)
    assert named < 0.4
    assert passed < 0.4


def tolerant(config: Config, *, max_group_errors: float = 1.0) -> Config:
    """Return a configuration under which a run continues whatever the share of verifier errors."""
    return config.model_copy(update={"judge": Limits(max_errors=1.0, max_group_errors=max_group_errors)})


def test_an_unjudged_retry_earns_no_reward(tmp_path: Path) -> None:
    config = tolerant(password.config(steps=1, per_device_train_batch_size=16))
    run = trained(tmp_path / "run", config, model=password.beginner(), task=password.BrokenVerifier())
    rows = run.read("train-episodes")
    outcomes = [row["retries"][0]["verdict"]["outcome"] for row in rows]
    expected = {"pass": 1.0, "fail": 0.0, "error": None}
    assert [row["reward"] for row in rows] == [expected[outcome] for outcome in outcomes]
    assert outcomes.count("error") > 0
    [step] = run.read("train")
    assert step["retries/unjudged"] == pytest.approx(outcomes.count("error") / len(outcomes))
    assert step["reward"] == pytest.approx(outcomes.count("pass") / (len(outcomes) - outcomes.count("error")))


@pytest.mark.parametrize("max_group_errors", [0.0, 0.375, 1.0])
def test_a_group_with_too_many_errors_teaches_nothing(tmp_path: Path, max_group_errors: float) -> None:
    config = tolerant(password.config(steps=1), max_group_errors=max_group_errors)
    run = trained(tmp_path / "run", config, model=password.beginner(), task=password.BrokenVerifier())
    rows = run.read("train-episodes")
    groups = [rows[start : start + 16] for start in range(0, len(rows), 16)]
    shares = [sum(row["retries"][0]["verdict"]["outcome"] == "error" for row in group) / 16 for group in groups]
    assert min(shares) > 0, "the verifier breaks in every group, else the test shows too little"
    without = [all(row["reward"] is None for row in group) for group in groups]
    assert without == [share > max_group_errors for share in shares]
    [step] = run.read("train")
    assert step["groups/unjudged"] == sum(without) / len(groups)
    if all(without):
        assert step["grad_norm"] == 0


def test_training_stops_when_too_many_retries_cannot_be_judged(tmp_path: Path) -> None:
    config = password.config(steps=5, per_device_train_batch_size=16)
    with pytest.raises(RunError, match="the verifier of task `doors` could not judge"):
        trained(tmp_path / "run", config, model=password.beginner(), task=password.BrokenVerifier())
    assert not (tmp_path / "run" / "model").exists()


def test_fewer_failures_than_a_generation_uses_are_an_error(tmp_path: Path) -> None:
    config = password.config(steps=1, per_device_train_batch_size=512)
    with pytest.raises(RunError, match="14 failures are too few to train on"):
        trained(tmp_path / "run", config)


def test_every_step_is_logged_in_full(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", password.config(steps=3))
    rows = run.read("train")
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        shares = ["groups/mixed", "groups/all_right", "groups/all_wrong", "reflections/leak_rate"]
        shares += ["reflections/truncated", "retries/unjudged", "reward"]
        assert all(0 <= row[name] <= 1 for name in shares)
        assert row["groups/mixed"] + row["groups/all_right"] + row["groups/all_wrong"] == pytest.approx(1)
        assert 1 <= row["completions/mean_length"] <= 4
        seconds = {name: row[f"seconds/{name}"] for name in ("generation", "verification", "training", "rest")}
        assert all(value > 0 for value in seconds.values())
    episodes = run.read("train-episodes")
    assert [row["step"] for row in episodes] == [step for step in (1, 2, 3) for _ in range(64)]
    assert sum(row["reward"] for row in episodes[:64]) / 64 == pytest.approx(rows[0]["reward"])
    assert run.seconds()["train"] >= sum(row["seconds/training"] for row in rows)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "undisturbed"
    return trained(path, password.config(**password.KILLED), model=password.beginner())


def outcome_of(run: Run) -> list[tuple[Any, ...]]:
    """Return what training did step by step, without times; a step without a generation has no reward."""
    names = ("step", "loss", "grad_norm", "reward", "num_tokens")
    return [tuple(row.get(name) for name in names) for row in run.read("train")]


@pytest.mark.parametrize("step", [4, 9], ids=["in the first epoch", "in the second"])
def test_killed_training_resumes_with_the_results_of_an_undisturbed_run(
    step: int, tmp_path: Path, undisturbed: Run
) -> None:
    path = tmp_path / "run"
    killed(path, step)
    checkpoints = path / "checkpoints"
    assert (checkpoints / f"checkpoint-{step - 1}" / "complete").exists()
    torn = checkpoints / f"checkpoint-{step}"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half a mo")

    config = password.config(**password.KILLED)
    run = trained(path, config, model=password.beginner())
    assert [row["step"] for row in run.read("train")] == list(range(1, 11))
    assert len(run.read("sessions")) == 2
    assert any(loss != 0 for _, loss, *_ in outcome_of(run)), "nothing was learned: the test shows nothing"
    assert outcome_of(run) == outcome_of(undisturbed)
    assert_same_training(run, undisturbed)


REUSED = [
    {"num_iterations": 2},
    {"steps_per_generation": 2, "save_steps": 1},
    {
        "num_iterations": 2,
        "steps_per_generation": 3,
        "gradient_accumulation_steps": 3,
        "per_device_train_batch_size": 8,
    },
]
"""Ways in which a generation serves several steps; the last one serves two."""


@pytest.mark.parametrize("options", REUSED, ids=["iterations", "steps", "both"])
def test_training_killed_within_a_generation_resumes_where_one_begins(options: dict[str, Any], tmp_path: Path) -> None:
    config = password.config(**(password.KILLED | options))
    undisturbed = trained(tmp_path / "undisturbed", config, model=password.beginner())
    path = tmp_path / "run"
    printed = killed(path, 6, **options)
    assert sorted(one.name for one in (path / "checkpoints").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert [row["step"] for row in RunRecord(path).read("train")] == [1, 2, 3, 4, 5]
    assert "note: a checkpoint every 2 steps, as a generation serves several steps" in printed

    run = trained(path, config, model=password.beginner())
    assert [row["step"] for row in run.read("train")] == list(range(1, 11))
    assert outcome_of(run) == outcome_of(undisturbed)
    assert_same_training(run, undisturbed)


def test_the_options_that_trl_resolves_are_recorded(undisturbed: Run) -> None:
    stored = undisturbed.read_json("config")
    resolved = stored["grpo_resolved"]
    assert {key: resolved[key] for key in ("loss_type", "scale_rewards", "epsilon", "num_iterations", "beta")} == {
        "loss_type": "dapo",
        "scale_rewards": "group",
        "epsilon": 0.2,
        "num_iterations": 1,
        "beta": 0.0,
    }
    assert (resolved["learning_rate"], resolved["num_generations"]) == (1e-3, 8)
    assert str(undisturbed.path) not in json.dumps(stored)
    with Run.open(undisturbed.path, password.config(**password.KILLED).record()):
        assert undisturbed.read_json("config") == stored, "the resolved options are no part of what identifies a run"


def bfloat16_model(tmp_path: Path) -> LlamaForCausalLM:
    password.beginner().to(torch.bfloat16).save_pretrained(tmp_path / "base")
    return AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="float32")


PAPER: dict[str, Any] = {"learning_rate": 5e-7, "lr_scheduler_type": "cosine", "warmup_steps": 0.03}


def test_weights_saved_in_16_bits_are_trained_in_32(tmp_path: Path) -> None:
    base = bfloat16_model(tmp_path)
    before = {name: weight.detach().clone() for name, weight in base.named_parameters()}
    config = password.config(steps=3, save_strategy="steps", **PAPER)
    with Run.open(tmp_path / "run", config.record()) as run:
        protocol = password.protocol(config)
        train(
            run,
            protocol,
            password.failures(),
            model=base,
            tokenizer=password.tokenizer(),
            saved_dtype=torch.bfloat16,
        )
    state = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoints" / "checkpoint-3", dtype="auto")
    changed = sum(int((weight != before[name]).sum()) for name, weight in state.named_parameters())
    assert state.dtype == torch.float32
    assert changed / sum(weight.numel() for weight in before.values()) > 0.9
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype="auto")
    assert saved.dtype == torch.bfloat16
    assert saved.config.dtype == torch.bfloat16


def test_a_warning_names_the_share_of_updates_that_16_bits_round_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = password.beginner().to(torch.bfloat16)
    assert rounding_warning(model, 1.0) == ""
    assert rounding_warning(model.float(), 5e-7) == ""
    config = password.config(steps=1, **PAPER)
    trained(tmp_path / "run", config, model=model.to(torch.bfloat16))
    err = capsys.readouterr().err
    assert re.search(r"warning: (9\d|100)% of the trained weights are in bfloat16, where an update", err)
    assert "(5e-07) is rounded away" in err
    model.lm_head.requires_grad_(False)
    assert "hint: raise grpo.learning_rate" in rounding_warning(model.bfloat16(), 5e-7), "an adapter is what is trained"


def test_the_share_of_rounding_warning_is_known_from_the_distance_of_values() -> None:
    model = password.beginner(steps=0).to(torch.bfloat16)
    weights = torch.cat([weight.detach().float().abs().flatten() for weight in model.parameters()])
    half = torch.exp2(weights.log2().floor()) * torch.finfo(torch.bfloat16).eps / 2  # of the distance to the next value
    warning = rounding_warning(model, 1e-4)
    assert f"warning: {(half > 1e-4).float().mean():.0%} of the trained weights" in warning


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({}, "float32"),
        ({"dtype": "bfloat16"}, "float32"),
        ({"train": {"dtype": "bfloat16"}}, "bfloat16"),
        ({"lora": {"r": 4}}, "auto"),
        ({"lora": {"r": 4}, "dtype": "bfloat16"}, "bfloat16"),
    ],
)
def test_the_dtype_of_training(settings: dict[str, Any], dtype: str) -> None:
    assert training_dtype(Config(task="toy", **settings)) == dtype


def test_master_weights_of_fsdp_leave_the_saved_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("ACCELERATE_USE_FSDP", "true"), ("FSDP_VERSION", "2")):
        monkeypatch.setenv(name, value)
    assert training_dtype(Config(task="toy", grpo={"bf16": True})) == "auto"
    assert training_dtype(Config(task="toy", grpo={"bf16": False})) == "float32", "nothing makes 32-bit copies"


def test_a_run_killed_after_its_last_step_trains_no_further(tmp_path: Path, undisturbed: Run) -> None:
    path = tmp_path / "run"
    config = password.config(**password.KILLED)
    shutil.copytree(undisturbed.path / "checkpoints", path / "checkpoints")
    run = trained(path, config, model=password.beginner())
    assert run.read("train") == []
    assert run.read("train-episodes") == []
    assert_same_weights(run.path / "model", undisturbed.path / "model")


def test_only_a_complete_checkpoint_is_resumed_from(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    for step, complete in ((9, True), (10, True), (11, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if complete:
            (tmp_path / f"checkpoint-{step}" / "complete").touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]


def test_checkpoints_are_marked_complete(undisturbed: Run) -> None:
    checkpoints = undisturbed.path / "checkpoints"
    assert sorted(path.parent.name for path in checkpoints.glob("*/complete")) == ["checkpoint-10", "checkpoint-9"]


def test_the_model_folder_holds_no_pickle(undisturbed: Run) -> None:
    names = {path.name for path in (undisturbed.path / "model").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]


def test_steps_are_reported_to_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trained(tmp_path / "run", password.config(steps=2, report_to="tensorboard"))
    [events] = (tmp_path / "run").rglob("events.out.tfevents.*")
    written = EventAccumulator(str(events)).Reload()
    rewards = [event.value for event in written.Scalars("train/reward")]
    assert rewards == pytest.approx([row["reward"] for row in run.read("train")])
    assert set(written.Tags()["scalars"]) >= OWN_METRICS
    texts = [event.tensor_proto.string_val[0].decode() for event in written.Tensors("episodes/text_summary")]
    reported = [re.findall(r"^    (\w+): (.*)$", text, flags=re.MULTILINE) for text in texts]
    assert [dict(of_step)["step"] for of_step in reported] == ["1", "2"]
    episodes = run.read("train-episodes")
    assert {value for of_step in reported for name, value in of_step if name == "reflection"} <= {
        row["reflection"]["text"] for row in episodes
    }


def test_steps_are_reported_to_trackio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trackio.sqlite_storage import SQLiteStorage

    run = trained(tmp_path / "run", password.config(steps=2, report_to="trackio", project="doors", run_name="one"))
    written = [row for row in SQLiteStorage.get_logs("doors", "one") if "train/reward" in row]
    assert [row["train/reward"] for row in written] == [row["reward"] for row in run.read("train")]
    assert all(row.keys() >= OWN_METRICS for row in written)
    tables = [row["episodes"]["_value"] for row in SQLiteStorage.get_logs("doors", "one") if "episodes" in row]
    assert [{row["step"] for row in table} for table in tables] == [{1}, {2}]
    assert all(len(table) == EPISODES for table in tables)
    recorded = {(row["step"], row["id"], row["reflection"]["text"]) for row in run.read("train-episodes")}
    assert {(row["step"], row["id"], row["reflection"]) for table in tables for row in table} <= recorded
    assert capsys.readouterr().out == "", "standard output belongs to --json"


def test_steps_are_reported_to_wandb_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    wandb.teardown()  # it has read these variables already when an earlier test of this process used it
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    trained(tmp_path / "run", password.config(steps=2, report_to="wandb"))
    wandb.teardown()  # writes what is still in memory
    [record] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert all(name.encode() in record.read_bytes() for name in OWN_METRICS)
    tables = [json.loads(path.read_text()) for path in tmp_path.glob("wandb/offline-run-*/files/media/table/*.json")]
    assert {row[0] for table in tables for row in table["data"]} == {1, 2}
    columns = ["step", "id", "reflection", "retry", "verdict", "reward", "leaked"]
    assert all(table["columns"] == columns and len(table["data"]) == EPISODES for table in tables)
    assert capsys.readouterr().out == "", "standard output belongs to --json"


def test_failures_that_leave_no_room_for_a_reflection_are_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = password.failures()
    long = failures[3].model_copy(update={"prompt": [{"role": "user", "content": "long " * 20}], "id": "long"})
    config = password.config(steps=2, per_device_train_batch_size=16, save_strategy="no")
    config = config.model_copy(update={"max_overlong": 0.1})
    with Run.open(tmp_path / "run", config.record()) as run:
        protocol = password.protocol(config, PromptDoors())
        given = [*failures[:3], long, *failures[4:]]
        train(run, protocol, given, model=password.beginner(), tokenizer=password.tokenizer())
    err = capsys.readouterr().err
    assert "warning: 1 of 14 failures leave no room for a reflection in the model's context and are skipped" in err
    assert "failure 'long': a prompt of " in err
    assert {row["id"] for row in run.read("train-episodes")} <= {failure.id for failure in failures}
    strict = config.model_copy(update={"max_overlong": 0.05})
    refused = pytest.raises(RunError, match=r"1 of 14 failures leave no room .* the maximum is 5%")
    with Run.open(tmp_path / "strict", strict.record()) as run, refused:
        train(
            run,
            password.protocol(strict, PromptDoors()),
            given,
            model=password.beginner(),
            tokenizer=password.tokenizer(),
        )


class PromptDoors(password.Doors):
    """Doors whose prompt is that of the failure."""

    def prompt(self, example: Example) -> Any:
        return example.prompt


def test_a_retry_that_does_not_fit_costs_no_step(tmp_path: Path) -> None:
    config = password.config(steps=1, per_device_train_batch_size=16)
    turns = config.sampling.model_copy(update={"retry": config.sampling.retry.model_copy(update={"max_tokens": 52})})
    config = config.model_copy(update={"sampling": turns, "max_overlong": 1.0})
    run = trained(tmp_path / "run", config, model=password.beginner())
    rows = run.read("train-episodes")
    stopped = [row["retries"][0]["stopped"] for row in rows]
    assert "overlong" in stopped
    assert all(row["reward"] is None for row, how in zip(rows, stopped, strict=True) if how == "overlong")
