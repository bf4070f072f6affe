"""Failures chosen by a posterior: the weights by hand, the draws, and a training that resumes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import password
import pytest
from kills import assert_same_training, killed

from r3core.runs import Run
from r3core.stats import signal as mixed_share
from r3core.train import train
from r3core.training.posterior import DECAY, Verdicts, beta_moments, expected_mixed
from r3core.training.sampler import PosteriorSampler, lag_of


def rows_of(**rewards: list[float | None]) -> list[dict[str, Any]]:
    """Return the recorded rows of one generation, from the rewards of each failure's group."""
    return [{"id": name, "reward": reward} for name, group in rewards.items() for reward in group]


@pytest.mark.parametrize(
    ("a", "b", "verdicts", "expected"),
    [
        (1, 1, 1, 0.0),
        (1, 1, 2, 1 / 3),
        (1, 1, 8, 7 / 9),  # 1 - 2 / (n + 1)
        (2, 1, 2, 1 - 2 * 3 / (3 * 4) - 1 * 2 / (3 * 4)),
        (0.3, 0.7, 8, 0.52),
        (2e6, 2e6, 4, 1 - 2 / 16),
    ],
)
def test_the_weight_is_the_expected_share_of_mixed_groups(a: float, b: float, verdicts: int, expected: float) -> None:
    [found] = expected_mixed(np.array([a]), np.array([b]), verdicts)
    assert found == pytest.approx(expected, abs=0.005 if a == 0.3 else 1e-6)


def test_the_weight_is_the_mean_over_the_distribution() -> None:
    rates = np.random.default_rng(0).beta(0.4, 2.5, size=200_000)
    [found] = expected_mixed(np.array([0.4]), np.array([2.5]), 16)
    assert found == pytest.approx(mixed_share(list(rates), 16), abs=0.003)


def test_the_prior_is_fitted_by_moments() -> None:
    a, b = beta_moments([(0.0, 4), (4.0, 4), (1.0, 4), (3.0, 4)])
    share = (0.15625 / 0.25 - 1 / 4) / (1 - 1 / 4)  # variance of 0, 1, 1/4, 3/4 around 1/2
    assert a == b == pytest.approx((1 / share - 1) / 2)


def test_the_fit_finds_the_distribution_of_many_failures() -> None:
    generator = np.random.default_rng(1)
    rates = generator.beta(0.5, 4.5, size=20_000)
    a, b = beta_moments([(float(passed), 16) for passed in generator.binomial(16, rates)])
    assert (a, b) == (pytest.approx(0.5, rel=0.05), pytest.approx(4.5, rel=0.05))


@pytest.mark.parametrize("counts", [[], [(0.0, 8)], [(8.0, 8)] * 3, [(0.0, 8)] * 9, [(4.0, 8)] * 5, [(0.0, 0)]])
def test_the_prior_is_proper_where_nothing_varies(counts: list[tuple[float, int]]) -> None:
    a, b = beta_moments(counts)
    assert min(a, b) > 0
    assert np.isfinite([a, b]).all()


def test_verdicts_are_added_to_the_prior_and_decay() -> None:
    verdicts = Verdicts(["x", "y", "z"])
    verdicts.add(rows_of(x=[1.0, 0.0, None], y=[0.0, 0.0, 0.0]))
    verdicts.add(rows_of(y=[1.0, 1.0, 0.0]))
    a, b = beta_moments([(1.0, 2), (2.0, 3)])  # the latest group of each
    expected = expected_mixed(np.array([a + DECAY, a + 2, a]), np.array([b + DECAY, b + 1 + DECAY * 3, b]), 4)
    assert verdicts.weights(2, group=4) == pytest.approx(expected)
    alike = expected_mixed(*np.full((2, 3), 1.0), 4)
    assert verdicts.weights(0, group=4) == pytest.approx(alike), "later generations are not known yet"


def test_every_retry_is_a_verdict() -> None:
    verdicts = Verdicts(["x", "y"], verdicts=4)
    verdicts.add(rows_of(x=[0.25, 0.75], y=[None, None]))
    a, b = beta_moments([(4.0, 8)])
    assert verdicts.generations == [{0: (4.0, 8)}]
    assert verdicts.weights(1, group=2) == pytest.approx(expected_mixed(np.array([a + 4, a]), np.array([b + 4, b]), 8))


def test_recorded_rows_give_the_counts_that_were_added() -> None:
    generations = [rows_of(x=[1.0, 0.0], y=[0.0, 0.0]), rows_of(z=[1.0, 1.0], x=[None, 0.0])]
    added, loaded = Verdicts(["x", "y", "z"]), Verdicts(["x", "y", "z"])
    for rows in generations:
        added.add(rows)
    loaded.load([row for rows in generations for row in rows], size=4)
    assert loaded.generations == added.generations


