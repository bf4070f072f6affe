"""How findings are written: shares with their intervals, settings as `key=value`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from r3core.config import Config
from r3core.console import visible
from r3core.explain.figures import Figures
from r3core.explain.rules import RULES, Diagnosis
from r3core.stats import Rate

_LISTED = 3


class Seen(NamedTuple):
    """What every diagnosis reads."""

    figures: Figures
    config: Config


def diagnosis(name: str, finding: str, advice: str, figures: Mapping[str, float]) -> Diagnosis:
    """Return a diagnosis of `RULES`; names from plugins and models in it are escaped."""
    assert name in RULES
    return Diagnosis(name=name, finding=visible(finding), advice=visible(advice), figures=dict(figures))


def share_text(rate: Rate) -> str:
    """Return a share with its 95% interval and the number of samples."""
    return f"{100 * rate.rate:.1f}% [{100 * rate.low:.1f}, {100 * rate.high:.1f}] of {rate.total:,}"


def points(difference: float, low: float, high: float) -> str:
    """Return a difference of shares with its 95% interval, in points."""
    return f"{100 * difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"


def rate_figures(rate: Rate) -> dict[str, float]:
    """Return the figures of a share."""
    return {"share": rate.rate, "low": rate.low, "high": rate.high, "n": rate.total}


def raised(limit: str) -> str:
    """Return a setting `key=NUMBER` with twice the number."""
    key, _, value = limit.partition("=")
    return f"{key}={2 * int(value)}"


def setting(config: Config, option: str, *, factor: float) -> str:
    """Return an option under `grpo` as `key=value`, with its value multiplied; TRL's default where it is not set."""
    value = float(config.grpo_options().get(option, _DEFAULTS[option]))
    return f"grpo.{option}={value * factor:.2g}"


def by_count(items: Sequence[str]) -> str:
    """Return the first few items, and how many more there are."""
    more = len(items) - _LISTED
    return ", ".join(items[:_LISTED]) + (f" and {more} more" if more > 0 else "")


_DEFAULTS = {"learning_rate": 1e-6}  # of TRL's GRPOConfig
