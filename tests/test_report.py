from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from records import episode, write_run

from r3core.config import Config
from r3core.dataset import Selection
from r3core.episode import Arm, Episode
from r3core.evaluation.arms import Cost, EqualTokens
from r3core.evaluation.result import Paired, Result, Scores, secondary, with_holm
from r3core.evaluation.tables import HEADINGS, arm_differences, error_categories, rows
from r3core.forecast import Forecast
from r3core.report import as_json, model_card, notes, print_forecast, print_table, shares_of_a_step
from r3core.runs import Run
from r3core.sections import Evaluate
from r3core.stats import Difference, Share, wilson

CONFIG = Config.model_validate({"task": "toy", "grpo": {"num_generations": 8}})


def scores(first: int, *, errors: int = 0, controls: bool = True) -> Scores:
    arms: tuple[Arm, ...] = ("none", "generic", "shuffled", "resample") if controls else ()
    return Scores(
        first=wilson(first, 100),
        second=wilson(first + 20, 100),
        fix=wilson(20, 100 - first),
        controls={arm: wilson(place, 100 - first) for place, arm in enumerate(arms, start=1)},
        leaks=wilson(3, 100 - first),
        fix_without_leak=wilson(17, 97 - first),
        attempts_truncated=wilson(first, 100),
        truncated=wilson(0, 100 - first),
        retries_truncated=wilson(4, 100 - first),
        errors=errors,
    )


def result(*, trained: bool = True, errors: int = 0, controls: bool = True) -> Result:
    base = scores(20, errors=errors, controls=controls)
    if not trained:
        return Result(base=base)
    return Result(
        base=base,
        trained=scores(30, controls=controls),
        paired=Paired(
            first=Difference(difference=0.1, low=0.01, high=0.19, p=0.031),
            second=Difference(difference=0.25, low=0.2, high=0.3, p=1e-9),
        ),
        cross={
            "base": {"base": wilson(20, 80), "trained": wilson(24, 80)},
            "trained": {"base": wilson(40, 80), "trained": wilson(48, 80)},
        },
    )


def with_error_categories() -> Result:
    made = result()
    assert made.trained
    base = made.base.model_copy(
        update={"first_error_categories": {"typo": 2, "sum": 5}, "second_error_categories": {"sum": 1}}
    )
    trained = made.trained.model_copy(update={"first_error_categories": {"typo": 9, "\x1b[31m": 1}})
    return made.model_copy(update={"base": base, "trained": trained})


def test_error_categories_are_counted_on_both_sides_the_most_frequent_first() -> None:
    assert error_categories(with_error_categories()) == [
        ("error category", "first try, base", "first try, trained", "retry, base", "retry, trained"),
        ("typo", "2", "9", "0", "0"),
        ("sum", "5", "0", "1", "0"),
        ("\\x1b[31m", "0", "1", "0", "0"),
    ]
    assert error_categories(result()) == []
    printed = io.StringIO()
    print_table(with_error_categories(), CONFIG, printed)
    assert "error categories of failed answers" in printed.getvalue()
    assert "| typo | 2 | 9 | 0 | 0 |" in model_card(with_error_categories(), CONFIG, None)
    assert "rror categor" not in model_card(result(), CONFIG, None)


def with_controls(*, attempts: tuple[float, float] = (1.8, 2.5), resamples: int = 4) -> Result:
    """Return a result with comparisons of the controls; k fresh attempts have the tokens of a reflection."""
    made = result()
    assert made.trained

    def side(scores: Scores, k: float, points: float) -> Scores:
        change = Difference(difference=points, low=points - 0.1, high=points + 0.1, p=0.02)
        measured = {"fix": Share(rate=0.291, low=0.25, high=0.33), "difference": change} if k <= resamples else {}
        update = {
            "against": dict.fromkeys(scores.controls, change),
            "costs": {
                arm: Cost(tokens=10.0 + place, verdicts=1.0) for place, arm in enumerate(["reflect", *scores.controls])
            },
            "equal_tokens": EqualTokens(attempts=k, resamples=resamples, **measured),
        }
        return scores.model_copy(update=update)

    sides = {"base": side(made.base, attempts[0], 0.15), "trained": side(made.trained, attempts[1], 0.5)}
    change = Difference(difference=0.4, low=0.35, high=0.45, p=1e-9)
    return with_holm(made.model_copy(update=sides | {"reflections": {"base": change, "trained": change}}))


