from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from toy import Toy

from r3core import Example, Prompt, Verdict
from r3core.config import resolve
from r3core.episode import CONTROLS, Answer, Arm, Episode, Reflection
from r3core.evaluation.arms import fix_rate
from r3core.evaluation.evaluate import evaluate
from r3core.evaluation.outcomes import solved
from r3core.evaluation.result import Paired, Result, compare, scores, secondary, with_holm
from r3core.executor import LocalExecutor
from r3core.generation.generator import Completion, Sampling
from r3core.generation.scripted import ScriptedGenerator
from r3core.protocol import Protocol
from r3core.runs import Run
from r3core.stats import Difference, clustered, holm, paired, wilson
from r3core.verification.judge import Judge

RATE = {"passed", "total", "rate", "low", "high"}
VERDICTS = {"p": Verdict.passed(), "f": Verdict.failed("no"), "e": Verdict.error("broken")}


def answer(outcome: str) -> Answer:
    return Answer(text="?", tokens=1, verdict=VERDICTS[outcome])


def episode(
    problem: str,
    outcomes: str,
    *,
    sample: int = 0,
    leaked: bool | None = False,
    stopped: Any = "end",
    **others: str,
) -> Episode:
    """Return an episode from its outcomes: attempt and retry (`p`ass, `f`ail, `e`rror), and those of other arms."""
    reflection = Reflection(text="Hm.", tokens=1, leaked=leaked, stopped=stopped) if outcomes[0] == "f" else None
    arms: dict[Any, str] = ({"reflect": outcomes[1]} if len(outcomes) > 1 else {}) | others
    return Episode(
        example=Example(id=problem),
        sample=sample,
        attempt=answer(outcomes[0]),
        reflection=reflection,
        retries={arm: answer(outcome) for arm, outcome in arms.items()},
    )


def test_failed_answers_are_counted_by_error_category() -> None:
    def failed(attempt: str, retry: str | None) -> Episode:
        made = episode("a", "ff")
        passed = Verdict(outcome="pass", kind="sum")
        first = made.attempt.model_copy(update={"verdict": Verdict.failed("no", kind=attempt)})
        second = made.attempt.model_copy(
            update={"verdict": Verdict.failed("no", kind=retry) if retry is not None else passed}
        )
        return made.model_copy(update={"attempt": first, "retries": {"reflect": second, "none": first}})

    episodes = [failed("typo", "typo"), failed("sum", None), failed("sum", ""), episode("b", "p"), episode("c", "fe")]
    found = scores(episodes)
    assert list(found.first_error_categories.items()) == [("sum", 2), ("typo", 1)]
    assert found.second_error_categories == {"typo": 1}
    assert scores([episode("a", "ff")]).first_error_categories == {}


def counts(value: Any) -> tuple[int, int]:
    return value.passed, value.total


EPISODES = [
    episode("a", "p"),
    episode("b", "fp", leaked=True, none="f", generic="p", shuffled="f", resample="p"),
    episode("c", "ff", none="p", generic="f", shuffled="f", resample="f"),
    episode("d", "fp", none="f", generic="f", shuffled="p", resample="e"),
    episode("e", "e"),
    episode("f", "fe", leaked=None, stopped="length", none="f", generic="f", resample="f"),
]


def test_every_rate_is_the_one_counted_by_hand() -> None:
    found = scores(EPISODES, CONTROLS)
    assert counts(found.first) == (1, 5)  # e could not be judged
    assert counts(found.second) == (3, 4)  # a, b and d; whether f was solved is not known
    assert counts(found.fix) == (2, 3)
    assert {arm: counts(value) for arm, value in found.controls.items()} == {
        "none": (1, 4),
        "generic": (1, 4),
        "shuffled": (1, 3),  # f had no other problem's reflection
        "placebo": (0, 0),
        "resample": (1, 3),
    }
    assert counts(found.leaks) == (1, 3)  # f's could not be tested
    assert counts(found.fix_without_leak) == (1, 2)  # c and d
    assert counts(found.truncated) == (1, 4)
    assert found.errors == 3
    assert found.first == wilson(1, 5)


