"""Whole runs of a toy task on a tiny model: `r3 run` in processes of its own, which are killed on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import password
import pytest
from toy import Even

from r3core import Example, RunError, Split, UsageError, get_task, report
from r3core.check import certificate_of
from r3core.cli.main import main
from r3core.config import Config, resolve
from r3core.evaluation.result import Result
from r3core.failures import read_failures
from r3core.pipeline import Pipeline
from r3core.runs import RunRecord
from r3core.sections import Limits
from r3core.training.checkpoints import changed_share
from r3core.verification.pool import workers_of

pytestmark = pytest.mark.slow

TASK = f"{Path(__file__).with_name('support') / 'toy.py'}:Even"
BATCH, MINED, TESTED, STEPS, REFLECTIONS = 4, 64, 24, 6, 8
SETTINGS = [
    *(f"sampling.{turn}.max_tokens=6" for turn in ("attempt", "reflection", "retry")),
    *("evaluate.controls=true", "evaluate.cross=true", f"evaluate.limit={TESTED}"),
    *(f"batch_size={BATCH}", f"mine.limit={MINED}", "mine.probe=4"),
    *(f"grpo.max_steps={STEPS}", f"grpo.per_device_train_batch_size={REFLECTIONS}", "grpo.num_generations=4"),
    *("grpo.gradient_accumulation_steps=1", "grpo.gradient_checkpointing=false", "grpo.learning_rate=1e-3"),
    "mine.keep_truncated=true",  # a random model ends no turn
    "uncertified=true",  # `Even` lets almost everything pass
]


def command(model: Path, directory: Path, *more: str) -> list[str]:
    program = [sys.executable, "-c", "from r3core.cli.main import main; main()", "run", "--task", TASK, "--json"]
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    options = ["--task-option", "problems=64", "--model", str(model), "--output-dir", str(directory)]
    return [*program, *options, *settings, *more]


def started(model: Path, directory: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"TOY_VERDICTS": str(directory.with_suffix(".verdicts"))}
    return subprocess.Popen(
        command(model, directory), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def verdicts(directory: Path) -> int:
    """Return how many responses were judged for a run so far, by all its processes."""
    return directory.with_suffix(".verdicts").read_bytes().count(b"\n")


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the object that a command printed, after checking that it printed nothing else."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    told: dict[str, Any] = json.loads(out)
    return told


def stopped_at(process: subprocess.Popen[str], rows: Path, count: int) -> None:
    """Halt a process as soon as a file has so many rows."""
    while not rows.exists() or rows.read_bytes().count(b"\n") < count:
        try:
            _, err = process.communicate(timeout=0.005)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"the process ended before {rows.name} had {count} rows: {err}")
    process.send_signal(signal.SIGSTOP)


def killed(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def undisturbed(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A whole run, and what it printed; do not write to it."""
    directory = tmp_path_factory.mktemp("runs") / "undisturbed"
    printed = StringIO()
    certificate_of(get_task(TASK, problems=64), Limits())  # now, so that no run has its verdicts among its own
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setenv("TOY_VERDICTS", str(directory.with_suffix(".verdicts")))
        patch.setattr(sys, "argv", ["r3", *command(tiny_folder, directory)[3:]])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert not stopped.value.code
    return directory, json.loads(printed.getvalue())


