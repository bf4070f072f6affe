"""The command `r3 compare`: seeds pooled, settings side by side, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from command import R3, runner
from records import episode, group, write_run

from r3core.compare import compare_runs, latex_of, print_comparison, rows_of_csv
from r3core.compare.evaluated import Tokens
from r3core.compare.tables import CSV_COLUMNS, escaped
from r3core.episode import Episode
from r3core.errors import UsageError
from r3core.stats import clustered, holm

PROBLEMS = 40


def episodes(first: int, second: int, *, start: int = 0, count: int = PROBLEMS, **fields: Any) -> list[Episode]:
    """Return episodes of which this many pass at the first try, and this many at the second or before."""

    def outcome(rank: int) -> str:
        return "pass" if rank < first else "fail pass" if rank < second else "fail fail"

    return [episode(f"n{index}", outcome((index - start) % count), controls=True, **fields) for index in range(count)]


def run(
    folder: Path, seed: int = 0, *, second: int = 24, settings: dict[str, Any] | None = None, **fields: Any
) -> Path:
    """Write a finished run whose trained model solves this many problems in two tries."""
    given: dict[str, Any] = {
        "mined": [episode("m1", "fail"), episode("m2", "fail")],
        "groups": group("m1", [1, 0, 1, 0]),
        "base": episodes(8, 14),
        "trained": episodes(8, second, start=seed),
    }
    return write_run(folder, **given | fields, settings={"seed": seed} | (settings or {}))


@pytest.fixture
def seeds(tmp_path: Path) -> list[Path]:
    return [run(tmp_path / f"s{seed}", seed, second=second) for seed, second in enumerate((24, 26, 28))]


@pytest.fixture
def r3(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> R3:
    return runner(monkeypatch, capfd, tmp_path)


def printed(folders: list[Path]) -> str:
    to = io.StringIO()
    print_comparison(compare_runs(folders), to)
    return re.sub(r"\s+", " ", to.getvalue())


def test_runs_that_differ_in_nothing_but_the_seed_are_one_pooled_group(seeds: list[Path]) -> None:
    found = compare_runs(seeds[::-1])
    assert [[member.seed for member in group.runs] for group in found.groups] == [[0, 1, 2]]
    second = next(row for row in found.groups[0].rows if row.measure == "second")
    assert second.base is not None
    assert second.trained is not None
    assert second.difference is not None
    assert (second.base.mean, second.trained.mean) == (pytest.approx(0.35), pytest.approx(26 / 40))
    assert second.difference.mean == pytest.approx(0.3)
    assert (second.difference.seeds, second.difference.problems) == (3, PROBLEMS)
    assert [line.trained.mean for line in second.seeds if line.trained] == pytest.approx([0.6, 0.65, 0.7])
    assert found.contrasts == []


def test_greedy_tries_have_rows_and_are_compared(tmp_path: Path) -> None:
    settings = {"train.shuffle_rewards": True}
    one = run(tmp_path / "one", greedy=(episodes(20, 24), episodes(8, 30)))
    other = run(tmp_path / "other", greedy=(episodes(20, 24), episodes(19, 26)), settings=settings)
    found = compare_runs([one, other])
    row = next(row for row in found.groups[0].rows if row.measure == "greedy-first")
    assert row.difference is not None
    assert row.difference.mean == pytest.approx((8 - 20) / 40)
    contrasts = {contrast.measure: contrast.difference.mean for contrast in found.contrasts}
    assert contrasts == pytest.approx({"second": 0, "first": 0, "greedy-second": -4 / 40, "greedy-first": 11 / 40})
    text = printed([one, other])
    assert "first try, greedy" in text
    sampled = compare_runs([run(tmp_path / "sampled")])
    assert not any(row.measure.startswith("greedy") for row in sampled.groups[0].rows)
    tokens = [group.runs[0].tokens.evaluation for group in (sampled.groups[0], found.groups[0])]
    assert tokens[1] > tokens[0]


def test_first_try_second_try_fix_rate_controls_and_leaks_have_a_row_each(seeds: list[Path]) -> None:
    rows = {row.measure: row for row in compare_runs(seeds).groups[0].rows}
    assert list(rows) == ["first", "second", "fix", "none", "generic", "shuffled", "placebo", "resample", "leaks"]
    assert rows["leaks"].trained is not None
    assert rows["leaks"].trained.mean == 0
    fix = rows["fix"]
    assert fix.trained is not None
    assert fix.trained.mean == pytest.approx((16 + 18 + 20) / 3 / 32)
    assert rows["none"].trained is not None
    assert rows["none"].trained.mean == 0


def test_the_base_model_is_one_model_whose_seeds_are_samples(tmp_path: Path) -> None:
    folders = [run(tmp_path / f"s{seed}", seed, base=episodes(8, 14, start=20 * seed)) for seed in range(2)]
    base = compare_runs(folders).groups[0].rows[0].base
    samples = clustered([(f"n{index}", (index - start) % 40 < 8) for start in (0, 20) for index in range(40)])
    assert base is not None
    assert (base.mean, base.low, base.high, base.seeds) == (samples.rate, samples.low, samples.high, 2)


def with_cross(folder: Path, fixed: dict[str, int]) -> Path:
    """Add a cross table in which this many of the base's 32 failures are fixed."""
    for name, count in fixed.items():
        failed = [episode(f"n{8 + rank}", "fail pass" if rank < count else "fail fail") for rank in range(32)]
        (folder / f"cross-{name}.jsonl").write_text("".join(one.model_dump_json() + "\n" for one in failed))
    return folder


