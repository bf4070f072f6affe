import random
from itertools import combinations
from math import comb
from statistics import fmean, stdev

import pytest
from scipy.stats import binom

from r3core.stats import (
    Difference,
    Rate,
    clustered,
    clustered_counts,
    clustered_mean,
    expected_signal,
    holm,
    mean_reward,
    paired,
    paired_shares,
    pass_at_k,
    problems_needed,
    signal,
    wilson,
)


def once(table: dict[tuple[int, int], int]) -> tuple[dict[str, list[bool]], dict[str, list[bool]]]:
    """Return one outcome per problem before and after, from (before, after) -> how many problems."""
    pairs = [pair for pair, count in table.items() for _ in range(count)]
    before = {str(index): [bool(pair[0])] for index, pair in enumerate(pairs)}
    return before, {str(index): [bool(pair[1])] for index, pair in enumerate(pairs)}


# Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3
@pytest.mark.parametrize(
    ("passed", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(passed: int, total: int, low: float, high: float) -> None:
    rate = wilson(passed, total)
    assert (rate.low, rate.high) == pytest.approx((low, high), abs=5e-5)
    other = wilson(total - passed, total)
    assert (other.low, other.high) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_the_interval_of_a_rate_without_samples_is_0_to_1() -> None:
    assert wilson(0, 0).model_dump() == {"passed": 0, "total": 0, "rate": 0.0, "low": 0.0, "high": 1.0}
    assert clustered([]) == wilson(0, 0)


@pytest.mark.parametrize(("passed", "total"), [(-1, 3), (4, 3)])
def test_a_rate_must_be_between_0_and_1(passed: int, total: int) -> None:
    with pytest.raises(ValueError, match=r"must be between 0 and total \(3\)"):
        wilson(passed, total)


@pytest.mark.parametrize("passed", [0, 1, 7, 20])
def test_one_sample_per_problem_gives_the_wilson_interval(passed: int) -> None:
    assert clustered([(str(index), index < passed) for index in range(20)]) == wilson(passed, 20)


def test_copies_of_a_sample_do_not_narrow_the_interval() -> None:
    outcomes = [(str(index), index < 30) for index in range(100) for _ in range(8)]
    copied, honest = clustered(outcomes), wilson(30, 100)
    assert (copied.passed, copied.total) == (240, 800)
    # The design effect is estimated from 100 problems: 800 samples are worth 99.1, not exactly 100.
    assert (copied.low, copied.high) == pytest.approx((honest.low, honest.high), abs=1e-3)


def test_the_effective_sample_size_is_the_one_computed_by_hand() -> None:
    # Problems pass 2/2, 1/2, 0/2: rate 1/2, deviations 1, 0, -1; variance of the ratio 3/2 x 2/36 = 1/12,
    # of a simple sample 1/4 / 5 = 1/20, so six samples are worth 6 x 12/20 = 3.6.
    rate = clustered([("a", True), ("a", True), ("b", True), ("b", False), ("c", False), ("c", False)])
    z2 = 1.959964**2
    margin = (z2 / (4 * 3.6) + z2**2 / (4 * 3.6**2)) ** 0.5 / (1 + z2 / 3.6)
    assert (rate.low, rate.high) == pytest.approx((0.5 - margin, 0.5 + margin), abs=1e-6)


@pytest.mark.parametrize("passed", [True, False])
def test_when_all_samples_agree_problems_are_counted(passed: bool) -> None:
    rate = clustered([(str(index), passed) for index in range(10) for _ in range(5)])
    plain = wilson(10 if passed else 0, 10)
    assert (rate.low, rate.high) == (plain.low, plain.high)


def test_samples_of_a_single_problem_count_as_one() -> None:
    rate = clustered([("only", True), ("only", False)])
    assert rate.low < 0.1
    assert rate.high > 0.9


def test_the_interval_of_clustered_samples_covers_and_the_plain_one_does_not() -> None:
    rng = random.Random(1)
    covered, plain, repeats = 0, 0, 400
    for _ in range(repeats):
        rates = [rng.betavariate(0.4, 0.6) for _ in range(60)]  # the true rate is 0.4
        outcomes = [(str(index), rng.random() < rate) for index, rate in enumerate(rates) for _ in range(8)]
        rate = clustered(outcomes)
        covered += rate.low <= 0.4 <= rate.high
        naive = wilson(rate.passed, rate.total)
        plain += naive.low <= 0.4 <= naive.high
    assert covered / repeats == pytest.approx(0.95, abs=0.03)
    assert plain / repeats < 0.8


# Airway hyper-responsiveness before and after (Bentur et al. 2009): 1, 1, 7, 12; exact p in Fagerland et al. 2013.
# Altman et al. 2000, Statistics with confidence, page 52: 14, 5, 0, 22. Newcombe 1998, paired data: 20, 12, 2, 16.
@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ({(1, 1): 1, (0, 1): 7, (1, 0): 1, (0, 0): 12}, 0.026, 0.507),
        ({(1, 1): 14, (0, 1): 5, (1, 0): 0, (0, 0): 22}, 0.011, 0.226),
        ({(1, 1): 20, (0, 1): 12, (1, 0): 2, (0, 0): 16}, 0.056, 0.329),
    ],
)
def test_paired_intervals_are_the_published_ones(table: dict[tuple[int, int], int], low: float, high: float) -> None:
    result = paired(*once(table))
    assert (result.low, result.high) == pytest.approx((low, high), abs=6e-4)
    after, before = once(table)
    back = paired(before, after)
    assert (back.difference, back.low, back.high) == pytest.approx((-result.difference, -result.high, -result.low))
    assert back.p == result.p