def test_a_run_goes_from_problems_to_a_model_and_a_result(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    directory, told = undisturbed
    assert set(told) == {"base", "trained", "paired", "cross", "reflections", "problems", "also", "greedy"} | {
        "seconds",
        "shares_of_a_step",
    }
    assert {"mine", "forecast", "train", "evaluate"} <= set(told["seconds"])
    assert told["base"]["first"]["total"] == told["trained"]["first"]["total"] == TESTED
    assert list(told["base"]["controls"]) == ["none", "generic", "shuffled", "placebo", "resample"]
    record = RunRecord(directory)
    assert record.done("mine") is not None
    assert record.done("train") is not None
    assert [row["step"] for row in record.read("train")] == list(range(1, STEPS + 1))
    failures, _ = read_failures(directory)
    assert 0 < len(failures) < MINED
    assert 0 < told["base"]["first"]["passed"] < TESTED  # else it would show nothing


def test_the_trained_model_is_a_plain_one(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory, _ = undisturbed
    folder = directory / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say 1."}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**asked, max_new_tokens=3, do_sample=False).shape[1] > asked["input_ids"].shape[1]
    assert not list(folder.glob("*.bin"))
    card = (folder / "README.md").read_text()
    assert "| second try |" in card
    assert '"max_steps": 6' in card


def test_a_finished_run_is_over_at_once(
    undisturbed: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
) -> None:
    directory, told = undisturbed
    monkeypatch.setattr("r3core.generation.models.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setenv("TOY_VERDICTS", str(directory.with_suffix(".verdicts")))
    before = verdicts(directory)
    with opened(directory, tiny_folder) as stages:
        stages.mine()
        stages.train()
        assert stages.evaluate() == stages.report() == Result.model_validate(without_seconds(told))
    assert verdicts(directory) == before


def without_seconds(told: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in told.items() if key not in ("seconds", "shares_of_a_step")}


def opened(directory: Path, model: Path, *overrides: str) -> Any:
    return Pipeline.open(*task_and_config(directory, model, *overrides))


def task_and_config(directory: Path, model: Path, *overrides: str) -> tuple[Even, Config]:
    task: Any = get_task(TASK, problems=64)
    flags = {"task": TASK, "model": str(model), "output_dir": directory}
    return task, resolve(task, overrides=[*SETTINGS, *overrides], flags=flags)


def test_a_run_that_is_killed_again_and_again_ends_like_any_other(
    undisturbed: tuple[Path, dict[str, Any]], tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "killed"
    record = RunRecord(directory)
    for name, rows, stage in (
        ("mine.jsonl", 2 * BATCH, "mine"),
        ("train.jsonl", 2, "train"),
        ("evaluate-base.jsonl", 2 * BATCH, "evaluate"),
    ):
        process = started(tiny_folder, directory)
        stopped_at(process, directory / name, rows)
        assert record.done(stage) is None  # it is in the middle of the stage
        if stage == "mine":
            refused(directory, tiny_folder, process.pid, capfd)
        killed(process)
    told = ended(started(tiny_folder, directory))

    whole, expected = undisturbed
    assert read_failures(directory)[0] == read_failures(whole)[0]
    for name in ("mine.jsonl", "failures/failures.jsonl", "evaluate-base.jsonl"):
        assert (directory / name).read_bytes() == (whole / name).read_bytes()
    assert told["base"] == expected["base"]
    assert keys_of(told) == keys_of(expected)
    steps = Counter(row["step"] for row in record.read("train"))
    assert set(steps) == set(range(1, STEPS + 1))
    assert steps.total() <= STEPS + 1  # at most the step in flight was made again
    # In flight were a batch of attempts, a step's retries, and a batch of attempts with its six arms; and each of the
    # three new starts had new workers, which judge one answer for nobody.
    in_flight = BATCH + REFLECTIONS + 7 * BATCH
    assert verdicts(directory) <= verdicts(whole) + in_flight + 3 * workers_of(Limits())


def refused(directory: Path, model: Path, pid: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Check that this process cannot work on the run while another does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["r3", *command(model, directory)[3:]])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert stopped.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert f"error: the run directory `{directory}` is in use by process {pid}\nhint: wait for it" in err


def keys_of(told: Any) -> Any:
    if isinstance(told, dict):
        return {key: keys_of(value) for key, value in told.items()}
    return type(told) if not isinstance(told, int) else float


# From here on, single stages in this process.


@pytest.fixture
def stages(tmp_path: Path, tiny_folder: Path) -> Iterator[Pipeline]:
    with opened(tmp_path / "run", tiny_folder, "mine.limit=8", "evaluate.limit=4", "batch_size=16") as stages:
        yield stages


def test_training_needs_failures(stages: Pipeline) -> None:
    with pytest.raises(UsageError, match=r"there are no failures in .* yet"):
        stages.train()


def test_a_report_needs_an_evaluation(stages: Pipeline) -> None:
    with pytest.raises(RunError, match="was not evaluated yet"):
        stages.report()


def test_an_evaluation_without_training_has_the_base_alone(stages: Pipeline) -> None:
    result = stages.evaluate()
    assert result.trained is None
    assert stages.report() == result
    assert not (stages.run.path / "model").exists()


def test_an_evaluation_is_made_again_once_a_model_was_trained(
    undisturbed: tuple[Path, dict[str, Any]], stages: Pipeline
) -> None:
    alone = stages.evaluate()
    result = stages.compare(undisturbed[0] / "model")
    assert result.base == alone.base  # its episodes are there already
    assert result.trained is not None


def test_the_forecast_is_printed_after_mining(stages: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    stages.mine()
    assert "forecast from " in capsys.readouterr().err
    stages.mine()
    assert capsys.readouterr().err == ""
    (stages.run.path / "forecast.json").unlink()  # as after a kill between mining and forecast
    stages.mine()
    assert "forecast from " in capsys.readouterr().err


def test_failures_of_another_run_are_taken_over_with_their_provenance(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = undisturbed[0]
    with opened(tmp_path / "run", tiny_folder, f"mine.failures={source}", "mine.probe=2") as stages:
        failures = stages.mine()
        assert (failures, read_failures(stages.run.path)[1]) == read_failures(source)
        assert stages.run.done("mine") == {"failures": len(failures), "from": str(source)}
        assert stages.run.read("mine") == []  # nothing was attempted
    said = capsys.readouterr()
    assert "forecast from 2 failures" in said.err
    assert "warning: the verifier" not in said.err


def changed_set(source: Path, copy: Path, rows: bool = True, **provenance: str) -> Path:
    copy.mkdir()
    card = json.loads((source / "failures/card.json").read_text())
    (copy / "card.json").write_text(json.dumps(card | provenance))
    (copy / "failures.jsonl").write_text((source / "failures/failures.jsonl").read_text() if rows else "")
    return copy


def test_a_verifier_that_changed_since_mining_is_warned_of(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = changed_set(undisturbed[0], tmp_path / "set", verifier_hash="0" * 16)
    with opened(tmp_path / "run", tiny_folder, f"mine.failures={source}", "mine.probe=0") as stages:
        stages.mine()
    assert "warning: the verifier has changed" in capsys.readouterr().err


def test_adopted_failures_whose_attempt_was_cut_off_are_left_out(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = undisturbed[0]
    whole = [one for one in read_failures(source)[0] if one.attempt.stopped == "end"]
    cut = len(read_failures(source)[0]) - len(whole)
    assert cut > 0
    assert whole
    settings = (f"mine.failures={source}", "mine.probe=0", "mine.keep_truncated=false")
    with opened(tmp_path / "run", tiny_folder, *settings) as stages:
        assert stages.mine() == whole
    assert f"left out: {cut:,} failures whose attempt was cut off" in capsys.readouterr().err


def test_failures_that_do_not_fit_are_refused(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path, tiny_folder: Path
) -> None:
    other = changed_set(undisturbed[0], tmp_path / "other", task="countdown")
    empty = changed_set(undisturbed[0], tmp_path / "empty", rows=False)
    for source, message in (
        (other, "holds failures of task `countdown`, not of"),
        (empty, "has no failures to train on"),
        (tmp_path / "nowhere", "is not a failure dataset"),
    ):
        directory = tmp_path / f"run-{source.name}"
        with opened(directory, tiny_folder, f"mine.failures={source}") as stages:
            with pytest.raises(UsageError, match=message):
                stages.mine()
            assert stages.run.done("mine") is None


def test_a_chat_template_that_raises_is_found_before_mining(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    raising = "{% if messages | length > 1 %}{{ raise_exception('only one turn, please') }}{% endif %}"
    template = folder / "chat_template.jinja"
    template.write_text(raising + template.read_text(encoding="utf-8"), encoding="utf-8")
    config = Config(task="even", model=str(folder), output_dir=tmp_path / "run")
    with Pipeline.open(Even(), config) as stages:
        with pytest.raises(UsageError, match="does not accept the turns of a run: only one turn, please") as error:
            stages.mine()
        assert str(folder) in error.value.message
        assert stages.run.read("mine") == []


class Verbose(Even):
    """Problems of which some have a prompt that no context holds."""

    name = "verbose"
    long: int = 1

    def load(self, split: Split) -> Iterator[Example]:
        for number, example in enumerate(super().load(split)):
            yield example.model_copy(update={"prompt": "long " * 3000}) if number < self.long else example


def test_prompts_that_do_not_fit_are_left_out_and_counted(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {"max_tokens": 8}
    sampling = {"attempt": short, "reflection": short, "retry": short}
    settings = {"task": "verbose", "model": str(tiny_folder), "sampling": sampling, "output_dir": tmp_path / "run"}
    config = Config.model_validate(settings | {"mine": {"keep_truncated": True, "probe": 0}})
    with Pipeline.open(Verbose(), config) as stages:
        failures = stages.mine()
        counts = stages.run.done("mine")
        result = stages.evaluate()
    assert counts is not None
    assert (counts["overlong"], counts["error"], counts["attempts"]) == (1, 0, 24)
    assert 0 < len(failures) == counts["fail"] < 24
    assert "left out: 1 attempts whose prompt does not fit the model's context" in capsys.readouterr().err
    assert (result.base.overlong, result.base.errors, result.base.first.total) == (1, 0, 23)
    assert any("1 turns do not fit the model's context" in note for note in report.notes(result, config))


def test_a_run_stops_when_too_many_prompts_do_not_fit(tiny_folder: Path, tmp_path: Path) -> None:
    config = Config(task="verbose", model=str(tiny_folder), output_dir=tmp_path / "run")
    with (
        Pipeline.open(Verbose(long=2), config) as stages,
        pytest.raises(RunError, match=r"2 of 24 conversations do not fit the model's context; at most 5%") as error,
    ):
        stages.mine()
    assert "a prompt of 150" in error.value.hints[0]


def test_a_run_trains_a_16_bit_model_in_32_bits_and_saves_it_in_16(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "base"
    password.beginner().bfloat16().save_pretrained(folder)
    password.tokenizer().save_pretrained(folder)
    paper = {"learning_rate": 5e-7, "lr_scheduler_type": "cosine", "warmup_steps": 0.03}
    config = password.config(steps=3, save_strategy="steps", **paper)
    turns = config.sampling.model_copy(update={"attempt": config.sampling.reflection})  # of 4 tokens
    flags = {"model": str(folder), "output_dir": tmp_path / "run", "uncertified": True, "sampling": turns}
    with Pipeline.open(password.Halls(), config.model_copy(update=flags)) as stages:
        stages.mine()
        stages.train()
        facts = stages.run.done("train")
    base, state, saved = (
        AutoModelForCausalLM.from_pretrained(one, dtype="auto")
        for one in (folder, tmp_path / "run" / "checkpoints" / "checkpoint-3", tmp_path / "run" / "model")
    )
    assert (base.dtype, state.dtype, saved.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    assert changed_share(folder, tmp_path / "run" / "checkpoints" / "checkpoint-3") > 0.9, "the trained weights move"
    assert facts is not None
    assert facts["weights_changed"] == changed_share(folder, tmp_path / "run" / "model")
    assert facts["weights_changed"] < 0.01, "three steps are less than bfloat16 can tell"
    assert "of the weights in" in capsys.readouterr().err


def test_a_model_that_trl_cannot_train_is_refused_before_mining(tiny_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024, "initializer_range": 0.5}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape, **ends)).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    config = Config(task="even", model=str(tmp_path / "gpt2"), output_dir=tmp_path / "run")
    with (
        Pipeline.open(Even(), config) as stages,
        pytest.raises(UsageError, match="cannot be trained: its architecture"),
    ):
        stages.check_model()
