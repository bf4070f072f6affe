"""Comparison of runs: groups of trainings that differ in nothing but the seed, and tests between these groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from string import ascii_uppercase

from r3core.compare.evaluated import CROSS, MEASURES, Evaluated, Outcomes, Tokens, differing, read_runs, settings_text
from r3core.compare.pooled import (
    Detectable,
    Pooled,
    detectable,
    detectable_with_seeds,
    pooled_contrast,
    pooled_difference,
    pooled_rate,
)
from r3core.stats import holm
from r3core.task import Frozen

SIGNIFICANT = 0.05
EQUAL_BUDGET = 0.05
"""Largest relative difference of the tokens generated for training at which two settings cost the same."""
PRIMARY = "second"
"""The measure that a comparison is for; its p-values are adjusted among themselves."""
COMPARED = (PRIMARY, "first", "greedy-second", "greedy-first")
"""The measures in which groups are compared, the primary one first."""


class Line(Frozen):
    """A rate of one run, or of a group: of the base model, of the trained model, and their paired difference."""

    base: Pooled | None
    """None where no answer could be judged."""
    trained: Pooled | None = None
    difference: Pooled | None = None


class Row(Line):
    """A rate of a group of trainings."""

    measure: str
    seeds: list[Line]
    """The same of each run, in the order of `Group.runs`."""


class Member(Frozen):
    """A run of a group."""

    run: str
    seed: int
    tokens: Tokens


class Group(Frozen):
    """Runs that differ in nothing but the seed: one training, repeated."""

    name: str
    """A letter, in the order in which the runs are named."""
    label: str
    """The settings in which the groups differ."""
    settings: dict[str, str]
    """The same, by key."""
    trained: bool
    failures: str | None = None
    """The failure dataset that all runs of the group train on; None where each run mines its own failures."""
    runs: list[Member]
    rows: list[Row]


class Contrast(Frozen):
    """The compared model of one group against that of the first group, on the same problems."""

    group: str
    against: str
    measure: str
    difference: Pooled
    p_adjusted: float
    """The p-value adjusted by Holm's method: over the second tries of all groups, or over all other contrasts."""
    detectable: Detectable | None = None
    """What this comparison could have found; only where no contrast is significant."""