def test_the_reflection_is_compared_with_every_control() -> None:
    head, *lines = arm_differences(with_controls())
    assert head == ("reflection - control", "base", "trained", "cost, base", "cost, trained")
    assert [line[0] for line in lines] == [
        "(the reflection)", "no reflection", "generic sentence", "another's reflection", "plain resampling",
        "plain resampling at equal tokens", "trained - base reflections",
    ]  # fmt: skip
    assert lines[0][1:] == ("", "", "10.0 (1.0)", "10.0 (1.0)")
    # 13 tests: the p-values of 0.02 are multiplied by 11, as those of the last row are smaller
    assert lines[1][1:] == (
        "+15.0 [+5.0, +25.0] p = 0.220",
        "+50.0 [+40.0, +60.0] p = 0.220",
        "11.0 (1.0)",
        "11.0 (1.0)",
    )
    assert lines[5][3:] == ("10.0 (1.80)", "10.0 (2.50)")
    assert lines[6][1:] == ("+40.0 [+35.0, +45.0] p < 0.001", "+40.0 [+35.0, +45.0] p < 0.001", "", "")


def test_the_comparisons_are_in_the_terminal_the_card_and_the_json() -> None:
    made = with_controls()
    printed = io.StringIO()
    print_table(made, CONFIG, printed)
    card = model_card(made, CONFIG, None)
    for line in arm_differences(made):
        assert "| " + " | ".join(line) + " |" in card
        assert all(cell in printed.getvalue() for cell in line[1:])
    assert "29.1 [25.0, 33.0]" in {cell.strip() for row in rows(made) for cell in row}
    assert as_json(made, None)["trained"]["against"]["none"]["p_holm"] == pytest.approx(0.22)
    text = "\n".join(notes(made, CONFIG))
    assert "primary endpoint: the second try, trained - base" in text
    assert "for 13 tests" in text
    assert "fresh attempt (base 1.80, trained 2.50), estimated from 4 fresh attempts" in text


def test_a_difference_shows_the_adjusted_p_value_except_for_the_primary_endpoint() -> None:
    table = {row[0].strip(): row[3] for row in rows(with_controls())}
    assert table["first try"] == "+10.0 [+1.0, +19.0] p = 0.220"  # 0.031 alone
    assert table["second try"] == "+25.0 [+20.0, +30.0] p < 0.001"
    assert {row[0].strip(): row[3] for row in rows(result())}["first try"].endswith("p = 0.031")


def test_too_few_resamples_are_named_with_the_setting() -> None:
    made = with_controls(resamples=2)
    assert ("plain resampling at equal tokens", "29.1 [25.0, 33.0]", "-", "") in [
        tuple(cell.strip() for cell in row) for row in rows(made)
    ]
    assert any("--set evaluate.resamples=3" in note for note in notes(made, CONFIG))
    nothing = with_controls(resamples=1)
    assert not any("equal tokens" in row[0] for row in [*rows(nothing), *arm_differences(nothing)])


def test_results_of_earlier_versions_have_no_comparison_of_controls() -> None:
    assert arm_differences(result()) == []
    assert not any("Holm" in note or "equal tokens" in note for note in notes(result(), CONFIG))
    alone = with_controls().model_copy(update={"trained": None, "paired": None, "reflections": None})
    assert arm_differences(alone)[0] == ("reflection - control", "base", "cost, base")
    assert [line[0] for line in arm_differences(alone)][-1] == "plain resampling at equal tokens"


def test_the_table_has_every_number_in_its_place() -> None:
    table = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows(result())}
    assert all(len(cells) == len(HEADINGS) - 1 for cells in table.values())
    assert table["first try"] == ["20.0 [13.3, 28.9]", "30.0 [21.9, 39.6]", "+10.0 [+1.0, +19.0] p = 0.031"]
    assert table["second try"][2] == "+25.0 [+20.0, +30.0] p < 0.001"
    assert table["fix rate"][:2] == ["25.0 [16.8, 35.5]", "28.6 [19.3, 40.1]"]
    assert table["retry, no reflection"][0].startswith("1.2 [")
    assert table["plain resampling"][0].startswith("5.0 [")
    assert table["reflections with the answer"][0].startswith("3.8 [")
    labels = list(table)
    assert len(labels) == 11
    assert [table[label][0][:4] for label in labels[-2:]] == ["25.0", "50.0"]
    assert [table[label][1][:4] for label in labels[-2:]] == ["30.0", "60.0"]


def test_without_a_trained_model_its_columns_are_empty() -> None:
    assert all(row[2:] == ("", "") and row[1] for row in rows(result(trained=False)))


