"""`r3 show RUN`: which recorded episodes are printed, how, and what is printed where none matches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from command import R3
from records import episode, group, write_run

from r3core import RunError, UsageError
from r3core.conversations import Wanted, find
from r3core.runs import RunRecord
from r3core.transcript import CLOSE, MAX_CHARACTERS, OPEN


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with one problem for each filter."""
    base = [
        episode("both", "pass", attempt="7"),
        episode("broken", "fail pass", kind="sum"),
        episode("gained", "fail fail", kind="sum"),
        episode("leaky", "fail fail", kind="format", leaked=True),
        episode("cut", "fail fail", kind="format", stopped="length"),
        episode("unclear", "error"),
    ]
    trained = [
        episode("both", "pass", attempt="7"),
        episode("broken", "fail fail", kind="sum"),
        episode("gained", "fail pass", reflection="I added wrongly.", kind="sum", controls=True),
        episode("leaky", "fail fail", kind="format"),
        episode("cut", "fail fail", kind="format"),
        episode("unclear", "error"),
    ]
    return write_run(tmp_path / "run", mined=[episode("m", "fail")], base=base, trained=trained)


def found(run: Path, *, model: str | None = None, count: int = 9, **wanted: object) -> list[str]:
    matching = find(RunRecord(run), Wanted.model_validate(wanted), count=count, model=model)  # type: ignore[arg-type]
    return [one.heading for sides in matching for one in sides]


@pytest.mark.parametrize(
    ("wanted", "headings"),
    [
        ({"fixed": True}, ["gained, trained model"]),
        ({"fixed": True, "model": "base"}, ["broken, base model"]),
        ({"fixed": False, "count": 2}, ["broken, trained model", "leaky, trained model"]),
        ({"category": "sum"}, ["broken, trained model", "gained, trained model"]),
        ({"category": "format", "fixed": False, "model": "base"}, ["leaky, base model", "cut, base model"]),
        ({"leaked": True, "model": "base"}, ["leaky, base model"]),
        ({"truncated": True, "model": "base"}, ["cut, base model"]),
        ({"example": "both"}, ["both, trained model"]),
        ({"change": "newly fixed"}, ["gained, base model", "gained, trained model"]),
        ({"change": "newly broken"}, ["broken, base model", "broken, trained model"]),
    ],
)
def test_recorded_episodes_are_selected(run: Path, wanted: dict[str, object], headings: list[str]) -> None:
    assert found(run, **wanted) == headings  # type: ignore[arg-type]


def test_before_the_evaluation_the_latest_groups_of_training_are_found(tmp_path: Path) -> None:
    mined = [episode("a", "fail"), episode("b", "fail")]
    groups = [*group("a", [0, 1]), *group("b", [0, 0], step=2)]
    run = write_run(tmp_path / "run", mined=mined, groups=groups, steps=2, finished=["mine"])
    assert found(run) == ["b, step 2 of training", "a, step 1 of training"]
    [[mixed]] = find(RunRecord(run), Wanted(fixed=True), count=1)
    assert [one.reward for one in mixed.tried] == [1, 0]
    assert mixed.attempt is not None
    assert mixed.attempt.text == "8"


