import json
from pathlib import Path

import pytest

from r3_plugin_countdown.hub import HUB_DATASET
from r3_plugin_countdown.task import Countdown
from r3core import TaskError

SPLITS = ("train", "validation", "test")
ROWS = [([44, 19, 35], 98), ([63, 95, 96], 64), ([95, 11, 56], 28), ([19, 74, 45, 1], 48)] + [
    ([a, b, a + b], 2 * (a + b)) for a in range(1, 9) for b in range(1, 9)
]


@pytest.fixture
def write(tmp_path):
    """Write a parquet file of the hub's format."""

    def write(rows, columns=("nums", "target")):
        import pyarrow
        import pyarrow.parquet

        path = tmp_path / "countdown.parquet"
        table = {column: [row[index] for row in rows] for index, column in enumerate(columns)}
        pyarrow.parquet.write_table(pyarrow.table(table), path)
        return str(path)

    return write


def key(example):
    return (tuple(sorted(example.info["numbers"])), example.info["target"])


def load_all(source):
    return [example for split in SPLITS for example in Countdown(source=source).load(split)]


def test_a_parquet_file_is_split_without_loss(write):
    examples = load_all(write(ROWS))
    distinct = {(tuple(sorted(numbers)), target) for numbers, target in ROWS}
    assert len(examples) == len(distinct) < len(ROWS)
    assert {key(example) for example in examples} == distinct
    assert len({example.id for example in examples}) == len(examples)


def test_the_held_out_split_is_the_same_every_time(write):
    task = Countdown(source=write(ROWS))
    held_out = [example.id for example in task.load("test")]
    assert held_out == [example.id for example in task.load("test")] != []
    assert not set(held_out) & {example.id for example in task.load("train")}


def test_a_problem_is_in_one_split_whatever_the_order_of_rows_and_numbers(write):
    held_out = {key(example) for example in Countdown(source=write(ROWS)).load("test")}
    turned = write([(numbers[::-1], target) for numbers, target in reversed(ROWS)])
    assert {key(example) for example in Countdown(source=turned).load("test")} == held_out


def test_examples_are_verified_and_have_no_reference(write):
    task = Countdown(source=write([([44, 19, 35], 98)]))
    (example,) = load_all(task.source)
    assert example.id == "44-19-35=98"
    assert task.verify(example, "<answer>44 + 19 + 35</answer>").outcome == "pass"
    assert task.reference(example) is None


def test_json_lines_are_read_too(tmp_path):
    path = tmp_path / "countdown.jsonl"
    path.write_text("\n".join(json.dumps({"nums": numbers, "target": target}) for numbers, target in ROWS))
    assert len(load_all(str(path))) == len({(tuple(sorted(numbers)), target) for numbers, target in ROWS})


def test_malformed_rows_are_left_out_with_a_warning(write):
    bad = [(None, 5), ([], 3), ([1] * 13, 13), ([1, 2, None], 3), ([1, 2, 3], None), ([-1, 2, 3], 4)]
    source = write([*ROWS[:2], *bad])
    with pytest.warns(UserWarning, match=r"6 of 8 rows are not .* the first is row 3: nums=None, target=5"):
        list(Countdown(source=source).load("train"))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 12])
def test_a_problem_has_one_to_twelve_numbers(write, count):
    numbers = list(range(1, count + 1))
    task = Countdown(source=write([(numbers, sum(numbers))]))
    (example,) = load_all(task.source)
    assert example.info["numbers"] == numbers
    assert task.verify(example, f"<answer>{' + '.join(map(str, numbers))}</answer>").outcome == "pass"


@pytest.mark.parametrize("folder", [".hidden", "__special__", "a[1]", "b{2}", "c*", "d?", "[!e]", "f g", "**"])
@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json"])
def test_a_path_is_no_pattern(write, tmp_path, folder, kind):
    place = tmp_path / folder / f"rows[{kind}].{kind}"
    place.parent.mkdir()
    if kind == "parquet":
        Path(write([([44, 19, 35], 98)])).rename(place)
    else:
        place.write_text(json.dumps({"nums": [44, 19, 35], "target": 98}))
    (place.parent / f"rowsp.{kind}").write_text("another file, which the pattern would match")
    assert [example.id for example in load_all(str(place))] == ["44-19-35=98"]


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"nums": [44, 19, 35], "target": 98}))
    task = Countdown(source="~/rows.jsonl")
    assert task.source == str(tmp_path / "rows.jsonl")
    assert [example.id for example in load_all(task.source)] == ["44-19-35=98"]


def test_a_relative_path_means_the_same_file_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "rows.jsonl").write_text(json.dumps({"nums": [44, 19, 35], "target": 98}))
    monkeypatch.chdir(tmp_path)
    options = Countdown(source="rows.jsonl").options()
    monkeypatch.chdir(tmp_path / "here")
    assert [example.id for example in load_all(Countdown(**options).source)] == ["44-19-35=98"]
    assert [example.id for example in load_all("../rows.jsonl")] == ["44-19-35=98"]


def test_words_are_no_paths():
    assert [Countdown(source=word).source for word in ("generated", "hub")] == ["generated", "hub"]


def test_rows_of_other_types_are_left_out_with_a_warning(tmp_path):
    rows = [{"nums": [1, 2, 3], "target": 6}, {"nums": [1, 2.5, 3], "target": 6}, {"nums": [1, 2, 3], "target": "six"}]
    path = tmp_path / "countdown.json"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.warns(UserWarning, match="2 of 3 rows"):
        list(Countdown(source=str(path)).load("train"))


def test_whole_numbers_that_were_stored_as_floats_count(write):
    (example,) = load_all(write([([44.0, 19.0, 35.0], 98.0)]))
    assert example.id == "44-19-35=98"


def test_missing_columns_are_named(write):
    source = write([([1, 2, 3], 6)], columns=("numbers", "target"))
    with pytest.raises(TaskError, match="has no column `nums`; it has numbers, target"):
        list(Countdown(source=source).load("train"))


def test_a_missing_file_is_named():
    with pytest.raises(TaskError, match=r"there is no file `/.*/nowhere\.parquet`"):
        list(Countdown(source="nowhere.parquet").load("train"))


def test_a_file_that_is_no_parquet_is_an_error_for_people(tmp_path):
    path = tmp_path / "countdown.parquet"
    path.write_text("nums,target")
    with pytest.raises(TaskError, match="cannot be read"):
        list(Countdown(source=str(path)).load("train"))


def test_an_unreachable_hub_is_an_error_with_hints(monkeypatch, tmp_path):
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(TaskError, match=HUB_DATASET) as caught:
        list(Countdown(source="hub").load("train"))
    assert any("parquet" in hint for hint in caught.value.hints)