def test_every_turn_that_was_cut_off_is_counted_and_still_judged() -> None:
    def cut(found: Episode) -> Episode:
        attempt = found.attempt.model_copy(update={"stopped": "length"})
        retries = {arm: retry.model_copy(update={"stopped": "length"}) for arm, retry in found.retries.items()}
        return found.model_copy(update={"attempt": attempt, "retries": retries})

    episodes = [
        episode("a", "p"),
        cut(episode("b", "ff", stopped="length")),
        episode("c", "ff"),
        cut(episode("d", "p")),
        episode("e", "fp"),
    ]
    found = scores(episodes)
    assert counts(found.attempts_truncated) == (2, 5)
    assert counts(found.truncated) == (1, 3)
    assert counts(found.retries_truncated) == (1, 3)
    assert counts(found.first) == (2, 5)  # an attempt that gave no answer did not solve the problem
    assert counts(found.fix) == (1, 3)


def test_a_problem_is_solved_by_either_of_two_attempts() -> None:
    assert [solved(e) for e in EPISODES] == [True, True, False, True, None, None]
    assert solved(episode("x", "f")) is None  # never retried


def test_samples_of_a_problem_are_clustered() -> None:
    episodes = [episode(str(i), "p" if i < 3 else "fp", sample=s) for i in range(10) for s in range(4)]
    found = scores(episodes)
    assert counts(found.first) == (12, 40)
    assert found.first == clustered([(str(i), i < 3) for i in range(10) for _ in range(4)])
    plain = wilson(12, 40)
    assert found.first.low < plain.low
    assert found.first.high > plain.high
    assert counts(found.fix) == (28, 28)


def test_nothing_failed_and_there_is_nothing_to_fix() -> None:
    found = scores([episode("a", "p")], CONTROLS)
    assert counts(found.fix) == (0, 0)
    assert [counts(value) for value in found.controls.values()] == [(0, 0)] * 5
    assert (found.fix.low, found.fix.high) == (0.0, 1.0)


def test_before_and_after_are_compared_problem_by_problem() -> None:
    before = [episode(*e) for e in (("a", "p"), ("b", "ff"), ("c", "ff"), ("d", "fp"), ("e", "e"), ("f", "fp"))]
    after = [episode(*e) for e in (("a", "p"), ("b", "p"), ("c", "fp"), ("d", "ff"), ("e", "p"), ("f", "fe"))]
    found = compare(before, after)
    first = {"a": (True, True), "b": (False, True), "c": (False, False), "d": (False, False), "f": (False, False)}
    second = {"a": (True, True), "b": (False, True), "c": (False, True), "d": (True, False)}
    for told, pairs in ((found.first, first), (found.second, second)):
        sides = [{key: [pair[side]] for key, pair in pairs.items()} for side in (0, 1)]
        assert told == paired(*sides)
    assert found.first.difference == pytest.approx(1 / 5)
    assert found.second.difference == pytest.approx(1 / 4)


@pytest.mark.parametrize("arm", CONTROLS)
def test_a_control_is_a_fix_rate(arm: Arm) -> None:
    assert scores(EPISODES, CONTROLS).controls[arm] == fix_rate([e for e in EPISODES if e.failed], arm)