def test_before_training_the_failures_are_found(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", mined=[episode("a", "pass"), episode("b", "fail")], finished=["mine"])
    assert found(run) == ["b, mined"]
    (run / "failures" / "failures.jsonl").unlink()  # as during mining
    assert found(run) == ["b, mined"]


def test_where_nothing_matches_the_error_lists_what_there_is(run: Path) -> None:
    with pytest.raises(RunError) as error:
        found(run, category="summ")
    assert error.value.message == "none of 6 episodes is of error category `summ`"
    assert "3 not fixed" in error.value.hints[0]
    assert error.value.hints[1] == "error categories: `sum` (2), `format` (2)"
    assert error.value.hints[2] == "did you mean `sum`?"


def test_without_a_changed_problem_the_error_counts_the_changes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", base=[episode("a", "fail fail")], trained=[episode("a")])
    with pytest.raises(RunError, match="no episode is newly broken") as error:
        found(run, change="newly broken")
    assert error.value.hints == ("of 1 problems: 1 newly fixed, 0 newly broken",)


def test_a_model_that_was_not_evaluated_is_an_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", base=[episode("a", "fail fail")])
    with pytest.raises(UsageError, match="no evaluation of the trained model"):
        found(run, model="trained")
    with pytest.raises(UsageError, match="to compare with the base"):
        found(run, change="newly fixed")
    empty = write_run(tmp_path / "empty", finished=())
    with pytest.raises(UsageError, match="not evaluated"):
        found(empty, model="base")
    with pytest.raises(RunError, match="no episode yet"):
        found(empty)


def test_a_conversation_is_printed_with_verdicts_and_marked_tokens(run: Path, r3: R3) -> None:
    shown = r3("show", run, "--fixed", "-n", 1)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.splitlines()[1:] == [
        "user: Say 7.",
        "-- attempt: fail [sum]: it should be 7",
        "8",
        "user: Your answer is incorrect. Write a short reflection: what went wrong, and what will you do differently?",
        "-- reflection (4 tokens, and the end-of-turn token: the trained tokens)",
        f"{OPEN}I added wrongly.{CLOSE}",
        "user: Now solve the task again.",
        "-- retry: pass",
        "7",
        "-- controls: none: fail, generic: fail, shuffled: fail, placebo: fail, resample: fail",
    ]
    assert shown.out.startswith("1. gained, trained model: fixed ")


@pytest.mark.processes
def test_no_model_is_loaded_for_recorded_episodes(run: Path) -> None:
    program = "import sys; from r3core.cli.main import app; app(standalone_mode=False); print(*sys.modules)"
    command = [sys.executable, "-c", program, "show", str(run), "--fixed"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert OPEN in out
    assert not {"torch", "transformers"} & set(out.splitlines()[-1].split())


def test_the_thinking_is_outside_of_the_mark_where_only_the_answer_is_trained(tmp_path: Path, r3: R3) -> None:
    made = episode("a", "fail pass")
    assert made.reflection
    thought = made.reflection.model_copy(update={"thinking": "Hm.", "answer_start": 2, "token_ids": [1, 2, 3]})
    base = [made.model_copy(update={"reflection": thought})]
    for tokens, marked in (("reflection", f"{OPEN}Hm.\nOne too many.{CLOSE}"), ("answer-of-reflection", OPEN + "One")):
        run = write_run(tmp_path / tokens, base=base, settings={"train.tokens": tokens})
        assert marked in r3("show", run).out


def test_hostile_text_is_escaped_and_bounded(tmp_path: Path, r3: R3) -> None:
    text = "\x1b[2J\x00\u202e[bold]</b>" + "m" * 100_000
    made = episode(
        "\x1b[2Ja", "fail fail", attempt=text, reflection=text, retry=text, reason=text, kind=text, prompt=text
    )
    shown = r3("show", write_run(tmp_path / "run", base=[made])).out
    assert not {"\x1b", "\x00", "\u202e"} & set(shown)
    assert "\\x1b[2J\\x00\\u202e[bold]</b>mmm" in shown
    assert len(shown) < 10 * MAX_CHARACTERS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fixed"], "a filter needs a run"),
        (["RUN", "--seed", 1], "--seed cannot be used with a run"),
        (["RUN", "--set", "seed=1"], "--set cannot be used with a run"),
        (["RUN", "--model", "Qwen/Qwen2.5-1.5B"], "--model of a run is base or trained"),
        (["RUN", "--newly-fixed", "--newly-broken"], "exclude each other"),
        (["RUN", "--run", "other"], "two run directories"),
        (["missing"], "is not a run directory"),
    ],
)
def test_arguments_that_do_not_fit_together_are_errors(
    run: Path, r3: R3, arguments: list[object], message: str
) -> None:
    shown = r3("show", *[run if one == "RUN" else one for one in arguments])
    assert (shown.code, shown.out) == (2, "")
    assert message in shown.err


def test_half_a_surrogate_pair_is_escaped(run: Path, r3: R3) -> None:
    rows = run / "evaluate-trained.jsonl"
    rows.write_text(rows.read_text().replace('"7"', '"\\ud800"'))
    shown = r3("show", run)
    assert (shown.code, shown.err) == (0, "")
    assert "\\ud800" in shown.out


