"""What the benchmark of efficiency computes from a run, and the simulation of the order of failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.efficiency import COMMON, SETTINGS, figures, mixed_share, reached, table
from r3core import get_task
from r3core.config import resolve

CURVE = [
    {"tokens": 0, "seconds": 0.0, "second": 40.0},
    {"tokens": 100, "seconds": 8.0, "second": 45.0},
    {"tokens": 300, "seconds": 20.0, "second": 65.0},
]


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        (5, {"tokens": 100, "seconds": 8}),
        (10, {"tokens": 150, "seconds": 11}),
        (25, {"tokens": 300, "seconds": 20}),
        (26, None),
    ],
)
def test_a_gain_is_reached_between_two_evaluations(gain: float, expected: dict[str, float] | None) -> None:
    assert reached(CURVE, gain) == expected


def test_figures_come_from_the_rows_of_a_run(tmp_path: Path) -> None:
    turn = {"tokens": 5}
    episodes = [{"step": step, "reflection": turn, "retries": [turn, turn]} for step in (1, 1, 2)]
    episodes.append({"step": 2, "reflection": None, "retries": []})
    rate = {"passed": 1, "total": 2, "low": 0.0, "high": 1.0}
    rows = {
        "train-episodes": episodes,
        "train": [{"step": 1, "step_time": 2.0}, {"step": 2, "step_time": 3.0}],
        "validation": [
            {"step": step, "second": {**rate, "rate": second}, "fix": {**rate, "rate": 0.3}}
            for step, second in ((0, 0.4), (2, 0.6))
        ],
    }
    for name, found in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    result = figures(tmp_path)
    assert [(point["tokens"], point["seconds"]) for point in result["curve"]] == [(0, 0), (45, 5.0)]
    assert result["reached"]["10"] == {"tokens": pytest.approx(22.5), "seconds": pytest.approx(2.5)}
    assert result["reached"]["20"] == {"tokens": pytest.approx(45), "seconds": pytest.approx(5)}
    lines = table([{"setting": "one", "seed": seed, **result} for seed in (0, 1)]).splitlines()
    assert lines[2].startswith("| one | 0 | 22.5 | 45.0 | 2.5 | 5.0 | 45.0 | 60.0 | 30.0 |")
    assert lines[-1].startswith("| one | mean | 22.5 ")


@pytest.mark.parametrize("name", SETTINGS)
def test_the_compared_settings_are_valid(name: str) -> None:
    config = resolve(get_task("countdown"), overrides=[*SETTINGS[name], *COMMON])
    assert config.evaluate.every
    assert config.evaluate.every_limit == 500


def test_the_posterior_finds_mixed_groups_where_the_fix_rate_is_low() -> None:
    pool, sizes = (0.2, 3.8), (256, 16, 8, 60)
    shares = [mixed_share(order, pool, sizes, seed=0) for order in ("random", "posterior")]
    assert shares[1] > 1.5 * shares[0]


def test_the_published_table_is_that_of_the_stored_figures() -> None:
    root = Path(__file__).parents[1]
    stored = json.loads((root / "benchmarks" / "efficiency.json").read_text(encoding="utf-8"))
    assert {row["setting"] for row in stored} <= set(SETTINGS)
    assert table(stored) in (root / "docs" / "results.md").read_text(encoding="utf-8")
