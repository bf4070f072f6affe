"""Evaluation during training: what it measures, that it disturbs nothing, which step is saved, and how it resumes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import password
import pytest
import torch
from command import R3, runner
from kills import assert_same_weights, killed, weights
from peft import PeftModel
from programs import settings
from safetensors.torch import load_file

from r3core import ConfigError, Example, RunError
from r3core.config import Config
from r3core.evaluation.validation import (
    Validation,
    best_of,
    check_validation,
    check_validation_split,
    describe_facts,
    explain_validation,
    problems_to_validate,
    since_best,
    steps_of,
)
from r3core.generation.scripted import ScriptedGenerator
from r3core.mine import check_splits
from r3core.protocol import Protocol
from r3core.runs import Run
from r3core.stats import wilson
from r3core.train import train

EVERY: dict[str, Any] = {"every": 4, "every_limit": 16}


@pytest.fixture
def r3(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> R3:
    return runner(monkeypatch, capfd, tmp_path)


def trained(path: Path, config: Config) -> tuple[Run, dict[str, Any]]:
    with Run.open(path, config.record()) as run:
        protocol = password.protocol(config, password.Halls())
        tokenizer = password.tokenizer()
        facts = train(run, protocol, password.failures(), model=password.beginner(), tokenizer=tokenizer)
    return run, facts


def row(step: int, passed: int, total: int = 10) -> Validation:
    rate = wilson(passed, total)
    rates = dict.fromkeys(("first", "second", "fix", "leaks"), rate)
    return Validation(step=step, **rates, control={"none": rate}, truncated={}, errors=0, tokens=9, seconds=1.0)


@pytest.mark.parametrize(
    ("scores", "best", "since"),
    [
        ([3], 0, 0),
        ([3, 4, 5], 20, 0),
        ([3, 5, 4, 5], 10, 2),  # an equal score is no improvement
        ([5, 5, 5], 0, 2),
        ([5, 4, 6, 2], 20, 1),
    ],
)
def test_the_best_step_is_the_earliest_with_the_highest_second_try(scores: list[int], best: int, since: int) -> None:
    rows = [row(10 * place, passed) for place, passed in enumerate(scores)]
    found = best_of(rows)
    assert found is not None
    assert found.step == best
    assert since_best(rows) == since


@pytest.mark.parametrize(
    ("every", "last", "steps"),
    [(None, 10, []), (4, 10, [0, 4, 8, 10]), (5, 10, [0, 5, 10]), (50, 10, [0, 10])],
)
def test_the_policy_is_evaluated_before_training_and_after_the_last_step(
    every: int | None, last: int, steps: list[int]
) -> None:
    assert steps_of(password.config(steps=last, evaluate={"every": every})) == steps


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"keep": "best"}}, r"`train.keep` cannot be best without evaluations during training"),
        ({"train": {"stop_after": 2}}, r"`train.stop_after` cannot be 2 without evaluations during training"),
        (
            {"train": {"keep": "best"}, "evaluate": {"every": 2, "split": "validation"}},
            r"`train.keep` cannot be best with `evaluate.split` 'validation'",
        ),
        ({"evaluate": {"every": 2}, "mine": {"split": "validation"}}, r"`mine.split` is that split"),
    ],
)
def test_settings_that_would_choose_or_measure_wrongly_are_refused(sections: dict[str, Any], message: str) -> None:
    config = Config.model_validate({"task": "doors", **sections})
    with pytest.raises(ConfigError, match=message):  # noqa: PT012
        check_splits(config)
        check_validation(config)


@pytest.mark.parametrize(
    "sections",
    [
        {"evaluate": {"split": "validation"}},
        {"evaluate": {"every": 2, "split": "validation"}},
        {"evaluate": {"every": 2}, "train": {"keep": "best", "stop_after": 3}},
        {"mine": {"split": "validation"}},
    ],
)
def test_other_settings_are_accepted(sections: dict[str, Any]) -> None:
    config = Config.model_validate({"task": "doors", **sections})
    check_splits(config)
    check_validation(config)


class NoValidation(password.Halls):
    """Halls without a validation split."""

    def load(self, split: Any) -> Any:
        return super().load(split) if split != "validation" else []


def test_a_task_without_a_validation_split_is_refused() -> None:
    check_validation_split(NoValidation(), password.config(steps=1))
    with pytest.raises(ConfigError, match="task `halls` has no problems in it"):
        check_validation_split(NoValidation(), password.config(steps=1, evaluate=EVERY))


def test_the_problems_are_the_same_for_every_seed() -> None:
    task = password.Halls()
    found = [problems_to_validate(task, password.config(steps=1, evaluate=EVERY, seed=seed)) for seed in (0, 1)]
    assert found[0] == found[1]
    assert len(found[0].examples) == 16
    assert all(example.id.startswith("validation-") for example in found[0].examples)


def test_a_plan_states_what_the_evaluations_cost() -> None:
    config = password.config(steps=10, evaluate=EVERY, train={"keep": "best", "stop_after": 2})
    lines = explain_validation(config, 1)
    # 4 evaluations of 16 problems with 4 + 4 + 2 x 4 tokens; 10 steps of 64 reflections with 4 + 4
    assert lines[0] == (
        "4 evaluations (step 0, every 4, the last) x 16 problems, at most 4 generations per problem; "
        "at most 1,024 tokens, where training generates at most 5,120 (20%)"
    )
    assert "the result is that of the test split" in lines[1]
    assert "stops after 2 evaluations in a row" in lines[2]
    assert explain_validation(password.config(steps=10), 1) == []


def test_a_dry_run_prints_the_cost_and_finds_a_missing_split(r3: R3, tmp_path: Path) -> None:
    password.beginner(steps=0).save_pretrained(tmp_path / "model")
    password.tokenizer().save_pretrained(tmp_path / "model")
    file = settings(tmp_path, tmp_path / "model", max_steps=4)
    command = ["run", "--config", file, "--set", "evaluate.every=2", "--dry-run"]
    result = r3(*command)
    assert result.code == 0, result.err
    assert "validation: 3 evaluations (step 0, every 2, the last) x 100 problems" in result.out
    result = r3(*command, "--task", f"{__file__}:NoValidation")
    assert result.code == 2
    assert "task `halls` has no problems in it" in result.err
    result = r3(*command, "--set", "train.stop_after=1", "--set", "evaluate.every=null")
    assert result.code == 2
    assert "`train.stop_after` cannot be 1 without evaluations during training" in result.err


def test_old_records_do_not_have_the_new_keys() -> None:
    record = password.config(steps=10).record()
    assert not {"every", "every_limit"} & record["evaluate"].keys()
    assert not {"keep", "stop_after"} & record["train"].keys()
    assert password.config(steps=10, evaluate=EVERY).record()["evaluate"]["every"] == 4


def test_a_generator_of_several_processes_is_called_without_conversations_too() -> None:
    """The other processes have some, and all of them gather the weights together."""

    class Together(ScriptedGenerator):
        collective = True

    config = password.config(steps=1)
    for kind, calls in ((Together, [1, 0, 0]), (ScriptedGenerator, [1])):
        protocol: Protocol = password.protocol(config)
        generator = kind(lambda conversation, rng: "red")
        episodes = protocol.attempt([Example(id="a", prompt="Left?", answer="red")], generator, seed=0)
        episodes = protocol.reflect(episodes, generator, seed=0)
        protocol.retry(episodes, generator, seed=0)
        assert generator.calls == calls


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    """Return a run with evaluations, whose best step is not its last, and the facts of its training."""
    return trained(tmp_path_factory.mktemp("runs") / "run", validated())


BEST: dict[str, Any] = {
    "evaluate": EVERY,
    "train": {"keep": "best"},
    "save_total_limit": 20,
    "lr_scheduler_type": "constant",
    "learning_rate": 3e-2,  # so high that what is learned by step 4 is lost at the end
}


def validated(**changes: Any) -> Config:
    return password.config(**(password.KILLED | BEST | changes))


def outcome_of(run: Run) -> list[tuple[Any, ...]]:
    """Return what training did step by step, without times and evaluations."""
    return [(row["step"], row["loss"], row["grad_norm"], row["reward"], row["num_tokens"]) for row in run.read("train")]


def evaluations_of(run: Run) -> list[Validation]:
    """Return the evaluations of a run, without their times."""
    return [Validation.model_validate(row | {"seconds": 0}) for row in run.read("validation")]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"r": 4, "lora_dropout": 0.5}], ids=["full", "dropout"])
def test_evaluations_do_not_change_what_is_trained(lora: dict[str, Any] | None, tmp_path: Path) -> None:
    options: dict[str, Any] = password.KILLED | {"steps": 6, "lora": lora}
    without, _ = trained(tmp_path / "without", password.config(**options))
    best = password.config(**options, evaluate=EVERY | {"every": 2}, train={"keep": "best"})
    run, _ = trained(tmp_path / "with", best)
    assert outcome_of(run) == outcome_of(without)
    assert run.read("train-episodes") == without.read("train-episodes")
    last = [one.path / "checkpoints" / "checkpoint-6" for one in (without, run)]
    name = "model.safetensors" if lora is None else "adapter_model.safetensors"
    states = [load_file(folder / name) for folder in last]
    assert [key for key in states[0] if not states[0][key].equal(states[1][key])] == []


@pytest.mark.slow
def test_each_evaluation_is_a_row_and_a_metric(undisturbed: tuple[Run, dict[str, Any]]) -> None:
    run, _ = undisturbed
    rows = [Validation.model_validate(row) for row in run.read("validation")]
    assert [row.step for row in rows] == [0, 4, 8, 10]
    for one in rows:
        assert one.first.total == one.second.total == 16
        assert one.fix.total == one.control["none"].total == 16 - one.first.passed
        assert one.second.passed == one.first.passed + one.fix.passed
        assert one.tokens >= 16
        assert one.seconds > 0
        assert one.truncated.keys() == {"attempt", "reflection", "retry"}
    logged = {row["step"]: row["validation/second"] for row in run.read("train") if "validation/second" in row}
    assert logged == {row.step: pytest.approx(row.second.rate) for row in rows if row.step}
    assert [row["step"] for row in run.read("train")] == list(range(1, 11))
    assert all(row["seconds/rest"] < 0.5 for row in run.read("train")[1:]), "an evaluation counts in no step's time"


@pytest.mark.slow
def test_the_model_is_that_of_the_best_step(undisturbed: tuple[Run, dict[str, Any]]) -> None:
    run, facts = undisturbed
    rows = evaluations_of(run)
    best = best_of(rows)
    assert best is not None
    assert best.step == 4, f"{[row.second.passed for row in rows]}: the test would show nothing"
    assert facts["steps"] == 10
    assert facts["validation"]["saved_step"] == best.step
    assert facts["validation"]["second"] == best.second.model_dump()
    checkpoints = run.path / "checkpoints"
    assert_same_weights(run.path / "model", checkpoints / f"checkpoint-{best.step}")
    assert weights(checkpoints / "checkpoint-10").keys() == weights(run.path / "model").keys()
    assert [path.name for path in checkpoints.glob("best-*")] == [f"best-{best.step}"]
    [line] = describe_facts(facts)
    assert line.startswith(f"model/ has the weights of step {best.step} of 10, the best second try of 4 evaluations")
    assert "the result is that of the test split" in line


KILLS = {
    "before an evaluation is recorded": ("validation", 4),
    "before the first is recorded": ("validation", 0),
    "between an evaluation and its checkpoint": ("train", 8),
    "between two evaluations": ("train", 6),
}


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "step"), KILLS.values(), ids=KILLS)
def test_training_killed_at_any_moment_saves_the_same_step(
    rows: str, step: int, tmp_path: Path, undisturbed: tuple[Run, dict[str, Any]]
) -> None:
    killed(tmp_path / "run", step, **(BEST | {"rows": rows, "save_total_limit": 2}))
    run, facts = trained(tmp_path / "run", validated(save_total_limit=2))
    expected, expected_facts = undisturbed
    assert len(run.read("sessions")) == 2
    assert evaluations_of(run) == evaluations_of(expected)
    assert outcome_of(run) == outcome_of(expected)
    kept = ("saved_step", "second", "evaluations", "tokens")
    assert [facts["validation"][key] for key in kept] == [expected_facts["validation"][key] for key in kept]
    assert_same_weights(run.path / "model", expected.path / "model")


@pytest.mark.slow
def test_training_stops_early_and_a_resume_does_not_continue_it(tmp_path: Path) -> None:
    config = validated(train={"keep": "best", "stop_after": 1}, evaluate=EVERY | {"every": 1}, **STILL)
    run, facts = trained(tmp_path / "run", config)
    rows = evaluations_of(run)
    assert [row.step for row in rows] == [0, 1], "with a learning rate of 0 the first evaluation brings no improvement"
    assert rows[0].second == rows[1].second, "the seeds of every evaluation are the same"
    assert facts["steps"] == 1
    assert facts["validation"]["stopped_early"] == {"step": 1, "without_improvement": 1}
    assert facts["validation"]["saved_step"] == 0
    assert [line.partition(":")[0] for line in describe_facts(facts)][1:] == [
        "no evaluation was better than that before training",
        "training stopped early at step 1",
    ]
    assert (run.path / "checkpoints" / "checkpoint-1" / "complete").exists()
    shutil.rmtree(run.path / "model")
    run, again = trained(run.path, config)
    assert again == facts
    assert [row["step"] for row in run.read("train")] == [1]
    assert_same_weights(run.path / "model", run.path / "checkpoints" / "best-0")


STILL: dict[str, Any] = {"learning_rate": 0.0, "steps": 3, "save_total_limit": 2}


@pytest.mark.slow
def test_without_checkpoints_everything_is_made_again(tmp_path: Path) -> None:
    config = validated(save_strategy="no", evaluate=EVERY | {"every": 1}, **STILL)
    run, facts = trained(tmp_path / "run", config)
    (run.path / "checkpoints" / ".best-0.partial").mkdir()
    run, again = trained(run.path, config)
    rows = evaluations_of(run)
    assert [row.step for row in rows] == [0, 1, 2, 3]
    assert again["validation"]["tokens"] == facts["validation"]["tokens"]
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["best-0"]


@pytest.mark.slow
def test_missing_weights_of_the_best_step_are_an_error(tmp_path: Path) -> None:
    config = validated(**STILL)
    run, _ = trained(tmp_path / "run", config)
    shutil.rmtree(run.path / "checkpoints" / "best-0")
    with pytest.raises(RunError, match=r"best-0` is missing: the weights of the best step so far"):
        trained(run.path, config)


@pytest.mark.slow
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "apart"])
def test_the_adapter_is_that_of_the_best_step(merge: bool, tmp_path: Path) -> None:
    """The adapter of another step is trained on while it is saved, so the base model must not change."""
    lora = {"r": 4, "lora_alpha": 16}
    options: dict[str, Any] = {"lora": lora, "train": {"keep": "best", "merge": merge}, "learning_rate": 0.03}
    run, facts = trained(tmp_path / "run", validated(**options))
    best = best_of(evaluations_of(run))
    assert best is not None
    assert 0 < best.step < 10, f"{[row.second.passed for row in evaluations_of(run)]}: the test would show nothing"
    assert facts["validation"]["saved_step"] == best.step
    adapters = [run.path / "checkpoints" / name for name in (f"checkpoint-{best.step}", f"best-{best.step}")]
    states = [load_file(folder / "adapter_model.safetensors") for folder in adapters]
    assert [name for name in states[0] if not states[0][name].equal(states[1][name])] == []
    if not merge:
        return assert_same_files(run.path / "model", adapters[1])
    expected = PeftModel.from_pretrained(password.beginner(), str(adapters[0])).merge_and_unload().state_dict()
    saved = weights(run.path / "model")
    assert saved.keys() == expected.keys()
    assert all(torch.allclose(saved[name], expected[name], atol=1e-6) for name in saved)
    return None


def assert_same_files(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    assert [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()] == []
