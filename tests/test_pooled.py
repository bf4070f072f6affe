"""Statistics over training seeds: coverage on simulated trainings, and the cases in which they reduce to others."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from statistics import fmean

import numpy as np
import pytest

from benchmarks.coverage import (
    SETTINGS,
    Setting,
    contrasts,
    differences,
    fix_rates,
    outcomes_of,
    rates,
    rates_over_problems,
    tries,
    true_rate,
)
from r3core.compare.pooled import detectable, detectable_with_seeds, pooled_contrast, pooled_difference, pooled_rate
from r3core.stats import Difference, Rate, paired, problems_needed, wilson

TRIALS = 100  # of each setting


@pytest.mark.slow
def test_intervals_of_a_rate_over_seeds_cover_the_true_one() -> None:
    assert 0.935 <= fmean(rates(setting, TRIALS) for setting in SETTINGS) <= 0.97


def test_intervals_of_a_contrast_of_three_and_five_trainings_cover_the_true_difference() -> None:
    rng = np.random.default_rng(1)
    one, other = Setting(3, 200, 0.0, 0.7, 0.15, 0.3), Setting(5, 200, 0.4, 0.7, 0.15, 0.3)
    truth = true_rate(other) - true_rate(one)
    covered = 0
    for _ in range(300):
        problems = rng.standard_normal(200)
        found = pooled_contrast(*(outcomes_of(tries(side, rng, problems)) for side in (one, other)))
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / 300 <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("coverage", [fix_rates, differences, contrasts])
def test_intervals_over_seeds_cover_the_true_value(coverage: Callable[[Setting, int], float]) -> None:
    assert 0.93 <= fmean(coverage(setting, TRIALS) for setting in SETTINGS) <= 0.97


@pytest.mark.slow
def test_intervals_over_problems_alone_do_not_cover_the_true_rate() -> None:
    assert fmean(rates_over_problems(setting, TRIALS) for setting in SETTINGS) < 0.85


def test_p_values_and_intervals_agree() -> None:
    rng = np.random.default_rng(2)
    before, after = (Setting(3, 100, mean, 0.7, 0.1, 0.3) for mean in (0.0, 0.25))
    agree = [0, 0]
    for _ in range(60):
        problems = rng.standard_normal(100)
        found = pooled_difference(*(outcomes_of(tries(one, rng, problems)) for one in (before, after)))
        assert found.p is not None
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
        agree[found.p < 0.05] += 1
    assert min(agree) > 0


def test_the_mean_is_that_of_the_seeds_and_the_deviation_is_theirs() -> None:
    table = np.zeros((3, 100), dtype=bool)
    for seed, passed in enumerate((20, 30, 40)):
        table[seed, :passed] = True
    found = pooled_rate(outcomes_of(table))
    assert found.mean == pytest.approx(0.3)
    assert found.deviation == pytest.approx(0.1)
    assert (found.seeds, found.problems) == (3, 100)
    assert found.low < 0.3 - 0.1 * 4.30 / sqrt(3) < found.high  # t quantile of 2 degrees of freedom


def test_a_group_over_which_all_seeds_agree_has_the_interval_of_one_of_them() -> None:
    row = np.arange(200) < 60
    found = pooled_rate(outcomes_of(np.array([row, row, row])))
    single = wilson(60, 200)
    assert (found.mean, found.deviation) == (pytest.approx(0.3), pytest.approx(0.0))
    assert (found.low, found.high) == pytest.approx((single.low, single.high), abs=0.005)


@pytest.mark.parametrize("passed", [0, 50])
def test_without_variance_the_interval_is_wilsons_over_problems(passed: int) -> None:
    found = pooled_rate(outcomes_of(np.full((3, 50), bool(passed))))
    assert (found.mean, found.low, found.high) == (passed / 50, wilson(passed, 50).low, wilson(passed, 50).high)


def test_a_difference_that_is_0_everywhere_has_an_interval_and_a_p_value_of_1() -> None:
    same = outcomes_of(np.array([np.arange(50) < 20] * 3))
    found = pooled_difference(same, same)
    assert (found.mean, found.p) == (0.0, 1.0)
    assert found.low < 0 < found.high < 0.1


def test_seeds_of_equal_rates_on_random_problems_do_not_have_an_interval_without_width() -> None:
    # each problem is solved under exactly one of two seeds: no variance of seeds, and none of problems
    found = pooled_rate(outcomes_of(np.array([np.arange(100) < 50, np.arange(100) >= 50])))
    assert found.mean == pytest.approx(0.5)
    assert found.high - found.low > 0.1


def test_one_seed_is_measured_over_problems_only() -> None:
    rng = np.random.default_rng(3)
    before, after = rng.random((1, 80)) < 0.4, rng.random((1, 80)) < 0.6
    rate, change = pooled_rate(outcomes_of(before)), pooled_difference(outcomes_of(before), outcomes_of(after))
    assert (rate.low, rate.high, rate.deviation) == (*bounds(wilson(int(before.sum()), 80)), None)
    assert (change.low, change.high) == bounds(paired(outcomes_of(before)[0], outcomes_of(after)[0]))
    assert change == pooled_contrast(outcomes_of(before), outcomes_of(after))


def bounds(value: Rate | Difference) -> tuple[float, float]:
    return value.low, value.high


def test_a_fix_rate_is_the_mean_of_the_seeds_rates_over_their_own_failures() -> None:
    seeds = [{"a": [True], "b": [False]}, {"b": [True], "c": [True], "d": [False], "e": [False]}]
    found = pooled_rate(seeds)
    assert (found.mean, found.problems) == (pytest.approx(0.5), 5)
    assert pooled_difference(seeds, seeds[::-1]).mean == pytest.approx(0.0)


def test_a_single_training_beside_a_repeated_one_gets_its_variance_between_seeds() -> None:
    rng = np.random.default_rng(4)
    problems = rng.standard_normal(300)
    repeated, once = (tries(Setting(seeds, 300, 0.0, 0.7, 0.3, 0.3), rng, problems) for seeds in (5, 1))
    single = outcomes_of(once)
    found, naive = pooled_contrast(outcomes_of(repeated), single), pooled_contrast(outcomes_of(repeated)[:1], single)
    assert found.high - found.low > 1.5 * (naive.high - naive.low)
    backwards = pooled_contrast(single, outcomes_of(repeated))
    assert (backwards.mean, backwards.p) == (pytest.approx(-found.mean), pytest.approx(found.p))


def test_seeds_before_and_after_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="1 seeds before, 2 after"):
        pooled_difference([{"a": [True]}], [{"a": [True]}] * 2)
    with pytest.raises(ValueError, match="no outcome"):
        pooled_rate([{}])


def test_the_detectable_difference_is_the_one_for_which_these_problems_are_needed() -> None:
    changes = [1.0] * 30 + [-1.0] * 20 + [0.0] * 150
    found = detectable(changes)
    assert problems_needed(0.25, found.difference * 1.0001) == 200
    assert found.problems_needed == problems_needed(0.25, 0.05)
    assert found.difference > 0.05
    assert detectable([0.0] * 100).problems_needed is None


def test_the_detectable_difference_over_seeds_is_larger_than_the_interval() -> None:
    rng = np.random.default_rng(5)
    one, other = (tries(Setting(3, 100, 0.0, 0.7, 0.1, 0.3), rng) for _ in range(2))
    found = pooled_contrast(outcomes_of(one), outcomes_of(other))
    smallest = detectable_with_seeds(found)
    assert smallest is not None
    assert smallest > found.high - found.mean
