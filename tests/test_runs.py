import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import JsonValue

from r3core import BusyError, Example, RunError, UsageError
from r3core.runs import Run, RunRecord

CONFIG: dict[str, JsonValue] = {"task": "toy", "mine": {"limit": 3, "samples": 1}}

HOLD = """
import sys
from pathlib import Path
from r3core.runs import Run

with Run.open(Path(sys.argv[1]), {"task": "toy", "mine": {"limit": 3, "samples": 1}}):
    print("open", flush=True)
    sys.stdin.readline()
"""

APPEND = """
import sys
from pathlib import Path
from r3core.runs import Run

with Run.open(Path(sys.argv[1]), {"task": "toy", "mine": {"limit": 3, "samples": 1}}) as run:
    number = len(run.read("rows"))
    while True:
        run.append("rows", [{"number": number + i, "text": "x" * 20_000} for i in range(50)])
        number += 50
        print(number, flush=True)
"""


def started(script: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def killed(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_run_records_its_configuration_and_its_environment(tmp_path: Path) -> None:
    with Run.open(tmp_path / "a" / "run", CONFIG) as run:
        assert run.read_json("config") == CONFIG
        environment = run.read_json("environment")
    assert environment["libraries"]["torch"]
    assert environment["python"] == sys.version.split()[0]


def test_every_opening_is_recorded(tmp_path: Path) -> None:
    for _ in range(2):
        with Run.open(tmp_path, CONFIG):
            pass
    assert [row["pid"] for row in RunRecord(tmp_path).read("sessions")] == [os.getpid()] * 2


def test_a_directory_without_results_accepts_another_configuration(tmp_path: Path) -> None:
    with Run.open(tmp_path, CONFIG), pytest.raises(UsageError):
        raise UsageError("there is no such model")
    with Run.open(tmp_path, {**CONFIG, "seed": 1}) as run:
        assert run.read_json("config") == {**CONFIG, "seed": 1}


def test_rows_are_read_one_by_one_up_to_a_torn_one(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n{"a": 2}\nno\n{"a"')
    rows = RunRecord(tmp_path).rows("rows")
    assert [next(rows), next(rows)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(RunError, match=r"line 3 of .*rows.jsonl is not JSON"):
        next(rows)
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n{"a"')
    assert list(RunRecord(tmp_path).rows("rows")) == [{"a": 1}]
    assert list(RunRecord(tmp_path).rows("nothing")) == []


def test_another_configuration_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    with Run.open(tmp_path, CONFIG) as run:
        run.append("mine", [{}])
    with pytest.raises(UsageError) as caught:
        Run.open(tmp_path, {"task": "toy", "mine": {"limit": 4, "samples": 1}, "seed": 1})
    assert "mine.limit was 3, now 4; seed was not set, now 1" in str(caught.value)
    assert "hint: use another --output-dir" in str(caught.value)
    with Run.open(tmp_path, CONFIG):  # the failed attempt to open it holds no lock
        pass


def test_many_differences_are_counted(tmp_path: Path) -> None:
    with Run.open(tmp_path, {str(number): 0 for number in range(20)}) as run:
        run.append("mine", [{}])
    with pytest.raises(UsageError, match="and 12 more"):
        Run.open(tmp_path, {str(number): 1 for number in range(20)})


def test_a_file_as_run_directory_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be used as the run directory"):
        Run.open(tmp_path / "file", CONFIG)


def test_rows_are_read_in_the_order_of_writing(tmp_path: Path) -> None:
    with Run.open(tmp_path, CONFIG) as run:
        assert run.read("mine/rows") == []
        run.append("mine/rows", [{"a": 1, "loss": float("nan")}, Example(id="é\n", info={"n": [1]})])
        run.append("mine/rows", [])
        run.append("mine/rows", [{"path": tmp_path}])
        assert run.read("mine/rows") == [
            {"a": 1, "loss": None},
            {"id": "é\n", "prompt": None, "answer": None, "info": {"n": [1]}},
            {"path": str(tmp_path)},
        ]


def test_a_torn_row_is_ignored_and_cut_off_by_the_next_append(tmp_path: Path) -> None:
    with Run.open(tmp_path, CONFIG) as run:
        run.append("rows", [{"n": 1}, {"n": 2}])
    file = tmp_path / "rows.jsonl"
    file.write_bytes(file.read_bytes() + b'{"n": 3')
    with Run.open(tmp_path, CONFIG) as run:
        assert run.read("rows") == [{"n": 1}, {"n": 2}]
        run.append("rows", [{"n": 4}])
        assert run.read("rows") == [{"n": 1}, {"n": 2}, {"n": 4}]


def test_a_damaged_row_before_the_end_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"n": 1}\n{"n"\n{"n": 3}\n')
    with pytest.raises(RunError, match=r"line 2 of .*rows.jsonl is not JSON"):
        RunRecord(tmp_path).read("rows")


def test_a_finished_stage_has_its_facts(tmp_path: Path) -> None:
    with Run.open(tmp_path, CONFIG) as run:
        assert run.done("mine") is None
        run.finish("mine", {})
        run.finish("train", {"steps": 3})
    record = RunRecord(tmp_path)
    assert (record.done("mine"), record.done("train")) == ({}, {"steps": 3})


def test_a_value_that_cannot_be_serialized_leaves_the_old_one(tmp_path: Path) -> None:
    with Run.open(tmp_path, CONFIG) as run:
        assert run.write_json("card", {"n": 1}) == tmp_path / "card.json"
        with pytest.raises(ValueError, match="serialize"):
            run.write_json("card", {"n": object()})
        assert run.read_json("card") == {"n": 1}
        assert json.loads((tmp_path / "card.json").read_text()) == {"n": 1}


def test_the_clock_adds_up_over_interruptions(tmp_path: Path) -> None:
    def interrupted(run: Run) -> None:
        with run.clock("mine") as tick:
            tick()
            raise KeyboardInterrupt

    with Run.open(tmp_path, CONFIG) as run, pytest.raises(KeyboardInterrupt):
        interrupted(run)
    assert len(RunRecord(tmp_path).read("clock")) == 2
    with Run.open(tmp_path, CONFIG) as run:
        run.append("clock", [{"stage": "mine", "seconds": 10.0}, {"stage": "train", "seconds": 5.0}])
        with run.clock("mine"):
            pass
        assert 10.0 <= run.seconds()["mine"] < 15.0
        assert run.seconds()["train"] == 5.0


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    holder = started(HOLD, tmp_path)
    try:
        assert first_line(holder) == "open"
        with pytest.raises(BusyError) as caught:
            Run.open(tmp_path, CONFIG)
        assert f"`{tmp_path}` is in use by process {holder.pid}" in str(caught.value)
        assert RunRecord(tmp_path).read_json("config") == CONFIG  # reading needs no lock
    finally:
        killed(holder)
    with Run.open(tmp_path, CONFIG):
        pass


def test_the_same_process_is_refused_too(tmp_path: Path) -> None:
    with Run.open(tmp_path, CONFIG), pytest.raises(BusyError):
        Run.open(tmp_path, CONFIG)


def test_appended_rows_survive_kills(tmp_path: Path) -> None:
    promised = 0
    for _ in range(4):
        writer = started(APPEND, tmp_path)
        try:
            promised = int(first_line(writer))
        finally:
            killed(writer)
        rows = RunRecord(tmp_path).read("rows")
        assert [row["number"] for row in rows] == list(range(len(rows)))
        assert len(rows) >= promised
    assert promised >= 200