def sampler_of(verdicts: Verdicts, *, lag: int = 2, failures: int = 6, seed: int = 0) -> PosteriorSampler:
    """Return a sampler of two failures per generation, in groups of three, each used twice."""
    return PosteriorSampler(range(failures), 3, 2, 2, True, seed, verdicts=verdicts, lag=lag)


def test_a_generation_has_the_layout_of_trls_without_repeats() -> None:
    verdicts = Verdicts([str(index) for index in range(6)])
    sampler = sampler_of(verdicts)
    indices = []
    for number, index in enumerate(sampler):
        if number % 12 == 0:
            verdicts.add([])
        indices.append(index)
    assert len(indices) == len(sampler) == 3 * 12
    for start in range(0, 36, 12):
        use = indices[start : start + 6]
        assert indices[start + 6 : start + 12] == use
        assert use == [use[0]] * 3 + [use[3]] * 3
        assert use[0] != use[3]


def test_a_draw_depends_on_seed_number_and_known_verdicts_alone() -> None:
    names = [str(index) for index in range(200)]
    verdicts = Verdicts(names)
    for number in range(20):
        verdicts.add(rows_of(**{name: [float(int(name) % 2), 0.0] for name in names[number * 10 : number * 10 + 10]}))
    sampler, again = (sampler_of(verdicts, failures=200) for _ in range(2))
    assert [sampler.draw(number) for number in range(20)] == [again.draw(number) for number in range(20)]
    assert sampler.draw(3) != sampler.draw(4)
    assert sampler.draw(3) != sampler_of(verdicts, failures=200, seed=1).draw(3)
    before = [sampler.draw(number) for number in range(5)]
    verdicts.generations[4:] = [{index: (2.0, 2) for index in range(200)}] * 16
    assert [sampler.draw(number) for number in range(5)] == before
    with pytest.raises(RuntimeError, match="generation 22 was sampled before the verdicts of generation 20"):
        sampler.draw(22)


def test_a_likely_group_is_drawn_more_often() -> None:
    verdicts = Verdicts([str(index) for index in range(6)])
    verdicts.add(rows_of(**{str(index): [0.0] * 8 for index in range(1, 6)}, **{"0": [1.0, 0.0] * 4}))
    sampler = sampler_of(verdicts, lag=0)
    verdicts.generations += [{}] * 400
    draws = [0 in sampler.draw(number) for number in range(1, 30)]
    assert sum(draws) > 20
    assert len({index for number in range(1, 30) for index in sampler.draw(number)}) == 6, "no failure is given up"


@pytest.mark.parametrize(
    ("options", "lag"),
    [
        ({}, 2),
        ({"gradient_accumulation_steps": 4, "steps_per_generation": 4}, 2),
        ({"gradient_accumulation_steps": 4, "steps_per_generation": 1}, 5),
        ({"num_iterations": 2}, 2),
        ({"dataloader_num_workers": 2}, 6),
        ({"dataloader_num_workers": 2, "dataloader_prefetch_factor": 4}, 10),
    ],
)
def test_the_lag_covers_what_the_data_loader_reads_ahead(options: dict[str, Any], lag: int) -> None:
    defaults = {"gradient_accumulation_steps": 1, "steps_per_generation": 1, "num_iterations": 1}
    loader = {"dataloader_num_workers": 0, "dataloader_prefetch_factor": None}
    assert lag_of(SimpleNamespace(**defaults | loader | options)) == lag  # type: ignore[arg-type]


POSTERIOR: dict[str, Any] = {"train": {"order": "posterior"}, "save_steps": 2}


def trained(path: Path, **options: Any) -> Run:
    config = password.config(**(password.KILLED | options))
    with Run.open(path, config.record()) as run:
        train(
            run,
            password.protocol(config),
            password.failures(),
            model=password.beginner(),
            tokenizer=password.tokenizer(),
        )
    return run


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 4, "steps_per_generation": 2}, {"num_iterations": 2}],
    ids=["plain", "accumulation", "iterations"],
)
def test_a_killed_training_draws_the_failures_of_an_undisturbed_one(options: dict[str, Any], tmp_path: Path) -> None:
    given = POSTERIOR | options
    undisturbed = trained(tmp_path / "undisturbed", **given)
    killed(tmp_path / "run", 6, **given)
    run = trained(tmp_path / "run", **given)
    assert len(run.read("sessions")) == 2
    assert_same_training(run, undisturbed)
    shuffled = trained(tmp_path / "random", **(given | {"train": {}}))
    ids = [[row["id"] for row in each.read("train-episodes")] for each in (undisturbed, shuffled)]
    assert ids[0] != ids[1]
