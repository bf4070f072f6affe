"""The failure dataset: failed attempts with all that is needed to reflect on them, and their provenance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError

from r3core.episode import Answer, Episode
from r3core.errors import UsageError
from r3core.files import atomic_write
from r3core.runs import RunRecord, each_value
from r3core.task import Example, Frozen, Message, Prompt, Tool

ADOPTED_ATTEMPTS = "adopted-attempts"
"""The rows with the attempts of mining, in a run whose failures come from another one."""
_REQUIRED = {"task", "task_options", "verifier_hash", "counts"}
"""The keys of a provenance that other modules rely on."""


class Failure(Frozen):
    """A failed attempt with all that is needed to reflect on it: one row of a failure dataset.

    The first of four attempts at example n7; one of the others passed:

    >>> from r3core import Verdict
    >>> failure = Failure(
    ...     id="n7",
    ...     prompt=[{"role": "user", "content": "Say 7."}],
    ...     answer="7",
    ...     sample=0,
    ...     attempt=Answer(text="8", tokens=1, verdict=Verdict.failed("it should be 7")),
    ...     passed=1,
    ...     samples=4,
    ... )
    >>> failure.episode().failed
    True
    """

    id: str
    """The example's id; a dataset has at most one failure per example."""
    prompt: list[Message]
    """The messages that the attempt continued."""
    tools: list[Tool] = []
    """The tools that the prompt offered, in OpenAI's format."""
    answer: JsonValue = None
    info: dict[str, JsonValue] = {}
    sample: int
    """The attempt's index among the attempts at this example."""
    attempt: Answer
    passed: int
    """Number of attempts at this example that passed."""
    samples: int
    """Number of attempts at this example that were judged."""
    example_prompt: str | list[Message] | Prompt | None = None
    """The `prompt` of the example, from which the task may build that of the attempt."""

    def episode(self) -> Episode:
        """Return the episode that a reflection on this failure continues."""
        recorded = Prompt(messages=self.prompt, tools=self.tools)
        example = Example(id=self.id, prompt=self.example_prompt or recorded, answer=self.answer, info=self.info)
        return Episode(example=example, sample=self.sample, attempt=self.attempt)


def write_failures(folder: Path, failures: Sequence[Failure], provenance: dict[str, Any]) -> None:
    """Write a failure dataset: `failures.jsonl`, its provenance `card.json`, and a README.md, its card on the Hub."""
    text = json.dumps(provenance, indent=2, ensure_ascii=False)
    readme = (
        "---\nconfigs:\n- config_name: default\n  data_files: failures.jsonl\ntags: [r3, failures]\n---\n\n"
        f"# Failures of {provenance['model']} on {provenance['task']}\n\n"
        "Failed attempts, one per problem. `prompt` is the conversation that `attempt` continued; `passed` of "
        "`samples` attempts at the problem passed.\n\n"
        f"```json\n{text}\n```\n"
    )
    atomic_write(folder / "failures.jsonl", "".join(failure.model_dump_json() + "\n" for failure in failures))
    atomic_write(folder / "README.md", readme)
    atomic_write(folder / "card.json", text + "\n")


def read_failures(folder: Path) -> tuple[list[Failure], dict[str, Any]]:
    """Return the failures and the provenance of a failure dataset, given its folder or that of the run that mined it.

    Raises:
        UsageError: the folder holds no failure dataset, or a damaged one.
    """
    rows, card = folder / "failures.jsonl", folder / "card.json"
    if not rows.exists() and (folder / "failures").is_dir():
        return read_failures(folder / "failures")
    if not rows.exists() or not card.exists():
        raise UsageError(
            f"`{folder}` is not a failure dataset: it must contain failures.jsonl and card.json",
            "make one with `r3 mine`, and name its folder or the run directory",
        )
    try:
        # not `splitlines`: model text may contain other line separators
        failures = [Failure.model_validate_json(line) for line in rows.read_bytes().split(b"\n")[:-1]]
    except ValidationError as error:
        raise UsageError(f"`{rows}` has an invalid row: {error.errors()[0]['msg']}") from None
    return failures, _read_provenance(card)


def mined_attempts(run: RunRecord) -> Iterator[Episode]:
    """Yield every attempt that the run's mining has recorded, or that came with its failures."""
    for name in ("mine", ADOPTED_ATTEMPTS):
        yield from each_value(Episode, run.rows(name), name)


def _read_provenance(path: Path) -> dict[str, Any]:
    try:
        provenance = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        provenance = None
    if not isinstance(provenance, dict) or not provenance.keys() >= _REQUIRED:
        raise UsageError(f"`{path}` is not a failure dataset's provenance", "make the dataset again with `r3 mine`")
    return provenance
