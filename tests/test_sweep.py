"""Sweeps: what a file of them may contain, which runs it makes, what it prints, how it resumes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import toy
import yaml
from command import R3, succeed

from r3core.cli.sweep_file import MAX_RUNS, cells_of, read_sweep, seeds_of
from r3core.cli.sweep_plan import planned_runs
from r3core.errors import R3Error

TINY = {
    "task": f"{toy.__file__}:Even",
    **{f"sampling.{turn}.max_tokens": 6 for turn in ("attempt", "reflection", "retry")},
    **{"mine.limit": 12, "mine.probe": 2, "evaluate.limit": 8, "grpo.max_steps": 1, "grpo.num_generations": 4},
    **{"grpo.per_device_train_batch_size": 4, "grpo.gradient_accumulation_steps": 1},
    **{"grpo.gradient_checkpointing": False, "mine.keep_truncated": True, "uncertified": True},
}
GRID = {"train.shuffle_rewards": [False, True]}
ROWS = ("mine", "train-episodes", "evaluate-base", "evaluate-trained")


def written(path: Path, sweep: Any) -> Path:
    path.write_text(yaml.safe_dump(sweep, sort_keys=False), encoding="utf-8")
    return path


def cells(path: Path, sweep: Any) -> list[str]:
    return [cell.name for cell in cells_of(read_sweep(written(path / "sweep.yaml", sweep)))]


def rows(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for name in ROWS for path in folder.rglob(f"{name}.jsonl")}


@pytest.fixture
def tiny(tiny_folder: Path) -> dict[str, Any]:
    """The settings of runs that take a moment."""
    return TINY | {"model": str(tiny_folder)}


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep of two cells and two seeds, and its runs in `out`; do not write to it."""
    folder = tmp_path_factory.mktemp("finished")
    base = TINY | {"model": str(tiny_folder)}
    sweep = written(folder / "sweep.yaml", {"base": base, "grid": GRID, "seeds": [0, 1], "share_mining": True})
    succeed("sweep", sweep, "--output-dir", folder / "out")
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The finished runs in the folder `out` of the test, which may be written to; the sweep names them as before."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for config in tmp_path.glob("out/*/*/config.json"):
        config.write_text(config.read_text().replace(str(finished), str(tmp_path)))
    return tmp_path


@pytest.mark.parametrize(
    ("sweep", "names"),
    [
        (
            {"grid": {"train.retries": [1, 2], "grpo.beta": [0, 0.5]}},
            ["retries=1,beta=0", "retries=1,beta=0.5", "retries=2,beta=0", "retries=2,beta=0.5"],
        ),
        ({"runs": {"plain": {}, "no-leaks": {"train": {"reward_leaks": False}}}}, ["plain", "no-leaks"]),
        ({"grid": {"train.retries": [3]}, "runs": {"plain": {}}}, ["retries=3", "plain"]),
        (
            {"grid": {"sampling.attempt.top_k": [1], "sampling.retry.top_k": [2]}},
            ["sampling.attempt.top_k=1,sampling.retry.top_k=2"],
        ),
        ({"grid": {"lora": [None, {"r": 8}], "model": ["a/b"]}}, ["lora=null,model=a-b", "lora=-r-8-,model=a-b"]),
        ({"grid": {"evaluate.controls": [True]}, "runs": {"..2": {}}}, None),
    ],
)
def test_a_cell_is_named_by_what_it_changes(tmp_path: Path, sweep: Any, names: list[str] | None) -> None:
    if names is None:
        with pytest.raises(R3Error, match="cannot be the name of a run"):
            cells(tmp_path, sweep)
    else:
        assert cells(tmp_path, sweep) == names


def test_names_that_are_equal_or_long_become_different_folders(tmp_path: Path) -> None:
    names = cells(tmp_path, {"grid": {"model": ["a/b", "a:b", "x" * 500, "y" * 500]}})
    assert len(set(names)) == 4
    assert all(len(name) < 120 and "/" not in name for name in names)


