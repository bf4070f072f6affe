import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from r3core import Example, Split, Task, TaskError, UsageError
from r3core.check.fixtures import Fixture, add_fixtures, fixtures_hash, read_fixtures, with_examples

ROW = Fixture(example="n1", response="2", outcome="pass", why="the sum")
OWN = Fixture(example=Example(id="own", answer=[1, "ü"]), response="line\nline\u2028", outcome="fail")


class Sums(Task):
    """A task whose fixture file is set by the tests."""

    name = "sums"

    def load(self, split: Split) -> Iterator[Example]:
        return iter(())

    def verify(self, example: Example, response: str) -> bool:
        return False


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Sums, "fixtures", tmp_path / "fixtures.jsonl")
    return tmp_path / "fixtures.jsonl"


def test_a_task_without_a_file_has_no_fixtures() -> None:
    assert read_fixtures(Sums()) == []
    assert fixtures_hash(Sums()) is None


def test_added_fixtures_can_be_read(file: Path) -> None:
    assert add_fixtures(file, [ROW, OWN]) == 2
    assert read_fixtures(Sums()) == [ROW, OWN]


def test_a_row_is_added_once(file: Path) -> None:
    assert add_fixtures(file, [ROW, ROW]) == 1
    assert add_fixtures(file, [OWN, ROW]) == 1
    assert add_fixtures(file, [OWN, ROW]) == 0
    assert read_fixtures(Sums()) == [ROW, OWN]


def test_a_row_is_added_after_a_last_line_without_its_end(file: Path) -> None:
    file.write_text(ROW.model_dump_json(), encoding="utf-8")
    assert add_fixtures(file, [OWN]) == 1
    assert read_fixtures(Sums()) == [ROW, OWN]


def test_empty_lines_are_ignored(file: Path) -> None:
    file.write_bytes(b"\n  \r\n" + ROW.model_dump_json().encode() + b"\r\n\n")
    assert read_fixtures(Sums()) == [ROW]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Invalid JSON"),
        ("[]", "should be an object"),
        ('{"example": "n1", "outcome": "pass"}', "response: Field required"),
        ('{"example": "n1", "response": "2", "outcome": "error"}', "outcome: Input should be 'pass' or 'fail'"),
        ('{"example": "n1", "response": "2", "outcome": "pass", "reason": "x"}', "reason: Extra inputs"),
        ('{"example": {"answer": 2}, "response": "2", "outcome": "pass"}', "example.Example.id: Field required"),
        ('{"example": "n1", "response": "\xff", "outcome": "pass"}', "invalid unicode"),
    ],
)
def test_an_error_about_an_invalid_row_names_its_line(file: Path, line: str, message: str) -> None:
    file.write_bytes(ROW.model_dump_json().encode() + b"\n\n" + line.encode("latin-1") + b"\n")
    with pytest.raises(TaskError) as caught:
        read_fixtures(Sums())
    assert caught.value.message.startswith(f"line 3 of `{file}` is not a valid fixture: ")
    assert message in caught.value.message


def test_a_missing_file_is_an_error(file: Path) -> None:
    with pytest.raises(TaskError, match=r"the fixtures of task `sums` cannot be read: `.*`: No such file"):
        read_fixtures(Sums())
    assert fixtures_hash(Sums()) is None


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: No such file or directory"):
        add_fixtures(tmp_path / "no folder" / "fixtures.jsonl", [ROW])


def test_an_example_is_found_by_id_or_is_in_the_row() -> None:
    known = [Example(id="n0"), Example(id="n1", answer="2")]
    assert with_examples(Sums(), [ROW, OWN], known) == [(known[1], ROW), (OWN.example, OWN)]


def test_an_unknown_example_id_is_an_error() -> None:
    with pytest.raises(TaskError, match=r"a fixture of task `sums` has the unknown example id 'n1'"):
        with_examples(Sums(), [ROW], [Example(id="n0")])


def test_the_hash_follows_the_content(file: Path) -> None:
    add_fixtures(file, [ROW])
    before = fixtures_hash(Sums())
    file.write_text(json.dumps({}), encoding="utf-8")
    assert before is not None
    assert fixtures_hash(Sums()) not in (before, None)
