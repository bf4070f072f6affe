"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; `|` in a cell is escaped, and a line break is a space."""
    lines = [head, ("---",) * len(head), *rows]
    escaped = ([" ".join(cell.splitlines()).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped)