def test_mcnemar_s_test_is_exact() -> None:
    assert paired(*once({(1, 1): 1, (0, 1): 7, (1, 0): 1, (0, 0): 12})).p == pytest.approx(2 * 9 / 2**8)
    assert paired(*once({(1, 1): 5, (0, 1): 12, (1, 0): 2})).p == pytest.approx(
        2 * sum(comb(14, k) for k in range(3)) / 2**14
    )
    assert paired(*once({(0, 1): 3, (1, 0): 3})).p == 1.0


def test_when_nothing_changed_the_interval_still_has_a_width() -> None:
    result = paired(*once({(1, 1): 10, (0, 0): 10}))
    assert (result.difference, result.p) == (0.0, 1.0)
    assert result.low < 0 < result.high


@pytest.mark.parametrize("all_passed", [0, 1])
def test_a_table_with_one_cell_is_no_division_by_zero(all_passed: int) -> None:
    result = paired(*once({(all_passed, all_passed): 10}))
    assert result.low < 0 < result.high


def test_the_paired_interval_covers() -> None:
    rng = random.Random(2)
    covered, repeats = 0, 400
    for _ in range(repeats):
        table = {(0, 1): 0, (1, 0): 0, (1, 1): 0, (0, 0): 0}
        for cell in rng.choices(list(table), weights=[0.25, 0.1, 0.2, 0.45], k=120):
            table[cell] += 1
        result = paired(*once(table))
        covered += result.low <= 0.15 <= result.high
    assert covered / repeats == pytest.approx(0.95, abs=0.03)


def test_no_problems_show_no_difference() -> None:
    assert paired({}, {}) == Difference(difference=0.0, low=-1.0, high=1.0, p=1.0)


def test_different_problems_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="2 problems are on one side only, for example 'a'"):
        paired({"a": [True], "c": [True]}, {"b": [True], "c": [True]})
    with pytest.raises(ValueError, match="problem 'a' has no outcome"):
        paired({"a": []}, {"a": [True]})


def test_with_several_samples_problems_count_and_not_samples() -> None:
    # Five problems that all gain: of the 32 ways to flip their signs, 2 are as extreme, however many samples.
    before = {str(index): [False] * 50 for index in range(5)}
    after = {str(index): [True] * 50 for index in range(5)}
    result = paired(before, after)
    assert result.difference == 1.0
    assert result.p == pytest.approx(2 / 32, abs=0.01)


