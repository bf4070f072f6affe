"""Runs side by side: trainings repeated with other seeds pooled, and settings compared on the same problems."""

from __future__ import annotations

from r3core.compare.comparison import Comparison, compare_runs
from r3core.compare.tables import latex_of, print_comparison, rows_of_csv

__all__ = ["Comparison", "compare_runs", "latex_of", "print_comparison", "rows_of_csv"]
