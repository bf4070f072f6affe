"""pass@k over the samples of each problem."""

from __future__ import annotations

import io

import pytest
from records import episode, result

from r3core.config import Config
from r3core.episode import Episode
from r3core.evaluation.outcomes import solved
from r3core.evaluation.pass_at import pass_at, pass_at_differences
from r3core.evaluation.result import Result, secondary, with_holm
from r3core.evaluation.tables import rows
from r3core.report import notes, print_table
from r3core.sections import Evaluate
from r3core.stats import mean_reward, pass_at_k


def samples(problem: str, outcomes: str) -> list[Episode]:
    """Return the episodes of a problem: `p` passes at first, `r` at the retry, `f` fails twice, `e` is not judged."""
    names = {"p": "pass", "r": "fail pass", "f": "fail fail", "e": "error"}
    return [episode(problem, names[one]).model_copy(update={"sample": index}) for index, one in enumerate(outcomes)]


def first(one: Episode) -> bool | None:
    return None if one.attempt.verdict.outcome == "error" else one.attempt.verdict.outcome == "pass"


BASE = [*samples("a", "ppff"), *samples("b", "rfff"), *samples("c", "pfre")]
TRAINED = [*samples("a", "pppp"), *samples("b", "rrff"), *samples("c", "rrrf")]


def test_pass_at_k_is_the_mean_over_problems_of_the_exact_chance() -> None:
    found = pass_at(BASE, first)
    assert list(found) == [2, 4]
    assert found[2] == mean_reward([[pass_at_k(2, 4, 2)], [0.0], [pass_at_k(1, 3, 2)]])
    assert found[2].rate == pytest.approx((5 / 6 + 0 + 2 / 3) / 3)
    assert found[4].rate == pytest.approx(1 / 2)  # c has three judged samples only
    assert found[2].low < found[2].rate < found[2].high


@pytest.mark.parametrize(("outcomes", "sizes"), [("p", []), ("pf", [2]), ("pff", [2, 3]), ("p" * 9, [2, 4, 8, 9])])
def test_k_are_the_powers_of_two_and_the_number_of_samples(outcomes: str, sizes: list[int]) -> None:
    assert list(pass_at(samples("a", outcomes), first)) == sizes


def test_differences_are_paired_by_problem() -> None:
    found = pass_at_differences(BASE, TRAINED, solved)
    assert found[2].difference == pytest.approx((1 / 6 + 1 / 3 + 0) / 3)
    assert found[4].difference == pytest.approx(0)


def test_several_samples_have_rows_notes_and_adjusted_tests() -> None:
    made = with_holm(result(BASE, TRAINED))
    labels = [row[0].strip() for row in rows(made)]
    assert labels[:6] == [
        *("first try", "first try, pass@2", "first try, pass@4"),
        *("second try", "second try, pass@2", "second try, pass@4"),
    ]
    assert made.paired
    compared = [made.paired.first, *made.paired.first_at.values(), *made.paired.second_at.values()]
    assert secondary(made)[:5] == compared
    assert all(one.p_holm is not None for one in compared)
    config = Config(task="toy", evaluate=Evaluate(samples=4))
    assert any(note.startswith("pass@k: ") for note in notes(made, config))
    paper = io.StringIO()
    print_table(made, config, paper)
    assert "second try, pass@4" in paper.getvalue()
    assert Result.model_validate_json(made.model_dump_json()) == made


def test_one_sample_has_no_pass_at_k() -> None:
    made = result([episode("a", "pass")], [episode("a", "pass")])
    assert made.base.first_at == {}
    assert not any("pass@" in row[0] for row in rows(made))
