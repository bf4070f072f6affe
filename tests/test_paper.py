"""The configurations of the paper's runs, and the page with the published rates beside those of r3."""

from __future__ import annotations

import json
from pathlib import Path

import paper_tables
import published
import pytest
from command import R3

from r3core.cli.arguments import configured_task
from r3core.config import Config, chosen_preset, chosen_task, configure, read_settings
from r3core.presets import PRESETS

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "examples/paper").glob("*.yaml"))
ROWS = {row.name: row for row in paper_tables.read_published() if row.name}


def config_in(file: Path) -> Config:
    settings = read_settings(file)
    task = configured_task(*chosen_task(settings), preset=chosen_preset(settings))
    return configure(task, settings)


def test_every_trained_model_of_the_paper_has_a_configuration() -> None:
    assert {file.stem for file in FILES} == ROWS.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_configuration_is_that_of_the_paper(file: Path) -> None:
    config, row = config_in(file), ROWS[file.stem]
    assert (config.task, config.model) == (row.task, row.model)
    assert config.task_options["source"] == "hub"
    assert config.preset == "paper"
    options = config.grpo_options()
    batch = options["per_device_train_batch_size"] * options["gradient_accumulation_steps"] * (config.processes or 1)
    assert batch == 256
    assert options["max_steps"] <= PRESETS["paper"]["grpo.max_steps"].value
    assert options["learning_rate"] == 5e-7
    assert config.mine.samples == 64
    assert config.evaluate.limit is None
    assert f"examples/paper/{file.name}" in file.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_plan_of_a_configuration_is_printed_without_a_download(r3: R3, file: Path) -> None:
    plan = r3("run", "--config", file, "--dry-run")
    assert plan.code == 0, plan.err
    assert "train: a step trains on 256 samples" in plan.out
    assert "evaluate: all problems x 1, with controls" in plan.out
    assert not list(Path().iterdir())


def test_the_page_has_the_rates_of_the_data_file() -> None:
    page = (ROOT / "docs/paper.md").read_text(encoding="utf-8")
    assert f"<!-- generated: paper results -->\n{paper_tables.paper_results()}\n<!-- /generated -->" in page
    assert "None of them was run here" in page


def test_a_value_that_was_not_compared_with_the_paper_is_marked() -> None:
    for row in paper_tables.read_published():
        assert len(row.rates) == len(paper_tables.COLUMNS)
        assert all(row.rates[index] is not None for index in row.unchecked)
    lines = paper_tables.paper_results().splitlines()
    small = next(line for line in lines if "Qwen2-1.5B" in line)
    assert small.endswith("| paper | 32.6 | 34.8* | 48.6 | 52.9 |")


def test_the_cells_of_r3_are_empty_until_a_run_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paper_tables.paper_results().count("|  |  | r3 |  |  |  |  |") == len(FILES)
    record = (ROOT / "docs/runs/countdown-0.json").read_text(encoding="utf-8")
    monkeypatch.setattr(published, "RUNS", tmp_path)
    (tmp_path / "paper-countdown-qwen2.5-3b.json").write_text(record)
    table = paper_tables.paper_results()
    rate = json.loads(record)["result"]["trained"]["second"]["rate"]
    assert table.count("|  |  | r3 |  |  |  |  |") == len(FILES) - 1
    assert f"| {100 * rate:.1f} [" in table