def test_named_settings_are_on_top_of_the_base_alone(tmp_path: Path) -> None:
    sweep = {
        "base": {"evaluate.limit": 5, "evaluate": {"cross": True}},
        "grid": {"train.retries": [2]},
        "runs": {"few": {"evaluate": {"limit": 3}}},
    }
    grid, few = cells_of(read_sweep(written(tmp_path / "sweep.yaml", sweep)))
    assert grid.tree == {"evaluate": {"limit": 5, "cross": True}, "train": {"retries": 2}}
    assert few.tree == {"evaluate": {"limit": 3, "cross": True}}


@pytest.mark.parametrize(
    ("given", "seeds"), [([2, 0], [2, 0]), (5, [5]), ("0-2,7", [0, 1, 2, 7]), (None, [0])], ids=str
)
def test_seeds_are_a_list_or_as_on_the_command_line(tmp_path: Path, given: Any, seeds: list[int]) -> None:
    sweep = {"runs": {"a": {}}} | ({} if given is None else {"seeds": given})
    assert seeds_of(read_sweep(written(tmp_path / "sweep.yaml", sweep))) == seeds


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({}, "the sweep has no cells"),
        ({"grid": {}}, "the sweep has no cells"),
        ({"grid": {"train.retries": []}}, "`grid.train.retries` has no values"),
        ({"grid": {"train.retries": 2}}, "cannot be 2: it should be a list of values"),
        ({"grid": {"train": {"retries": [1, 2]}}}, "in a grid, keys are dotted"),
        ({"gird": {"train.retries": [1]}}, "did you mean `grid`?"),
        ({"task": "countdown", "grid": {"train.retries": [1]}}, "the settings that all runs have are under `base`"),
        ({"runs": {"a": None}}, "`runs.a` in"),
        ({"runs": {"a/b": {}}}, "`runs.a/b` cannot be the name of a run"),
        ({"runs": {"mining": {}}}, "`mining` is reserved"),
        ({"base": {"seed": 1}, "runs": {"a": {}}}, "`base.seed` cannot be set in a sweep"),
        ({"grid": {"seed": [1, 2]}}, "`grid.seed` cannot be set in a sweep"),
        ({"runs": {"a": {"output_dir": "x"}}}, "`runs.a.output_dir` cannot be set in a sweep"),
        ({"base": {"mine.limit": 1, "mine": {"limit": 2}}, "runs": {"a": {}}}, "sets `mine.limit` twice"),
        ({"runs": {"a": {}}, "seeds": [0, 1, 0]}, "given more than once: 0"),
        ({"runs": {"a": {}}, "seeds": [-1]}, "'-1' is not a seed"),
        ({"runs": {"a": {}}, "seeds": []}, "'' is not a seed"),
        ({"runs": {"a": {}}, "seeds": [0.5]}, "it should be a list such as [0, 1, 2]"),
        ({"grid": {"grpo.beta": [*range(MAX_RUNS + 1)]}}, "are allowed"),
        ({"grid": {"train.retreis": [1]}}, "there is no configuration key `train.retreis`"),
        ({"grid": {"train.retries": [1, 0]}}, "`train.retries` cannot be 0"),
        ({"grid": {"train.retries": [1, 1]}}, "have the same settings"),
        ({"grid": {"train.retries": [2]}, "runs": {"two": {"train.retries": 2}}}, "have the same settings"),
        ({"runs": {"plain": {}, "default": {"train.retries": 1}}}, "`plain` and `default` have the same settings"),
        ({"grid": {"grpo.num_generations": [4, 3]}}, "this is the cell num_generations=3"),
        ({"grid": {"grpo.num_generation": [4]}}, "num_generation"),
        ({"grid": {"task": ["countdwon"]}}, "no task is called `countdwon`"),
        ({"grid": {"mine.samples": [1, 2]}, "share_mining": True}, "which depends on `mine.samples`"),
        ({"runs": {"a": {}}, "base": {"mine.failures": "x"}, "share_mining": True}, "failure dataset `x`"),
    ],
)
def test_what_is_wrong_is_found_before_any_work(r3: R3, tiny: dict[str, Any], sweep: Any, message: str) -> None:
    sweep = sweep | {"base": tiny | sweep.get("base", {})} if sweep else sweep
    for dry in (["--dry-run"], []):
        refused = r3("sweep", written(Path("sweep.yaml"), sweep), *dry)
        assert message in refused.err
        assert (refused.code, refused.out) == (2, "")
        assert [path.name for path in Path().iterdir()] == ["sweep.yaml"]