class Comparison(Frozen):
    """Runs side by side: what `r3 compare --json` prints."""

    task: str
    split: str
    problems: int
    groups: list[Group]
    contrasts: list[Contrast]
    not_comparable: list[str]
    """Why groups should not be compared, for example since one generated more tokens for training."""


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Return a comparison of runs with results; nothing is written.

    Raises:
        UsageError: a folder has no result, two are the same training, or the problems differ.
    """
    runs = read_runs(folders)
    grouped = _grouped(runs)
    keys = differing([of_group[0] for of_group in grouped])
    groups = [_group(of_group, keys, name=letters(index)) for index, of_group in enumerate(grouped)]
    config = runs[0].config
    return Comparison(
        task=config.task,
        split=config.evaluate.split,
        problems=len(runs[0].problems),
        groups=groups,
        contrasts=_contrasts(grouped, [group.name for group in groups]),
        not_comparable=_not_comparable(grouped, groups),
    )


def _grouped(runs: Sequence[Evaluated]) -> list[list[Evaluated]]:
    """Return the runs by their settings, groups in the order of their first runs, runs in that of their seeds."""
    found: dict[tuple[tuple[str, str], ...], list[Evaluated]] = {}
    for run in runs:
        found.setdefault(tuple(sorted(run.settings.items())), []).append(run)
    return [sorted(group, key=lambda run: run.config.seed) for group in found.values()]


def _group(runs: Sequence[Evaluated], keys: Sequence[str], *, name: str) -> Group:
    config = runs[0].config
    return Group(
        name=name,
        label=settings_text(runs[0].settings, keys) if keys else f"{config.task}, {config.model or 'built-in model'}",
        settings={key: runs[0].settings[key] for key in keys if key in runs[0].settings},
        trained=all("trained" in run.sides for run in runs),
        failures=None if (path := runs[0].settings.get("mine.failures", "null")) == "null" else path,
        runs=[Member(run=str(run.folder), seed=run.config.seed, tokens=run.tokens) for run in runs],
        rows=[row for measure in MEASURES if (row := _row(runs, measure)) is not None],
    )


def _row(runs: Sequence[Evaluated], measure: str) -> Row | None:
    """Return a rate of a group; None where no run has measured it, as controls that are turned off."""
    if not any(outcomes[measure] for run in runs for outcomes in run.sides.values()):
        return None
    lines = [_line([run], measure) for run in runs]
    return Row(measure=measure, seeds=lines, **dict(_line(runs, measure)))


def _line(runs: Sequence[Evaluated], measure: str) -> Line:
    sides = [
        [run.sides[name][measure] for run in runs] if all(name in run.sides for run in runs) else []
        for name in ("base", "trained")
    ]
    base = None
    if all(sides[0]):
        # retries by the base on reflections of the trained model differ by the seed of training
        base = pooled_rate(sides[0]) if measure == "by_trained" else _rate_of_one_model(sides[0])
    trained = pooled_rate(sides[1]) if sides[1] and all(sides[1]) else None
    difference = None
    if base is not None and trained is not None:
        same = measure in COMPARED or measure in CROSS  # the same problems on both sides
        paired = [_on_both(*pair) if same else pair for pair in zip(*sides, strict=True)]
        if all(before and after for before, after in paired):
            difference = pooled_difference([before for before, _ in paired], [after for _, after in paired])
    return Line(base=base, trained=trained, difference=difference)


Judged = dict[str, list[bool]]


def _rate_of_one_model(seeds: Sequence[Judged]) -> Pooled:
    """Return the rate of the base model, which no seed has trained: its seeds are further samples of each problem."""
    samples: Judged = {}
    for outcomes in seeds:
        for problem, passed in outcomes.items():
            samples.setdefault(problem, []).extend(passed)
    return pooled_rate([samples]).model_copy(update={"seeds": len(seeds)})


def _on_both(before: Judged, after: Judged) -> tuple[Judged, Judged]:
    """Return the outcomes of the problems that could be judged on both sides."""
    shared = [problem for problem in before if problem in after]
    return {problem: before[problem] for problem in shared}, {problem: after[problem] for problem in shared}


def _contrasts(grouped: Sequence[Sequence[Evaluated]], names: Sequence[str]) -> list[Contrast]:
    first = [run.compared for run in grouped[0]]
    found = [
        (name, measure, [run.compared for run in group])
        for group, name in zip(grouped[1:], names[1:], strict=True)
        for measure in COMPARED
        if all(outcomes[measure] for outcomes in (*first, *(run.compared for run in group)))
    ]
    differences = [pooled_contrast(_of(first, measure), _of(other, measure)) for _, measure, other in found]
    adjusted = _adjusted([measure for _, measure, _ in found], differences)
    none = all(p >= SIGNIFICANT for p in adjusted)
    return [
        Contrast(
            group=name,
            against=names[0],
            measure=measure,
            difference=difference,
            p_adjusted=p,
            detectable=_detectable(_of(first, measure), _of(other, measure), difference) if none else None,
        )
        for (name, measure, other), difference, p in zip(found, differences, adjusted, strict=True)
    ]


def _adjusted(measures: Sequence[str], differences: Sequence[Pooled]) -> list[float]:
    """Return adjusted p-values in two families: the primary measure of every group, and everything else."""
    found = [difference.p if difference.p is not None else 1.0 for difference in differences]
    families = [[index for index, one in enumerate(measures) if (one == PRIMARY) == first] for first in (True, False)]
    for family in families:
        for index, p in zip(family, holm([found[index] for index in family]), strict=True):
            found[index] = p
    return found


def _of(group: Sequence[Outcomes], measure: str) -> list[Judged]:
    return [outcomes[measure] for outcomes in group]


def _detectable(one: Sequence[Judged], other: Sequence[Judged], difference: Pooled) -> Detectable | None:
    if len(one) == len(other) == 1:
        before, after = _on_both(one[0], other[0])
        return detectable([fmean(after[problem]) - fmean(before[problem]) for problem in before])
    smallest = detectable_with_seeds(difference)
    return None if smallest is None else Detectable(difference=smallest, problems_needed=None)


def _not_comparable(grouped: Sequence[Sequence[Evaluated]], groups: Sequence[Group]) -> list[str]:
    """Return why the other groups should not be compared with the first one."""
    found = []
    verifiers = {run.verifier for group in grouped for run in group if run.verifier}
    if len(verifiers) > 1:
        found.append("the verifier has changed between the runs: judge them again with `r3 rescore`")
    for group in groups[1:]:
        charged = all(member.tokens.charged is not None for one in (groups[0], group) for member in one.runs)
        first, budget = (_budget(one, charged=charged) for one in (groups[0], group))
        if first is None or budget is None:
            continue
        if abs(budget - first) > EQUAL_BUDGET * max(first, budget):
            found.append(
                f"{groups[0].name} generated {first:,.0f} tokens for training, {group.name} {budget:,.0f} "
                f"({100 * (budget / first - 1):+.0f}%): a difference may be due to the larger budget"
            )
    return found


def _budget(group: Group, *, charged: bool) -> float | None:
    """Return the mean number of tokens that a run of a group generated for training, None where it is not recorded.

    With `charged`, the share of mining that training has to account for is added.
    """
    of_runs = [member.tokens for member in group.runs]
    known = [
        tokens.training + (tokens.charged or 0 if charged else 0) for tokens in of_runs if tokens.training is not None
    ]
    return fmean(known) if len(known) == len(group.runs) else None


def letters(index: int) -> str:
    """Return A to Z, then AA, AB and so on."""
    head, last = divmod(index, len(ascii_uppercase))
    return (letters(head - 1) if head else "") + ascii_uppercase[last]
