"""What an evaluation generates at most: for the plan, before any work."""

from __future__ import annotations

from typing import NamedTuple

from r3core.config import Config
from r3core.evaluation.decoding import controls_of, greedy_beside


class Most(NamedTuple):
    """Tokens that are generated at most for one problem and one model, if it fails every attempt."""

    tries: int
    """Attempt, reflections and retries."""
    controls: int
    greedy: int
    cross: int
    """The cross table, for both models together."""


def most_per_problem(config: Config) -> Most:
    """Return the tokens at most per problem, by what they are generated for."""
    attempt, reflection, retry = (getattr(config.sampling, name).max_tokens for name in _TURNS)
    now, controls = config.evaluate, controls_of(config)
    tries = attempt + config.protocol.rounds * (reflection + retry)
    further = retry * sum(arm != "resample" for arm in controls)
    fresh = attempt * now.resamples if "resample" in controls else 0
    return Most(
        tries=now.samples * tries,
        controls=now.samples * (further + fresh),
        greedy=tries if greedy_beside(config) else 0,
        cross=now.samples * (reflection + 3 * retry) if now.cross else 0,
    )


def explain_evaluation(config: Config) -> list[str]:
    """Return what the evaluation attempts, and the tokens that it generates at most."""
    now, most = config.evaluate, most_per_problem(config)
    controls = "with" if now.controls else "without"
    greedy = ", and greedily" if greedy_beside(config) else ""
    problems = now.limit or 1
    each = most.tries + most.controls + most.greedy
    for_what = ((most.controls, "for the controls"), (most.greedy, "for greedy tries"))
    parts = [f"{part / each:.0%} {what}" for part, what in for_what if part]
    shares = f", {' and '.join(parts)}" if parts else ""
    cross = f"; the cross table at most {problems * most.cross:,} more" if most.cross else ""
    of = "" if now.limit else " per problem"
    return [
        f"{now.limit or 'all'} problems x {now.samples}, {controls} controls{greedy}",
        f"each model generates at most {problems * each:,} tokens{of}{shares}{cross}",
    ]


_TURNS = ("attempt", "reflection", "retry")
