"""What a run takes over from another one, with `mine.failures`: failures, attempts of mining, and the forecast."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from r3core.config import Config
from r3core.errors import ConfigError, UsageError
from r3core.failures import ADOPTED_ATTEMPTS, Failure, mined_attempts, read_failures, write_failures
from r3core.forecast import Forecast, group_size
from r3core.recorded import config_of
from r3core.runs import Run, RunRecord, value_of
from r3core.task import Task
from r3core.verification.judge import verifier_hash

_ANOTHER_STAGE = ("seed", "mine", "train", "grpo", "lora", "evaluate", "uncertified", "batch_size")
"""Sections and keys on which the forecast does not depend, apart from what `_settings` adds."""
_NOT_SAMPLING = (
    *("anchor", "budget_tokens", "tokens", "merge", "shuffle_rewards", "drop_equal_groups", "dtype", "keep"),
    "stop_after",
)
"""Keys of `train` on which the forecast does not depend."""


def adopt_failures(run: Run, task: Task, config: Config, source: Path) -> list[Failure]:
    """Copy a failure dataset into a run, with its provenance; warns when its verdicts may be out of date."""
    failures, provenance = read_failures(source)
    if provenance["task"] != config.task:
        raise UsageError(f"`{source}` holds failures of task `{provenance['task']}`, not of `{config.task}`")
    if provenance["verifier_hash"] != verifier_hash(task):
        print(f"warning: the verifier has changed since `{source}` was made", file=sys.stderr)
        print(f"hint: r3 rescore {source} --output-dir NEW judges them again", file=sys.stderr)
    if not config.mine.keep_truncated:
        whole = [failure for failure in failures if failure.attempt.stopped != "length"]
        if cut := len(failures) - len(whole):
            print(f"left out: {cut:,} failures whose attempt was cut off (mine.keep_truncated)", file=sys.stderr)
        failures = whole
    if not failures:
        raise UsageError(f"`{source}` has no failures to train on")
    write_failures(run.path / "failures", failures, provenance)
    if config.train.anchor > 0:
        _adopt_attempts(run, source)
    run.finish("mine", {"failures": len(failures), "from": str(source)})
    return failures


def _adopt_attempts(run: Run, source: Path) -> None:
    """Copy the mined attempts of another run, which `train.anchor` needs; UsageError when they are not there."""
    folders = [RunRecord(folder) for folder in (source, source.parent)]  # a run directory, or `failures` in one
    attempts = next((found for record in folders if (found := list(mined_attempts(record)))), [])
    if not attempts:
        raise UsageError(
            f"`train.anchor` requires all attempts of mining, and `{source}` has the failures alone",
            "name the run directory that mined them under mine.failures, or mine in this run",
        )
    run.drop(ADOPTED_ATTEMPTS, lambda _: True)  # of an interrupted copy
    run.append(ADOPTED_ATTEMPTS, attempts)


def adopt_forecast(run: Run, config: Config, failures: list[Failure]) -> Forecast | None:
    """Copy the forecast of the run whose failures are used, if it was made for the same ones and the same settings.

    None where it does not hold, and for a failure dataset without a run; the seed of its sample may be another one.
    """
    source = config.mine.failures
    if source is None or not (source / "config.json").is_file():
        return None
    found = value_of(Forecast, RunRecord(source), "forecast")
    if found is None or found.failures != len(failures):
        return None
    try:
        if _settings(config_of(source)) != _settings(config):
            return None
    except ConfigError:  # of another version of r3
        return None
    run.write_json("forecast", found)
    print(f"forecast: that of `{source}`, for the same failures and settings", file=sys.stderr)
    return found


def _settings(config: Config) -> dict[str, Any]:
    """Return everything but the seed on which the forecast depends."""
    record = config.as_trained().record()
    train = {key: value for key, value in record["train"].items() if key not in _NOT_SAMPLING}
    rest = {key: value for key, value in record.items() if key not in _ANOTHER_STAGE}
    return rest | {"train": train, "probe": config.mine.probe, "group size": group_size(config)}
