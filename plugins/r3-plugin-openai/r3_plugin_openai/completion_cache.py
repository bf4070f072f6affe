"""The completions of a run from a server: a batch that is generated again sends only the requests that are missing."""

from __future__ import annotations

from collections.abc import Sequence

from r3core.generation.generator import Completion
from r3core.runs import Run, values_of
from r3core.task import Frozen

NAME = "requests"
"""The file of the run directory, without its suffix."""


class CachedCompletion(Frozen):
    """One row of the file."""

    key: str
    """A hash of the whole request."""
    completion: Completion


class CompletionCache:
    """The completions of a run, also of earlier sessions, by the hash of the request."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._completions: dict[str, Completion] | None = None

    @property
    def completions(self) -> dict[str, Completion]:
        """All of them by key; the file is read once."""
        if self._completions is None:
            rows = values_of(CachedCompletion, self.run.rows(NAME), NAME)
            self._completions = {row.key: row.completion for row in rows}
        return self._completions

    def get(self, key: str) -> Completion | None:
        """Return the cached completion of a request, None when there is none."""
        return self.completions.get(key)

    def put(self, completions: Sequence[tuple[str, Completion]]) -> None:
        """Store completions, each under its key; they are on disk when this returns."""
        self.run.append(NAME, [CachedCompletion(key=key, completion=completion) for key, completion in completions])
        self.completions.update(completions)