def test_controls_that_were_not_run_have_no_row() -> None:
    labels = [row[0] for row in rows(result(controls=False))]
    assert not any("resampling" in label or "no reflection" in label for label in labels)


def test_a_rate_without_answers_is_a_dash() -> None:
    none = result(trained=False).base.model_copy(update={"fix": wilson(0, 0)})
    assert rows(Result(base=none))[2][1] == "-"


def test_the_notes_count_verifier_errors() -> None:
    assert any("base: the verifier could not judge 7 answers" in note for note in notes(result(errors=7), CONFIG))
    assert not any("could not judge" in note for note in notes(result(), CONFIG))


@pytest.mark.parametrize(
    ("taken", "text"),
    [
        (
            Selection(order="random", taken=500, read=1200, whole=True),
            "test split, a random sample of 500 of 1,200 problems, the same for every seed; 100 attempts",
        ),
        (Selection(order="head", taken=500, read=500, whole=False), "test split, the first 500 problems; 100 attempts"),
        (Selection(order="random", taken=1200, read=1200, whole=True), "test split, all 1,200 problems; 100 attempts"),
        (None, "test split; 100 attempts"),
    ],
)
def test_the_notes_name_the_problems(taken: Selection | None, text: str) -> None:
    made = result().model_copy(update={"problems": taken})
    assert notes(made, CONFIG)[0].startswith(text)


def test_the_notes_have_the_share_of_truncated_turns() -> None:
    text = "\n".join(notes(result(), CONFIG))
    assert "cut off at the token limit: base: attempts 20.0%, reflections 0.0%, retries 5.0%; trained: attempts" in text
    assert "trained" not in "".join(note for note in notes(result(trained=False), CONFIG) if "cut off" in note)


def test_the_notes_explain_the_cross_table_where_there_is_one() -> None:
    evaluated = result()
    assert evaluated.cross is not None
    assert any("in the last rows" in note for note in notes(evaluated, CONFIG))
    assert not any("in the last rows" in note for note in notes(evaluated.model_copy(update={"cross": None}), CONFIG))


def test_the_whole_table_is_printed_to_a_file() -> None:
    paper = io.StringIO()
    print_table(result(), CONFIG.model_copy(update={"model": "[bold]some[/bold]/model"}), paper)
    text = paper.getvalue()
    for row in rows(result()):
        for cell in row:
            assert cell.strip() in text
    assert "[bold]some[/bold]/model" in text
    assert "\x1b" not in text
    assert all(note[:60] in text for note in notes(result(), CONFIG))


def test_greedy_tries_stand_under_the_sampled_ones(tmp_path: Path) -> None:
    def side(first: int, second: int) -> list[Episode]:
        return [episode(f"n{n}", "pass" if n < first else f"fail {'pass' if n < second else 'fail'}") for n in range(8)]

    run = write_run(tmp_path, base=side(2, 4), trained=side(2, 6), greedy=(side(4, 6), side(1, 7)))
    made = Result.model_validate_json((run / "result.json").read_text())
    lines = [[cell.strip() for cell in row] for row in rows(made)]
    assert [line[0] for line in lines[:6]] == [
        *("first try", "first try, greedy", "second try", "second try, greedy", "fix rate", "fix rate, greedy"),
    ]
    assert [line[:2] for line in lines[1:6:2]] == [
        *(["first try, greedy", "50.0 [21.5, 78.5]"], ["second try, greedy", "75.0 [40.9, 92.9]"]),
        ["fix rate, greedy", "50.0 [15.0, 85.0]"],
    ]
    assert lines[1][3].startswith("-37.5 ")
    assert made.greedy
    assert made.greedy.paired
    assert made.greedy.paired.first in secondary(made)
    assert any(note.startswith("greedy: temperature 0") for note in notes(made, CONFIG))
    assert "first try, greedy" in model_card(made, CONFIG, None)


@pytest.mark.parametrize(("decoding", "marked"), [("greedy", True), ("sampled", False), ("both", False)])
def test_the_title_states_greedy_decoding(decoding: Any, marked: bool) -> None:
    paper = io.StringIO()
    print_table(result(), CONFIG.model_copy(update={"evaluate": Evaluate(decoding=decoding)}), paper)
    assert ("greedy decoding" in paper.getvalue().splitlines()[0]) == marked


