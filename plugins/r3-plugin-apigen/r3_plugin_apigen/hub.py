"""Function-calling problems of other sources: the Hub dataset, or a file; rows.py reads the rows."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r3core import TaskError

HUB_DATASET = "Salesforce/xlam-function-calling-60k"
HUB_FILE = "xlam_function_calling_60k.json"
SUFFIXES = (".json", ".jsonl", ".parquet")
LAYOUTS = (
    "a row has `query`, `tools` and `answers` as in xlam, `messages` and `tools` as in OpenAI's API, `question` and "
    "`function` as in BFCL, with its answers in `possible_answer/`, or `system` and `conversations` as in ToolACE; "
    "columns may hold JSON as text"
)


def fault(source: str) -> str | None:
    """Return why something is no source, or `None`; whether a file exists is seen when it is loaded."""
    if source == "hub" or Path(source).suffix in SUFFIXES:
        return None
    return f"source={source} is neither `generated` nor `hub` nor a file {', '.join(SUFFIXES)}"


def absolute(source: str) -> str:
    """Return a source whose path, if it is one, means the same file from any folder; `~` is the home directory."""
    return str(Path(source).expanduser().absolute()) if Path(source).suffix in SUFFIXES else source


def raw_rows(source: str) -> Iterator[Any]:
    """Yield the rows of a source, whatever they hold; a line that is not JSON comes as its text.

    Raises:
        TaskError: the source cannot be read at all.
    """
    if source == "hub":
        yield from _hub()
        return
    path = Path(source).expanduser()
    if not path.is_file():
        raise TaskError(f"there is no file `{source}`", "a source is `generated`, `hub`, or a path to a file")
    from datasets import exceptions  # takes seconds: not before rows are wanted

    try:
        yield from _parquet(path) if path.suffix == ".parquet" else _with_answers(_json(path), path)
    except (OSError, ValueError, RecursionError, exceptions.DatasetsError) as error:
        raise TaskError(f"`{source}` cannot be read: {error}", f"a source is a file {', '.join(SUFFIXES)}") from error


def _hub() -> Iterator[Any]:
    from datasets import exceptions, load_dataset

    try:
        loaded = load_dataset(HUB_DATASET, split="train")
    except (OSError, exceptions.DatasetsError) as error:
        page = f"https://huggingface.co/datasets/{HUB_DATASET}"
        raise TaskError(
            f"the dataset {HUB_DATASET} cannot be loaded from the Hub: {error}",
            f"it is gated: accept its terms at {page}, then set HF_TOKEN or run `hf auth login`",
            f"or download {HUB_FILE} from that page and set `source` to the path of the file",
            "`source=generated` needs no network",
        ) from error
    yield from loaded


def _json(path: Path) -> Iterator[Any]:
    """Read one JSON list, or one row a line; `datasets` would fill every schema with the keys of all the others."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json" and text.lstrip().startswith("["):
        yield from json.loads(text)
        return
    for line in text.split("\n"):  # not `splitlines`: texts may hold other line separators
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield line


def _with_answers(rows: Iterator[Any], path: Path) -> Iterator[Any]:
    """Yield rows with the `ground_truth` that BFCL has in a file of the same name, in `possible_answer/`."""
    beside = path.parent / "possible_answer" / path.name
    answers = (
        {row["id"]: row for row in _json(beside) if isinstance(row, dict) and "id" in row} if beside.is_file() else {}
    )
    for row in rows:
        found = answers.get(row.get("id")) if isinstance(row, dict) and "question" in row else None
        yield {"ground_truth": found["ground_truth"]} | row if found and "ground_truth" in found else row


def _parquet(path: Path) -> Iterator[Any]:
    from datasets import load_dataset

    # Streamed, so that no copy of it is left in a cache.
    for row in load_dataset("parquet", data_files=glob.escape(str(path)), split="train", streaming=True):
        yield _without_nulls(row)


def _without_nulls(value: Any) -> Any:
    """Drop null values of objects: a column of parquet has the same keys in every row, with null for missing ones."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
