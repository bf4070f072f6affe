"""Training in two processes on the CPU: what it learns, which process writes, and what happens when one ends.

Tests with a backend run with those that `--backends` names: fsdp2, and deepspeed in `make test-deepspeed`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import password
import psutil
import pytest
import torch
import yaml
from command import R3, runner
from programs import finished, program, settings

from r3core import RunError, UsageError
from r3core.config import Config
from r3core.errors import ConfigError
from r3core.runs import ReadOnlyRun, Run, RunRecord
from r3core.training.checkpoints import last_checkpoint
from r3core.training.launch import World, _failure, check_machine, world_of

pytestmark = [pytest.mark.slow, pytest.mark.processes]

EXAMPLES = Path(__file__).parents[1] / "examples" / "accelerate"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return password.saved(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="module")
def how(backend: str, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Return the arguments with which a run trains in two processes."""
    if backend == "fsdp2":
        return ["--processes", 2]
    changed = {"num_processes": 2, "use_cpu": True}
    file = tmp_path_factory.mktemp("accelerate") / "deepspeed.yaml"
    file.write_text(yaml.safe_dump(example("8-gpus-deepspeed-zero3") | changed), encoding="utf-8")
    return ["--accelerate-config", file]


def example(name: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8"))
    return read


@pytest.fixture
def r3(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> R3:
    return runner(monkeypatch, capfd, tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, base: Path, how: list[object]) -> tuple[Run, str, str]:
    """Return a whole run that trained in two processes, its standard output and its standard error."""
    folder = tmp_path_factory.mktemp("runs")
    verdicts = folder / "verdicts"
    verdicts.mkdir()
    file = settings(folder, base, task=f"{password.__file__}:RecordedHalls")
    code, out, err = finished(
        program("run", "--config", file, *how, "--output-dir", folder / "run", "--json", DOORS=str(verdicts))
    )
    assert code == 0, err
    return RunRecord(folder / "run"), out, err


def test_two_processes_learn_together(trained: tuple[RunRecord, str, str]) -> None:
    run, _, _ = trained
    rewards = [row["reward"] for row in run.read("train")]
    assert len(rewards) == 60
    assert sum(rewards[:3]) / 3 < 0.3
    assert sum(rewards[-10:]) / 10 > 0.9
    result = run.read_json("result")
    assert result["base"]["second"]["passed"] / result["base"]["second"]["total"] < 0.4
    assert result["trained"]["second"]["passed"] / result["trained"]["second"]["total"] > 0.8


def test_weights_and_optimizer_states_are_sharded(trained: tuple[RunRecord, str, str], backend: str) -> None:
    run, _, _ = trained
    model = run.path / "model"
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {path.name for path in model.iterdir()}
    for step in (40, 60):
        folder = run.path / "checkpoints" / f"checkpoint-{step}"
        assert (folder / "complete").read_text() == f"2 processes ({'FSDP' if backend == 'fsdp2' else 'DEEPSPEED'})"
        if backend == "fsdp2":
            for part in ("pytorch_model_fsdp_0", "optimizer_0"):
                assert {path.name for path in (folder / part).glob("*.distcp")} == {"__0_0.distcp", "__1_0.distcp"}
        else:
            parts = [
                folder / f"global_step{step}" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)
            ]
            sizes = [part.stat().st_size for part in parts]
            assert sum(sizes) < 1.5 * 3 * 4 * 60_000, "more than one copy of weights and states, in 32 bits"
            assert max(sizes) < 0.7 * sum(sizes)


def test_one_process_writes_every_step_once(trained: tuple[RunRecord, str, str]) -> None:
    run, _, _ = trained
    assert [row["step"] for row in run.read("train")] == list(range(1, 61))
    episodes = run.read("train-episodes")
    assert Counter(row["step"] for row in episodes) == dict.fromkeys(range(1, 61), 64)
    assert len(run.read("sessions")) == 2, "of the run itself, and of the first process that trained"
    rewards = [sum(row["reward"] for row in episodes if row["step"] == step) / 64 for step in range(1, 61)]
    assert rewards == pytest.approx([row["reward"] for row in run.read("train")])


def test_no_failure_is_trained_on_twice_in_an_epoch(trained: tuple[RunRecord, str, str]) -> None:
    run, _, _ = trained
    failures = [row["id"] for row in run.read("failures/failures")]
    groups = [row["id"] for row in run.read("train-episodes")][::16]  # 4 groups of 16 a step
    assert [row["id"] for row in run.read("train-episodes")] == [name for name in groups for _ in range(16)]
    epoch = len(failures) // 4 * 4
    for start in range(0, len(groups) - epoch + 1, epoch):
        epoch_groups = groups[start : start + epoch]
        assert len(set(epoch_groups)) == epoch
        assert set(epoch_groups) <= set(failures)


def test_the_processes_sample_different_tokens(trained: tuple[RunRecord, str, str]) -> None:
    run, _, _ = trained
    texts = [row["reflection"]["text"] for row in run.read("train-episodes")[:64]]
    assert texts[:32] != texts[32:]


def test_each_process_has_its_own_verification_workers(trained: tuple[RunRecord, str, str]) -> None:
    run, _, _ = trained
    workers = {"0": set(), "1": set(), "alone": set()}
    for file in (run.path.parent / "verdicts").iterdir():
        rank, _, pid = file.name.partition("-")
        workers[rank].add(pid)
    assert all(workers.values())
    assert not workers["0"] & workers["1"]
    processors = os.cpu_count() or 1
    assert len(workers["0"]) <= max(1, processors // 2)
    judged = [line for file in (run.path.parent / "verdicts").glob("[01]-*") for line in file.read_text().splitlines()]
    assert len(judged) >= 60 * 64


def test_a_group_with_too_many_errors_has_no_reward_in_any_process(
    tmp_path: Path, base: Path, how: list[object]
) -> None:
    file = settings(tmp_path, base, task=f"{password.__file__}:BrokenVerifierHalls", max_steps=3, save_steps=3)
    limits = ["--set", "judge.max_errors=1", "--set", "judge.max_group_errors=0.3125"]
    code, _, err = finished(program("mine", "--config", file, *limits, "--output-dir", tmp_path / "run"))
    assert code == 0, err
    code, _, err = finished(program("train", "--output-dir", tmp_path / "run", *how))
    assert code == 0, err
    run = RunRecord(tmp_path / "run")
    rows = run.read("train-episodes")
    groups = [rows[start : start + 16] for start in range(0, len(rows), 16)]
    assert len(groups) == 3 * 2 * 2, "two groups in each of two processes"
    errors = [sum(row["retries"][0]["verdict"]["outcome"] == "error" for row in group) for group in groups]
    without = [all(row["reward"] is None for row in group) for group in groups]
    assert without == [count > 5 for count in errors]
    assert len(set(without)) == 2, f"errors in the groups: {errors}; the test shows too little"


def test_standard_output_has_only_the_result(trained: tuple[RunRecord, str, str]) -> None:
    import json

    _, out, err = trained
    assert json.loads(out)["trained"]["second"]["total"] == 32
    assert err.count("warning: trained on an untrusted verifier") == 1
    assert "Traceback" not in err


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, f"{path} was not written in time"
        time.sleep(0.01)


def training_processes(run: subprocess.Popen[str]) -> dict[str, psutil.Process]:
    """Return the training processes of a run by rank; the run's launcher is between them and the run."""
    children = psutil.Process(run.pid).children(recursive=True)
    training = [child for child in children if "train" in child.cmdline()]
    return {child.environ().get("RANK", "launcher"): child for child in training}


def outcome_of(run: RunRecord) -> list[tuple[Any, ...]]:
    return [(row["step"], row["loss"], row["grad_norm"], row["reward"], row["num_tokens"]) for row in run.read("train")]


@pytest.mark.parametrize("victim", ["0", "1", "launcher", "run"])
def test_a_training_resumes_after_one_of_its_processes_was_killed(
    victim: str, tmp_path: Path, base: Path, trained: tuple[RunRecord, str, str], how: list[object]
) -> None:
    file = settings(tmp_path, base, task=f"{password.__file__}:RecordedHalls")
    command = ["run", "--config", file, *how, "--output-dir", tmp_path / "run"]
    process = program(*command)
    wait_for(tmp_path / "run" / "checkpoints" / "checkpoint-20" / "complete", process)
    children = training_processes(process)
    assert children.keys() == {"0", "1", "launcher"}
    if victim == "run":
        process.kill()
        finished(process)
    else:
        children[victim].kill()
        code, _, err = finished(process)
        assert code == 1
        which = "the launcher" if victim == "launcher" else f"process {int(victim) + 1} of 2"
        assert f"error: {which} of the training was ended by SIGKILL, and the others with it" in err
        assert "hint: run the same command to resume from the last checkpoint" in err
        assert "Traceback" not in err
    _, alive = psutil.wait_procs(children.values(), timeout=0 if victim in "01" else 10)
    assert not alive, "these outlive the run that started them"
    code, _, err = finished(program(*command))
    assert code == 0, err
    run = RunRecord(tmp_path / "run")
    steps = {row[0]: row for row in outcome_of(run)}  # steps after the checkpoint may be there twice
    assert [steps[step] for step in range(1, 61)] == outcome_of(trained[0])
    weights = [(one.path / "model" / "model.safetensors").read_bytes() for one in (run, trained[0])]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_stopped_leaves_no_process_behind(
    number: signal.Signals, tmp_path: Path, base: Path, how: list[object]
) -> None:
    process = program("run", "--config", settings(tmp_path, base), *how, "--output-dir", tmp_path / "run")
    wait_for(tmp_path / "run" / "train.jsonl", process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert training_processes(process).keys() == {"0", "1", "launcher"}
    process.send_signal(number)
    code, out, err = finished(process)
    assert code != 0
    assert out == ""
    assert err.count("interrupted; ") == (number == signal.SIGINT)
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, "these outlive the run that started them"


def launcher(file: Path, *arguments: object, **changes: Any) -> subprocess.Popen[str]:
    """Start `accelerate launch -m r3core train` on `run` beside `file`, with `changes` as its configuration."""
    folder = file.parent
    file.write_text(yaml.safe_dump(changes), encoding="utf-8")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), *map(str, arguments)]
    return subprocess.Popen(
        [*command, "-m", "r3core", "train", "--output-dir", str(folder / "run")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("name", ["8-gpus-fsdp2", "2-nodes-fsdp2"])
def test_accelerate_launch_trains_on_the_failures_of_a_run(name: str, tmp_path: Path, base: Path, r3: R3) -> None:
    file = settings(tmp_path, base, max_steps=3, save_steps=2)
    assert r3("mine", "--config", file, "--output-dir", "run").code == 0
    changed = example(name) | {"num_processes": 2, "use_cpu": True}
    port = free_port()
    machines = [
        launcher(
            tmp_path / f"{number}.yaml",
            *("--machine_rank", number, "--main_process_ip", "127.0.0.1", "--main_process_port", port),
            **changed,
        )
        for number in range(changed["num_machines"])
    ]
    ended = [finished(machine) for machine in machines]
    assert [code for code, _, _ in ended] == [0] * len(machines), ended
    assert "".join(out for _, out, _ in ended).count("model: ") == 1
    run = RunRecord(tmp_path / "run")
    assert [row["step"] for row in run.read("train")] == [1, 2, 3]
    assert (run.path / "checkpoints" / "checkpoint-3" / "complete").read_text() == "2 processes (FSDP)"
    result = r3("eval", "--output-dir", "run")
    assert result.code == 0, result.err


def test_a_run_can_train_in_one_launched_process(tmp_path: Path, base: Path) -> None:
    file = settings(tmp_path, base, max_steps=2)
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(example("1-gpu") | {"use_cpu": True}), encoding="utf-8")
    command = ["run", "--config", file, "--accelerate-config", tmp_path / "one.yaml", "--output-dir", tmp_path / "run"]
    code, _, err = finished(program(*command))
    assert code == 0, err
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-2" / "complete").read_text() == "1 process"


def test_a_lora_adapter_is_merged_from_sharded_weights(tmp_path: Path, base: Path, how: list[object]) -> None:
    from transformers import AutoModelForCausalLM

    file = settings(tmp_path, base, max_steps=4, save_steps=2, learning_rate=1e-2)
    command = ["run", "--config", file, "--lora", "r=4", "--set", "evaluate.limit=2"]
    for place, more in (("merged", []), ("apart", ["--set", "train.merge=false"])):
        code, _, err = finished(program(*command, *more, *how, "--output-dir", tmp_path / place))
        assert code == 0, err
    merged, apart = (AutoModelForCausalLM.from_pretrained(tmp_path / place / "model") for place in ("merged", "apart"))
    started = AutoModelForCausalLM.from_pretrained(base)
    ids = started.dummy_inputs["input_ids"]
    logits = [model(input_ids=ids).logits for model in (merged, apart, started)]
    assert (logits[0] - logits[1]).abs().max() < 1e-3
    assert (logits[0] - logits[2]).abs().max() > 1e-2, "nothing was learnt: the test shows nothing"


@pytest.mark.parametrize("objective", ["attempt", "retry", "reflection+retry", "erl"])
def test_groups_that_span_two_processes_are_those_of_the_objective(
    objective: str, tmp_path: Path, base: Path, how: list[object]
) -> None:
    # 16 samples per generation, 8 in each process: each group spans both
    file = settings(tmp_path, base, max_steps=3, save_steps=3, per_device_train_batch_size=8, temperature=1.0)
    more = ["--set", f"train.objective={objective}", "--set", "train.anchor=0.1", "--set", "evaluate.limit=2"]
    code, _, err = finished(program("run", "--config", file, *how, *more, "--output-dir", tmp_path / "run"))
    assert code == 0, err
    run = RunRecord(tmp_path / "run")
    rows = run.read("train-episodes")
    assert len(rows) == 3 * 16
    for start in range(0, len(rows), 16):
        group = rows[start : start + 16]
        assert len({row["id"] for row in group}) == 1
        if objective == "retry":
            assert len({row["reflection"]["text"] for row in group}) == 1, "the processes share the reflection"
        elif objective == "reflection+retry":
            assert all(len(row["retries"]) == 1 for row in group if row["reflection"])
        elif objective == "attempt":
            assert all("attempt" in row and not row["retries"] and not row.get("reflection") for row in group)
        else:
            assert all(("attempt" in row) and (row["reward"] == 1.0) == (not row["retries"]) for row in group)
    turns = [turn for row in rows for turn in (row.get("attempt"), *row["retries"]) if turn]
    turns += [row["reflection"] for row in (rows[::16] if objective == "retry" else rows) if row.get("reflection")]
    last = run.read("train")[-1]
    assert last["tokens/generated"] == sum(turn["tokens"] + (turn["stopped"] == "end") for turn in turns)
    assert 0 <= last["anchor/kl"] < 1


def test_all_processes_choose_the_same_failures_by_the_posterior(tmp_path: Path, base: Path, how: list[object]) -> None:
    # 4 failures per generation in groups of 16, of which each process has 32 rows
    file = settings(tmp_path, base, max_steps=6, save_steps=3)
    more = ["--set", "train.order=posterior", "--set", "evaluate.limit=2"]
    code, _, err = finished(program("run", "--config", file, *how, *more, "--output-dir", tmp_path / "run"))
    assert code == 0, err
    rows = [row["id"] for row in RunRecord(tmp_path / "run").read("train-episodes")]
    assert len(rows) == 6 * 64
    for start in range(0, len(rows), 64):
        step = rows[start : start + 64]
        assert step == [name for name in step[::16] for _ in range(16)], "a group is of one failure"
        assert len(set(step)) == 4, "no failure twice in a generation"


def test_two_processes_evaluate_together_and_save_the_best_step(tmp_path: Path, base: Path, how: list[object]) -> None:
    from transformers import AutoModelForCausalLM

    file = settings(tmp_path, base, max_steps=4, save_steps=1, save_total_limit=9, learning_rate=0.0)
    command = ["run", "--config", file, *how, "--set", "train.keep=best", "--set", "evaluate.limit=2"]
    # One problem: the second process has none, and still gathers the weights with the first.
    for limit in (1, 16):
        more = ["--set", "evaluate.every=2", "--set", f"evaluate.every_limit={limit}"]
        code, out, err = finished(program(*command, *more, "--output-dir", tmp_path / f"run{limit}"))
        assert code == 0, err
    assert "model/ has the weights of step 0 of 4, the best second try of 3 evaluations on 16 problems" in out
    run = RunRecord(tmp_path / "run16")
    rows = run.read("validation")
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert {row["first"]["total"] for row in rows} == {16}
    assert len({row["second"]["passed"] for row in rows}) == 1, "equal weights and seeds give equal scores"
    model, started = (AutoModelForCausalLM.from_pretrained(path) for path in (run.path / "model", base))
    for name, weights in started.state_dict().items():
        assert weights.equal(model.state_dict()[name]), name


def test_weights_of_16_bits_are_saved_in_16_bits(tmp_path: Path, base: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16").save_pretrained(tmp_path / "half")
    password.tokenizer().save_pretrained(tmp_path / "half")
    file = settings(tmp_path, tmp_path / "half", max_steps=2, bf16=True)
    command = ["run", "--config", file, "--set", "evaluate.limit=2", "--processes", 2, "--output-dir", tmp_path / "run"]
    code, _, err = finished(program(*command))
    assert code == 0, err
    [weights] = (tmp_path / "run" / "checkpoints" / "checkpoint-2" / "pytorch_model_fsdp_0").glob("__0_0.distcp")
    assert weights.stat().st_size > 4 * 30_000 / 2, "FSDP trains in 32 bits"
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert trained.dtype == torch.bfloat16


def test_an_error_in_every_process_is_printed_once(tmp_path: Path, base: Path, how: list[object]) -> None:
    file = settings(tmp_path, base, max_steps=5)
    command = ["run", "--config", file, "--set", "judge.max_errors=1", "--output-dir", tmp_path / "run"]
    raised = f"{password.__file__}:NoVerdict"
    code, _, err = finished(program(*command, "--task", raised, *how))
    assert code == 1
    assert err.count("`verify` returned") == 1
    assert "of 2 of the training ended with exit code 2; its error message is above" in err
    assert "Traceback" not in err


def test_a_training_resumes_only_with_the_same_number_of_processes(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    (checkpoint / "complete").write_text("2 processes (FSDP)")
    assert last_checkpoint(tmp_path, world="2 processes (FSDP)") == checkpoint
    with pytest.raises(UsageError, match=r"was started with 2 processes \(FSDP\) and cannot be resumed with 1 process"):
        last_checkpoint(tmp_path)
    (checkpoint / "complete").write_text("")  # written before there was more than one
    assert last_checkpoint(tmp_path) == checkpoint


def test_a_read_only_run_writes_nothing(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", {"one": 1}) as run:
        run.append("rows", [{"n": 1}])
        before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
        with ReadOnlyRun(run.path) as reader:
            reader.append("rows", [{"n": 2}])
            reader.finish("train", {})
            with reader.clock("train") as tick:
                tick()
            assert reader.read("rows") == [{"n": 1}]
        assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_other_processes_can_write_an_unlocked_run_directory(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", {"one": 1}) as run:
        run.append("rows", [{"n": 1}])
        with run.unlocked(), Run.open(tmp_path / "run", {"one": 1}) as other:
            other.append("rows", [{"n": 2}])
        run.append("rows", [{"n": 3}])
        with pytest.raises(UsageError, match="is in use by process"):
            Run.open(tmp_path / "run", {"one": 1})
    assert run.read("rows") == [{"n": 1}, {"n": 2}, {"n": 3}]


def config(file: Path | None = None, processes: int | None = None) -> Config:
    return Config.model_validate({"task": "doors", "accelerate_config": file, "processes": processes})


def test_flag_and_file_determine_the_processes(tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    assert world_of(config()) == World(processes=1)
    assert world_of(config(processes=3)) == World(processes=3, sharded=True)
    file.write_text("distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}\nnum_processes: 4\nuse_cpu: true\n")
    assert world_of(config(file)) == World(processes=4, sharded=True)
    assert world_of(config(file, processes=2)) == World(processes=2, sharded=True)
    file.write_text("distributed_type: 'NO'\nnum_processes: 1\n")
    assert world_of(config(file)) == World(processes=1)


@pytest.mark.parametrize(
    ("name", "world"),
    [
        ("1-gpu", World()),
        ("8-gpus-fsdp2", World(processes=8, sharded=True)),
        ("8-gpus-deepspeed-zero3", World(processes=8, sharded=True)),
        ("2-nodes-fsdp2", World(processes=16, machines=2, sharded=True)),
    ],
)
def test_the_example_configurations_match_their_names(name: str, world: World) -> None:
    assert world_of(config(EXAMPLES / f"{name}.yaml")) == world


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}\nnum_processes: 2\n", "the configuration sets FSDP 1"),
        ("distributed_type: MULTI_CPU\nnum_processes: 2\n", "`distributed_type` cannot be MULTI_CPU; allowed: NO,"),
        ("distributed_type: 'NO'\nnum_processes: 2\n", "is for one process, but 2 were requested"),
        ("compute_environment: AMAZON_SAGEMAKER\n", "is not a configuration file of accelerate"),
        ("num_processes: 2\nnum_proceses: 2\n", "is not a configuration file of accelerate"),
        ("- 2\n", "is not a configuration file of accelerate"),
        ("", "is not a configuration file of accelerate"),
        ("a: [\n", "is not a configuration file of accelerate"),
    ],
)
def test_an_unsupported_configuration_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        world_of(config(file))


def test_a_run_refuses_a_configuration_for_several_machines(base: Path, tmp_path: Path, r3: R3) -> None:
    two = EXAMPLES / "2-nodes-fsdp2.yaml"
    result = r3("run", "--config", settings(tmp_path, base), "--accelerate-config", two, "--output-dir", "run")
    assert result.code == 2
    assert "is for 2 machines, and a run starts processes on one" in result.err
    assert "-m r3core train --output-dir DIRECTORY" in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with GPUs has what is missing here")
def test_a_run_refuses_a_configuration_for_missing_gpus(base: Path, tmp_path: Path, r3: R3) -> None:
    command = [
        "run",
        "--config",
        settings(tmp_path, base),
        "--accelerate-config",
        EXAMPLES / "8-gpus-fsdp2.yaml",
        "--output-dir",
        "run",
    ]
    result = r3(*command)
    assert result.code == 2
    assert "8 processes need a GPU each, and this machine has 0 GPUs" in result.err
    assert not (tmp_path / "run").exists()
    assert r3(*command, "--dry-run").code == 0, "a dry run can plan for another machine"


def test_several_gpus_need_several_processes() -> None:
    alone = Config(task="toy", grpo={"gradient_accumulation_steps": 32})
    check_machine(alone, gpus=1)
    check_machine(alone.model_copy(update={"processes": 8}), gpus=8)
    check_machine(alone.model_copy(update={"grpo": {"use_cpu": True}}), gpus=8)
    with pytest.raises(UsageError, match="8 GPUs are visible, but only one process trains") as error:
        check_machine(alone, gpus=8)
    assert "--processes 8 trains on all of them" in error.value.hints[0]
    assert error.value.hints[0].endswith("--set grpo.gradient_accumulation_steps=4")


def test_a_configuration_that_selects_a_gpu_needs_no_other(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    config = Config(task="toy", accelerate_config=file)
    file.write_text(yaml.safe_dump(example("1-gpu") | {"gpu_ids": "0"}), encoding="utf-8")
    check_machine(config, gpus=8)
    file.write_text(yaml.safe_dump(example("1-gpu")), encoding="utf-8")
    with pytest.raises(UsageError, match="8 GPUs are visible") as error:
        check_machine(config, gpus=8)
    assert error.value.hints == ("CUDA_VISIBLE_DEVICES=0 before the command selects one GPU",)


def test_only_training_runs_in_several_processes(
    base: Path, tmp_path: Path, r3: R3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = r3("mine", "--config", settings(tmp_path, base), "--output-dir", "run")
    assert result.code == 2
    assert "this is one of 2 processes, and only `r3 train` can run in several" in result.err


def test_a_dry_run_counts_the_processes(base: Path, tmp_path: Path, r3: R3) -> None:
    result = r3("run", "--config", settings(tmp_path, base), "--processes", 4, "--dry-run")
    assert result.code == 0, result.err
    assert (
        "a step trains on 128 samples = per_device_train_batch_size 32 x gradient_accumulation_steps 1 x 4"
        in result.out
    )


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ({0: -15, 1: 2}, "process 2 of 4 of the training ended with exit code 2; its error message is above"),
        ({0: 1, 3: -9}, "process 4 of 4 of the training was ended by SIGKILL, and the others with it"),
        ({2: -15}, "process 3 of 4 of the training was ended by SIGTERM, and the others with it"),
        ({}, "the launcher of the training ended with exit code 1; its error message is above"),
    ],
)
def test_the_process_that_failed_first_is_named(codes: dict[int, int], message: str) -> None:
    error = _failure(codes, 4, launcher=1)
    assert isinstance(error, RunError)
    assert error.message == message