def test_a_repeated_comparison_gives_the_same_numbers() -> None:
    rng = random.Random(3)
    before = {str(index): [rng.random() < 0.3 for _ in range(4)] for index in range(50)}
    after = {str(index): [rng.random() < 0.5 for _ in range(4)] for index in range(50)}
    result = paired(before, after)
    assert result == paired(before, after)
    assert result.low < result.difference < result.high
    assert result.p < 0.01
    assert paired(before, before) == Difference(difference=0.0, low=0.0, high=0.0, p=1.0)


def test_the_permutation_test_is_rarely_wrong_when_nothing_changed() -> None:
    rng = random.Random(4)
    p_values, covered = [], 0
    for _ in range(100):
        rates = [rng.random() for _ in range(40)]
        before = {str(index): [rng.random() < rate for _ in range(3)] for index, rate in enumerate(rates)}
        after = {str(index): [rng.random() < rate for _ in range(3)] for index, rate in enumerate(rates)}
        result = paired(before, after)
        p_values.append(result.p)
        covered += result.low <= 0 <= result.high
    # 100 tests at 5%: more than 11 rejections, or fewer than 88 intervals that cover, would be a 1-in-100 accident.
    assert sum(p < 0.05 for p in p_values) <= binom.ppf(0.99, 100, 0.05)
    assert covered >= binom.ppf(0.01, 100, 0.95) - 2


def test_signal_is_the_share_of_mixed_groups() -> None:
    assert signal([0.5], 2) == pytest.approx(0.5)
    assert signal([0.0, 1.0, 0.5], 3) == pytest.approx(0.25)
    assert signal([], 8) == 0.0


def probe(rng: random.Random, alpha: float, beta: float, *, retries: int = 1, failures: int = 64) -> list[list[float]]:
    """Return the rewards of four reflections on each failure, whose retries pass at a rate from a beta distribution."""
    rates = [rng.betavariate(alpha, beta) for _ in range(failures)]
    return [[sum(rng.random() < rate for _ in range(retries)) / retries for _ in range(4)] for rate in rates]


def mixed(rates: list[float], group: int, retries: int) -> float:
    """Return the true share of mixed groups: a group is not mixed when all its rewards are of one level."""
    levels = range(retries + 1)
    return sum(1 - sum(binom.pmf(level, retries, rate) ** group for level in levels) for rate in rates) / len(rates)


@pytest.mark.parametrize("retries", [1, 4])
@pytest.mark.parametrize("group", [2, 8, 16])
@pytest.mark.slow
@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.7), (1.0, 1.0), (2.0, 18.0), (50.0, 50.0)])
def test_the_expected_signal_is_near_the_true_one(alpha: float, beta: float, group: int, retries: int) -> None:
    rng = random.Random(5)
    truth = mixed([rng.betavariate(alpha, beta) for _ in range(2_000)], group, retries)
    results = [expected_signal(probe(rng, alpha, beta, retries=retries), group).rate for _ in range(30)]
    assert fmean(results) == pytest.approx(truth, abs=0.015 + 3 * stdev(results) / 30**0.5)
    assert max(abs(one - truth) for one in results) < 0.3  # 64 problems, four tries each: one forecast is rough


@pytest.mark.slow
@pytest.mark.parametrize(("group", "retries"), [(8, 1), (8, 4)])
def test_the_interval_of_the_signal_covers_the_true_one_as_often_as_its_confidence(group: int, retries: int) -> None:
    rng = random.Random(7)
    truth = mixed([rng.betavariate(0.3, 0.7) for _ in range(20_000)], group, retries)
    results = [expected_signal(probe(rng, 0.3, 0.7, retries=retries), group) for _ in range(100)]
    covered = sum(one.low <= truth <= one.high for one in results)
    assert binom.ppf(0.01, 100, 0.95) - 2 <= covered
    assert sum(one.high - one.low for one in results) / 100 < 0.4


