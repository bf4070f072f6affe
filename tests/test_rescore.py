from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from toy import Toy

from r3core import Example, RunError, TaskError, UsageError, Verdict
from r3core.episode import Answer, Episode, Reflection
from r3core.failures import Failure, read_failures, write_failures
from r3core.report import print_rescored
from r3core.rescore import Evaluated, Rescored, Tally, Written, rescore
from r3core.runs import Run
from r3core.verification.judge import verifier_hash

TOY = Path(__file__).with_name("support") / "toy.py"
TASK = f"{TOY}:Toy"
VERDICTS = {"pass": Verdict.passed(), "fail": Verdict.failed("it was wrong"), "error": Verdict.error("it broke")}


def answer(text: str, outcome: str) -> Answer:
    return Answer(text=text, tokens=1, verdict=VERDICTS[outcome])


def episode(
    number: int, attempt: Answer, *, leaked: bool | None = None, reflection: str | None = None, **retries: Answer
) -> Episode:
    """Return an episode of a toy problem, whose right answer is its number; `reflection` is its text."""
    return Episode(
        example=Example(id=f"n{number}", prompt=f"Say {number}.", answer=str(number)),
        attempt=attempt,
        reflection=Reflection(text=reflection, tokens=1, leaked=leaked) if reflection is not None else None,
        retries=retries,  # type: ignore[arg-type]  # the arms are the keywords
    )


def recorded(folder: Path, *, task: str = TASK, failures: Sequence[Episode] = (), **files: Sequence[Any]) -> Path:
    """Record rows in a run directory; in the names of files, `_` stands for `-`."""
    with Run.open(folder, {"task": task, "task_options": {"problems": 9}}) as run:
        for name, rows in files.items():
            run.append(name.replace("_", "-"), rows)
        if failures:
            card = {
                **{"task": task, "task_options": {"problems": 9}, "model": "m", "counts": {}},
                **{"verifier_version": "1", "verifier_hash": "0" * 16},
            }
            write_failures(folder / "failures", [failure_of(one) for one in failures], card)
    return folder


def failure_of(episode: Episode) -> Failure:
    example = episode.example
    return Failure(
        id=example.id,
        prompt=[{"role": "user", "content": str(example.prompt)}],
        answer=example.answer,
        sample=0,
        attempt=episode.attempt,
        passed=0,
        samples=1,
    )


def tallies(rescored: Rescored) -> dict[tuple[str, str], tuple[int, dict[str, int]]]:
    return {(tally.file, tally.kind): (tally.judged, tally.changed) for tally in rescored.tallies}


def test_attempts_are_judged_again(tmp_path: Path) -> None:
    rows = [
        episode(1, answer("1", "pass")),
        episode(2, answer("2", "fail")),  # all but the first of these verdicts change
        episode(3, answer("three", "pass")),
        episode(4, answer("4", "error")),
        episode(5, answer("it is unclear", "fail")),
    ]
    rescored = rescore(recorded(tmp_path / "run", mine=rows))
    changed = {"fail -> pass": 1, "pass -> fail": 1, "error -> pass": 1, "fail -> error": 1}
    assert tallies(rescored) == {("mine", "attempt"): (5, changed)}
    assert (rescored.judged, rescored.changed) == (5, 4)
    assert [(one.id, one.before, one.now, one.reason, one.text) for one in rescored.tallies[0].examples] == [
        ("n2", "fail", "pass", "", "2"),
        ("n3", "pass", "fail", "it should be 3", "three"),
        ("n4", "error", "pass", "", "4"),
    ]  # the others are counted


def test_a_verdict_with_another_reason_has_not_changed(tmp_path: Path) -> None:
    rescored = rescore(recorded(tmp_path / "run", mine=[episode(1, answer("two", "fail"))]))
    assert rescored.changed == 0
    assert rescored.tallies == [Tally(file="mine", kind="attempt", judged=1, changed={}, examples=[])]


