"""The transfer matrix: whose reflections help on whose failures, how it resumes, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import R3
from records import TASK, episode, write_run

from r3core.compare.matrix import BASE, Cell, Matrix, Member, identity, read_sources, transfer_matrix
from r3core.compare.matrix_tables import print_matrix, rows_of_matrix
from r3core.errors import UsageError
from r3core.runs import Run
from r3core.stats import Difference, wilson

SETTINGS = {f"sampling.{turn}.max_tokens": 5 for turn in ("attempt", "reflection", "retry")} | {"batch_size": 2}
FAILED = [episode(f"n{number}", "fail fail", attempt=f"{number}") for number in range(3)]


def source(folder: Path, model: Path, *, failed: Any = FAILED, **settings: Any) -> Path:
    """Write a finished run on the tiny model, whose trained model has the same weights."""
    episodes = [*failed, episode("right", "pass")]
    run = write_run(folder, base=episodes, trained=episodes, settings=SETTINGS | {"model": str(model)} | settings)
    shutil.copytree(model, run / "model")
    return run


@pytest.fixture
def runs(tmp_path: Path, tiny_folder: Path) -> list[Path]:
    """Two runs with one base model, and a third one with another seed."""
    return [source(tmp_path / f"r{index}", tiny_folder, seed=index // 2) for index in range(3)]


def made(runs: list[Path], folder: Path) -> Matrix:
    sources = read_sources(runs)
    with Run.open(folder, identity(sources)) as run:
        return transfer_matrix(sources, run)


@pytest.mark.slow
def test_every_model_reflects_on_the_failures_of_every_base_model(runs: list[Path], tmp_path: Path) -> None:
    found = made(runs, tmp_path / "matrix")
    assert [member.run for member in found.members] == [str(run) for run in runs]
    assert found.same_failures == {"A": ["A", "B"], "C": ["C"]}  # A and B differ in nothing but the training
    assert [(cell.reflections, cell.failures) for cell in found.cells] == [
        (row, column) for row in (BASE, "A", "B", "C") for column in ("A", "C")
    ]
    assert [cell.fix.total for cell in found.cells] == [3] * 8
    rows = (tmp_path / "matrix/retries-A-C.jsonl").read_text().splitlines()
    assert [json.loads(row)["example"]["id"] for row in rows] == ["n0", "n1", "n2"]


@pytest.mark.slow
def test_models_that_do_not_differ_have_the_same_cells(runs: list[Path], tmp_path: Path) -> None:
    cells = made(runs, tmp_path / "matrix").cells
    assert [cell.difference is None for cell in cells] == [True, True, *[False] * 6]
    assert [cell.difference.difference for cell in cells if cell.difference] == [0.0] * 6
    assert (tmp_path / "matrix/retries-A-A.jsonl").read_bytes() == (
        tmp_path / "matrix/retries-base-A.jsonl"
    ).read_bytes()


@pytest.mark.slow
def test_an_interrupted_matrix_resumes(runs: list[Path], tmp_path: Path) -> None:
    whole = made(runs[1:], tmp_path / "matrix")
    files = {file: file.read_bytes() for file in (tmp_path / "matrix").glob("re*.jsonl")}
    assert len(files) == 12
    for file in (tmp_path / "matrix/retries-B-A.jsonl", tmp_path / "matrix/reflections-A-B.jsonl"):
        file.write_bytes(b"".join(files[file].splitlines(keepends=True)[:1]) + b'{"example"')  # what a kill may leave
    assert made(runs[1:], tmp_path / "matrix") == whole
    assert {file: file.read_bytes() for file in files} == files


@pytest.mark.slow
def test_the_command_writes_the_matrix_and_refuses_other_runs_in_its_folder(r3: R3, runs: list[Path]) -> None:
    command = ["compare", "--matrix", *runs[:2], "--output-dir", "m", "--quiet"]
    done = r3(*command, "--json", "--csv", "more.csv")
    assert done.code == 0, done.err
    value = json.loads(done.out)
    assert json.loads(Path("m/matrix.json").read_text()) == value
    assert Path("more.csv").read_text() == Path("m/matrix.csv").read_text()
    assert "failures of A, B" in r3(*command).out
    refused = r3("compare", "--matrix", *runs[1:], "--output-dir", "m")
    assert (refused.code, refused.out) == (2, "")
    assert "holds a run with another configuration" in refused.err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("one run", "requires at least two runs"),
        ("the same run", "requires at least two runs"),
        ("no folder", "is not a run directory"),
        ("no model", "has no trained model"),
        ("no evaluation", "has no evaluation of its base model"),
        ("no task", "there is no file"),
    ],
)
def test_runs_that_cannot_be_in_a_matrix_are_refused(tmp_path: Path, changed: str, message: str) -> None:
    (tmp_path / "model").mkdir()
    runs = [source(tmp_path / f"r{index}", tmp_path / "model", seed=index) for index in range(2)]
    match changed:
        case "one run":
            runs.pop()
        case "the same run":
            runs[1] = runs[0]
        case "no folder":
            runs[1] = tmp_path / "nowhere"
        case "no model":
            shutil.rmtree(runs[1] / "model")
        case "no evaluation":
            (runs[1] / "stages/evaluate.json").unlink()
        case "no task":
            config = (runs[1] / "config.json").read_text()
            (runs[1] / "config.json").write_text(config.replace(TASK, "nowhere.py:Toy"))
    with pytest.raises(UsageError, match=message):
        read_sources(runs)


def test_runs_with_other_prompts_have_columns_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    settings: list[dict[str, Any]] = [
        *({}, {"train.retries": 2, "grpo.beta": 0.1}, {"feedback": "reason"}, {"sampling.retry.temperature": 0.5})
    ]
    runs = [source(tmp_path / f"r{n}", tmp_path / "model", **given) for n, given in enumerate(settings)]
    runs.append(source(tmp_path / "fewer", tmp_path / "model", failed=FAILED[:2]))
    prints = [one.fingerprint for one in read_sources(runs)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


def test_runs_that_differ_in_the_retries_of_their_controls_share_a_column(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    others = [episode(f"n{number}", "fail pass", attempt=f"{number}") for number in range(3)]
    runs = [source(tmp_path / f"r{n}", tmp_path / "model", failed=failed) for n, failed in enumerate((FAILED, others))]
    assert len({one.fingerprint for one in read_sources(runs)}) == 1


def test_options_that_do_not_belong_together_are_refused(r3: R3) -> None:
    both = r3("compare", "--matrix", "a", "b", "--latex", "x.tex")
    assert (both.code, both.out) == (2, "")
    assert "`--latex` cannot be combined with `--matrix`" in both.err
    folder = r3("compare", "a", "b", "--output-dir", "x")
    assert (folder.code, folder.out) == (2, "")
    assert "`--output-dir` requires `--matrix`" in folder.err


def test_the_tables_have_every_cell() -> None:
    change = Difference(difference=0.25, low=0.1, high=0.4, p=0.01, p_holm=0.02)
    cells = [
        Cell(reflections=row, failures=column, fix=wilson(count, 8), leaks=wilson(1, 8), difference=one)
        for row, one in ((BASE, None), ("A", change))
        for column, count in (("A", 2), ("B", 4))
    ]
    members = [Member(name=name, run=f"runs/{name}[/]", task="toy", seed=0) for name in "AB"]
    matrix = Matrix(members=members, same_failures={"A": ["A"], "B": ["B"]}, cells=cells)
    to = io.StringIO()
    print_matrix(matrix, to)
    assert "+25.0 [+10.0, +40.0] p = 0.020" in to.getvalue()
    assert "runs/A[/]" in to.getvalue()
    assert "share a column" not in to.getvalue()
    head, *rows = rows_of_matrix(matrix)
    assert [len(row) for row in rows] == [len(head)] * 4
    read = dict(zip(head, rows[3], strict=True))
    assert (read["reflections"], read["failures"], read["fix"], read["p_holm"]) == ("A", "B", 0.5, 0.02)
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    assert text.getvalue().count("\n") == 4