def test_the_cross_table_is_pooled_with_its_failures(tmp_path: Path) -> None:
    fixed = [{"base-trained": 8 + seed, "trained-base": 20 + 4 * seed, "trained-trained": 24} for seed in range(2)]
    folders = [with_cross(run(tmp_path / f"s{seed}", seed), fixed[seed]) for seed in range(2)]
    rows = {row.measure: row for row in compare_runs(folders).groups[0].rows}
    means = {name: [row.base and row.base.mean, row.trained and row.trained.mean] for name, row in rows.items()}
    assert means["by_base"] == [pytest.approx(6 / 32), pytest.approx(8.5 / 32)]
    assert means["by_trained"] == [pytest.approx(22 / 32), pytest.approx(24 / 32)]
    by_trained = rows["by_trained"]
    assert by_trained.base is not None
    assert by_trained.base.deviation == pytest.approx(4 / 32 / 2**0.5)  # the seeds are trainings here too
    assert by_trained.difference is not None
    assert [line.difference.mean for line in by_trained.seeds if line.difference] == [4 / 32, 0]
    shown = printed(folders)
    assert "retries on reflections by trained" in shown
    assert "in the last rows both on the base's" in shown
    assert "in the last rows" not in printed([run(tmp_path / "without", 7)])


def test_leaks_are_pooled(tmp_path: Path) -> None:
    folders = [run(tmp_path / f"s{seed}", seed, base=episodes(8, 14, leaked=seed == 0)) for seed in range(2)]
    leaks = next(row for row in compare_runs(folders).groups[0].rows if row.measure == "leaks")
    assert leaks.base is not None
    assert leaks.base.mean == 0.5


def test_the_tokens_of_shared_mining_are_counted_for_each_run(tmp_path: Path) -> None:
    folder = run(tmp_path / "s0", mined=[], settings={"mine.failures": tmp_path / "mining"})
    card = json.loads((folder / "failures/card.json").read_text())
    (folder / "failures/card.json").write_text(json.dumps(card | {"counts": {"tokens": 1234}}))
    assert compare_runs([folder]).groups[0].runs[0].tokens.mining == 1234


def test_settings_are_side_by_side_and_compared_on_the_same_problems(seeds: list[Path], tmp_path: Path) -> None:
    other = run(tmp_path / "other", second=38, settings={"train.retries": 2})
    found = compare_runs([*seeds, other])
    assert [group.label for group in found.groups] == ["train.retries=1", "train.retries=2"]
    assert [(one.group, one.against, one.measure) for one in found.contrasts] == [
        ("B", "A", "second"),
        ("B", "A", "first"),
    ]
    second = found.contrasts[0].difference
    assert second.mean == pytest.approx(38 / 40 - 26 / 40)
    assert found.contrasts[0].p_adjusted == second.p  # the only primary comparison
    assert "a single training is assumed to vary with its seed as the repeated one does" in printed([*seeds, other])


