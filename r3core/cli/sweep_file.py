"""The file of a sweep: settings that all runs have, a grid of values, named settings, and seeds.

    base: {task: countdown, evaluate.limit: 200}
    grid:
      train.retries: [1, 2]
      train.shuffle_rewards: [false, true]
    runs:
      no-leaks: {train.reward_leaks: false}
    seeds: [0, 1, 2]

A cell is one combination of the grid's values, or one of the named settings; each is run with every seed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from r3core.cli.seeds import parse_seeds
from r3core.cli.series import MINING
from r3core.errors import ConfigError, did_you_mean
from r3core.files import digest
from r3core.settings import leaves, merged, nested, read_file
from r3core.task import Frozen

MAX_RUNS = 1000
"""Maximum number of runs of a sweep; more are a mistyped grid."""
_LONGEST = 100  # characters of the name of a cell
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_RESERVED = {
    "seed": "give the seeds under `seeds`, beside `base`",
    "output_dir": "name the folder of all runs with --output-dir",
}


class Sweep(Frozen):
    """A sweep as its file contains it."""

    base: dict[str, Any] = {}
    """Configuration keys, dotted or nested, and their values: the same in all runs."""
    grid: dict[str, list[Any]] = {}
    """Dotted configuration keys and lists of values; there is a cell for each combination of the values."""
    runs: dict[str, dict[str, Any]] = {}
    """Names and settings of further cells, each on top of `base`; the grid's values are not in them."""
    seeds: int | str | list[int] = 0
    """Random seeds, as a list or as in `--seeds`; each cell has one run per seed."""
    share_mining: bool = False
    """Mine once, with the first seed: all runs train on the same failures."""


class Cell(NamedTuple):
    """Settings that are run with every seed."""

    name: str
    """The name of its folder."""
    settings: dict[str, Any]
    """Dotted keys and values that it has on top of `base`."""
    tree: dict[str, Any]
    """All settings of the file, as a tree."""


def read_sweep(path: Path) -> Sweep:
    """Return the sweep in a YAML file.

    Raises:
        ConfigError: the file cannot be read, has another key, or a value that is not allowed.
    """
    try:
        return Sweep.model_validate(read_file(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    where, known = list(map(str, first["loc"])), list(Sweep.model_fields)
    if first["type"] == "extra_forbidden":
        raise ConfigError(
            f"`{path}` is not a sweep: there is no key `{where[0]}`; its keys: {', '.join(known)}",
            *did_you_mean(where[0], known),
            "the settings that all runs have are under `base`",
        )
    if where[0] == "seeds":
        raise ConfigError(f"`seeds` in `{path}` cannot be {first['input']!r}: it should be a list such as [0, 1, 2]")
    expected = {"list_type": "it should be a list of values", "dict_type": "it should map keys to values"}
    fault = expected.get(first["type"], first["msg"])
    dotted = ("in a grid, keys are dotted: train.retries: [1, 2]",) if isinstance(first["input"], dict) else ()
    raise ConfigError(f"`{'.'.join(where)}` in `{path}` cannot be {first['input']!r}: {fault}", *dotted)


def seeds_of(sweep: Sweep) -> list[int]:
    """Return the seeds of a sweep; UsageError when one is given twice or is not a seed."""
    given = sweep.seeds
    return parse_seeds(given if isinstance(given, str) else ",".join(map(str, _listed(given))), key="seeds")


def cells_of(sweep: Sweep) -> list[Cell]:
    """Return the cells of a sweep: the combinations of the grid in its order, then the named settings.

    Raises:
        ConfigError: there is no cell, too many runs, an empty list of values, or a key that a sweep sets itself.
    """
    _check(sweep)
    base, short = settings_of(sweep.base, "base"), _short_keys(sweep.grid)
    cells = []
    for values in product(*sweep.grid.values()) if sweep.grid else ():
        settings = dict(zip(sweep.grid, values, strict=True))
        name = ",".join(f"{short[key]}={_value_text(value)}" for key, value in settings.items())
        cells.append(Cell(_as_folder(name), settings, merged(base, nested(settings))))
    for name, given in sweep.runs.items():
        tree = settings_of(given, f"runs.{name}")
        cells.append(Cell(name, dict(leaves(tree)) if tree else {}, merged(base, tree)))
    return list(_distinctly_named(cells))


def text_of(cell: Cell) -> str:
    """Return the settings of a cell, for people."""
    return ", ".join(f"{key}={_value_text(value)}" for key, value in cell.settings.items()) or "the settings of `base`"


def _check(sweep: Sweep) -> None:
    if not sweep.grid and not sweep.runs:
        raise ConfigError(
            "the sweep has no cells: neither `grid` nor `runs` has any settings",
            "add `grid: {train.retries: [1, 2]}` for example; for one setting, use r3 run --seeds",
        )
    for key, values in sweep.grid.items():
        if not values:
            raise ConfigError(f"`grid.{key}` has no values", "give at least one, or leave the key out")
    for name in sweep.runs:
        if not _NAME.fullmatch(name) or name == MINING:
            raise ConfigError(
                f"`runs.{name}` cannot be the name of a run, since it names a folder",
                "use letters, digits, `_`, `.` and `-`, and start with a letter or a digit"
                + (f"; `{MINING}` is reserved" if name == MINING else ""),
            )
    for where, settings in (("grid", sweep.grid), ("base", sweep.base), *_named(sweep.runs)):
        for key, way in _RESERVED.items():
            if key in settings:
                raise ConfigError(f"`{where}.{key}` cannot be set in a sweep", way)
    cells = len(sweep.runs) + (prod(map(len, sweep.grid.values())) if sweep.grid else 0)
    if (runs := cells * len(seeds_of(sweep))) > MAX_RUNS:
        raise ConfigError(f"the sweep has {runs:,} runs; {MAX_RUNS:,} are allowed", "leave values or seeds out")


def _named(runs: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, settings in runs.items():
        yield f"runs.{name}", settings


def settings_of(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return dotted and nested keys as one tree; ConfigError when a key occurs in both ways. `where` is their place."""
    found = Counter(leaf for key, value in given.items() for leaf, _ in leaves(nested({key: value})))
    if repeated := [leaf for leaf, count in found.items() if count > 1]:
        raise ConfigError(f"`{where}` sets `{repeated[0]}` twice, dotted and nested", "leave one of them out")
    return nested(given)


def _listed(value: int | list[int]) -> list[int]:
    return [value] if isinstance(value, int) else value


def _short_keys(grid: Mapping[str, Any]) -> dict[str, str]:
    """Return the last part of each key, or the whole key where two have the same last part."""
    last = {key: key.rpartition(".")[2] for key in grid}
    counts = Counter(last.values())
    return {key: short if counts[short] == 1 else key for key, short in last.items()}


def _value_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _as_folder(name: str) -> str:
    """Return a name as a folder can have it: other characters replaced, long ones cut, with a hash."""
    safe = re.sub(r"[^A-Za-z0-9_.=,+-]+", "-", name).strip(".-")
    return safe if len(safe) <= _LONGEST else f"{safe[: _LONGEST - 9]}-{digest(name, length=8)}"


def _distinctly_named(cells: list[Cell]) -> Iterator[Cell]:
    """Yield the cells; where two have one name, as `a/b` and `a-b` would, each gets a hash of its settings."""
    counts = Counter(cell.name for cell in cells)
    for cell in cells:
        if counts[cell.name] == 1:
            yield cell
        else:
            fingerprint = digest(json.dumps(cell.settings, sort_keys=True, default=str), length=8)
            yield cell._replace(name=f"{cell.name}-{fingerprint}")
