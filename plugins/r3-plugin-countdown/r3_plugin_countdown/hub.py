"""The loader of Countdown problems from an existing dataset: on the Hub, or a file of its format."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r3_plugin_countdown.data import problem, split_of
from r3core import Example, Split, TaskError

HUB_DATASET = "Jiayi-Pan/Countdown-Tasks-3to4"
BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}
"""The kinds of file, and what `datasets` calls them."""
_COLUMNS = ("nums", "target")
_MAX_NUMBERS = 12  # the verifier's bound on the length of an answer has room for these,
_LARGEST = 999_999_999  # each of this size
_ROWS_AT_ONCE = 1_000


def fault(source: str) -> str | None:
    """Return why `source` is not valid, or None; whether a file exists is checked when it is loaded."""
    if source == "hub" or Path(source).suffix in BUILDERS:
        return None
    return f"source={source} is neither `generated` nor `hub` nor a file {', '.join(BUILDERS)}"


def absolute(source: str) -> str:
    """Return a source whose path, if it is one, means the same file from any folder; `~` is the home directory."""
    return str(Path(source).expanduser().absolute()) if Path(source).suffix in BUILDERS else source


def load(source: str, split: Split) -> Iterator[Example]:
    """Yield the distinct problems of one split, in the source's order; `source` is `hub` or a file.

    Rows that are not a valid problem are left out, and counted in a warning at the end. Raises `TaskError` when
    the source cannot be read or has other columns.
    """
    seen: set[tuple[tuple[int, ...], int]] = set()
    row = malformed = 0
    first_malformed = ""
    for row, (nums, stated) in enumerate(_rows(source), start=1):
        numbers, target = _whole_numbers(nums), _whole(stated)
        if numbers is None or target is None:
            malformed += 1
            first_malformed = first_malformed or f"row {row}: nums={nums!r}, target={stated!r}"
            continue
        key = (tuple(sorted(numbers)), target)
        if split_of(*key) == split and key not in seen:
            seen.add(key)
            yield problem(numbers, target)
    if malformed:
        warnings.warn(
            f"`{source}`: {malformed} of {row} rows are not 1 to {_MAX_NUMBERS} whole numbers with a whole target and "
            f"were left out; the first is {first_malformed:.200}",
            stacklevel=2,
        )


def _whole_numbers(nums: object) -> list[int] | None:
    """Return the numbers of a row, or None when they are not valid."""
    if not isinstance(nums, list) or not 1 <= len(nums) <= _MAX_NUMBERS:
        return None
    numbers = [whole for whole in map(_whole, nums) if whole is not None and 0 <= whole <= _LARGEST]
    return numbers if len(numbers) == len(nums) else None


def _whole(value: object) -> int | None:
    """Return a whole number, also when a column of floats holds it, or `None`."""
    if type(value) is int or (type(value) is float and value.is_integer()):
        return int(value)
    return None


def _rows(source: str) -> Iterator[tuple[Any, Any]]:
    from datasets import exceptions  # takes seconds: not before problems are wanted

    try:
        for batch in _open(source).iter(batch_size=_ROWS_AT_ONCE):
            missing = [column for column in _COLUMNS if column not in batch]
            if missing:
                raise TaskError(
                    f"`{source}` has no column `{'`, `'.join(missing)}`; it has {', '.join(batch)}",
                    "a Countdown dataset has the columns `nums` (a list of whole numbers) and `target`",
                )
            yield from zip(batch["nums"], batch["target"], strict=True)
    except (OSError, ValueError, exceptions.DatasetsError) as error:
        raise TaskError(
            f"`{source}` cannot be read: {error}",
            "a source is `hub`, or a file .parquet, .json or .jsonl with the columns `nums` and `target`",
        ) from error


def _open(source: str) -> Any:
    """Return the `datasets` object of a source; a file is streamed, so that no copy of it is left in a cache."""
    from datasets import load_dataset

    if source != "hub":
        if not Path(source).is_file():
            raise TaskError(f"there is no file `{source}`", "a source is `generated`, `hub`, or a path to a file")
        builder = BUILDERS[Path(source).suffix]
        # `datasets` takes a path for a pattern, in which brackets, `*` and `?` have a meaning
        return load_dataset(builder, data_files=glob.escape(source), split="train", streaming=True)
    try:
        return load_dataset(HUB_DATASET, split="train")
    except OSError as error:
        raise TaskError(
            f"the dataset {HUB_DATASET} cannot be loaded from the Hub: {error}",
            "check the network, or HF_TOKEN and HF_ENDPOINT when the Hub is reached through a mirror",
            "download its parquet file elsewhere and set `source` to the path of that file",
            "`source=generated` needs no network",
        ) from error