@pytest.mark.parametrize("feedback", ["binary", "reason"])
def test_the_sentence_after_a_failure_cannot_control_the_terminal(tmp_path: Path, r3: R3, feedback: str) -> None:
    made = episode("a", "fail fail", reason="\x1b]0;PWNED\x07" + "m" * 100_000)
    shown = r3("show", write_run(tmp_path / "run", base=[made], settings={"feedback": feedback})).out
    assert not {"\x1b", "\x07"} & set(shown)
    assert shown.count("\\x1b]0;PWNED\\x07") == 2 + (feedback == "reason")  # of the attempt and of the retry
    assert len(shown) < 10 * MAX_CHARACTERS


@pytest.mark.processes
def test_characters_that_the_terminal_lacks_are_escaped(run: Path) -> None:
    command = [sys.executable, "-m", "r3core", "show", str(run), "--fixed"]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=ascii_only, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u27e6I added wrongly.\\u27e7" in done.stdout


def test_groups_on_one_failure_in_a_step_are_found_apart(tmp_path: Path) -> None:
    groups = [*group("a", [0, 1]), *group("b", [0, 0]), *group("a", [1, 1]), *group("b", [0, 1, 1, 1], step=2)]
    run = write_run(tmp_path / "run", groups=groups, finished=["mine"], settings={"grpo.num_generations": 2})
    assert found(run) == [
        "b, step 2 of training, group 2",
        "b, step 2 of training, group 1",
        "a, step 1 of training, group 3",
        "b, step 1 of training",
        "a, step 1 of training, group 1",
    ]
    assert found(run, count=2, fixed=False) == ["b, step 1 of training"]
    assert found(run, count=1, example="a") == ["a, step 1 of training, group 3"]


def test_few_groups_of_a_long_training_are_found_in_little_memory(tmp_path: Path) -> None:
    text = "m" * 20_000
    rows = [row for step in range(1, 301) for row in group("a", [0, 1], step=step, reflection=text, retry=text)]
    run = write_run(tmp_path / "run", groups=rows, finished=["mine"])
    tracemalloc.start()
    try:
        assert found(run, count=1) == ["a, step 300 of training"]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(rows) * len(text) / 4


@pytest.mark.parametrize("field", ["step", "id", "reflection", "retries", "reward"])
@pytest.mark.parametrize("command", ["show", "explain", "report"])
def test_a_damaged_row_of_training_is_named(tmp_path: Path, r3: R3, command: str, field: str) -> None:
    rows = group("a", [0, 1])
    rows[1].pop(field)
    run = write_run(tmp_path / "run", groups=rows, steps=1, finished=["mine"])
    shown = r3(command, run) if command != "report" else r3(command, "--output-dir", run)
    assert shown.code == RunError.exit_code
    assert "line 2 of train-episodes.jsonl is not a valid" in shown.err


@pytest.mark.parametrize("command", ["show", "explain", "report"])
def test_a_row_of_training_without_a_reflection_is_no_error(tmp_path: Path, r3: R3, command: str) -> None:
    rows = [row | {"reflection": None} if not place else row for place, row in enumerate(group("a", [0, 1]))]
    run = write_run(tmp_path / "run", groups=rows, steps=1, finished=["mine"])
    shown = r3(command, run) if command != "report" else r3(command, "--output-dir", run)
    assert shown.code == 0


@pytest.mark.parametrize("command", ["explain", "report"])
def test_a_damaged_result_is_named_with_its_remedy(run: Path, r3: R3, command: str) -> None:
    stored = json.loads((run / "result.json").read_text())
    del stored["base"]
    (run / "result.json").write_text(json.dumps(stored))
    shown = r3(command, run) if command != "report" else r3(command, "--output-dir", run)
    assert shown.code == RunError.exit_code
    assert f"`{run / 'result.json'}` is not a valid Result: base: Field required" in shown.err
    assert "r3 eval" in shown.err
    assert "jsonl" not in shown.err
    assert "new run" not in shown.err