def test_a_missing_file_is_an_error(r3: R3) -> None:
    refused = r3("sweep", "nowhere.yaml")
    assert (refused.code, refused.out) == (2, "")
    assert "there is no file nowhere.yaml" in refused.err


def test_the_plan_lists_every_cell(r3: R3, tiny: dict[str, Any]) -> None:
    sweep = {"base": tiny, "grid": GRID, "runs": {"no-leaks": {"train.reward_leaks": False}}, "seeds": [3, 5]}
    plan = r3("sweep", written(Path("study.yaml"), sweep), "--share-mining", "--dry-run")
    assert plan.code == 0, plan.err
    assert "sweep: 6 runs, one after the other" in plan.out
    assert "  shuffle_rewards=true, seed 3, 5: train.shuffle_rewards=true (2 not started)\n" in plan.out
    assert "  no-leaks, seed 3, 5: train.reward_leaks=false (2 not started)\n" in plan.out
    assert plan.out.endswith("mining: once for all runs, with seed 3, in runs/sweep-study/mining\n")
    value = json.loads(r3("sweep", "study.yaml", "--dry-run", "--json").out)
    assert [run["state"] for cell in value["cells"].values() for run in cell["runs"]] == ["not started"] * 6
    assert [path.name for path in Path().iterdir()] == ["study.yaml"]


@pytest.mark.slow
def test_a_sweep_ends_in_a_comparison_of_its_cells(finished: Path) -> None:
    out = finished / "out"
    value = json.loads((out / "compare.json").read_text())
    [comparison] = value["comparisons"]
    assert value["shared_failures"] == str(out / "mining")
    assert [group["settings"] for group in comparison["groups"]] == [
        {"train.shuffle_rewards": "false"},
        {"train.shuffle_rewards": "true"},
    ]
    assert [[run["seed"] for run in group["runs"]] for group in comparison["groups"]] == [[0, 1], [0, 1]]
    assert [run["state"] for cell in value["cells"].values() for run in cell["runs"]] == ["finished"] * 4
    assert (out / "compare.csv").read_text().startswith("group,settings,against,measure")
    assert {path.name for path in out.iterdir()} == {
        *("mining", "shuffle_rewards=false", "shuffle_rewards=true", "compare.csv", "compare.json")
    }


@pytest.mark.slow
def test_finished_runs_are_not_repeated(r3: R3, copied: Path) -> None:
    before = rows(copied / "out")
    times = {path: path.stat().st_mtime_ns for path in copied.rglob("*.jsonl") if path.stem in ROWS}
    again = r3("sweep", "sweep.yaml", "--output-dir", copied / "out")
    assert again.code == 0, again.err
    assert again.out.count(" is finished: ") == 4
    assert rows(copied / "out") == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.slow