def test_every_file_and_every_kind_of_verdict_is_judged_again(tmp_path: Path) -> None:
    failed = episode(1, answer("2", "fail"))
    arms = {"none": answer("1", "pass"), "resample": answer("1", "fail"), "reflect": answer("2", "pass")}
    tried = episode(1, answer("2", "fail"), reflection="say 1", leaked=False, **arms)
    trained = {
        **{"step": 1, "id": "n1", "reward": 0.5, "reflection": Reflection(text="say 2", tokens=1, leaked=None)},
        "retries": [answer("1", "pass"), answer("2", "pass")],
    }
    folder = recorded(
        tmp_path / "run",
        failures=[failed],
        mine=[failed],
        train_episodes=[trained],
        evaluate_base=[tried],
        cross_trained=[episode(1, answer("2", "fail"), reflection="say 1", leaked=True)],
        clock=[{"stage": "mine", "seconds": 1.0}],  # holds no verdict
    )
    assert tallies(rescore(folder)) == {
        ("mine", "attempt"): (1, {}),
        ("failures/failures", "attempt"): (1, {}),
        ("train-episodes", "retry"): (2, {"pass -> fail": 1}),
        ("train-episodes", "leak"): (1, {"error -> no leak": 1}),
        ("evaluate-base", "attempt"): (1, {}),
        ("evaluate-base", "retry none"): (1, {}),
        ("evaluate-base", "retry resample"): (1, {"fail -> pass": 1}),
        ("evaluate-base", "retry"): (1, {"pass -> fail": 1}),
        ("evaluate-base", "leak"): (1, {"no leak -> leak": 1}),
        ("cross-trained", "attempt"): (1, {}),
        ("cross-trained", "leak"): (1, {}),
    }


def test_further_resamples_are_judged_again(tmp_path: Path) -> None:
    arms = {"reflect": answer("1", "pass"), "resample": answer("2", "fail")}
    tried = episode(1, answer("2", "fail"), reflection="say 2", leaked=False, **arms)
    tried = tried.model_copy(update={"resamples": (answer("1", "fail"), answer("2", "pass"))})
    rescored = rescore(recorded(tmp_path / "run", evaluate_base=[tried]))
    assert tallies(rescored)["evaluate-base", "retry resample"] == (3, {"fail -> pass": 1, "pass -> fail": 1})
    assert tallies(rescored)["evaluate-base", "retry"] == (1, {})
    assert tallies(rescored)["evaluate-base", "leak"] == (1, {})
    assert rescored.evaluated[0].now.fix == rescored.evaluated[0].before.fix


def test_the_rates_of_an_evaluation_follow_the_verdicts(tmp_path: Path) -> None:
    rows = [
        episode(1, answer("1", "pass")),
        episode(2, answer("2", "fail"), reflection="hm", leaked=False, reflect=answer("3", "fail")),  # passes now
        episode(
            3, answer("4", "fail"), reflection="say 3", leaked=False, reflect=answer("3", "fail")
        ),  # its retry passes now
        episode(4, answer("5", "pass")),  # fails now, and was not retried
        episode(
            5, answer("unclear", "fail"), reflection="hm", leaked=False, reflect=answer("4", "fail")
        ),  # now unknown
    ]
    [evaluated] = rescore(recorded(tmp_path / "run", evaluate_base=rows, cross_trained=rows)).evaluated
    assert isinstance(evaluated, Evaluated)
    assert (evaluated.file, evaluated.unretried) == ("evaluate-base", 1)
    before, now = evaluated.before, evaluated.now
    assert [(rate.passed, rate.total) for rate in (before.first, before.second)] == [(2, 5), (2, 5)]
    assert [(rate.passed, rate.total) for rate in (now.first, now.second)] == [(2, 4), (3, 3)]
    assert [(rate.passed, rate.total) for rate in (before.leaks, now.leaks)] == [(0, 3), (1, 1)]


def test_a_file_of_several_batches_is_judged_in_order(tmp_path: Path) -> None:
    rows = [episode(number, answer(str(number if number % 3 else -1), "fail")) for number in range(1100)]
    folder = recorded(tmp_path / "run", mine=rows, evaluate_base=rows)
    rescored = rescore(folder)
    right = sum(number % 3 != 0 for number in range(1100))
    expected = (1100, {"fail -> pass": right})
    assert tallies(rescored) == {("mine", "attempt"): expected, ("evaluate-base", "attempt"): expected}
    assert rescored.evaluated[0].now.first.passed == right


