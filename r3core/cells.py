"""Figures as the text of a table's cell: rates, differences and p-values."""

from __future__ import annotations

from r3core.stats import Difference, Rate, Share


def format_rate(rate: Rate | Share | None) -> str:
    """Return a rate in % with its interval; a dash without answers."""
    if rate is None or (isinstance(rate, Rate) and not rate.total):
        return "-"
    return f"{100 * rate.rate:5.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def format_difference(difference: Difference) -> str:
    """Return a difference in percentage points with its interval and its p-value (see `format_p`)."""
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.difference:+.1f} [{low:+.1f}, {high:+.1f}] {format_p(difference)}"


def format_p(difference: Difference) -> str:
    """Return the p-value of a difference, after Holm's correction where it was made."""
    p = difference.p if difference.p_holm is None else difference.p_holm
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