def test_two_single_runs_are_compared_by_a_paired_test(tmp_path: Path) -> None:
    one, other = run(tmp_path / "a"), run(tmp_path / "b", second=38, settings={"train.retries": 2})
    second = compare_runs([one, other]).contrasts[0]
    assert second.difference.p == pytest.approx(2 * 0.5**14)  # 14 problems gained, none lost: exact McNemar test
    assert second.p_adjusted == second.difference.p
    assert second.detectable is None


def test_second_tries_and_all_else_are_two_families_of_tests(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / f"{solved}", second=solved, settings={"train.retries": retries})
        for retries, solved in enumerate((24, 38, 32), start=1)
    ]
    found = {(one.group, one.measure): one for one in compare_runs(runs).contrasts}
    second = [found[group, "second"] for group in "BC"]
    assert [one.p_adjusted for one in second] == pytest.approx(holm([one.difference.p or 0 for one in second]))
    assert second[0].p_adjusted == pytest.approx(2 * (second[0].difference.p or 0))


def test_without_a_significant_difference_the_detectable_one_is_named(tmp_path: Path) -> None:
    one, other = run(tmp_path / "a"), run(tmp_path / "b", second=26, settings={"train.retries": 2})
    found = compare_runs([one, other])
    smallest = found.contrasts[0].detectable
    assert smallest is not None
    assert smallest.problems_needed is not None
    assert smallest.problems_needed > PROBLEMS
    text = printed([one, other])
    assert f"{100 * smallest.difference:.1f} points is found with a power of 80%" in text
    assert f"for the observed +5.0 points, {smallest.problems_needed} problems are needed" in text


def test_without_a_significant_difference_between_groups_the_source_of_the_variance_is_named(tmp_path: Path) -> None:
    groups = [
        run(tmp_path / f"{retries}{seed}", seed, second=second, settings={"train.retries": retries})
        for retries in (1, 2)
        for seed, second in enumerate((18, 34) if retries == 1 else (20, 36))
    ]
    assert "most of its variance is due to the training seeds: add training seeds" in printed(groups)