def test_every_p_value_but_that_of_the_primary_endpoint_is_adjusted() -> None:
    def change(p: float) -> Difference:
        return Difference(difference=0.1, low=0.0, high=0.2, p=p)

    base = scores(EPISODES, CONTROLS)
    base = base.model_copy(update={"against": {"none": change(0.01), "generic": change(0.04)}})
    trained = base.model_copy(update={"against": {"none": change(0.03)}})
    made = Result(base=base, trained=trained, paired=Paired(first=change(0.02), second=change(0.049)))
    made = made.model_copy(update={"reflections": {"base": change(0.5)}})
    adjusted = with_holm(made)
    assert [one.p for one in secondary(made)] == [0.02, 0.01, 0.04, 0.03, 0.5]
    assert [one.p_holm for one in secondary(adjusted)] == holm([0.02, 0.01, 0.04, 0.03, 0.5])
    assert adjusted.paired
    assert adjusted.paired.second == change(0.049)
    assert with_holm(adjusted) == adjusted


# From here on, whole evaluations with scripted models.


Open = Callable[..., tuple[Run, Protocol, list[Example]]]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Return a function that opens a run in `tmp_path / NAME`; asked for the same again, it closes it first."""
    runs: dict[str, Run] = {}

    def opened(*overrides: str, name: str = "run", problems: int = 8) -> tuple[Run, Protocol, list[Example]]:
        task = Toy(problems=problems)
        config = resolve(task, overrides=overrides)
        if name in runs:
            runs[name].close()
        runs[name] = Run.open(tmp_path / name, config.record())
        return runs[name], Protocol(task, Judge(task), config), list(task.load("test"))

    yield opened
    for run in runs.values():
        run.close()


def model(*, attempts: Sequence[int] = (), fixes: Sequence[int] = (), needs: str = "") -> ScriptedGenerator:
    """Return a model that gets some problems (numbered from 0) right, and fixes some when `needs` was said."""

    def reply(conversation: Prompt, index: int) -> str:
        number = int(conversation.messages[0]["content"].removeprefix("Say ").removesuffix("."))
        place, last = number - 2000, conversation.messages[-1]["content"]
        if "reflection" in last:
            return f"{needs or 'base'} says try {place}"
        if len(conversation.messages) == 1:
            return str(number) if place in attempts else "no"
        reflections = conversation.messages[3]["content"] if len(conversation.messages) == 5 else ""
        return str(number) if place in fixes and needs in reflections else "no"

    return ScriptedGenerator(reply)


def by(protocol: Protocol, **models: ScriptedGenerator) -> dict[str, Any]:
    """Return the arguments of an evaluation of these models, which are named as they are called here."""
    return {"executor": LocalExecutor(protocol, models.__getitem__), **{name: name for name in models}}


FULL = ("evaluate.controls=true", "evaluate.cross=true")


def test_the_result_has_exactly_the_promised_keys(opened: Open) -> None:
    run, protocol, examples = opened(*FULL)
    result = evaluate(
        run,
        protocol,
        examples,
        **by(protocol, base=model(attempts=[0]), trained=model(attempts=[0], fixes=[1, 2])),
    )
    told = result.model_dump(mode="json")
    assert set(told) == {"base", "trained", "paired", "cross", "reflections", "problems", "greedy", "also"}
    for side in (told["base"], told["trained"]):
        assert {"first", "second", "fix", "controls"} <= set(side)
        assert list(side["controls"]) == ["none", "generic", "shuffled", "placebo", "resample"]
        rates = [side[key] for key in ("first", "second", "fix", "leaks", "fix_without_leak", "truncated")]
        rates += [side[key] for key in ("attempts_truncated", "retries_truncated")]
        assert all(set(value) == RATE for value in [*rates, *side["controls"].values()])
    assert set(told["paired"]) == {"first", "second", "first_at", "second_at", "within"}
    differences = [
        told["paired"]["first"],
        told["paired"]["second"],
        *told["base"]["against"].values(),
        *told["reflections"].values(),
    ]
    assert all(set(value) == {"difference", "low", "high", "p", "p_holm"} for value in differences)
    assert list(told["base"]["against"]) == list(told["base"]["controls"])
    assert list(told["base"]["costs"]) == ["reflect", *told["base"]["controls"]]
    assert set(told["cross"]) == {"base", "trained"}
    assert all(set(row) == {"base", "trained"} for row in told["cross"].values())
    assert all(set(cell) == RATE for row in told["cross"].values() for cell in row.values())
    assert Result.model_validate(told) == result


def test_a_whole_evaluation_counts_as_by_hand(opened: Open) -> None:
    run, protocol, examples = opened(*FULL)
    base = model(attempts=[0, 1], fixes=[2], needs="base")
    trained = model(attempts=[0, 1, 2], fixes=[3, 4, 5], needs="trained")
    result = evaluate(run, protocol, examples, **by(protocol, base=base, trained=trained))
    assert result.trained is not None
    assert result.paired is not None
    assert result.cross is not None
    assert [counts(r) for r in (result.base.first, result.base.second, result.base.fix)] == [(2, 8), (3, 8), (1, 6)]
    side = result.trained
    assert [counts(r) for r in (side.first, side.second, side.fix)] == [(3, 8), (6, 8), (3, 5)]
    assert {arm: counts(value) for arm, value in side.controls.items()} == {
        "none": (0, 5),
        "generic": (0, 5),
        "shuffled": (3, 5),  # the script looks only at who reflected
        "placebo": (0, 5),
        "resample": (0, 5),
    }
    assert (result.paired.first.difference, result.paired.second.difference) == (1 / 8, 3 / 8)
    cells = {(by, then): counts(cell) for by, row in result.cross.items() for then, cell in row.items()}
    assert cells == {
        ("base", "base"): (1, 6),  # all of them over the base's six failures
        ("base", "trained"): (0, 6),
        ("trained", "trained"): (3, 6),
        ("trained", "base"): (0, 6),
    }
    assert result.cross["base"]["base"] == result.base.fix
    assert result.reflections is not None
    assert {by: one.difference for by, one in result.reflections.items()} == {"base": -1 / 6, "trained": 3 / 6}
    assert side.against["none"].difference == 3 / 5
    assert side.against["shuffled"].difference == 0


class Warm(ScriptedGenerator):
    """Sampled, it answers by one script, and greedily, by another."""

    def __init__(self, sampled: ScriptedGenerator, greedy: ScriptedGenerator) -> None:
        super().__init__(sampled.reply)
        self.scripts = {False: sampled, True: greedy}

    def generate(self, conversations: Sequence[Prompt], sampling: Sampling, **ended: Any) -> list[Completion]:
        script = self.scripts[sampling.temperature == 0]
        return script.generate(conversations, sampling, **ended)


def test_greedy_tries_are_evaluated_beside_sampled_ones_and_resume(opened: Open, tmp_path: Path) -> None:
    def models() -> dict[str, ScriptedGenerator]:
        base = Warm(model(attempts=[0]), model(attempts=[0, 1, 2, 3], fixes=[4]))
        return {"base": base, "trained": Warm(model(attempts=[0], fixes=[5]), model(attempts=[0], fixes=[1, 4, 5, 6]))}

    settings = (*FULL, "evaluate.decoding=both", "evaluate.samples=2", "batch_size=6")
    run, protocol, examples = opened(*settings)
    result = evaluate(run, protocol, examples, **by(protocol, **models()))
    assert [counts(one) for one in (result.base.first, result.base.fix)] == [(2, 16), (0, 14)]
    assert result.greedy
    assert result.greedy.trained
    assert result.greedy.paired
    greedy = result.greedy.base, result.greedy.trained
    assert [[counts(one) for one in (side.first, side.second, side.fix)] for side in greedy] == [
        [(4, 8), (5, 8), (1, 4)],
        [(1, 8), (5, 8), (4, 7)],
    ]
    assert (result.greedy.paired.first.difference, result.greedy.paired.second.difference) == (-3 / 8, 0)
    assert result.greedy.base.controls == {}
    rows = {path.name: path.read_text() for path in sorted((tmp_path / "run").glob("evaluate-*.jsonl"))}
    assert [text.count("\n") for text in rows.values()] == [8, 16, 8, 16]  # base-greedy, base, trained-greedy, trained
    (tmp_path / "run" / "evaluate-trained-greedy.jsonl").write_text(
        "".join(rows["evaluate-trained-greedy.jsonl"].splitlines(keepends=True)[:4])
    )
    again = models()
    run, protocol, examples = opened(*settings)
    assert evaluate(run, protocol, examples, **by(protocol, **again)) == result
    made = {name: [len(script.conversations) for script in one.scripts.values()] for name, one in again.items()}
    assert made["base"] == [0, 0]
    assert made["trained"][0] == 0
    assert made["trained"][1] > 0
    assert (tmp_path / "run" / "evaluate-trained-greedy.jsonl").read_text() == rows["evaluate-trained-greedy.jsonl"]


def test_a_greedy_evaluation_is_greedy_in_every_turn_and_does_not_resample(opened: Open) -> None:
    run, protocol, examples = opened(*FULL, "evaluate.decoding=greedy")
    generators = {
        "base": Warm(model(), model(attempts=[0, 1], fixes=[2])),
        "trained": Warm(model(), model(fixes=[2, 3], needs="trained")),
    }
    result = evaluate(run, protocol, examples, **by(protocol, **generators))
    assert [one.scripts[False].conversations for one in generators.values()] == [[], []]
    assert (counts(result.base.first), counts(result.base.fix)) == ((2, 8), (1, 6))
    assert "resample" not in result.base.controls
    assert result.greedy is None


def test_temperatures_of_0_are_not_evaluated_greedily_again(opened: Open) -> None:
    cold = [f"sampling.{turn}.temperature=0" for turn in ("attempt", "reflection", "retry")]
    run, protocol, examples = opened(*cold, "evaluate.decoding=both")
    result = evaluate(run, protocol, examples, **by(protocol, base=Warm(model(), model(attempts=[0]))))
    assert (counts(result.base.first), result.greedy) == ((1, 8), None)


def test_without_a_trained_model_there_is_nothing_to_compare(opened: Open) -> None:
    run, protocol, examples = opened("evaluate.cross=true", "evaluate.controls=false")
    result = evaluate(run, protocol, examples, **by(protocol, base=model()))
    assert (result.trained, result.paired, result.cross) == (None, None, None)
    assert result.base.controls == {}


def test_turns_that_were_cut_off_are_reflected_on_and_warned_of_once(
    opened: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    def long_winded(conversation: Prompt, index: int) -> str:
        return "It may well be 7" if len(conversation.messages) == 1 else "no"

    run, protocol, examples = opened("sampling.attempt.max_tokens=3")
    base, trained = ScriptedGenerator(long_winded), ScriptedGenerator(long_winded)
    result = evaluate(run, protocol, examples, **by(protocol, base=base, trained=trained))
    assert counts(result.base.attempts_truncated) == (8, 8)
    assert counts(result.base.fix) == (0, 8)
    warnings = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("eval ")]
    assert warnings == [
        "warning: 100.0% of 8 attempts of the base model were cut off at sampling.attempt.max_tokens=3: raise it"
    ]


def test_both_models_get_the_same_problems_and_seeds(opened: Open) -> None:
    run, protocol, examples = opened(*FULL, "batch_size=3")
    seeds: dict[str, list[tuple[int, int]]] = {"base": [], "trained": []}

    def remembering(name: str) -> ScriptedGenerator:
        class Remembering(ScriptedGenerator):
            def generate(self, conversations: Any, sampling: Any, *, ended: Any = None) -> Any:
                seeds[name].append((len(conversations), sampling.seed))
                return super().generate(conversations, sampling, ended=ended)

        return Remembering(model().reply)

    evaluate(
        run,
        protocol,
        examples,
        **by(protocol, base=remembering("base"), trained=remembering("trained")),
    )
    turns = 3 * 4  # three batches; attempts, reflections, retries, resamples; after them comes the cross table
    assert seeds["base"][:turns] == seeds["trained"][:turns]
    assert len(set(seeds["base"])) == len(seeds["base"])


def test_further_resamples_leave_every_other_turn_as_it_was(opened: Open) -> None:
    def unsteady(conversation: Prompt, index: int) -> str:
        right = conversation.messages[0]["content"].removeprefix("Say ").removesuffix(".")
        return right if index % 3 == 0 and len(conversation.messages) == 1 else "no"

    rows: dict[int, list[Any]] = {}
    results: dict[int, Result] = {}
    for resamples in (1, 4):
        name = f"run-{resamples}"
        run, protocol, examples = opened(*FULL, f"evaluate.resamples={resamples}", "batch_size=3", name=name)
        models = {"base": ScriptedGenerator(unsteady), "trained": ScriptedGenerator(unsteady)}
        results[resamples] = evaluate(run, protocol, examples, **by(protocol, **models))
        rows[resamples] = list(run.rows("evaluate-base"))
        assert not any("resamples" in row for row in run.rows("cross-trained-base"))
    further = [row.pop("resamples", []) for row in rows[4]]
    assert rows[4] == rows[1]
    assert {len(found) for found, row in zip(further, rows[4], strict=True) if "resample" in row["retries"]} == {3}
    assert not any(found for found, row in zip(further, rows[4], strict=True) if "resample" not in row["retries"])
    few, many = (results[number].base.equal_tokens for number in (1, 4))
    assert few
    assert many
    assert few.attempts == pytest.approx(many.attempts, rel=0.5)
    assert (few.resamples, many.resamples) == (1, 4)
    assert results[1].base.controls == results[4].base.controls


def test_an_interrupted_evaluation_resumes(opened: Open, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def unsteady(conversation: Prompt, index: int) -> str:
        said = model(fixes=range(9)).reply(conversation, index)
        return "no" if len(conversation.messages) == 5 and index % 2 else said  # depends on the batch's seed

    def evaluated(name: str, generator: ScriptedGenerator) -> Result:
        run, protocol, examples = opened(*FULL, "batch_size=2", name=name)
        return evaluate(run, protocol, examples, **by(protocol, base=generator, trained=generator))

    undisturbed = ScriptedGenerator(unsteady)
    whole = evaluated("whole", undisturbed)
    files = sorted(path.name for path in (tmp_path / "whole").glob("*.jsonl"))
    calls, stops = 0, 0
    for limit in (5, 9, 13, 40, 70, 1000):  # in the attempts, the arms, the cross table
        left = iter(range(limit))

        def stopping(conversation: Prompt, index: int, left: Iterator[int] = left) -> str:
            if next(left, None) is None:
                raise Stopped
            return unsteady(conversation, index)

        generator = ScriptedGenerator(stopping)
        try:
            result = evaluated("stopped", generator)
        except Stopped:
            stops += 1
        calls += len(generator.calls)
    assert stops >= 4
    assert result == whole
    for name in files:
        if name not in ("clock.jsonl", "sessions.jsonl"):
            assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert calls <= len(undisturbed.calls) + 7 * stops  # each stop costs at most the seven turns of one batch


def test_a_model_is_loaded_only_when_it_is_needed(opened: Open) -> None:
    def load(name: str) -> ScriptedGenerator:
        loaded.append(name)
        return model(fixes=[1])

    loaded: list[str] = []
    run, protocol, examples = opened(*FULL)
    models = {"base": "base", "trained": "trained"}
    first = evaluate(run, protocol, examples, executor=LocalExecutor(protocol, load), **models)
    assert loaded == ["base", "trained", "base"]  # the cross table ends with retries by the base
    loaded.clear()
    run, protocol, examples = opened(*FULL)
    assert evaluate(run, protocol, examples, executor=LocalExecutor(protocol, load), **models) == first
    assert not loaded