def test_the_base_model_is_evaluated_once_for_each_seed(r3: R3, copied: Path) -> None:
    out, swapped = copied / "out", {"train.shuffle_rewards": [True, False]}
    before = rows(out)  # those of shuffle_rewards=true were copied
    for run in ("shuffle_rewards=true/seed-0", "shuffle_rewards=true/seed-1", "shuffle_rewards=false/seed-1"):
        shutil.rmtree(out / run)
    sweep = yaml.safe_load((copied / "sweep.yaml").read_text())
    again = r3("sweep", written(Path("swapped.yaml"), sweep | {"grid": swapped}), "--output-dir", out)
    assert again.code == 0, again.err
    lines = [line for line in again.out.splitlines() if line.startswith("the base model was evaluated in")]
    assert [line.rpartition("out/")[2] for line in lines] == [
        "shuffle_rewards=false/seed-0",
        "shuffle_rewards=true/seed-1",
    ]
    assert rows(out) == before


@pytest.mark.slow
def test_settings_of_the_evaluation_are_no_reason_to_share_it(r3: R3, tiny: dict[str, Any]) -> None:
    grid = {"evaluate.resamples": [1, 2], "train.retries": [1, 2]}
    done = r3("sweep", written(Path("sweep.yaml"), {"base": tiny, "grid": grid}), "--output-dir", "out")
    assert done.code == 0, done.err
    copies = [line for line in done.out.splitlines() if line.startswith("the base model was evaluated in")]
    assert [line.partition("out/")[2] for line in copies] == [
        "resamples=1,retries=1/seed-0",
        "resamples=2,retries=1/seed-0",
    ]


@pytest.mark.slow
def test_a_failed_run_is_reported_and_the_others_continue(r3: R3, copied: Path) -> None:
    out = copied / "out"
    shutil.rmtree(out / "shuffle_rewards=true/seed-1")
    (out / "shuffle_rewards=false/seed-0/result.json").write_text("")
    failed = r3("sweep", "sweep.yaml", "--output-dir", out, "--json")
    assert failed.code == 1
    assert "failed: shuffle_rewards=false, seed 0: " in failed.err
    assert "result.json` is not JSON" in failed.err
    assert "1 of 4 runs failed; run the same command to resume" in failed.err
    value = json.loads(failed.out)
    assert [bool(run["error"]) for cell in value["cells"].values() for run in cell["runs"]] == [True, *[False] * 3]
    assert [[run["seed"] for run in one["runs"]] for one in value["comparisons"][0]["groups"]] == [[1], [0, 1]]


@pytest.mark.slow
def test_runs_of_several_tasks_are_compared_task_by_task(r3: R3, tiny: dict[str, Any]) -> None:
    tasks = [f"{toy.__file__}:Even", f"{toy.__file__}:Toy"]
    sweep = {"base": {key: value for key, value in tiny.items() if key != "task"}, "grid": {"task": tasks}}
    done = r3("sweep", written(Path("tasks.yaml"), sweep), "--output-dir", "out", "--json")
    assert done.code == 0, done.err
    assert [one["task"] for one in json.loads(done.out)["comparisons"]] == tasks
    assert Path("out/compare.csv").exists()
    assert Path("out/compare-2.csv").exists()


def test_shared_mining_does_not_depend_on_the_cells(tmp_path: Path, tiny: dict[str, Any]) -> None:
    def mining(sweep: dict[str, Any]) -> dict[str, Any]:
        plan = planned_runs(read_sweep(written(tmp_path / "sweep.yaml", sweep | {"share_mining": True})), tmp_path)
        assert plan.mining is not None
        assert {config.mine.failures for _, _, config in plan.runs} == {tmp_path / "mining"}
        return plan.mining.record()

    of_base = mining({"base": tiny, "grid": {"train.retries": [2, 3]}})
    assert of_base["train"]["retries"] == 1
    assert mining({"base": tiny, "runs": {"another": {"grpo.beta": 1}}}) == of_base
    of_cell = mining({"base": tiny, "grid": {"mine.limit": [9], "train.retries": [2, 3]}})  # `base` would mine others
    assert (of_cell["mine"]["limit"], of_cell["train"]["retries"]) == (9, 2)
    task = tiny.pop("task")
    assert mining({"base": tiny, "grid": {"task": [task], "train.retries": [2, 3]}})["train"]["retries"] == 2
