"""Several seeds in one command: which runs it makes, what it prints, how it resumes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import toy
from command import R3, succeed

from r3core.cli.seeds import MAX_SEEDS, parse_seeds, runs_of
from r3core.config import Config
from r3core.errors import UsageError

TASK = f"{toy.__file__}:Even"
TINY = [
    *(f"sampling.{turn}.max_tokens=6" for turn in ("attempt", "reflection", "retry")),
    *("mine.limit=12", "mine.probe=2", "evaluate.limit=8", "grpo.max_steps=1", "grpo.num_generations=4"),
    *("grpo.per_device_train_batch_size=4", "grpo.gradient_accumulation_steps=1", "grpo.gradient_checkpointing=false"),
    *("mine.keep_truncated=true", "uncertified=true"),  # a random model ends no turn, and `Even` is no good verifier
]
RECORDED = ("mine", "failures/failures", "train-episodes", "evaluate-base", "evaluate-trained")
"""The files in which everything random of a run is recorded."""


def arguments(model: Path) -> list[str]:
    return ["--task", TASK, "--model", str(model), *(word for one in TINY for word in ("--set", one))]


@pytest.fixture
def tiny(tiny_folder: Path) -> list[str]:
    """The task, the model and the settings of runs that take a moment."""
    return arguments(tiny_folder)


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished runs of seeds 0 and 1; do not write to it."""
    folder = tmp_path_factory.mktemp("finished") / "both"
    succeed("run", "--seeds", "0,1", "--output-dir", folder, *arguments(tiny_folder))
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The finished runs in the folder `both` of the test, which may be written to."""
    return Path(shutil.copytree(finished, tmp_path / "both"))


def recorded(run: Path) -> dict[str, bytes]:
    return {name: (run / f"{name}.jsonl").read_bytes() for name in RECORDED}


def recorded_training(run: Path) -> bytes:
    return (run / "train-episodes.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0,1,2", [0, 1, 2]),
        ("0-4", [0, 1, 2, 3, 4]),
        (" 3 , 1-2 ", [3, 1, 2]),
        ("7-7,9", [7, 9]),
        (f"1-{MAX_SEEDS}", [*range(1, MAX_SEEDS + 1)]),
    ],
)
def test_seeds_are_a_list_with_ranges(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a seed or a range of seeds"),
        ("0,,1", "'' is not a seed or a range of seeds"),
        ("0,-1", "'-1' is not a seed or a range of seeds"),
        ("-1-3", "'-1-3' is not a seed or a range of seeds"),
        ("4-0", "with the smaller one first, such as 0-4"),
        ("0,one", "'one' is not a seed"),
        ("0,1.5", "'1.5' is not a seed"),
        ("٣,٤", "'٣' is not a seed"),
        ("0,1,0", "given more than once: 0"),
        ("0-3,2-5", "given more than once: 2, 3"),
        (f"0-{MAX_SEEDS}", f"more than {MAX_SEEDS} seeds"),
        (f"0-{MAX_SEEDS - 1},500", f"more than {MAX_SEEDS} seeds"),
        ("0-999999999", f"more than {MAX_SEEDS} seeds"),
    ],
)
def test_what_is_no_list_of_seeds_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_seeds(text)
    assert message in str(refused.value)
    assert f"`--seeds` cannot be {text!r}" in str(refused.value)


def test_each_seed_has_a_directory_of_its_own() -> None:
    config = Config(task="countdown")
    named = runs_of(config, [3, 5], folder=Path("here"), share_mining=False)
    assert [one.directory for one in named.configs.values()] == [Path("here/seed-3"), Path("here/seed-5")]
    by_hash = runs_of(config, [3, 5], folder=None, share_mining=False).configs
    assert [one.directory for one in by_hash.values()] == [Config(task="countdown", seed=n).directory for n in (3, 5)]
    assert [one.seed for one in by_hash.values()] == [3, 5]
    assert named.mining is None
    assert named.failures is None


@pytest.mark.parametrize("folder", [Path("here"), None])
def test_with_shared_mining_the_seeds_still_differ_in_nothing_else(folder: Path | None) -> None:
    config = Config(task="countdown")
    runs = runs_of(config, [3, 5, 8], folder=folder, share_mining=True)
    assert runs.mining is not None
    assert runs.mining.record() == config.record() | {"seed": 3}
    assert runs.failures == str(runs.mining.directory)
    records = [one.record() for one in runs.configs.values()]
    assert all(record | {"seed": 3} == records[0] for record in records)
    assert len({runs.mining.directory, *(one.directory for one in runs.configs.values())}) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--seeds", "0,1", "--seed", "2"], "`--seeds` and `--seed` cannot be combined"),
        (["--seeds", "0,1", "--set", "seed=2"], "`--seeds` and `--set seed` cannot be combined"),
        (["--seeds", "-1,0"], "'-1' is not a seed"),
        (["--seeds", ""], "'' is not a seed"),
        (["--seeds", "5"], "for one run use --seed 5"),
        (["--share-mining"], "`--share-mining` requires several seeds"),
        (["--seeds", "0,1", "--share-mining", "--failures", "x"], "all seeds train on that dataset"),
        (["--seeds", "0,1", "--set", "grpo.max_steps=0"], "`grpo.max_steps` is not set"),
        (["--seeds", "0,1", "--set", "evaluate.split=train"], "`mine.split` is the same split"),
    ],
)
def test_contradictions_are_found_before_any_work(r3: R3, tiny: list[str], given: list[str], message: str) -> None:
    refused = r3("run", *tiny, *given)
    assert message in refused.err
    assert (refused.code, refused.out) == (2, "")
    assert not list(Path().iterdir())


def test_without_a_task_and_without_a_run_there_is_nothing_to_resume(r3: R3) -> None:
    refused = r3("run", "--seeds", "0,1", "--output-dir", "nowhere")
    assert (refused.code, refused.out) == (2, "")
    assert "no task is named" in refused.err


def test_the_folder_of_the_runs_cannot_be_a_run(r3: R3, tiny: list[str]) -> None:
    Path("run").mkdir()
    Path("run/config.json").write_text("{}")
    refused = r3("run", *tiny, "--seeds", "0,1", "--output-dir", "run")
    assert (refused.code, refused.out) == (2, "")
    assert "`run` is a run directory" in refused.err


def test_the_plan_is_printed_once_with_all_directories(r3: R3, tiny: list[str]) -> None:
    plan = r3("run", *tiny, "--seeds", "0-2", "--dry-run", "--output-dir", "all")
    assert plan.code == 0, plan.err
    assert plan.out.count("train: 4 samples are generated at a time") == 1
    assert "seeds: 3 runs with this plan" in plan.out
    for seed in range(3):
        assert f"  seed {seed}: all/seed-{seed} (not started)\n" in plan.out
    assert plan.out.endswith("mining: each seed mines for itself\n")
    assert not list(Path().iterdir())


def test_the_plan_states_that_mining_is_shared(r3: R3, tiny: list[str]) -> None:
    plan = r3("run", *tiny, "--seeds", "4,2", "--share-mining", "--dry-run", "--output-dir", "all")
    assert plan.code == 0, plan.err
    assert plan.out.endswith("mining: once for all seeds, with seed 4, in all/mining\n")


def test_the_folder_of_a_configuration_file_has_a_directory_per_seed(r3: R3, tiny: list[str]) -> None:
    Path("run.yaml").write_text("output_dir: filed\nseed: 9\n")
    plan = r3("run", *tiny, "--config", "run.yaml", "--seeds", "0,1", "--dry-run")
    assert "  seed 0: filed/seed-0 (not started)\n  seed 1: filed/seed-1 (not started)\n" in plan.out


@pytest.mark.slow
def test_a_seed_has_the_rows_of_its_own_run(r3: R3, tiny: list[str], finished: Path) -> None:
    alone = r3("run", *tiny, "--seed", "1", "--output-dir", "alone")
    assert alone.code == 0, alone.err
    assert recorded(Path("alone")) == recorded(finished / "seed-1")
    assert recorded(Path("alone"))["mine"] != recorded(finished / "seed-0")["mine"]


@pytest.mark.slow
def test_finished_seeds_are_not_run_again(r3: R3, tiny: list[str], copied: Path) -> None:
    rows = {path: path.stat().st_mtime_ns for path in copied.rglob("*.jsonl") if path.stem in RECORDED}
    again = r3("run", *tiny, "--seeds", "0,1", "--output-dir", "both")
    assert again.code == 0, again.err
    assert "seed 0 (1 of 2) is finished: both/seed-0\n" in again.out
    assert "seed 1 (2 of 2) is finished: both/seed-1\n" in again.out
    assert {path: path.stat().st_mtime_ns for path in rows} == rows
    assert again.out.count("second try") >= 2
    assert again.out.count("retry, no reflection") == 1  # in the last table; those of the seeds are short


@pytest.mark.slow
def test_the_folder_alone_resumes_its_runs(r3: R3, copied: Path) -> None:
    assert r3("run", "--seeds", "0,1", "--output-dir", "both").code == 0


@pytest.mark.slow
def test_the_pages_and_how_to_view_them_are_named(r3: R3, copied: Path) -> None:
    (copied / "report.html").unlink()
    again = r3("run", "--seeds", "0,1", "--output-dir", "both")
    assert "r3 view both/seed-0 both/seed-1\n" in again.out
    assert again.err.endswith("page: both/report.html\n")
    page = Path("both/report.html").read_text(encoding="utf-8")
    assert "seed-0" in page
    assert "seed-1" in page
    assert Path("both/seed-1/report.html").exists()


@pytest.mark.slow
def test_a_further_seed_joins_those_that_are_finished(r3: R3, tiny: list[str], copied: Path) -> None:
    shutil.rmtree(copied / "seed-1")  # as after a stop between two seeds
    before = recorded(copied / "seed-0")
    more = r3("run", *tiny, "--seeds", "0,1", "--output-dir", "both")
    assert more.code == 0, more.err
    assert "seed 1 (2 of 2): both/seed-1\n" in more.out
    assert recorded(copied / "seed-0") == before


@pytest.mark.slow
def test_an_interrupted_seed_resumes(r3: R3, tiny: list[str], copied: Path, finished: Path) -> None:
    run = copied / "seed-1"
    for name in ("stages/evaluate.json", "result.json"):
        (run / name).unlink()
    evaluated = run / "evaluate-trained.jsonl"
    rows = evaluated.read_bytes().splitlines(keepends=True)
    evaluated.write_bytes(b"".join(rows[:3]) + rows[3][:20])  # what a kill may leave
    plan = r3("run", *tiny, "--seeds", "0,1", "--output-dir", "both", "--dry-run")
    assert "  seed 0: both/seed-0 (finished)\n  seed 1: both/seed-1 (to be resumed)\n" in plan.out
    trained = (run / "model/model.safetensors").stat().st_mtime_ns
    resumed = r3("run", *tiny, "--seeds", "0,1", "--output-dir", "both")
    assert resumed.code == 0, resumed.err
    assert recorded(run) == recorded(finished / "seed-1")
    assert (run / "model/model.safetensors").stat().st_mtime_ns == trained
    assert json.loads((run / "result.json").read_text()) == json.loads((finished / "seed-1/result.json").read_text())


@pytest.mark.slow
def test_a_failing_seed_stops_with_its_error_and_how_to_resume(r3: R3, tiny: list[str], copied: Path) -> None:
    shutil.rmtree(copied / "seed-1")
    shutil.copytree(copied / "seed-0", copied / "seed-1")
    failed = r3("run", *tiny, "--seeds", "0,1,2", "--output-dir", "both")
    assert failed.code == 2
    assert "holds a run with another configuration: seed was 0, now 1" in failed.err
    assert "hint: this was seed 1 of 0, 1, 2; finished: 0\n" in failed.err
    assert "hint: run the same command to resume: finished seeds are not run again\n" in failed.err
    assert not (copied / "seed-2").exists()


@pytest.mark.slow
def test_an_error_of_the_run_names_its_seed_too(r3: R3, tiny: list[str], copied: Path) -> None:
    (copied / "seed-0/result.json").write_text("")
    failed = r3("run", *tiny, "--seeds", "0,1", "--output-dir", "both")
    assert failed.code == 1
    assert "result.json` is not JSON" in failed.err
    assert "hint: this was seed 0 of 0, 1\n" in failed.err


@pytest.mark.slow
def test_json_has_the_results_of_all_seeds(r3: R3, copied: Path) -> None:
    printed = r3("run", "--seeds", "0,1", "--output-dir", "both", "--json")
    assert printed.code == 0, printed.err
    value = json.loads(printed.out)
    assert value.keys() == {"seeds", "shared_failures", "pooled"}
    assert value["shared_failures"] is None
    assert isinstance(value["pooled"], dict)
    for seed in ("0", "1"):
        run = Path("both") / f"seed-{seed}"
        result = json.loads((run / "result.json").read_text())
        assert value["seeds"][seed]["directory"] == str(run)
        assert {key: value["seeds"][seed][key] for key in result} == result


@pytest.mark.slow
def test_the_table_at_the_end_is_over_all_seeds(r3: R3, copied: Path) -> None:
    printed = " ".join(r3("run", "--seeds", "0,1", "--output-dir", "both").out.split())
    assert "(mean over seeds 0, 1): rates in % with 95% intervals" in printed
    assert json.loads(r3("compare", "both/seed-0", "both/seed-1", "--json").out)["groups"][0]["failures"] is None


@pytest.mark.slow
def test_with_shared_mining_all_seeds_train_on_the_same_failures(r3: R3, tiny: list[str]) -> None:
    given = ["--seeds", "0,1", "--share-mining", "--output-dir", "both"]
    shared = r3("run", *tiny, *given)
    assert shared.code == 0, shared.err
    both = Path("both")
    assert "all seeds train on the failures in both/mining: the intervals do not count" in " ".join(shared.out.split())
    assert not list(both.glob("seed-*/mine.jsonl"))
    failures = {(both / run / "failures/failures.jsonl").read_bytes() for run in ("mining", "seed-0", "seed-1")}
    assert len(failures) == 1
    forecasts = {(both / run / "forecast.json").read_bytes() for run in ("mining", "seed-0", "seed-1")}
    assert len(forecasts) == 1
    assert shared.err.count("forecast: that of `both/mining`") == 2
    assert recorded_training(both / "seed-0") != recorded_training(both / "seed-1")
    value = json.loads(r3("run", *tiny, *given, "--json").out)
    assert value["shared_failures"] == "both/mining"
    assert [group["failures"] for group in value["pooled"]["groups"]] == ["both/mining"]  # one group, not two
    for folder_alone in (["--share-mining"], []):
        assert r3("run", "--seeds", "0,1", "--output-dir", "both", *folder_alone).code == 0
    refused = r3("run", *tiny, "--seeds", "0,1", "--output-dir", "both")
    assert 'mine.failures was "both/mining", now null' in refused.err


@pytest.mark.slow
def test_an_interrupted_shared_mining_resumes(r3: R3, tiny: list[str], finished: Path) -> None:
    assert r3("mine", *tiny, "--seed", "0", "--output-dir", "both/mining").code == 0
    mined = Path("both/mining/mine.jsonl")
    rows = mined.read_bytes().splitlines(keepends=True)
    mined.write_bytes(b"".join(rows[:5]) + rows[5][:20])
    Path("both/mining/stages/mine.json").unlink()
    shutil.copytree(finished / "seed-0", "both/seed-0")
    resumed = r3("run", *tiny, "--seeds", "0,1", "--share-mining", "--output-dir", "both")
    assert mined.read_bytes() == (finished / "seed-0/mine.jsonl").read_bytes()
    assert 'mine.failures was null, now "both/mining"' in resumed.err  # seed 0 has mined for itself
    assert "hint: this was seed 0 of 0, 1\n" in resumed.err


@pytest.mark.slow
def test_shared_mining_of_other_settings_is_refused(r3: R3, tiny: list[str]) -> None:
    given = ["--seeds", "0,1", "--share-mining", "--output-dir", "both"]
    assert r3("mine", *tiny, "--seed", "0", "--output-dir", "both/mining", "--samples", "2").code == 0
    refused = r3("run", *tiny, *given)
    assert refused.code == 2
    assert "holds a run with another configuration: mine.samples was 2, now 1" in refused.err
    assert "hint: this was the mining for all seeds\n" in refused.err