def test_the_run_is_not_changed(tmp_path: Path) -> None:
    folder = recorded(
        tmp_path / "run", mine=[episode(1, answer("1", "fail"))], failures=[episode(1, answer("1", "fail"))]
    )
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    rescore(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_run_in_progress_is_judged_up_to_its_last_row(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run", mine=[episode(1, answer("1", "pass")), episode(2, answer("2", "pass"))])
    with Run.open(folder, {"task": TASK, "task_options": {"problems": 9}}), (folder / "mine.jsonl").open("ab") as file:
        file.write(b'{"example": {"id": "n3"')
        file.flush()
        rescored = rescore(folder)
    assert (rescored.judged, rescored.stages) == (2, [])


def test_finished_stages_are_named(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run", mine=[episode(1, answer("1", "pass"))])
    with Run.open(folder, {"task": TASK, "task_options": {"problems": 9}}) as run:
        run.finish("mine", {})
    assert rescore(folder).stages == ["mine"]


def test_both_verifiers_are_named(tmp_path: Path) -> None:
    rescored = rescore(recorded(tmp_path / "run", failures=[episode(1, answer("2", "fail"))]))
    assert (rescored.before.version, rescored.before.hash) == ("1", "0" * 16)
    assert (rescored.now.version, rescored.now.hash) == ("1", verifier_hash(Toy()))
    unknown = rescore(recorded(tmp_path / "other", mine=[episode(1, answer("1", "pass"))]))
    assert (unknown.before.version, unknown.before.hash) == (None, None)


def test_many_errors_are_a_result(tmp_path: Path) -> None:
    rows = [episode(number, answer("unclear", "fail")) for number in range(40)]
    assert tallies(rescore(recorded(tmp_path / "run", mine=rows))) == {("mine", "attempt"): (40, {"fail -> error": 40})}


def test_another_task_can_be_named(tmp_path: Path) -> None:
    source = tmp_path / "strict.py"
    source.write_text(TOY.read_text().replace("response == example.answer", "response == 'two'"))
    folder = recorded(tmp_path / "run", task="gone.py:Toy", mine=[episode(2, answer("two", "fail"))])
    with pytest.raises(TaskError) as raised:
        rescore(folder)
    assert raised.value.message == f"the task of `{folder}` cannot be loaded: there is no file `gone.py`"
    assert "--task names the task when it is elsewhere now" in raised.value.hints[-1]
    assert rescore(folder, spec=f"{source}:Toy").changed == 1


def test_an_option_can_be_replaced(tmp_path: Path) -> None:
    source = tmp_path / "newer.py"
    source.write_text(TOY.read_text().replace("problems: int = 24", "tries: int"))
    folder = recorded(tmp_path / "run", task=f"{source}:Toy", mine=[episode(2, answer("2", "fail"))])
    with pytest.raises(TaskError, match="has no option `problems`; its options: tries"):
        rescore(folder)
    source.write_text(TOY.read_text().replace("problems: int = 24", "problems: int\n    tries: int"))
    with pytest.raises(TaskError, match="requires the option `tries`"):
        rescore(folder)
    assert rescore(folder, options={"tries": 3}).changed == 1


def test_without_a_configuration_the_task_is_that_of_the_failures(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run", failures=[episode(1, answer("1", "fail"))])
    (folder / "config.json").unlink()
    assert rescore(folder).changed == 1
    (folder / "failures/card.json").unlink()
    with pytest.raises(UsageError, match="does not record its task") as raised:
        rescore(folder)
    assert raised.value.hints == ("name it with --task",)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "does not record its task"),
        ('{"model_type": "llama"}', "does not record its task"),
        ('{"task": "toy", "task_options": 3}', "does not record its task"),
        ('{"task": "toy", "judge": {"seconds": -1}}', "config.json` is not a configuration of this version of r3"),
        ('{"task": "no-such-task"}', "cannot be loaded: no task is called `no-such-task`"),
        (json.dumps({"task": TASK}), "has not recorded any verdict yet"),
    ],
)
def test_a_directory_that_cannot_be_rescored_is_an_error(tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UsageError) as raised:
        rescore(tmp_path)
    assert message in raised.value.message


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("mine", {}, "line 2 of mine.jsonl is not a valid Episode"),
        ("evaluate-base", [], "line 2 of evaluate-base.jsonl is not a valid Episode"),
        ("failures/failures", {"id": "n1"}, "line 2 of failures/failures.jsonl is not a valid Failure"),
    ],
)
def test_a_damaged_row_is_named(tmp_path: Path, name: str, row: object, message: str) -> None:
    failed = [episode(1, answer("2", "fail"))]
    folder = recorded(tmp_path / "run", failures=failed, mine=failed, evaluate_base=failed)
    with (folder / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(RunError) as raised:
        rescore(folder)
    assert message in raised.value.message


def test_new_attempts_of_training_are_judged_again(tmp_path: Path) -> None:
    row: dict[str, Any] = {"step": 1, "id": "n1", "reward": 0.0, "reflection": None, "retries": []}
    failed = [episode(1, answer("2", "fail"))]
    trained = [row | {"attempt": answer("1", "fail")}, row | {"attempt": answer("2", "fail")}]
    rescored = rescore(recorded(tmp_path / "run", failures=failed, train_episodes=trained))
    assert tallies(rescored)["train-episodes", "attempt"] == (2, {"fail -> pass": 1})


def test_a_reflection_needs_the_failure_that_it_is_about(tmp_path: Path) -> None:
    row = {"id": "n7", "reflection": Reflection(text="hm", tokens=1), "retries": []}
    folder = recorded(tmp_path / "run", failures=[episode(1, answer("2", "fail"))], train_episodes=[row])
    with pytest.raises(RunError, match=r"train-episodes.jsonl has a reflection on 'n7', which is not among"):
        rescore(folder)


def test_a_failure_dataset_is_rescored_like_a_run(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run", failures=[episode(1, answer("1", "fail")), episode(2, answer("3", "fail"))])
    in_a_run, alone = rescore(folder), rescore(folder / "failures")
    assert tallies(in_a_run) == {("failures/failures", "attempt"): (2, {"fail -> pass": 1})}
    assert tallies(alone) == {("failures", "attempt"): (2, {"fail -> pass": 1})}
    assert alone.before == in_a_run.before
    assert alone.now == in_a_run.now
    assert alone.source == str(folder / "failures")


@pytest.mark.parametrize("source", ["run", "run/failures"])
def test_failures_that_still_fail_are_written(tmp_path: Path, source: str) -> None:
    task = tmp_path / "stricter.py"
    verify = '        if "unclear" in response:\n'
    stricter = (
        '        if example.answer == "5":\n            raise ValueError("five")\n'
        '        return Verdict.passed() if example.answer == "3" else Verdict.failed("stricter words")\n'
    )
    task.write_text(TOY.read_text().replace(verify, stricter + verify).replace("demo:", 'version = "2"\n    demo:'))
    failures = [episode(number, answer("no", "fail")) for number in (1, 3, 5, 7)]
    folder = recorded(tmp_path / "run", failures=failures, mine=failures)
    card = json.loads((folder / "failures/card.json").read_text())
    (folder / "failures/card.json").write_text(json.dumps(card | {"counts": {"attempts": 8, "failures": 4}}))

    output = tmp_path / "again"
    rescored = rescore(tmp_path / source, spec=f"{task}:Toy", output=output)
    assert rescored.written == Written(folder=str(output), failures=2, of=4)
    assert [(one.id, one.now, one.reason) for one in rescored.tallies[-1].examples] == [
        ("n3", "pass", ""),
        ("n5", "error", "ValueError: five"),
    ]
    still, provenance = read_failures(output)
    assert [failure.id for failure in still] == ["n1", "n7"]
    assert still[0].attempt.verdict == Verdict.failed("stricter words")
    assert (provenance["verifier_version"], provenance["verifier_hash"]) == ("2", rescored.now.hash)
    assert rescored.now.hash != "0" * 16
    # the number of attempts stays what it was when the failures were mined
    assert provenance["counts"] == {"attempts": 8, "failures": 2, "no longer failures": 2}


def test_a_run_without_failures_cannot_write_those_that_still_fail(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run", mine=[episode(1, answer("1", "pass"))])
    with pytest.raises(UsageError, match="is not a failure dataset"):
        rescore(folder, output=tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_folder_that_is_neither_run_nor_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is neither a run directory nor a failure dataset"):
        rescore(tmp_path / "nowhere")


def test_what_a_model_wrote_cannot_steer_the_terminal(tmp_path: Path) -> None:
    text = "\x1b[2J[bold]\u202eone\nerror: none" + "x" * 1000
    to = io.StringIO()
    print_rescored(rescore(recorded(tmp_path / "run", mine=[episode(1, answer(text, "pass"))])), to)
    printed = to.getvalue()
    assert all(c.isprintable() or c == "\n" for c in printed)
    assert r"example n1: \x1b[2J[bold]\u202eone\nerror: none" in " ".join(printed.split())
    assert "x" * 120 not in printed.replace("\n", "")


def test_the_printed_report_of_a_run(tmp_path: Path) -> None:
    rows = [episode(1, answer("2", "pass")), episode(2, answer("2", "pass"))]
    failed = [episode(3, answer("2", "fail"))]
    to = io.StringIO()
    print_rescored(rescore(recorded(tmp_path / "run", failures=failed, evaluate_base=rows)), to)
    printed = " ".join(to.getvalue().split())
    assert "task toy; finished: no stage yet" in printed
    assert f"before: verifier version 1 ({'0' * 16}); now: verifier version 1 ({verifier_hash(Toy())})" in printed
    assert "│ evaluate-base │ attempt │ 2 │ 1 │ pass -> fail: 1 │" in printed
    assert "evaluate-base: first try 100.0 [34.2, 100.0] -> 50.0 [9.5, 90.5]; second try 100.0" in printed
    assert "1 attempts that fail now were not retried" in printed
    assert "evaluate-base, attempt, pass -> fail, example n1: 2; now: it should be 1" in printed
    assert printed.endswith("1 of 3 verdicts have changed")
