"""How many tokens training has used: generated, prompted and trained ones, and its share of those of mining.

Evaluations during training are not counted. Tokens of mining are charged per failure, once, when it is first trained
on: with T tokens in all attempts of mining and F failures found, a failure costs T / F. An objective that begins with
an attempt needs no stored failures, and is charged nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.utils import gather_object

from r3core.files import atomic_write

if TYPE_CHECKING:
    from r3core.training.rollout import Row

_FILE = "usage.json"
_COUNTS = ("generated", "prompt", "trained", "forward_passes")


class Usage:
    """The counts of all processes since the first step; `charge` is what one failure costs in mining, in tokens."""

    def __init__(self, charge: float = 0.0) -> None:
        self.charge = charge
        self.totals: Counter[str] = Counter()
        self.failures: set[str] = set()
        """The ids of the failures that were trained on."""
        self._own: Counter[str] = Counter()  # of this process, not yet in the totals

    def count_generated(self, rows: Sequence[Row]) -> None:
        """Add what was sampled: the tokens of completions, with end-of-turn tokens, and those of their prompts."""
        self._own["generated"] += sum(len(row.ids) for row in rows)
        self._own["prompt"] += sum(len(row.prompt) for row in rows)

    def count_trained(self, tokens: int) -> None:
        """Add tokens in the loss of one pass."""
        self._own["trained"] += tokens

    def count_forward(self, sequences: int) -> None:
        """Add sequences that went through a model at once, for the loss or for log-probabilities."""
        self._own["forward_passes"] += sequences

    def count_failures(self, ids: Iterable[str]) -> None:
        """Add failures that were trained on; one that was before is not charged again."""
        self.failures.update(ids)

    def gather(self) -> None:
        """Add the counts of all processes to the totals; every process has to call it."""
        for counts in gather_object([dict(self._own)]):
            self.totals.update(counts)
        self._own.clear()

    @property
    def mining(self) -> int:
        """The tokens of mining that the failures so far have to account for."""
        return round(self.charge * len(self.failures))

    @property
    def spent(self) -> int:
        """The tokens that count in `train.budget_tokens`."""
        return self.totals["generated"] + self.mining

    def metrics(self) -> dict[str, float]:
        """Return the totals under the names of metrics."""
        named = {name if name == "forward_passes" else f"tokens/{name}": self.totals[name] for name in _COUNTS}
        return {**named, "tokens/mining": self.mining}

    def save(self, checkpoint: Path) -> None:
        """Write the totals into a checkpoint."""
        atomic_write(
            checkpoint / _FILE, json.dumps({"totals": dict(self.totals), "failures": sorted(self.failures)}) + "\n"
        )

    def load(self, checkpoint: Path) -> None:
        """Read the totals of a checkpoint; one of an earlier version has none."""
        path = checkpoint / _FILE
        if path.exists():
            saved = json.loads(path.read_text(encoding="utf-8"))
            self.totals, self.failures = Counter(saved["totals"]), set(saved["failures"])
