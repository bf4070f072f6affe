import json

import pytest

from r3_plugin_apigen.hub import HUB_DATASET, HUB_FILE, fault, raw_rows
from r3_plugin_apigen.rows import load
from r3core import TaskError

ROWS = [
    {"id": 1, "query": "one", "tools": "[]", "answers": "[]"},
    {"id": 2, "query": "zwei\u2028\u00fc", "tools": [{"name": "a", "parameters": {"x": {"type": "str"}}}]},
    {"id": 3, "query": "three", "tools": [{"name": "b", "parameters": {"y": {"type": "int", "default": None}}}]},
]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.json", json.dumps(ROWS)),
        ("rows.json", json.dumps(ROWS, indent=2, ensure_ascii=False)),
        ("rows.json", "\ufeff" + json.dumps(ROWS)),
        ("rows.json", "\n".join(map(json.dumps, ROWS))),
        ("rows.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n"),
        ("rows.jsonl", "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)),
    ],
)
def test_json_is_read_as_it_is(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert list(raw_rows(str(path))) == ROWS


def test_lines_that_are_no_json_come_as_their_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"query": 1}\nquery, tools\n' + "[" * 100_000)
    assert list(raw_rows(str(path))) == [{"query": 1}, "query, tools", "[" * 100_000]


def test_parquet_is_read_without_the_keys_of_other_rows(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"answers": None, **row} for row in ROWS[1:]]), path)
    rows = list(raw_rows(str(path)))
    assert rows[0] == ROWS[1]
    assert rows[1]["tools"] == [{"name": "b", "parameters": {"y": {"type": "int"}}}]


def test_a_parquet_file_in_the_layout_of_the_hub_gives_examples(tmp_path):
    import pyarrow
    import pyarrow.parquet

    tools = json.dumps([{"name": "now", "description": "The time", "parameters": {}}])
    answers = json.dumps([{"name": "now", "arguments": {}}])
    rows = [{"id": i, "query": f"time {i}", "tools": tools, "answers": answers} for i in range(10)]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert [len(list(load(str(path), split))) for split in ("train", "validation", "test")] == [7, 1, 2]


@pytest.mark.parametrize(
    ("name", "content"),
    [("rows.json", b"[1, 2"), ("rows.json", b"[" * 100_000), ("rows.jsonl", b"\xff\xfe\x00"), ("rows.parquet", b"PAR")],
)
def test_a_file_that_cannot_be_read_is_an_error_for_people(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TaskError, match=rf"{name}` cannot be read"):
        list(raw_rows(str(path)))


def test_a_missing_file_is_named():
    with pytest.raises(TaskError, match=r"there is no file `nowhere\.json`"):
        list(raw_rows("nowhere.json"))


@pytest.mark.parametrize("source", ["hub", "rows.json", "a/rows.jsonl", "~/rows.parquet"])
def test_the_hub_and_files_are_sources(source):
    assert fault(source) is None


@pytest.mark.parametrize("source", ["", "Hub", "rows.csv", "Salesforce/xlam-function-calling-60k"])
def test_what_is_no_source_is_an_error(source):
    assert fault(source) == (f"source={source} is neither `generated` nor `hub` nor a file .json, .jsonl, .parquet")


def test_an_unreachable_hub_is_an_error_with_hints(monkeypatch, tmp_path):
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(TaskError, match=HUB_DATASET) as caught:
        list(raw_rows("hub"))
    hints = " ".join(caught.value.hints)
    assert all(word in hints for word in ("terms", "HF_TOKEN", "hf auth login", HUB_FILE, "source=generated"))
