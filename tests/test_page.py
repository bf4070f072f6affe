"""The page of a run: what it counts, which episodes it shows, and what it says about runs in every state."""

from __future__ import annotations

import csv
import json
import os
import re
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from records import episode, group, write_run
from typer.testing import CliRunner

from r3core.cli.main import app
from r3core.config import Config
from r3core.errors import UsageError
from r3core.evaluation.result import Result, compare, scores
from r3core.forecast import Forecast
from r3core.page import sample, version, write_csv, write_page, write_png
from r3core.page.collect import averaged, collect, compared_with_forecast, names_of, seconds, settings, tokens
from r3core.page.render import render
from r3core.recorded import open_record
from r3core.report import claim
from r3core.serve import LivePage
from r3core.stats import Share, wilson


def data_of(page: str) -> dict[str, Any]:
    """Return what the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def page_of(run: Path) -> str:
    return render([collect(run, name=run.name)])


def test_counts_are_over_all_problems_and_texts_of_a_sample(tmp_path: Path) -> None:
    base = [episode(f"n{number}", "fail fail") for number in range(1_200)]
    trained = [episode(f"n{number}", "fail pass" if number % 3 else "fail fail") for number in range(1_200)]
    page = page_of(write_run(tmp_path, base=base, trained=trained))
    assert "<b>800</b> newly fixed" in page
    assert "<b>400</b> solved by neither" in page
    assert len(data_of(page)["problems"]) == sample.MAX_PROBLEMS
    assert "a sample of 1,000 of 1,200 attempts at problems" in page


def test_each_kind_of_change_is_in_the_sample(tmp_path: Path) -> None:
    base = [episode(f"n{number}", "pass" if number < 5 else "fail pass") for number in range(2_000)]
    trained = [episode(f"n{number}", "fail fail" if number < 5 else "pass") for number in range(2_000)]
    problems = data_of(page_of(write_run(tmp_path, base=base, trained=trained)))["problems"]
    assert sum(problem["changes"] == ["newly broken"] for problem in problems) == 5


def test_the_sample_depends_on_the_problems_alone() -> None:
    keys = [(f"n{number}", 0) for number in range(50)]
    assert sample.chosen(keys, {}) == sample.chosen(reversed(keys), {})
    assert sample.chosen(keys, {}) != keys


def test_long_runs_have_pages_of_bounded_size(tmp_path: Path) -> None:
    thought = "thinking about it, step by step. " * 600
    base = [episode(f"n{number}", "fail fail", attempt=thought, reflection=thought) for number in range(700)]
    groups = [row for step in range(1, 61) for row in group(f"n{step}", [1, 0], step=step, reflection=thought)]
    page = page_of(write_run(tmp_path, base=base, groups=groups, steps=60))
    data = data_of(page)
    assert len(json.dumps(data["problems"])) <= sample.MAX_BYTES
    assert len(json.dumps(data["groups"])) <= sample.MAX_BYTES
    assert 50 < len(data["problems"]) < 700
    assert {data["groups"][0]["step"], data["groups"][-1]["step"]} == {1, 60}
    assert "characters are not shown" in data["problems"][0]["sides"][0]["attempt"]["text"]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("fail fail", "fail pass", "newly fixed"),
        ("fail fail", "pass", "newly fixed"),
        ("pass", "fail fail", "newly broken"),
        ("fail pass", "fail fail", "newly broken"),
        ("pass", "fail pass", "solved by both"),
        ("fail fail", "fail fail", "solved by neither"),
        ("error", "pass", "unjudged"),
        ("fail error", "pass", "unjudged"),
    ],
)
def test_a_change_compares_both_tries(tmp_path: Path, before: str, after: str, expected: str) -> None:
    run = write_run(tmp_path, base=[episode("n7", before)], trained=[episode("n7", after)])
    assert collect(run, name="run").changes == {("n7", 0): expected}


def test_the_number_of_changes_agrees_with_the_paired_difference(tmp_path: Path) -> None:
    outcomes = ["pass", "fail pass", "fail fail"]
    base = [episode(f"n{number}", outcomes[number % 3]) for number in range(60)]
    trained = [episode(f"n{number}", outcomes[number % 4 % 3]) for number in range(60)]
    run = collect(write_run(tmp_path, base=base, trained=trained), name="run")
    kinds = list(run.changes.values())
    assert run.result is not None
    assert run.result.paired is not None
    gained = (kinds.count("newly fixed") - kinds.count("newly broken")) / 60
    assert run.result.paired.second.difference == pytest.approx(gained)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext", "plain\n\ttext"),
        ("\x1b[31mred\x00", "\\x1b[31mred\\x00"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\ud800", "\\ud800"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert sample.shown(text) == shown


def test_of_a_long_text_the_middle_is_left_out() -> None:
    shown = sample.shown("a" * 500_000 + "b" * 500_000)
    assert len(shown) < sample.MAX_CHARACTERS + 100
    assert shown.startswith("aaa")
    assert shown.endswith("bbb")
    assert "994,000 characters are not shown" in shown


def test_hostile_texts_are_data_and_never_markup(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    base = [
        episode("n7", "fail fail", attempt=hostile, reflection=hostile, reason=hostile, kind=hostile, prompt=hostile)
    ]
    run = write_run(tmp_path, base=base, trained=base, settings={"wording": {"reflect": hostile}})
    page = page_of(run)
    assert page.count("<script") == 3  # the data, the charting library, the page's script
    assert "<img src=x" not in page
    assert data_of(page)["problems"][0]["sides"][0]["attempt"]["text"] == hostile


def test_the_policy_allows_the_pages_own_scripts_and_no_request(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, base=[episode("n7")]))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src &#39;none&#39;" in policy[1]
    assert "connect-src &#39;none&#39;" in policy[1]
    assert "unsafe-eval" not in policy[1]


@pytest.mark.parametrize(
    ("finished", "expected"),
    [
        (["mine", "train", "evaluate"], "Finished: mine, train, evaluate."),
        (["mine", "train"], "Interrupted; the same command resumes it: mine, train finished; evaluating, 2 episodes"),
    ],
)
def test_the_state_of_an_evaluated_run(tmp_path: Path, finished: list[str], expected: str) -> None:
    episodes = [episode("n7")]
    run = write_run(tmp_path, base=episodes, trained=episodes, finished=finished)
    assert expected in page_of(run)


def test_the_state_of_a_run_in_training(tmp_path: Path) -> None:
    run = write_run(tmp_path, mined=[episode("n7")], groups=group("n7", [1, 0]), steps=10, finished=["mine"])
    interrupted = page_of(run)
    assert "Interrupted; the same command resumes it: mine finished; training, 10 of ? steps" in interrupted
    assert "No evaluation yet, so nothing is known about the effect" in interrupted
    (run / ".lock.pid").write_text(str(os.getpid()))
    assert "In progress: mine finished; training" in page_of(run)


def test_a_run_that_was_only_mined_shows_its_attempts(tmp_path: Path) -> None:
    run = write_run(tmp_path, mined=[episode("n7", "fail"), episode("n8", "pass")], finished=["mine"])
    data = data_of(page_of(run))
    assert sorted(problem["id"] for problem in data["problems"]) == ["n7", "n8"]
    assert data["groups"] == []


def test_a_group_has_its_reflections_in_the_order_of_their_rewards(tmp_path: Path) -> None:
    rows = group("n7", [0, 1, 0])
    rows[0]["reward"] = None
    run = write_run(tmp_path, mined=[episode("n7", "fail")], groups=rows, steps=1, finished=["mine"])
    [shown] = data_of(page_of(run))["groups"]
    assert [one["reward"] for one in shown["reflections"]] == [1, 0, None]
    assert shown["attempt"]["text"] == "8"


def test_groups_on_one_failure_in_a_step_are_apart_and_have_their_own_keys(tmp_path: Path) -> None:
    rows = [*group("p0", [0, 1]), *group("p1", [0, 0]), *group("p0", [1, 1]), *group("p1", [0, 1, 1, 1], step=2)]
    run = write_run(tmp_path, groups=rows, steps=2, finished=["mine"], settings={"grpo.num_generations": 2})
    shown = data_of(page_of(run))["groups"]
    assert [(one["key"], [each["reward"] for each in one["reflections"]]) for one in shown] == [
        ("0:step 1.1:p0", [1, 0]),
        ("0:step 1:p1", [0, 0]),
        ("0:step 1.3:p0", [1, 1]),
        ("0:step 2.1:p1", [1, 0]),
        ("0:step 2.2:p1", [1, 1]),
    ]
    assert "all 5 groups of training" in page_of(run)


def test_steps_with_groups_are_evenly_spaced_from_the_first_to_the_last(tmp_path: Path) -> None:
    rows = [row for step in range(1, 201) for row in group(f"n{step}", [1, 0], step=step)]
    groups, counted, total = sample.groups(open_record(write_run(tmp_path, groups=rows, steps=200)), 2)
    steps = [one["step"] for one in groups]
    assert len(steps) == sample.MAX_STEPS
    assert (steps[0], steps[-1]) == (1, 200)
    assert max(later - earlier for earlier, later in pairwise(steps)) <= 6
    assert total == 200
    assert counted["reflections"] == sum(row["reflection"].tokens for row in rows)


def test_tokens_and_seconds_are_those_of_the_rows(tmp_path: Path) -> None:
    base = [episode("n7", controls=True)]
    run = collect(write_run(tmp_path, base=base, groups=group("n7", [1]), steps=2), name="run")
    assert tokens(run)["evaluation, base"] == {"attempts": 1, "reflections": 3, "retries": 1, "controls": 5}
    assert seconds(run)["training"] == pytest.approx(
        {"generation": 1.6, "verification": 0.2, "training": 2.4, "loading, saving, rest": 5.8}
    )


def test_tokens_of_further_resamples_are_those_of_controls(tmp_path: Path) -> None:
    made = episode("n7", controls=True)
    more = made.model_copy(update={"resamples": (made.retries["resample"],) * 3})
    run = collect(write_run(tmp_path, base=[more]), name="run")
    assert tokens(run)["evaluation, base"]["controls"] == 5 + 3


def test_curves_of_long_trainings_are_averaged() -> None:
    points = averaged([{"step": step, "reward": float(step % 2), "kl": None} for step in range(1, 1_001)])
    assert len(points) == 250
    assert points[0] == {"step": 4, "reward": 0.5}
    assert points[-1]["step"] == 1_000


def test_the_forecast_is_compared_with_the_first_steps(tmp_path: Path) -> None:
    rows = [row for step in range(1, 21) for row in group("n7", [1, 0], step=step)]
    run = write_run(tmp_path, base=[episode("n7")], groups=rows, steps=20)
    assert compared_with_forecast(collect(run, name="run")) == []
    share = Share(rate=0.25, low=0.2, high=0.3)
    forecast = Forecast(
        failures=9,
        probed=4,
        retries=1,
        fix_rate=wilson(1, 4),
        reward=share,
        signal={8: share},
        unrewarded=wilson(0, 4),
        reflections_truncated=wilson(1, 4),
        retries_truncated=wilson(0, 4),
        tokens=10.0,
        seconds=0.1,
    )
    (run / "forecast.json").write_text(forecast.model_dump_json())
    rows = {label: rest for label, *rest in compared_with_forecast(collect(run, name="run"))}
    assert rows["mean reward of a reflection"] == ["25.0% [20.0, 30.0]", "21.3% (steps 1 to 2, about 2 groups)"]
    assert rows["groups of 8 with different rewards"] == ["25.0% [20.0, 30.0]", "80.0% (steps 1 to 2, about 2 groups)"]
    assert rows["reflections cut off at the token limit"][1] == "1.0% (steps 1 to 2, about 2 groups)"


@pytest.mark.parametrize(
    ("settings", "ending"),
    [
        ({}, "."),
        (
            {"train.anchor": 10, "train.interpolate": 0.5},
            ", anchor 10 (KL to the base model on mined first attempts), 0.5 of the update saved.",
        ),
    ],
)
def test_the_page_states_what_holds_the_model_near_the_base(
    settings: dict[str, Any], ending: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path, mined=[episode("m1", "fail")], groups=group("m1", [1, 0]), steps=2, settings=settings)
    assert f"KL coefficient (beta) 0{ending}" in page_of(run)


def test_settings_that_differ_from_the_defaults_are_listed(tmp_path: Path) -> None:
    run = write_run(tmp_path, base=[episode("n7")], settings={"grpo.beta": 0.1, "seed": 3})
    changed = settings(collect(run, name="run"))
    assert ("seed", "3", "0") in changed
    assert ("grpo.beta", "0.1", "not set") in changed
    assert all("mine" not in key for key, _, _ in changed)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            "fail fail",
            "fail pass",
            "raised the share of problems solved in two tries from 0.0% to 100.0%: +100.0 points",
        ),
        ("pass", "fail fail", "lowered the share of problems solved in two tries from 100.0% to 0.0%: -100.0 points"),
        ("pass", "pass", "No effect of training is visible: 100.0% of the problems solved in two tries before, 100.0%"),
    ],
)
def test_the_claim_says_no_more_than_its_interval(before: str, after: str, expected: str) -> None:
    base, trained = ([episode(f"n{number}", outcomes) for number in range(30)] for outcomes in (before, after))
    result = Result(base=scores(base), trained=scores(trained), paired=compare(base, trained))
    sentence = claim(result, Config(task="toy"))
    assert expected in sentence
    assert "30 problems of the test split, seed 0" in sentence


def test_the_claim_about_a_model_alone() -> None:
    result = Result(base=scores([episode("n7", "pass")]))
    assert claim(result, Config(task="toy")).endswith("nothing was trained.")


def test_one_page_shows_the_same_problem_of_several_runs(tmp_path: Path) -> None:
    base, trained = [episode("n7", "fail fail")], [episode("n7", "fail pass")]
    runs = [write_run(tmp_path / name, base=base, trained=trained, steps=3) for name in ("one", "two")]
    page = write_page(runs, tmp_path / "both.html").read_text(encoding="utf-8")
    data = data_of(page)
    [problem] = data["problems"]
    assert [data["columns"][side["column"]]["label"] for side in problem["sides"]] == [
        "one: base", "one: trained", "two: base", "two: trained",
    ]  # fmt: skip
    [points] = data["charts"]["curve-reward"]["datasets"].values()
    assert {row["run"] for row in points} == {"one", "two"}


def test_runs_are_named_by_the_ends_of_their_paths_that_differ() -> None:
    assert names_of([Path("/a/run"), Path("/a/other")]) == ["run", "other"]
    assert names_of([Path("/a/run"), Path("/b/run")]) == ["a/run", "b/run"]


def test_tables_and_charts_are_written_as_files(tmp_path: Path) -> None:
    base = [episode(f"n{number}", "fail fail", kind="too small") for number in range(9)]
    trained = [episode(f"n{number}", "fail pass") for number in range(9)]
    run = write_run(tmp_path / "run", base=base, trained=trained, steps=3)
    tables = {path.name: path for path in write_csv([run], tmp_path / "tables")}
    rates = list(csv.DictReader(tables["rates.csv"].read_text(encoding="utf-8").splitlines()))
    assert [(row["measure"], row["model"], float(row["rate"])) for row in rates[:3]] == [
        ("first try", "base", 0.0),
        ("second try", "base", 0.0),
        ("fix rate", "base", 0.0),
    ]
    assert tables["result.csv"].read_text(encoding="utf-8").startswith(",base,trained,trained - base\n")
    assert "controls.csv" not in tables  # none were evaluated
    written = write_png([run], tmp_path / "charts")
    assert {path.suffix for path in written} == {".png", ".svg"}
    assert all(path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"<svg") for path in written)
    assert all(b"currentColor" not in path.read_bytes() for path in written if path.suffix == ".svg")


def test_the_comparison_with_the_controls_is_in_the_page_and_the_files(tmp_path: Path) -> None:
    sides = {name: [episode(f"n{number}", outcomes, controls=True) for number in range(9)]
             for name, outcomes in (("base", "fail fail"), ("trained", "fail pass"))}  # fmt: skip
    run = write_run(tmp_path / "run", steps=3, **sides)
    page = page_of(run)
    assert page.count('<table class="arms">') == 1
    assert '<th scope="row">another&#39;s reflection</th><td>+0.0 [' in page
    table = list(csv.reader(write_csv([run], tmp_path / "tables")[1].read_text(encoding="utf-8").splitlines()))
    assert table[0][:3] == ["reflection - control", "base", "trained"]
    assert table[2][0] == "no reflection"
    assert table[2][2].startswith("+100.0 [")
    assert 'class="arms"' not in page_of(write_run(tmp_path / "plain", base=[episode("n7")], steps=3))


def test_a_page_of_short_markup_is_bounded_as_it_is_written(tmp_path: Path) -> None:
    base = [episode(f"n{number}", "fail fail", attempt="<" * 5_000) for number in range(300)]
    page = page_of(write_run(tmp_path, base=base))
    assert len(page) < 2 * sample.MAX_BYTES
    assert 50 < len(data_of(page)["problems"]) < 300


def test_a_live_page_has_the_version_of_its_runs_and_changes_with_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", mined=[episode("n7")], steps=2, finished=["mine"])
    (run / ".lock.pid").write_text(str(os.getpid()))
    live = LivePage([run], partial(write_page, [run], tmp_path / "page.html"))
    assert live.refresh(now=0)
    assert live.built.version == version([run])
    assert f'data-version="{version([run])}"' in live.built.content.decode()
    with (run / "train.jsonl").open("a") as file:
        file.write('{"step": 3, "reward": 0.5}\n')
    assert live.refresh(now=1_000)
    assert live.built.version == version([run])


def test_training_after_an_evaluation_of_the_base_is_in_progress(tmp_path: Path) -> None:
    run = write_run(tmp_path, base=[episode("n7")], steps=3, finished=["mine", "evaluate"])
    (run / ".lock.pid").write_text(str(os.getpid()))
    page = page_of(run)
    assert "In progress: mine, evaluate finished; training, 3 of ? steps" in page
    assert "nothing was trained" not in page


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("$& $$x$$", "Your answer is incorrect: $& $$x$$."), ("", "Your answer is incorrect.")],
)
def test_the_reason_is_shown_as_the_model_received_it(tmp_path: Path, reason: str, expected: str) -> None:
    failed = episode("n7", "fail fail", reason=reason)
    run = write_run(
        tmp_path, base=[failed], mined=[failed], groups=group("n7", [1, 0]), settings={"feedback": "reason"}
    )
    data = data_of(page_of(run))
    assert data["problems"][0]["sides"][0]["feedback"] == expected
    assert data["groups"][0]["feedback"] == expected


def test_no_category_becomes_a_formula_of_a_spreadsheet(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", base=[episode("n7", "fail fail", kind='=HYPERLINK("http://example.org")')])
    [table] = [path for path in write_csv([run], tmp_path / "csv") if path.name == "error-categories-retries.csv"]
    [row] = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    assert row["category"].startswith("'=")
    assert row["failed"] == "1"


def test_a_page_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", base=[episode("n7")])
    with pytest.raises(UsageError, match="cannot be written"):
        write_page([run], tmp_path)


def test_a_report_refuses_settings_beside_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path, base=[episode("n7")])
    with pytest.raises(UsageError, match="has its own settings"):
        app(["report", str(run), "--task", "other"], standalone_mode=False)


def test_report_writes_the_page_of_an_unfinished_run(tmp_path: Path) -> None:
    run = write_run(tmp_path, mined=[episode("n7")], groups=group("n7", [1, 0]), steps=2, finished=["mine"])
    given = CliRunner().invoke(app, ["report", str(run), "--json"])
    assert given.exit_code == 0
    assert json.loads(given.stdout) == {"finished": ["mine"], "stage": "train"}
    assert f"page: {run / 'report.html'}" in given.stderr
    assert (run / "report.html").exists()


def test_report_writes_tables_and_charts(tmp_path: Path) -> None:
    run = write_run(tmp_path, base=[episode("n7")], steps=2)
    given = CliRunner().invoke(app, ["report", str(run), "--csv", "--png"])
    assert given.exit_code == 0
    assert (run / "tables" / "result.csv").exists()
    assert (run / "charts" / "rates.png").exists()


def test_report_of_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run directory"):
        app(["report", str(tmp_path)], standalone_mode=False)


def test_greedy_tries_are_in_the_table_the_chart_and_the_tokens(tmp_path: Path) -> None:
    side = [episode(f"n{number}", "fail pass") for number in range(4)]
    run = write_run(tmp_path, base=side, trained=side, greedy=(side, side))
    page = page_of(run)
    assert "first try, greedy" in page
    chart = data_of(page)["charts"]["rates"]
    assert "fix rate, greedy" in json.dumps(chart)
    assert "evaluation, base, greedy" in tokens(collect(run, name="run"))
    plain = page_of(write_run(tmp_path / "plain", base=side, trained=side))
    assert "greedy" not in json.dumps(data_of(plain)["charts"])
