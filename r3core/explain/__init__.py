"""Why a run did not learn: a short diagnosis from its recorded figures alone, each with the setting to change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TextIO

from r3core.config import Config
from r3core.explain import evaluation, rewards, training, verifier
from r3core.explain.figures import Figures, figures_of
from r3core.explain.findings import Seen
from r3core.explain.measures import steps_made
from r3core.explain.rules import CONSEQUENCES, FOLLOWS, MAX_FINDINGS, RULES, Diagnosis
from r3core.runs import RunRecord
from r3core.task import Frozen

__all__ = ["Diagnosis", "Explanation", "diagnose", "diagnoses_of", "explain", "print_explanation"]

_CHECKS: Sequence[Callable[[Seen], Diagnosis | None]] = (
    training.rewards_shuffled,
    verifier.references_refused,
    verifier.verifier_untrusted,
    training.weights_unchanged,
    training.not_finite,
    rewards.attempts_truncated,
    rewards.reflections_truncated,
    rewards.retries_truncated,
    rewards.rewards_unjudged,
    verifier.formats_refused,
    rewards.groups_without_signal,
    rewards.tokens_unread,
    rewards.importance_ratio,
    training.reward_falls,
    training.validation_falls,
    training.learning_rate_low,
    evaluation.retry_ignores_reflection,
    rewards.leaks_rewarded,
    training.reflection_length,
    evaluation.first_try_lost,
    evaluation.greedy_first_try_lost,
    evaluation.gain_at_first_try,
    evaluation.gain_not_held_out,
    evaluation.evaluation_too_small,
    training.few_updates,
    training.reward_flat,
)
_ORDER = list(RULES)


class Explanation(Frozen):
    """The diagnoses of a run, and what they were made from."""

    diagnoses: list[Diagnosis]
    """The most important first, at most four; empty when nothing stands out."""
    examined: list[str]
    """What was recorded and examined."""
    missing: list[str]
    """What was not recorded, and so not examined."""


def diagnose(run: RunRecord, config: Config) -> list[Diagnosis]:
    """Return why a run did not learn, the most important reason first; empty when nothing stands out.

    Reads recorded figures only, of whatever stages have left a record.

    Raises:
        RunError: a file of the run is damaged.
    """
    return explain(run, config).diagnoses


def explain(run: RunRecord, config: Config) -> Explanation:
    """Return the same with what was examined."""
    figures = figures_of(run, config)
    return Explanation(
        diagnoses=diagnoses_of(figures, config), examined=list(_examined(figures)), missing=list(_missing(figures))
    )


def diagnoses_of(figures: Figures, config: Config) -> list[Diagnosis]:
    """Return the diagnoses of recorded figures."""
    seen = Seen(figures, config)
    made = [found for check in _CHECKS if (found := check(seen)) is not None]
    made.sort(key=lambda found: _ORDER.index(found.name))
    names = [found.name for found in made]
    needed = [
        found
        for place, found in enumerate(made)
        if FOLLOWS.get(found.name) not in names and (place == 0 or found.name not in CONSEQUENCES)
    ]
    return needed[:MAX_FINDINGS]


def print_explanation(explanation: Explanation, to: TextIO) -> None:
    """Print the diagnoses, or in one line that nothing stands out."""
    if not explanation.diagnoses:
        examined = ", ".join(explanation.examined) or "no stage has left a record yet"
        missing = f"; not recorded: {', '.join(explanation.missing)}" if explanation.missing else ""
        print(f"nothing stands out: {examined}{missing}", file=to)
        return
    print("what stands out, the most important first:", file=to)
    for number, found in enumerate(explanation.diagnoses, start=1):
        print(f"{number}. {found.name}: {found.finding}\n   change: {found.advice}", file=to)


def _examined(figures: Figures) -> Sequence[str]:
    parts = []
    if figures.certified:
        parts.append("the certificate")
    if figures.attempts_truncated:
        parts.append(f"{figures.attempts_truncated.total:,} attempts in mining")
    if figures.groups:
        reflections = sum(group.reflections for group in figures.groups)
        parts.append(f"{reflections:,} reflections of {steps_made(figures):,} training steps")
    elif figures.forecast:
        parts.append(f"the forecast from {figures.forecast.probed:,} failures")
    for name, side in (("base", figures.base), ("trained", figures.trained)):
        if side:
            parts.append(f"{side.scores.first.total:,} evaluated attempts of the {name} model")
    return parts


def _missing(figures: Figures) -> Sequence[str]:
    missing = [
        what
        for what, recorded in (
            ("certificate", figures.certified),
            ("training", figures.groups),
            ("evaluation", figures.base),
        )
        if not recorded
    ]
    if figures.base and not figures.base.against:
        missing.append("controls (evaluate.controls=true)")
    return missing
