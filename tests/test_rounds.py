"""Several rounds of reflection and retry in one conversation (`protocol.rounds`)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from records import TASK, answer, episode, result, write_run
from toy import Toy

from r3core import Prompt
from r3core.config import Config, resolve
from r3core.conversations import Wanted, find
from r3core.episode import Episode, Reflection, Round
from r3core.estimate.evaluation import most_per_problem
from r3core.evaluation.evaluate import evaluate
from r3core.evaluation.outcomes import repeated, solved_within
from r3core.evaluation.result import Result, scores
from r3core.evaluation.tables import rows
from r3core.executor import LocalExecutor
from r3core.generation.scripted import ScriptedGenerator
from r3core.page.collect import collect, tokens
from r3core.page.render import render
from r3core.protocol import Protocol
from r3core.recorded import open_record
from r3core.report import notes
from r3core.rescore import rescore
from r3core.runs import Run
from r3core.transcript import print_conversations
from r3core.verification.judge import Judge

FAILED = "Your answer is incorrect."
REFLECT = "Write a short reflection: what went wrong, and what will you do differently?"
RETRY = "Now solve the task again."


def longer(problem: str, *retries: str, attempt: str = "no") -> Episode:
    """Return a failed episode with these answers after reflections; `7` passes, `?` is not judged."""
    outcomes = {"7": "pass", "?": "error"}
    made = episode(problem, f"fail {outcomes.get(retries[0], 'fail')}", attempt=attempt, retry=retries[0])
    rounds = [
        Round(
            reflection=Reflection(text=f"Hm {text}.", tokens=2, leaked=False),
            retry=answer(outcomes.get(text, "fail"), text),
        )
        for text in retries[1:]
    ]
    return made.model_copy(update={"rounds": tuple(rounds)})


EPISODES = [
    episode("a", "pass"),
    longer("b", "8", "8", "7"),
    longer("c", "7"),
    longer("d", "no", "9", "no"),
    longer("e", "8", "?"),
]


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (EPISODES[0], [True, True, True, True]),
        (EPISODES[1], [False, False, False, True]),
        (EPISODES[2], [False, True, True, True]),
        (EPISODES[3], [False, False, False, False]),
        (EPISODES[4], [False, False, None, None]),
        (episode("f", "error"), [None, None, None, None]),
        (episode("g", "fail"), [False, None, None, None]),
    ],
)
def test_a_problem_is_solved_within_its_first_attempts(one: Episode, expected: list[bool | None]) -> None:
    assert [solved_within(one, attempts) for attempts in (1, 2, 3, 4)] == expected


def test_an_answer_is_repeated_if_the_conversation_has_it_already() -> None:
    b, d = EPISODES[1], EPISODES[3]
    assert [repeated(b, attempt) for attempt in (2, 3, 4)] == [False, True, False]
    assert [repeated(d, attempt) for attempt in (2, 3, 4, 5)] == [True, False, True, None]
    assert repeated(EPISODES[0], 2) is None


def test_success_within_k_attempts_and_repeated_answers_are_counted() -> None:
    found = scores(EPISODES)
    assert {k: (one.passed, one.total) for k, one in found.within.items()} == {
        1: (1, 5),
        2: (2, 5),
        3: (2, 4),
        4: (3, 4),
    }
    assert {k: (one.passed, one.total) for k, one in found.repeated.items()} == {2: (1, 4), 3: (1, 3), 4: (1, 2)}
    assert (found.second, found.first) == (found.within[2], found.within[1])
    assert found.errors == 1
    assert scores([episode("a", "fail fail")]).within == {}


def test_the_report_has_a_row_for_each_further_attempt() -> None:
    made = result(EPISODES, [longer(one.example.id, "8", "7") for one in EPISODES])
    labels = [row[0].strip() for row in rows(made)]
    assert labels[:4] == ["first try", "second try", "within 3 attempts", "within 4 attempts"]
    assert labels[-3:] == [f"repeated answers, attempt {k}" for k in (2, 3, 4)]
    assert made.paired
    assert made.paired.within[3].difference == pytest.approx(2 / 4)  # e could not be judged before
    config = Config.model_validate({"task": "toy", "protocol": {"rounds": 3}})
    assert any(note.startswith("within k attempts: ") and "up to 3 rounds" in note for note in notes(made, config))
    assert Result.model_validate_json(made.model_dump_json()) == made


def evaluated(path: Path, *overrides: str) -> tuple[ScriptedGenerator, list[Episode], Result]:
    """Evaluate a model that counts its answers: it says 2000 at its third attempt at any problem."""

    def reply(conversation: Prompt, index: int) -> str:
        turns = len(conversation.messages) // 2
        if "reflection" in conversation.messages[-1]["content"]:
            return f"Reflection {turns // 2 + 1}."
        return "2000" if turns >= 4 else f"answer {turns}"

    task = Toy(problems=2)
    config = resolve(task, overrides=["evaluate.controls=false", *overrides])
    generator = ScriptedGenerator(reply)
    with Run.open(path, config.record()) as run, Judge(task) as judge:
        protocol = Protocol(task, judge, config)
        executor = LocalExecutor(protocol, lambda name: generator)
        found = evaluate(run, protocol, list(task.load("test")), executor=executor, base="base")
        run.write_json("result", found)
        return generator, [Episode.model_validate(row) for row in run.rows("evaluate-base")], found


def test_the_conversation_continues_after_a_failed_retry(tmp_path: Path) -> None:
    generator, episodes, found = evaluated(tmp_path / "run", "protocol.rounds=3")
    assert {k: one.passed for k, one in found.base.within.items()} == {1: 0, 2: 0, 3: 1, 4: 1}
    assert [[one.text for one in made.answers] for made in episodes] == [
        ["answer 0", "answer 2", "2000"],
        ["answer 0", "answer 2", "2000", "2000"],
    ]
    assert found.base.repeated[4].passed == 1
    longest = max(generator.conversations, key=lambda one: len(one.messages)).messages
    assert [(one["role"], one["content"]) for one in longest] == [
        ("user", "Say 2001."),
        ("assistant", "answer 0"),
        ("user", f"{FAILED} {REFLECT}"),
        ("assistant", "Reflection 1."),
        ("user", RETRY),
        ("assistant", "answer 2"),
        ("user", f"{FAILED} {REFLECT}"),
        ("assistant", "Reflection 2."),
        ("user", RETRY),
        ("assistant", "2000"),
        ("user", f"{FAILED} {REFLECT}"),
        ("assistant", "Reflection 3."),
        ("user", RETRY),
    ]


def test_one_round_leaves_no_trace_in_rows_and_records(tmp_path: Path) -> None:
    evaluated(tmp_path / "run")
    assert "rounds" not in (tmp_path / "run" / "evaluate-base.jsonl").read_text()
    assert "protocol" not in resolve(Toy()).record()
    several = resolve(Toy(), overrides=["protocol.rounds=2"])
    assert several.record()["protocol"] == {"rounds": 2}
    assert Config.model_validate(several.record()) == several


def test_a_reflection_without_an_answer_ends_the_conversation(tmp_path: Path) -> None:
    task = Toy()
    with Judge(task) as judge:
        protocol = Protocol(task, judge, resolve(task))
        cut = episode("a", "fail fail").model_copy(
            update={
                "rounds": (
                    Round(reflection=Reflection(text="", tokens=0, stopped="overlong"), retry=answer("error", "")),
                )
            }
        )
        generator = ScriptedGenerator(lambda conversation, index: "no")
        assert protocol.another_round([cut, episode("b", "pass")], generator, seed=0) == [cut, episode("b", "pass")]
        assert generator.conversations == []


def test_reasons_of_retries_are_shown_under_feedback_reason(tmp_path: Path) -> None:
    generator, _, _ = evaluated(tmp_path / "run", "protocol.rounds=2", "feedback=reason")
    longest = max(generator.conversations, key=lambda one: len(one.messages)).messages
    assert longest[6]["content"].startswith("Your answer is incorrect: it should be 200")


def test_the_page_and_the_transcript_show_further_rounds(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"protocol.rounds": 3}
    run = write_run(tmp_path / "run", base=EPISODES, trained=EPISODES, settings=settings)
    page = render([collect(run, name="run")])
    assert "Hm 9." in page
    assert tokens(collect(run, name="run"))["evaluation, base"]["reflections"] == 4 * 3 + 5 * 2
    paper = io.StringIO()
    found = find(open_record(run), Wanted(example="d"), count=1)
    print_conversations(found, Config.model_validate({"task": "toy"}), paper)
    lines = paper.getvalue().splitlines()
    assert lines.count("-- reflection (2 tokens, and the end-of-turn token: not trained)") == 2
    assert [line for line in lines if line.startswith("Hm")] == ["Hm 9.", "Hm no."]
    assert sum(line.startswith("-- retry") for line in lines) == 3


def test_retries_of_further_rounds_are_judged_again(tmp_path: Path) -> None:
    evaluated(tmp_path / "run", "protocol.rounds=3")
    again = rescore(tmp_path / "run", spec=TASK)
    kinds = {tally.kind: tally.judged for tally in again.tallies}
    assert kinds == {"attempt": 2, "retry": 2, "retry 2": 2, "retry 3": 1, "leak": 2}
    assert again.changed == 0
    assert again.evaluated[0].before == again.evaluated[0].now


def test_the_plan_counts_every_round() -> None:
    overrides = ["protocol.rounds=3", "evaluate.controls=false"]
    sizes = [
        f"sampling.{turn}.max_tokens={size}" for turn, size in (("attempt", 100), ("reflection", 10), ("retry", 20))
    ]
    assert most_per_problem(resolve(Toy(), overrides=[*overrides, *sizes])).tries == 100 + 3 * 30