def test_another_budget_of_training_tokens_is_not_comparable(tmp_path: Path) -> None:
    one = run(tmp_path / "a")
    more = run(tmp_path / "b", groups=group("m1", [1, 0, 1, 0] * 3), settings={"train.retries": 2})
    same = run(tmp_path / "c", settings={"train.retries": 3})
    found = compare_runs([one, more, same])
    tokens = [group.runs[0].tokens.training for group in found.groups]
    assert tokens[0] == tokens[2] == 4 * (len("Reflection 0.") // 4 + 1)
    assert len(found.not_comparable) == 1
    assert "not comparable: A generated 16 tokens for training, B 48 (+200%)" in printed([one, more, same])


def test_a_group_without_mining_or_training_has_no_tokens_of_them(tmp_path: Path) -> None:
    alone = run(tmp_path / "a", mined=(), groups=(), trained=())
    found = compare_runs([alone])
    assert found.groups[0].runs[0].tokens == Tokens(mining=None, training=None, validation=None, evaluation=8 + 32 * 10)
    assert not found.groups[0].trained


def test_the_tokens_of_evaluations_during_training_are_counted_apart(tmp_path: Path) -> None:
    one = run(tmp_path / "a")
    (one / "validation.jsonl").write_text('{"step": 0, "tokens": 70}\n{"step": 5, "tokens": 80}\n')
    assert compare_runs([one]).groups[0].runs[0].tokens.validation == 150


def test_the_same_training_twice_is_refused(tmp_path: Path) -> None:
    one, copy = run(tmp_path / "a"), run(tmp_path / "b")
    with pytest.raises(UsageError, match=r"a` and `.*b` are the same training: equal settings, seed 0"):
        compare_runs([one, copy])
    assert len(compare_runs([one, one]).groups[0].runs) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base": episodes(8, 14, count=30), "trained": ()}, "has 30 problems, .* 40: 0 are only .*, 10 only in"),
        ({"settings": {"evaluate.split": "validation"}}, "evaluates the split validation, .* test"),
        (
            {"base": episodes(8, 14, prompt="Say 8."), "trained": ()},
            "40 problems with the id, but another prompt or answer",
        ),
    ],
)
def test_runs_on_other_problems_are_refused_with_how_they_differ(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        compare_runs([run(tmp_path / "a"), run(tmp_path / "b", 1, **fields)])


@pytest.mark.parametrize(
    ("finished", "hint"),
    [(("mine",), "finish it: r3 run --output-dir"), (("mine", "train"), "finish it: r3 eval --output-dir")],
)
def test_a_run_without_a_result_is_an_error_that_names_the_command(
    r3: R3, seeds: list[Path], tmp_path: Path, finished: tuple[str, ...], hint: str
) -> None:
    unfinished = run(tmp_path / "new", 7, finished=finished)
    code, out, err = r3("compare", *seeds, unfinished)
    assert (code, out) == (2, "")
    assert f"`{unfinished}` has no result: its evaluation is not finished (finished: {', '.join(finished)})" in err
    assert f"{hint} {unfinished}" in err


def test_a_folder_that_is_not_a_run_is_an_error(r3: R3, tmp_path: Path) -> None:
    code, _, err = r3("compare", tmp_path)
    assert code == 2
    assert "is not a run directory" in err


def test_json_csv_and_latex_have_the_same_figures(r3: R3, seeds: list[Path], tmp_path: Path) -> None:
    other = run(tmp_path / "other", second=38, settings={"train.retries": 2})
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, out, err = r3("compare", *seeds, other, "--json", "--csv", "x.csv", "--latex", "x.tex")
    assert code == 0
    assert err == "written: x.csv\nwritten: x.tex\n"
    value = json.loads(out)
    row = next(row for row in value["groups"][0]["rows"] if row["measure"] == "second")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text())))
    pooled = next(
        line
        for line in lines
        if (line["group"], line["measure"], line["model"], line["seed"]) == ("A", "second", "difference", "all")
    )
    assert [float(pooled[name]) for name in ("estimate", "low", "high", "p")] == [
        row["difference"][name] for name in ("mean", "low", "high", "p")
    ]
    contrast = [line for line in lines if line["model"] == "contrast"]
    assert [float(line["p_holm"]) for line in contrast] == [one["p_adjusted"] for one in value["contrasts"]]
    tex = (tmp_path / "x.tex").read_text()
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == tex.count(r"\bottomrule") == 2
    assert f"{100 * row['trained']['mean']:.1f}" in tex
    assert {path: path.stat().st_mtime_ns for path in before if path != tmp_path} == {
        path: time for path, time in before.items() if path != tmp_path
    }


def test_every_csv_row_has_every_column(seeds: list[Path]) -> None:
    assert {len(row) for row in rows_of_csv(compare_runs(seeds))} == {len(CSV_COLUMNS)}


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("50% & a_b #1 $x$ {y}", r"50\% \& a\_b \#1 \$x\$ \{y\}"),
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("a^~<b>", r"a\textasciicircum{}\textasciitilde{}\textless{}b\textgreater{}"),
        ("line\nbreak\x1b[2J", r"line\textbackslash{}nbreak\textbackslash{}x1b[2J"),
    ],
)
def test_latex_commands_and_control_characters_are_escaped(text: str, tex: str) -> None:
    assert escaped(text) == tex


def test_settings_with_control_characters_reach_neither_the_terminal_nor_latex(tmp_path: Path) -> None:
    hostile = "\x1b[2J\\input{x}\n" + "y" * 1000
    runs = [run(tmp_path / "a"), run(tmp_path / "b", settings={"wording": {"retry": hostile}})]
    text, tex = printed(runs), latex_of(compare_runs(runs))
    for output in (text, tex):
        assert "\x1b" not in output
        assert "y" * 100 not in output
    assert r"\input{" not in tex


def test_groups_and_rows_follow_the_order_of_the_command(tmp_path: Path, seeds: list[Path]) -> None:
    other = run(tmp_path / "other", settings={"train.retries": 2})
    assert [group.label for group in compare_runs([other, *seeds]).groups] == ["train.retries=2", "train.retries=1"]
