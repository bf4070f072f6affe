from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toy import Toy

from r3core import Example, Prompt, RunError, UsageError, Verdict
from r3core.config import resolve
from r3core.episode import Answer, Episode, Stopped
from r3core.executor import LocalExecutor
from r3core.failures import Failure, read_failures, write_failures
from r3core.generation.scripted import ScriptedGenerator
from r3core.mine import card, mine, select
from r3core.protocol import Protocol
from r3core.runs import Run
from r3core.verification.judge import Judge, verifier_hash

Start = Callable[..., tuple[Run, Protocol]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that opens the run `tmp_path / "run"`, once or again after it was closed."""
    opened: list[Run] = []

    def start(*overrides: str, task: Toy | None = None) -> tuple[Run, Protocol]:
        task = task or Toy()
        config = resolve(task, overrides=("mine.order=head", *overrides))
        for run in opened:
            run.close()
        opened.append(Run.open(tmp_path / "run", config.record()))
        return opened[-1], Protocol(task, Judge(task), config)

    yield start
    for run in opened:
        run.close()


def by(protocol: Protocol, generator: ScriptedGenerator) -> LocalExecutor:
    return LocalExecutor(protocol, lambda model: generator)


def number_in(conversation: Prompt) -> int:
    return int(conversation.messages[0]["content"].removeprefix("Say ").removesuffix("."))


def odd_fails(conversation: Prompt, index: int) -> str:
    number = number_in(conversation)
    return "no" if number % 2 else str(number)


def tried(*outcomes: str, problem: str = "n1") -> list[Episode]:
    """Return one problem's judged attempts: `p`ass, `f`ail or `e`rror; in capitals when the limit cut them off."""
    verdicts = {"p": Verdict.passed(), "f": Verdict.failed("no"), "e": Verdict.error("broken")}
    example = Example(id=problem, prompt="Say 1.", answer="1", info={"level": 2})

    def answer(outcome: str, place: int) -> Answer:
        stopped: Stopped = "length" if outcome.isupper() else "end"
        return Answer(text=f"{outcome}{place}", tokens=1, verdict=verdicts[outcome.lower()], stopped=stopped)

    return [Episode(example=example, sample=i, attempt=answer(o, i)) for i, o in enumerate("".join(outcomes))]


def kept(episodes: list[Episode], *overrides: str, task: Toy | None = None) -> list[Failure]:
    task = task or Toy()
    return select(Protocol(task, Judge(task), resolve(task, overrides=overrides)), episodes)


@pytest.mark.parametrize(
    ("outcomes", "overrides", "expected"),
    [
        ("pppp", [], None),
        ("ffff", [], ("f0", 0, 4)),
        ("ppfp", [], ("f2", 3, 4)),
        ("ppfp", ["mine.keep=all-failed"], None),
        ("ffff", ["mine.keep=all-failed"], ("f0", 0, 4)),
        ("ppff", ["mine.min_pass_rate=0.5"], ("f2", 2, 4)),
        ("pfff", ["mine.min_pass_rate=0.5"], None),
        ("pfff", ["mine.max_pass_rate=0.25"], ("f1", 1, 4)),
        ("ppff", ["mine.max_pass_rate=0.25"], None),
        ("ffff", ["mine.min_pass_rate=0.1"], None),
        ("eeee", [], None),
        ("efe", [], ("f1", 0, 1)),  # what could not be judged does not count
        ("efe", ["mine.keep=all-failed"], ("f1", 0, 1)),
        ("epe", [], None),
        ("F", [], None),  # no answer was given, so nothing is known
        ("FFf", [], ("f2", 0, 1)),
        ("FfP", ["mine.min_pass_rate=0.5"], ("f1", 1, 2)),  # a right answer was given before the cut
        ("Fp", [], None),
        ("Ff", ["mine.keep=all-failed"], ("f1", 0, 1)),
        ("Fpf", ["mine.keep_truncated=true"], ("F0", 1, 3)),
        ("F", ["mine.keep_truncated=true"], ("F0", 0, 1)),
        ("Fp", ["mine.keep_truncated=true", "mine.keep=all-failed"], None),
    ],
)
def test_the_rule_selects_the_problems(
    outcomes: str, overrides: list[str], expected: tuple[str, int, int] | None
) -> None:
    found = [(failure.attempt.text, failure.passed, failure.samples) for failure in kept(tried(outcomes), *overrides)]
    assert found == ([expected] if expected else [])


def test_a_problem_gives_one_failure_in_the_order_of_the_problems() -> None:
    episodes = [*tried("ff", problem="n9"), *tried("pf", problem="n1"), *tried("ff", problem="n5")]
    assert [failure.id for failure in kept(episodes)] == ["n9", "n1", "n5"]


class Framed(Toy):
    """A task that builds its prompt around that of the example."""

    def prompt(self, example: Example) -> str:
        return f"Be brief. {example.prompt}"


def test_a_prompt_that_is_built_around_the_examples_own_is_the_same_in_training() -> None:
    episodes, task = tried("f"), Framed()
    failure = kept(episodes, task=task)[0]
    protocol = Protocol(task, Judge(task), resolve(task))
    request = protocol.reflection_request(Failure.model_validate_json(failure.model_dump_json()).episode())
    assert request.messages[0] == {"role": "user", "content": "Be brief. Say 1."}
    assert request == protocol.reflection_request(episodes[0])


def test_a_failure_holds_what_a_reflection_needs() -> None:
    episodes = tried("pf")
    failure = kept(episodes)[0]
    assert failure.prompt == [{"role": "user", "content": "Say 1."}]
    assert (failure.answer, failure.info, failure.sample) == ("1", {"level": 2}, 1)
    again = failure.episode()
    assert again.attempt == episodes[1].attempt
    task = Toy()
    protocol = Protocol(task, Judge(task), resolve(task))
    assert protocol.reflection_request(again) == protocol.reflection_request(episodes[1])


def test_every_problem_is_attempted_and_every_episode_recorded(start: Start) -> None:
    run, protocol = start("mine.samples=3", "batch_size=12")
    generator = ScriptedGenerator(odd_fails)
    failures = mine(run, protocol, by(protocol, generator), model="any")
    assert generator.calls == [12] * 6  # 24 problems, 3 attempts each, 4 problems at a time
    episodes = [Episode.model_validate(row) for row in run.read("mine")]
    assert [(e.example.id, e.sample) for e in episodes[:4]] == [("n0", 0), ("n0", 1), ("n0", 2), ("n1", 0)]
    assert [failure.id for failure in failures] == [f"n{number}" for number in range(1, 24, 2)]
    assert run.done("mine") == {
        **{"problems": 24, "problems_in_split": 24, "attempts": 72, "pass": 36, "fail": 36, "error": 0},
        **{"overlong": 0, "cut_in_thought": 0, "truncated": 0, "left_out": 0, "failures": 12, "tokens": 72},
    }
    assert run.seconds()["mine"] > 0


def test_the_limit_and_the_split_are_respected(start: Start) -> None:
    run, protocol = start("mine.limit=4", "mine.split=validation")
    generator = ScriptedGenerator(odd_fails)
    assert [failure.id for failure in mine(run, protocol, by(protocol, generator), model="any")] == ["n1001", "n1003"]
    assert generator.calls == [4]


def test_mining_takes_a_random_sample_that_follows_from_the_seed(start: Start, tmp_path: Path) -> None:
    def attempted(*overrides: str) -> list[str]:
        run, protocol = start("mine.order=random", "mine.limit=6", *overrides)
        mine(run, protocol, by(protocol, ScriptedGenerator(lambda asked, index: "no")), model="any")
        assert (run.done("mine") or {})["problems_in_split"] == 24
        ids = [row["example"]["id"] for row in run.read("mine")]
        run.close()
        (tmp_path / "run").rename(tmp_path / "-".join(overrides))
        return ids

    one, again, other = attempted("seed=0"), attempted("seed=0", "batch_size=2"), attempted("seed=1")
    assert one == again
    assert set(one) != set(other)
    assert set(one) != {f"n{number}" for number in range(6)}


def long_winded(conversation: Prompt, index: int) -> str:
    """Pass even numbers; of the odd ones, every other answer is cut off at two tokens before it is given."""
    number = number_in(conversation)
    return str(number) if number % 2 == 0 else "no" if number % 4 == 1 else f"I think it is {number}"


def test_attempts_that_were_cut_off_are_counted_and_left_out(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    run, protocol = start("sampling.attempt.max_tokens=2")
    failures = mine(run, protocol, by(protocol, ScriptedGenerator(long_winded)), model="any")
    assert [failure.id for failure in failures] == ["n1", "n5", "n9", "n13", "n17", "n21"]
    counts = run.done("mine") or {}
    assert [counts[key] for key in ("pass", "fail", "truncated", "left_out", "failures")] == [12, 12, 6, 6, 6]
    said = capsys.readouterr().err
    assert "warning: 25.0% of 24 attempts were cut off at sampling.attempt.max_tokens=2: raise it\n" in said
    assert "left out: 6 attempts cut off at sampling.attempt.max_tokens=2\n" in said


def test_truncated_attempts_are_collected_on_request(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    run, protocol = start("sampling.attempt.max_tokens=2", "mine.keep_truncated=true")
    failures = mine(run, protocol, by(protocol, ScriptedGenerator(long_winded)), model="any")
    assert [failure.id for failure in failures] == [f"n{number}" for number in range(1, 24, 2)]
    assert "left out" not in capsys.readouterr().err


def test_where_every_failure_was_cut_off_the_limit_is_named(start: Start) -> None:
    run, protocol = start("sampling.attempt.max_tokens=1")
    with pytest.raises(RunError, match=r"24 attempts were cut off at sampling.attempt.max_tokens=1: raise it, or set"):
        mine(run, protocol, by(protocol, ScriptedGenerator(lambda asked, index: "too long")), model="any")


def test_interrupted_mining_resumes(start: Start, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def with_luck(conversation: Prompt, index: int) -> str:
        return "no" if index % 3 else str(number_in(conversation))  # depends on the batch's seed

    whole_run, protocol = start("batch_size=4")
    whole = mine(whole_run, protocol, by(protocol, ScriptedGenerator(with_luck)), model="any")
    recorded = (tmp_path / "run/mine.jsonl").read_bytes()
    whole_run.close()
    (tmp_path / "run").rename(tmp_path / "whole")

    def stopping(conversation: Prompt, index: int) -> str:
        if number_in(conversation) == 14:
            raise Stopped
        return with_luck(conversation, index)

    run, protocol = start("batch_size=4")
    with pytest.raises(Stopped):
        mine(run, protocol, by(protocol, ScriptedGenerator(stopping)), model="any")
    assert len(run.read("mine")) == 12
    assert run.done("mine") is None
    with (tmp_path / "run/mine.jsonl").open("ab") as file:
        file.write(recorded.splitlines()[12] + b"\n" + recorded.splitlines()[13][:40])  # what a kill may leave
    run, protocol = start("batch_size=4")
    generator = ScriptedGenerator(with_luck)
    assert mine(run, protocol, by(protocol, generator), model="any") == whole
    assert generator.calls == [4, 4, 4]  # the batch that was cut in two is made again, and no other
    assert (tmp_path / "run/mine.jsonl").read_bytes() == recorded


def test_every_batch_is_sampled_with_a_seed_of_its_own(start: Start, tmp_path: Path) -> None:
    def seeds(seed: int) -> list[int]:
        run, protocol = start("batch_size=1", f"seed={seed}")
        drawn: list[int] = []
        mine(
            run,
            protocol,
            by(protocol, ScriptedGenerator(lambda asked, index: drawn.append(index) or "no")),
            model="any",
        )
        run.close()
        (tmp_path / "run").rename(tmp_path / f"run-{seed}")
        return drawn

    assert len({*seeds(0), *seeds(1)}) == 48


def test_where_nothing_fails_there_is_nothing_to_learn(start: Start) -> None:
    run, protocol = start("mine.keep=all-failed")
    with pytest.raises(
        RunError, match=r"none of the 24 attempts is a failure to learn from under `mine.keep=all-failed`"
    ):
        mine(run, protocol, by(protocol, ScriptedGenerator(lambda asked, index: str(number_in(asked)))), model="any")
    assert run.done("mine") is None
    assert read_failures(run.path)[0] == []


def mined(start: Start, *overrides: str, task: Toy | None = None) -> tuple[Run, Protocol, list[Failure]]:
    run, protocol = start(*overrides, task=task)
    return run, protocol, mine(run, protocol, by(protocol, ScriptedGenerator(odd_fails)), model="any")


def test_a_set_of_failures_is_read_as_it_was_written(start: Start) -> None:
    run, _, failures = mined(start)
    assert read_failures(run.path / "failures")[0] == failures
    assert read_failures(run.path)[0] == failures  # the run directory stands for its set


def test_the_card_has_the_provenance_of_the_failures(start: Start) -> None:
    overrides = ("mine.samples=2", "seed=5", "sampling.attempt.temperature=0.5", "model=some/model", "revision=abc")
    run, protocol, failures = mined(start, *overrides, task=Toy(problems=10))
    provenance = read_failures(run.path)[1]
    assert provenance["task"] == "toy"
    assert provenance["task_options"] == {"problems": 10}
    assert provenance["verifier_version"] == "1"
    assert provenance["verifier_hash"] == verifier_hash(protocol.task)
    assert (provenance["model"], provenance["revision"], provenance["seed"]) == ("some/model", "abc", 5)
    assert provenance["sampling"] == {"temperature": 0.5, "top_p": 1.0, "top_k": 0, "max_tokens": 512}
    assert provenance["mine"] == {
        **{"split": "train", "limit": 512, "samples": 2, "keep": "any-failed"},
        **{"min_pass_rate": 0.0, "max_pass_rate": 1.0, "probe": 64, "order": "head", "keep_truncated": False},
    }
    assert provenance["counts"] == run.done("mine")
    assert provenance["counts"]["failures"] == len(failures) == 5
    assert provenance["environment"]["libraries"]["transformers"]
    assert "command" not in provenance["environment"]


def test_a_set_of_failures_loads_with_datasets(start: Start, tmp_path: Path) -> None:
    from datasets import load_dataset

    run, _, failures = mined(start)
    folder = str(run.path / "failures")
    rows = load_dataset(folder, cache_dir=str(tmp_path / "cache"))["train"]
    assert rows.column_names[:5] == ["id", "prompt", "tools", "answer", "info"]
    assert rows["id"] == [failure.id for failure in failures]
    assert rows[0]["prompt"] == [{"role": "user", "content": "Say 1."}]
    assert rows[0]["attempt"]["verdict"] == {
        "outcome": "fail",
        "reason": "it should be 1",
        "kind": "",
        "limit": None,
    }


def test_the_card_cannot_be_broken_by_a_name(start: Start) -> None:
    run, protocol, failures = mined(start)
    provenance = card(protocol, {}) | {"model": "---\n```"}
    write_failures(run.path / "failures", failures, provenance)
    assert read_failures(run.path)[1]["model"] == "---\n```"


def test_any_text_of_a_model_survives(start: Start) -> None:
    strange = "a\u2028b\x85c\x0bd\r\ne \ufffd \U0001f600 \x00"
    run, protocol = start("mine.limit=1")
    failures = mine(run, protocol, by(protocol, ScriptedGenerator(lambda asked, index: strange)), model="any")
    assert failures[0].attempt.text == strange
    assert read_failures(run.path)[0] == failures
    assert run.read("mine")[0]["attempt"]["text"] == strange


def broken_set(folder: Path, *, rows: str | None = "", provenance: str | None = "{}") -> Path:
    folder.mkdir()
    for name, text in (("failures.jsonl", rows), ("card.json", provenance)):
        if text is not None:
            (folder / name).write_text(text, errors="surrogateescape")
    return folder


CARD = '{"task": "toy", "task_options": {}, "verifier_hash": "", "counts": {}}'


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"rows": None}, "is not a failure dataset"),
        ({"provenance": None}, "is not a failure dataset"),
        ({"rows": '{"id": "n1"}\n'}, "failures.jsonl` has an invalid row"),
        ({"rows": "{\n"}, "failures.jsonl` has an invalid row"),
        ({"rows": "\udcff\n"}, "failures.jsonl` has an invalid row"),
        ({"rows": "\n"}, "failures.jsonl` has an invalid row"),
        ({"provenance": "{"}, "card.json` is not a failure dataset's provenance"),
        ({"provenance": "[]"}, "card.json` is not a failure dataset's provenance"),
        ({"provenance": '{"task": "toy"}'}, "card.json` is not a failure dataset's provenance"),
    ],
)
def test_what_is_no_set_of_failures_is_a_users_mistake(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_failures(broken_set(tmp_path / "set", **({"provenance": CARD} | files)))
    assert message in str(raised.value)


def test_a_folder_that_is_not_there_holds_no_failures(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a failure dataset"):
        read_failures(tmp_path / "nowhere")