def test_with_one_retry_the_signal_is_the_beta_binomials() -> None:
    # rates 1/2, 1/4, 1, 0 of four: mean 7/16, variance 35/256; overdispersion (5/9 - 1/4) / (3/4) = 11/27, so the sum
    # of alpha and beta is 16/11. For G = 2: 1 - E[p^2] - E[(1-p)^2] = 2 mean (1 - mean) (1 - 11/27)
    rewards = [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0] * 4, [0.0] * 4]
    assert expected_signal(rewards, 2).rate == pytest.approx(2 * 7 / 16 * 9 / 16 * 16 / 27)


def test_groups_of_several_levels_are_mixed_where_the_mean_retry_rate_does_not_show_it() -> None:
    always_half = [[0.5] * 4] * 20
    assert expected_signal(always_half, 8).rate == 0.0  # all rewards are equal
    assert expected_signal([[0.5, 0.25, 0.75, 0.5]] * 20, 8).rate > 0.9


def test_the_expected_signal_is_better_than_that_of_the_rates_themselves() -> None:
    rng = random.Random(6)
    rewards = [[float(rng.random() < 0.5) for _ in range(4)] for _ in range(2_000)]
    assert expected_signal(rewards, 16).rate > 0.95  # every problem is a coin: nearly all groups are mixed
    assert signal([sum(row) / 4 for row in rewards], 16) < 0.9


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([], 0.0),
        ([[]], 0.0),
        ([[0.0] * 4] * 2, 0.0),
        ([[1.0] * 4] * 2, 0.0),
        ([[1.0], [0.0]], 0.5),  # one sample per problem has no spread: every problem gets the mean
        ([[1.0, 0.0, 1.0, 0.0]] * 2 + [[]], 0.5),
        ([[1.0] * 4, [0.0] * 4] * 50, 0.0),  # all or nothing
    ],
)
def test_the_expected_signal_of_plain_cases(rewards: list[list[float]], expected: float) -> None:
    assert expected_signal(rewards, 2).rate == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_where_all_rewards_are_equal_the_interval_is_not_empty(reward: float) -> None:
    result = expected_signal([[reward] * 4] * 64, 8)
    upper = wilson(0, 64).high
    assert (result.rate, result.low, result.high) == (0.0, 0.0, signal([upper], 8))
    mean = mean_reward([[reward] * 4] * 64)
    assert mean.rate == reward
    assert mean.high - mean.low == pytest.approx(upper)


def test_the_mean_reward_and_its_interval() -> None:
    result = mean_reward([[1.0, 0.0], [0.5, 0.5], [], [0.25]] * 20)
    assert result.rate == pytest.approx(2.25 / 5)
    assert result.low < result.rate < result.high
    assert result == mean_reward([[1.0, 0.0], [0.5, 0.5], [], [0.25]] * 20)
    assert (mean_reward([]).low, mean_reward([[]]).high) == (0.0, 1.0)


def test_a_rate_is_five_numbers() -> None:
    assert list(Rate.model_fields) == ["passed", "total", "rate", "low", "high"]
    assert list(Difference.model_fields) == ["difference", "low", "high", "p", "p_holm"]


def test_counts_of_clusters_give_the_rate_of_their_samples() -> None:
    outcomes = [(str(index), index % 3 == sample) for index in range(30) for sample in range(1 + index % 4)]
    counts = [
        (sum(right for key, right in outcomes if key == problem), sum(key == problem for key, _ in outcomes))
        for problem in dict.fromkeys(key for key, _ in outcomes)
    ]
    assert clustered_counts([*counts, (0, 0)]) == clustered(outcomes)
    assert clustered_counts([]) == wilson(0, 0)


def test_the_error_of_a_mean_covers_the_spread_over_clusters() -> None:
    rng = random.Random(3)

    def sampled() -> list[tuple[float, int]]:
        levels = [rng.gauss(0.5, 0.2) for _ in range(40)]
        return [(sum(rng.gauss(level, 0.1) for _ in range(8)), 8) for level in levels]

    means = [clustered_mean(sampled()) for _ in range(400)]
    assert fmean(error for _, error in means) == pytest.approx(stdev(mean for mean, _ in means), rel=0.1)


