"""The failure dataset: failed attempts with all that is needed to reflect on them, and where they come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError

from r3core.episode import Answer, Episode
from r3core.errors import UsageError
from r3core.task import Example, Frozen, Message, Prompt, Tool


class Failure(Frozen):
    """A failed attempt, with all that is needed to reflect on it: one row of a set of failures."""

    id: str
    prompt: list[Message]
    """The messages that the attempt continued."""
    tools: list[Tool] = []
    """The tools that the prompt offered, in OpenAI's format."""
    answer: JsonValue = None
    info: dict[str, JsonValue] = {}
    sample: int
    attempt: Answer
    passed: int
    """How many of the attempts at this problem passed."""
    samples: int
    """How many attempts at this problem were judged."""

    def episode(self) -> Episode:
        """Return the episode that a reflection on this failure continues."""
        prompt = Prompt(messages=self.prompt, tools=self.tools)
        example = Example(id=self.id, prompt=prompt, answer=self.answer, info=self.info)
        return Episode(example=example, sample=self.sample, attempt=self.attempt)


def write_failures(folder: Path, failures: Sequence[Failure], provenance: dict[str, Any]) -> None:
    """Write a set of failures: `failures.jsonl`, `card.json`, and a README.md that `datasets` reads as its card."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(failure.model_dump_json() + "\n" for failure in failures)
    text = json.dumps(provenance, indent=2, ensure_ascii=False)
    readme = (
        "---\nconfigs:\n- config_name: default\n  data_files: failures.jsonl\ntags: [r3, failures]\n---\n\n"
        f"# Failures of {provenance['model']} on {provenance['task']}\n\n"
        "Failed attempts, one a problem. `prompt` is the conversation that `attempt` continued; `passed` of `samples` "
        "attempts at the problem passed.\n\n"
        f"```json\n{text}\n```\n"
    )
    for name, content in (("failures.jsonl", rows), ("README.md", readme), ("card.json", text + "\n")):
        partial = folder / f".{name}.partial"
        partial.write_text(content, encoding="utf-8")
        partial.replace(folder / name)


def read_failures(folder: Path) -> tuple[list[Failure], dict[str, Any]]:
    """Return a set of failures and its provenance; UsageError when the folder holds none."""
    rows, provenance = folder / "failures.jsonl", folder / "card.json"
    if not rows.exists() and (folder / "failures").is_dir():
        return read_failures(folder / "failures")
    if not rows.exists() or not provenance.exists():
        raise UsageError(
            f"`{folder}` holds no set of failures: failures.jsonl and card.json should be in it",
            "make one with `r3 mine`, and name its folder or the run directory",
        )
    try:
        # not `splitlines`: model text may hold other line separators
        failures = [Failure.model_validate_json(line) for line in rows.read_bytes().split(b"\n")[:-1]]
    except ValidationError as error:
        raise UsageError(f"`{rows}` has a row that is no failure: {error.errors()[0]['msg']}") from None
    return failures, _provenance(provenance)


def _provenance(path: Path) -> dict[str, Any]:
    """Return what a card says; UsageError when it leaves out what others rely on."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        said = None
    if not isinstance(said, dict) or not {"task", "task_options", "verifier_hash", "counts"} <= said.keys():
        raise UsageError(f"`{path}` is no card of a set of failures", "make the set anew with `r3 mine`")
    return said
