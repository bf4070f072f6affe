"""The page of a run: one offline HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from r3core.files import atomic_write


def write_page(runs: Sequence[Path], to: Path, *, live: bool = False) -> Path:
    """Write the page of one run, or one that compares several, and return its path."""
    names = ", ".join(run.name for run in runs)
    atomic_write(to, f'<!doctype html><meta charset="utf-8"><title>{escape(names)}</title><p>{live}</p>')
    return to
