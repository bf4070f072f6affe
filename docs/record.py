"""Record the published part of a finished run: `python docs/record.py RUN_DIRECTORY NAME` writes `docs/runs/NAME.json`.

docs/generate.py makes the published tables from these records; its RECORDS lists the names. Record a run right after it
has finished, with the code that made it: the digests of the verifier and of the weights are computed now.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from r3core import Task, get_task
from r3core.report import shares_of_a_step
from r3core.runs import RunRecord
from r3core.verification.judge import verifier_hash

RUNS = Path(__file__).resolve().parent / "runs"
_PLATFORM = re.compile(r"(?P<system>\w+)-.*?(?P<machine>x86_64|aarch64|arm64)(?:.*-with-(?P<libc>.+))?")
_FIRST_GENERATIONS = 2


def record(folder: Path) -> dict[str, Any]:
    """Return the published part of the run in a folder, without paths and names of machines.

    Stages that the run did not have, such as the mining of an `r3 eval`, are null.

    Raises:
        SystemExit: the run is not finished, or its verifier has changed since.
    """
    run = RunRecord(folder)
    config, result = run.read_json("config"), run.read_json("result")
    if config is None or result is None:
        raise SystemExit(f"error: `{folder}` is not a finished run: it has no config.json or no result.json")
    task = get_task(config["task"], **config["task_options"])
    card = run.read_json("failures/card") or {}
    if card.get("verifier_hash", verifier_hash(task)) != verifier_hash(task):
        raise SystemExit(f"error: the verifier has changed since `{folder}` was made; make the run again")
    steps = run.read("train")
    return {
        "config": {key: _without_place(value) for key, value in config.items()},
        "result": result,
        "environment": _environment(run.read_json("environment")),
        "seconds": {stage: round(seconds, 1) for stage, seconds in run.seconds().items()},
        "shares_of_a_step": {part: round(share, 4) for part, share in shares_of_a_step(run).items()},
        "mined": run.done("mine"),
        "forecast": run.read_json("forecast"),
        "first_rewards": [row["reward"] for row in steps if "reward" in row][:_FIRST_GENERATIONS],
        "problems": digest_of_problems(run),
        "verifier": {"version": task.version, "hash": verifier_hash(task)},
        "model_sha256": digest_of_weights(task),
    }


def digest_of_problems(run: RunRecord) -> dict[str, Any]:
    """Return the number of problems that a run evaluated, and the SHA-256 of their ids, in order."""
    ids = list(dict.fromkeys(row["example"]["id"] for row in run.rows("evaluate-base")))
    return {"count": len(ids), "sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest()}


def digest_of_weights(task: Task) -> str | None:
    """Return the SHA-256 of the weights of a task's built-in model, from which every published run starts."""
    if task.demo is None:
        return None
    with Path(str(task.demo.model), "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _environment(environment: dict[str, Any]) -> dict[str, Any]:
    """Return the versions in a run's environment, and its platform without the kernel's name."""
    kind = _PLATFORM.fullmatch(environment["platform"])
    named = ", ".join(part for part in kind.groups() if part) if kind else environment["platform"].partition("-")[0]
    versions = {key: environment[key] for key in ("processors", "python", "plugins", "libraries")}
    return {"date": environment["time"].partition("T")[0], "platform": named, **versions}


def _without_place(value: Any) -> Any:
    """Return a value of the configuration with absolute paths reduced to their last part."""
    if isinstance(value, dict):
        return {key: _without_place(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_place(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def main() -> None:
    """Write the record of the run that the command line names."""
    if len(sys.argv) != 3 or not re.fullmatch(r"[a-z0-9-]+", sys.argv[2]):
        raise SystemExit("usage: python docs/record.py RUN_DIRECTORY NAME   (a name like countdown-0)")
    file = RUNS / f"{sys.argv[2]}.json"
    file.write_text(json.dumps(record(Path(sys.argv[1])), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{file}\nrun `make docs` to publish it")


if __name__ == "__main__":
    main()