def test_clusters_of_different_sizes_weigh_by_their_size() -> None:
    mean, error = clustered_mean([(3.0, 3), (0.0, 1), (0.0, 0)])
    assert mean == 0.75
    assert error == pytest.approx((2 * ((3 - 2.25) ** 2 + 0.75**2)) ** 0.5 / 4)
    assert clustered_mean([(2.0, 4)]) == (0.5, float("inf"))
    assert clustered_mean([]) == (0.0, float("inf"))
    assert clustered_mean([(1.0, 2), (2.0, 4)]) == (0.5, 0.0)


@pytest.mark.parametrize(("discordant", "difference"), [(0.2, 0.1), (0.45, 0.08), (0.3, -0.12)])
def test_the_number_of_problems_has_the_promised_power(discordant: float, difference: float) -> None:
    needed = problems_needed(discordant, difference)
    gained = (discordant + difference) / 2 / discordant
    rng = random.Random(0)
    found = 0
    for _ in range(2_000):
        changed = sum(rng.random() < discordant for _ in range(needed))
        gains = sum(rng.random() < gained for _ in range(changed))
        found += abs(2 * gains - changed) > 1.959964 * changed**0.5  # McNemar's test without a correction
    assert found / 2_000 == pytest.approx(0.8, abs=0.03)


def test_fewer_problems_are_needed_for_more_difference_and_for_less_power() -> None:
    assert problems_needed(0.3, 0.1) < problems_needed(0.3, 0.05)
    assert problems_needed(0.3, 0.1, power=0.5) < problems_needed(0.3, 0.1)
    assert problems_needed(0.3, -0.1) == problems_needed(0.3, 0.1)


@pytest.mark.parametrize("difference", [0.0, 0.6])
def test_a_difference_that_cannot_be_is_refused(difference: float) -> None:
    with pytest.raises(ValueError, match="must not be 0"):
        problems_needed(0.3, difference)


# Holm 1979 by hand: sorted p-values times 4, 3, 2 and 1, each at least its predecessor
@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.4], [0.8, 0.8]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.03], [0.03]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([], []),
    ],
)
def test_holm_adjusts_step_by_step(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(adjusted)


@pytest.mark.parametrize(("passed", "samples"), [(0, 5), (1, 5), (3, 5), (5, 5), (2, 4)])
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(passed: int, samples: int) -> None:
    outcomes = [index < passed for index in range(samples)]
    for k in range(samples + 1):
        subsets = list(combinations(outcomes, k))
        assert pass_at_k(passed, samples, k) == pytest.approx(fmean(any(subset) for subset in subsets))


def test_pass_at_a_fraction_lies_between_the_whole_numbers_around_it() -> None:
    assert pass_at_k(1, 4, 1.81) == pytest.approx(0.19 * 0.25 + 0.81 * 0.5)
    assert pass_at_k(2, 4, 0.5) == pytest.approx(0.5 * 0.5)


@pytest.mark.parametrize(("passed", "samples", "k"), [(1, 2, 2.1), (3, 2, 1), (1, 2, -0.5)])
def test_pass_at_k_needs_as_many_samples(passed: int, samples: int, k: float) -> None:
    with pytest.raises(ValueError, match="must be between 0 and the number of samples"):
        pass_at_k(passed, samples, k)


def test_shares_of_one_sample_are_not_taken_for_passes() -> None:
    before = {str(index): [0.25] for index in range(40)}
    after = {str(index): [float(index < 20)] for index in range(40)}
    found = paired_shares(before, after)
    assert found.difference == pytest.approx(0.25)
    assert 0.05 < found.low < 0.15
    assert 0.35 < found.high < 0.45
    assert found.p < 0.01
    assert paired_shares({}, {}) == paired({}, {})
