"""A run on a file of problems, with a tiny model that knows nothing."""

import json

import pytest

pytestmark = pytest.mark.slow

SMALL = [
    *("mine.limit=4", "mine.keep_truncated=true", "mine.probe=0", "evaluate.limit=3", "evaluate.controls=false"),
    *("sampling.attempt.max_tokens=4", "sampling.reflection.max_tokens=4", "sampling.retry.max_tokens=4"),
]


def test_a_run_with_a_relative_source_resumes_in_another_folder(r3, tiny_folder, tmp_path, monkeypatch):
    rows = [{"nums": [number, 2, 3, 4, 5, 6], "target": number + 20} for number in range(1, 61)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [word for setting in SMALL for word in ("--set", setting)]
    source = ["--task", "countdown", "--task-option", "source=rows.jsonl"]
    mined = r3("mine", *source, "--model", tiny_folder, "--output-dir", "run", *settings)
    assert mined.code == 0, mined.err

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    evaluated = r3("eval", "--output-dir", "../run", "--json")
    assert evaluated.code == 0, evaluated.err
    assert json.loads(evaluated.out)["base"]["first"]["total"] == 3
    again = r3("mine", "--output-dir", "../run")
    assert again.code == 0, again.err
