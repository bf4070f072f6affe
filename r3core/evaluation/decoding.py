"""How an evaluation decodes: with the configured sampling parameters, greedily, or both; and which controls it has."""

from __future__ import annotations

from r3core.config import Config
from r3core.episode import CONTROLS, Arm
from r3core.sections import Turns

GREEDY = "greedy"
"""Ending of the names of files and measures that belong to greedy decoding."""


def greedy(config: Config) -> Config:
    """Return the configuration with greedy decoding in every turn."""
    update = {"temperature": 0.0, "top_p": 1.0, "top_k": 0}
    turns = {name: getattr(config.sampling, name).model_copy(update=update) for name in Turns.model_fields}
    return config.model_copy(update={"sampling": Turns(**turns)})


def decoded(config: Config) -> Config:
    """Return the configuration with which the main rows of an evaluation are generated."""
    return greedy(config) if config.evaluate.decoding == "greedy" else config


def is_greedy(config: Config) -> bool:
    """Return whether the main rows of an evaluation are greedy, by `evaluate.decoding` or by the temperatures."""
    turns = decoded(config).sampling
    return all(getattr(turns, name).temperature == 0 for name in Turns.model_fields)


def greedy_beside(config: Config) -> bool:
    """Return whether greedy tries are evaluated beside sampled ones; never where these are greedy anyway."""
    return config.evaluate.decoding == "both" and not is_greedy(config)


def controls_of(config: Config) -> tuple[Arm, ...]:
    """Return the controls of an evaluation; a greedy one has no `resample`, which would repeat the failed attempt."""
    if not config.evaluate.controls:
        return ()
    return tuple(arm for arm in CONTROLS if arm != "resample" or config.evaluate.decoding != "greedy")
