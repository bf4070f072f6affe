"""The completions that a run has from a server: a batch that is asked again pays only for what is missing."""

from __future__ import annotations

from collections.abc import Sequence

from r3core.generation.engine import Completion
from r3core.runs import Run, values_of
from r3core.task import Frozen

NAME = "requests"
"""The file of the run directory, without its ending."""


class Answered(Frozen):
    """One row of the file."""

    key: str
    """A hash of all that the server was asked."""
    completion: Completion


class KeptCompletions:
    """What a server has answered in this run and in what was killed before, by the hash of the request."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._known: dict[str, Completion] | None = None

    @property
    def known(self) -> dict[str, Completion]:
        """All of them; the file is read once."""
        if self._known is None:
            rows = values_of(Answered, self.run.rows(NAME), NAME)
            self._known = {row.key: row.completion for row in rows}
        return self._known

    def get(self, key: str) -> Completion | None:
        """Return the answer to a request, if there was one."""
        return self.known.get(key)

    def put(self, completions: Sequence[tuple[str, Completion]]) -> None:
        """Keep answers; they are on disk when this returns."""
        self.run.append(NAME, [Answered(key=key, completion=completion) for key, completion in completions])
        self.known.update(completions)