def test_the_json_is_the_result_and_the_seconds(tmp_path: Path) -> None:
    with Run.open(tmp_path, {}) as run:
        run.append("clock", [{"stage": "mine", "seconds": 1.5}, {"stage": "mine", "seconds": 1.0}])
        printed = as_json(result(), run)
    assert json.loads(json.dumps(printed)) == printed
    keys = {"base", "trained", "paired", "cross", "reflections", "problems", "also", "greedy"}
    assert set(printed) == keys | {"seconds", "shares_of_a_step"}
    assert printed["seconds"] == {"mine": 2.5}
    assert printed["shares_of_a_step"] == {}
    assert printed["base"]["first"] == wilson(20, 100).model_dump()


def test_shares_of_a_step_are_averaged_over_all_steps(tmp_path: Path) -> None:
    with Run.open(tmp_path, {}) as run:
        steps = [(3.0, 0.5, 1.5), (3.0, 0.0, 2.0)]
        names = ("seconds/generation", "seconds/verification", "seconds/training")
        run.append("train", [{"step": 1, **dict(zip(names, step, strict=True))} for step in steps])
        assert shares_of_a_step(run) == {"generation": 0.6, "verification": 0.05, "training": 0.35}


def test_the_model_card_has_the_table_and_the_settings() -> None:
    card = model_card(result(), CONFIG, None)
    assert card.startswith("---\nlibrary_name: transformers\n")
    lines = card.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(rows(result()))
    assert all(line.count("|") == len(HEADINGS) + 1 for line in table)
    settings = card.split("```json\n")[1].split("```")[0]
    assert json.loads(settings) == CONFIG.record()


def forecast(**signal: float) -> Forecast:
    shares = {int(size.removeprefix("g")): share for size, share in signal.items()}
    return Forecast(
        failures=411,
        probed=64,
        retries=1,
        fix_rate=wilson(32, 256),
        reward=Share(rate=0.1, low=0.05, high=0.2),
        signal={size: Share(rate=share, low=share - 0.05, high=share + 0.1) for size, share in shares.items()},
        unrewarded=wilson(2, 256),
        reflections_truncated=wilson(0, 256),
        retries_truncated=wilson(8, 256),
        tokens=50.0,
        seconds=0.01,
    )


def printed_forecast(
    group: int, *, config: Config = CONFIG, grpo: dict[str, int] | None = None, **signal: float
) -> str:
    paper = io.StringIO()
    settings = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "num_generations": group}
    print_forecast(forecast(**signal), config.model_copy(update={"grpo": settings | (grpo or {})}), paper)
    return paper.getvalue()


def test_the_forecast_has_signal_and_cost_with_intervals() -> None:
    text = printed_forecast(8, g4=0.4, g8=0.62, g16=0.65)
    assert "from 64 failures, a random sample of 411" in text
    assert "passes in 12.5% [9.0, 17.1]" in text
    assert "with num_generations 8, 62.0% [57.0, 72.0] of the groups will hold different rewards" in text
    assert "4: 40.0% [35.0, 50.0], 16: 65.0% [60.0, 75.0]" in text
    assert "about 1,600 tokens in about 0.3 s; the update" in text  # 32 reflections
    assert "would give" not in text  # 16 is hardly better
    assert "mean reward" not in text


def test_the_forecast_has_the_shares_of_truncated_and_unrewarded_reflections() -> None:
    text = printed_forecast(8, g8=0.62)
    assert "token limit: 0.0% [0.0, 1.5] of the reflections, 3.1% [1.6, 6.0] of the retries" in text
    assert "without a reward: 0.8% [0.2, 2.8] of the reflections" in text


def test_a_step_counts_the_tokens_of_all_processes_and_the_seconds_of_one() -> None:
    text = printed_forecast(8, config=CONFIG.model_copy(update={"processes": 4}), g8=0.62)
    assert "about 6,400 tokens in about 0.3 s; each of 4 processes generates its part" in text


def test_a_generation_that_serves_several_steps_costs_each_of_them_less() -> None:
    assert "about 800 tokens in about 0.2 s" in printed_forecast(8, grpo={"num_iterations": 2}, g8=0.62)


def test_the_mean_reward_is_printed_where_it_differs_from_the_fix_rate() -> None:
    train = CONFIG.train.model_copy(update={"reward_leaks": False})
    text = printed_forecast(8, config=CONFIG.model_copy(update={"train": train}), g8=0.62)
    assert "the mean reward of a reflection is 10.0% [5.0, 20.0]" in text


def test_the_forecast_names_a_better_group_size() -> None:
    assert "num_generations 16 would give 55.0%" in printed_forecast(8, g4=0.2, g8=0.4, g16=0.55, g32=0.9)
