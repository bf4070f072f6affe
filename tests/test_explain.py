"""Each diagnosis is made of a small run that has this fault, and none of the demonstration."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import password
import pytest
from command import R3
from figures import demonstration
from toy import Toy

from r3core import Example, Prompt, Task, Verdict
from r3core.check import check_task
from r3core.config import Config, resolve
from r3core.episode import Answer, Reflection
from r3core.evaluation.drift import Drift, Shift
from r3core.evaluation.evaluate import evaluate
from r3core.executor import LocalExecutor
from r3core.explain import diagnoses_of, explain
from r3core.explain.figures import Figures, figures_of
from r3core.explain.rules import MAX_FINDINGS, RULES
from r3core.forecast import forecast
from r3core.generation.scripted import ScriptedGenerator
from r3core.mine import mine
from r3core.protocol import Protocol
from r3core.runs import Run, RunRecord
from r3core.sections import Limits
from r3core.stats import wilson
from r3core.verification.judge import Judge

RECORDS = Path(__file__).parent.parent / "docs" / "runs"
Recorded = tuple[Path, Config]


# Runs with one fault each: a script takes the place of the model.


class Shouting(Toy):
    """Say the number, without any mark around it."""

    def reference(self, example: Example) -> str | None:
        return f"<answer>{example.answer}</answer>"

    def verify(self, example: Example, response: str) -> Verdict | bool:
        return response.strip().removeprefix("<answer>").removesuffix("</answer>").strip() == example.answer


class Gullible(Toy):
    """Say the number, among anything else."""

    def verify(self, example: Example, response: str) -> Verdict | bool:
        return str(example.answer) in response


class Forgetful(Toy):
    """Say the number; the references are wrong."""

    def reference(self, example: Example) -> str | None:
        return f"{example.answer}?"


def number_in(conversation: Prompt) -> int:
    return int(conversation.messages[0]["content"].removeprefix("Say ").removesuffix("."))


def by_turn(
    attempt: Callable[[int], str],
    reflection: Callable[[int], str] = lambda number: "Hm.",
    retry: Callable[[int], str] = lambda number: "no",
    bare: Callable[[int], str] | None = None,
) -> ScriptedGenerator:
    """Return a generator with a reply to each turn, given the number; `bare` retries without an own reflection."""

    def reply(conversation: Prompt, index: int) -> str:
        number, last = number_in(conversation), conversation.messages[-1]["content"]
        if len(conversation.messages) == 1:
            return attempt(number)
        if "reflection" in last:
            return reflection(number)
        own = len(conversation.messages) == 5 and conversation.messages[3]["content"] == reflection(number)
        return retry(number) if own or bare is None else bare(number)

    return ScriptedGenerator(reply)


def right_if(passes: Callable[[int], bool]) -> Callable[[int], str]:
    return lambda number: str(number) if passes(number) else "no"


def mined(path: Path, generator: ScriptedGenerator, *overrides: str, task: Toy | None = None) -> Recorded:
    """Mine 60 problems, with a forecast if `mine.probe` is set."""
    task = task or Toy(problems=60)
    config = resolve(task, overrides=("mine.probe=0", *overrides))
    with Run.open(path, config.record()) as run, Judge(task) as judge:
        protocol = Protocol(task, judge, config)
        executor = LocalExecutor(protocol, lambda model: generator)
        failures = mine(run, protocol, executor, model="any")
        forecast(run, protocol, failures, executor=executor, model="any")
    return path, config


def evaluated(
    path: Path, base: ScriptedGenerator, trained: ScriptedGenerator, *overrides: str, problems: int = 400
) -> Recorded:
    task = Toy(problems=problems)
    config = resolve(task, overrides=["evaluate.controls=false", *overrides])
    with Run.open(path, config.record()) as run, Judge(task) as judge:
        protocol = Protocol(task, judge, config)
        executor = LocalExecutor(protocol, lambda model: base if model == "base" else trained)
        result = evaluate(run, protocol, list(task.load("test")), executor=executor, base="base", trained="trained")
        run.write_json("result", result)
        run.finish("evaluate", {"problems": problems, "trained": True})
    return path, config


def certified(path: Path, recorded: Recorded, task: Task) -> Recorded:
    """Add the certificate of a task, passed or not, to a run."""
    with Run.open(path, recorded[1].record()) as run:
        run.write_json("certificate", check_task(task))
    return recorded


def attempts_that_are_cut_off(path: Path) -> Recorded:
    return mined(
        path, by_turn(lambda number: f"{number} it is" if number % 2 else "no"), "sampling.attempt.max_tokens=2"
    )


def marked_attempts(path: Path) -> Recorded:
    task = Shouting(problems=60)
    generator = by_turn(lambda number: f"<answer>**{number}**</answer>" if number % 3 else f"<answer>{number}</answer>")
    return certified(path, mined(path, generator, task=task), task)


def refused_references(path: Path) -> Recorded:
    return certified(path, mined(path, by_turn(right_if(lambda number: number % 2 == 0))), Forgetful(problems=60))


def wrong_answers_that_pass(path: Path) -> Recorded:
    return certified(path, mined(path, by_turn(right_if(lambda number: number % 2 == 0))), Gullible(problems=60))


def hopeless_forecast(path: Path) -> Recorded:
    return mined(path, by_turn(lambda number: "no"), "mine.probe=60", "grpo.num_generations=4")


def too_easy_forecast(path: Path) -> Recorded:
    return mined(path, by_turn(lambda number: "no", retry=str), "mine.probe=60", "grpo.num_generations=4")


def easy_and_hopeless_forecast(path: Path) -> Recorded:
    """The forecast of failures of which 55% are always fixed, the others never."""
    one = by_turn(lambda number: "no", retry=right_if(lambda number: number % 20 < 11))
    return mined(path, one, "mine.probe=60", "grpo.num_generations=4")


def retries_that_ignore_the_reflection(path: Path) -> Recorded:
    def third(number: int) -> bool:
        return number % 3 == 0

    one = by_turn(lambda number: "no", retry=right_if(third))
    return evaluated(path, one, one, "evaluate.controls=true")


def a_worse_first_try(path: Path) -> Recorded:
    base = by_turn(right_if(lambda number: number % 10 < 5), retry=right_if(lambda number: number % 10 < 7))
    trained = by_turn(right_if(lambda number: number % 10 < 3), retry=right_if(lambda number: number % 10 < 9))
    return evaluated(path, base, trained)


def a_worse_greedy_first_try(path: Path) -> Recorded:
    """As after training: four tokens have shifted, which turns the greedy answers to some problems."""

    class Warm(ScriptedGenerator):
        def __init__(self, greedy: Callable[[int], str]) -> None:
            self.sampled = by_turn(
                right_if(lambda number: number % 10 < 5), retry=right_if(lambda number: number % 2 == 0)
            )
            super().__init__(by_turn(greedy, retry=str).reply)

        def generate(self, conversations: Any, sampling: Any, **ended: Any) -> Any:
            if sampling.temperature == 0:
                return super().generate(conversations, sampling, **ended)
            return self.sampled.generate(conversations, sampling, **ended)

    base, trained = (Warm(right_if(lambda number, most=most: number % 10 < most)) for most in (6, 3))
    made = evaluated(path, base, trained, "evaluate.decoding=both")
    shifts = [Shift(token=token, count=90, shift=shift) for token, shift in ((" / ", -0.48), (" + ", 0.51))]
    with Run.open(path, made[1].record()) as run:
        run.write_json("drift", Drift(attempts=256, tokens=4_000, mean=-0.03, shifts=shifts))
    return made


def a_gain_at_the_first_try_alone(path: Path) -> Recorded:
    base = by_turn(right_if(lambda number: number % 10 < 2), retry=right_if(lambda number: number % 10 == 9))
    trained = by_turn(right_if(lambda number: number % 10 < 6), retry=right_if(lambda number: number % 20 == 9))
    return evaluated(path, base, trained)


def few_problems(path: Path) -> Recorded:
    base = by_turn(lambda number: "no", retry=right_if(lambda number: number % 10 < 3))
    trained = by_turn(lambda number: "no", retry=right_if(lambda number: number % 10 in (1, 2, 3, 4)))
    return evaluated(path, base, trained, problems=40)


# Trainings: those of the tiny model that guesses passwords, and rows as the trainer writes them.


class Hopeless(password.Doors):
    """Doors without a password."""

    def verify(self, example: Example, response: str) -> Verdict | bool:
        return False


class Open(password.Doors):
    """Doors that every word opens."""

    def verify(self, example: Example, response: str) -> Verdict | bool:
        return True

    def leaks(self, example: Example, reflection: str) -> bool:
        return False


class Secret(password.Doors):
    """Doors whose password is no leak."""

    def leaks(self, example: Example, reflection: str) -> bool:
        return False


class Half(Secret):
    """Doors that half of the words open."""

    def verify(self, example: Example, response: str) -> Verdict | bool:
        return response in password.WORDS[:4]


class BrokenSecret(password.BrokenVerifier, Secret):
    """Doors whose verifier raises for three of the words."""


def trained(
    path: Path, *, task: Task | None = None, judge: Limits | None = None, turns: Any = None, **options: Any
) -> Recorded:
    """Train the tiny model on passwords in a run of its own."""
    from r3core.train import train

    config = password.config(**options)
    sampling = config.sampling.model_dump()
    turns = {turn: sampling[turn] | changed for turn, changed in (turns or {}).items()}
    config = Config.model_validate(
        config.model_dump() | {"sampling": sampling | turns, "judge": (judge or config.judge).model_dump()}
    )
    failures = [
        failure.model_copy(update={"id": f"{failure.id}{number}"}) for number, failure in enumerate(password.failures())
    ]
    with Run.open(path, config.record()) as run:
        run.finish(
            "train",
            train(
                run,
                password.protocol(config, task or Secret()),
                failures,
                model=password.beginner(),
                tokenizer=password.tokenizer(),
            ),
        )
    return path, config


def rows(
    path: Path,
    reward: Callable[[float, random.Random], bool | None],
    *,
    tokens: Callable[[float], int] = lambda part: 10,
    leaked: Callable[[float], bool] = lambda part: False,
    steps: int = 48,
    finished: bool = True,
    logging_steps: int = 1,
    overrides: Sequence[str] = (),
    **logged: Any,
) -> Recorded:
    """Write the rows of a training with 4 groups of 8 per step; a function gets the part of it that is done."""
    config = resolve(
        Toy(),
        overrides=(
            "grpo.num_generations=8",
            "grpo.per_device_train_batch_size=32",
            "grpo.learning_rate=2e-4",
            *overrides,
        ),
    )
    chance = random.Random(1)
    verdicts = {True: Verdict.passed(), False: Verdict.failed("no"), None: Verdict.error("broken")}
    episodes, metrics = [], []
    with Run.open(path, config.record()) as run:
        for step in range(1, steps + 1):
            part = (step - 1) / steps
            for index in range(32):
                passed = reward(part, chance)
                reflection = Reflection(text=f"I see {index}.", tokens=tokens(part), leaked=leaked(part))
                retry = Answer(text="?", tokens=1, verdict=verdicts[passed])
                episodes.append(
                    {
                        "step": step,
                        "id": f"n{4 * step + index // 8}",
                        "reflection": reflection,
                        "retries": [retry],
                        "reward": None if passed is None else float(passed),
                    }
                )
            base = {"loss": 0.1, "grad_norm": 0.5, "learning_rate": 2e-4, "entropy": 1 - 0.6 * part}
            if step % logging_steps == 0:
                metrics.append({"step": step, **base, **logged})
        run.append("train-episodes", episodes)
        run.append("train", metrics)
        if finished:
            run.finish("train", {"steps": steps, "failures": 4 * steps})
    return path, config


def rising(part: float, chance: random.Random) -> bool:
    return chance.random() < 0.3 + 0.5 * part


def level(part: float, chance: random.Random) -> bool:
    return chance.random() < 0.3


def with_rows(path: Path, recorded: Recorded, name: str, made: list[dict[str, Any]]) -> Recorded:
    with Run.open(path, recorded[1].record()) as run:
        run.append(name, made)
    return recorded


def a_validation_that_falls(path: Path) -> Recorded:
    def rate(share: float) -> dict[str, Any]:
        return wilson(round(400 * share), 400).model_dump()

    evaluations = [{"step": step, "second": rate(share)} for step, share in ((0, 0.4), (20, 0.7), (40, 0.5))]
    return with_rows(path, rows(path, rising), "validation", evaluations)


def unchanged_weights(path: Path) -> Recorded:
    recorded = rows(path, rising)
    with Run.open(path, recorded[1].record()) as run:
        run.finish("train", {"steps": 48, "failures": 192, "weights_changed": 0.001})
    return recorded


def a_gain_on_the_training_problems_alone(path: Path) -> Recorded:
    one = by_turn(lambda number: "no", retry=right_if(lambda number: number % 10 < 3))
    rows(path, rising)
    config = resolve(Toy(problems=400), overrides=("grpo.num_generations=8",))
    evaluated(path.with_name("evaluated"), one, one)
    for name in ("evaluate-base.jsonl", "evaluate-trained.jsonl"):
        (path / name).write_bytes((path.with_name("evaluated") / name).read_bytes())
    (path / "stages" / "evaluate.json").write_bytes((path.with_name("evaluated") / "stages/evaluate.json").read_bytes())
    return path, config


slow = pytest.mark.slow
FAULTS: list[Any] = [
    ("attempts-truncated", attempts_that_are_cut_off),
    pytest.param("formats-refused", marked_attempts, marks=slow),  # it makes a certificate
    pytest.param("references-refused", refused_references, marks=slow),  # it makes a certificate
    pytest.param("verifier-untrusted", wrong_answers_that_pass, marks=slow),  # it makes a certificate
    ("groups-all-wrong", hopeless_forecast),
    ("groups-all-right", too_easy_forecast),
    ("groups-all-alike", easy_and_hopeless_forecast),
    ("retry-ignores-reflection", retries_that_ignore_the_reflection),
    ("first-try-lost", a_worse_first_try),
    ("gain-at-first-try", a_gain_at_the_first_try_alone),
    ("evaluation-too-small", few_problems),
    ("gain-not-held-out", a_gain_on_the_training_problems_alone),
    ("validation-falls", a_validation_that_falls),
    ("weights-unchanged", unchanged_weights),
    ("greedy-first-try-lost", a_worse_greedy_first_try),
    ("not-finite", lambda path: rows(path, rising, grad_norm=float("nan"))),
    ("trained-tokens-unread", lambda path: rows(path, rising, **{"reflections/read_by_retry": 0.2})),
    ("importance-ratio-low", lambda path: rows(path, rising, **{"sampling/importance_sampling_ratio/mean": 0.1})),
    ("leaks-rewarded", lambda path: rows(path, rising, leaked=lambda part: part > 0.4)),
    ("reflections-collapsed", lambda path: rows(path, level, tokens=lambda part: 20 if part < 0.5 else 2)),
    ("reflections-exploded", lambda path: rows(path, level, tokens=lambda part: 20 if part < 0.5 else 90)),
    ("reward-flat", lambda path: rows(path, level)),
    ("learning-rate-low", lambda path: rows(path, level, kl=1e-5, steps=60)),
    ("few-updates", lambda path: rows(path, level, steps=6)),
    (
        "learning-rate-high",
        lambda path: rows(path, lambda part, chance: chance.random() < (0.7 if part < 0.6 else 0.2)),
    ),
    (
        "rewards-unjudged",
        lambda path: rows(path, lambda part, chance: rising(part, chance) if chance.random() < 0.8 else None),
    ),
]
TRAININGS: list[Any] = [
    ("reflections-truncated", lambda path: trained(path, steps=4, turns={"reflection": {"max_tokens": 1}})),
    ("retries-truncated", lambda path: trained(path, steps=4, turns={"retry": {"max_tokens": 1}})),
    ("groups-all-wrong", lambda path: trained(path, steps=4, task=Hopeless())),
    ("groups-all-right", lambda path: trained(path, steps=12, task=Open())),
    ("reflections-identical", lambda path: trained(path, steps=4, turns={"reflection": {"temperature": 0.05}})),
    ("rewards-shuffled", lambda path: trained(path, steps=20, train={"shuffle_rewards": True})),
    ("rewards-unjudged", lambda path: trained(path, steps=4, task=BrokenSecret(), judge=Limits(max_errors=1.0))),
    ("leaks-rewarded", lambda path: trained(path, steps=20, task=password.Doors())),
    ("learning-rate-low", lambda path: trained(path, steps=30, learning_rate=1e-9)),
    ("learning-rate-high", lambda path: trained(path, steps=30, learning_rate=0.3, task=Half())),
    ("few-updates", lambda path: trained(path, steps=3)),
]


def names_of(faults: Sequence[Any]) -> list[str]:
    return [getattr(fault, "values", fault)[0] for fault in faults]


def diagnosed(recorded: Recorded) -> list[str]:
    """Return the names of the diagnoses, after checking that each is complete."""
    found = explain(RunRecord(recorded[0]), recorded[1]).diagnoses
    for one in found:
        assert one.finding
        assert one.advice
        assert all(isinstance(value, float) for value in one.figures.values())
    return [one.name for one in found]


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=names_of(FAULTS))
def test_a_recorded_fault_is_found_and_nothing_else(
    name: str, fault: Callable[[Path], Recorded], tmp_path: Path
) -> None:
    assert diagnosed(fault(tmp_path / "run")) == [name]


@slow
@pytest.mark.parametrize(("name", "fault"), TRAININGS, ids=names_of(TRAININGS))
def test_a_training_with_a_fault_is_found_and_nothing_else(
    name: str, fault: Callable[[Path], Recorded], tmp_path: Path
) -> None:
    assert diagnosed(fault(tmp_path / "run")) == [name]


def test_a_lost_greedy_first_try_names_the_tokens_that_shifted(tmp_path: Path) -> None:
    run, config = a_worse_greedy_first_try(tmp_path / "run")
    (found,) = explain(RunRecord(run), config).diagnoses
    assert "over 256 attempts of the base, log p has shifted most for `/` -0.48, `+` +0.51;" in found.finding
    assert found.advice.startswith("train.anchor=1, ")
    assert "; or train.interpolate=0.5, " in found.advice
    anchored = config.model_copy(update={"train": config.train.model_copy(update={"anchor": 1.0})})
    assert explain(RunRecord(run), anchored).diagnoses[0].advice.startswith("train.interpolate=0.5, ")
    (run / "drift.json").unlink()
    (without,) = explain(RunRecord(run), config).diagnoses
    assert without.finding.startswith("the greedy first try falls (-30.0 points")
    assert "shifted" not in without.finding


def test_every_diagnosis_has_a_run_with_its_fault() -> None:
    assert {*names_of(FAULTS), *names_of(TRAININGS)} == set(RULES)


# Runs without a fault.


def test_nothing_stands_out_in_the_demonstration() -> None:
    figures, config = demonstration()
    assert figures.stages == {"mine": True, "train": True, "evaluate": True}
    assert len(figures.groups) == 160
    assert figures.trained
    assert figures.trained.against
    assert diagnoses_of(figures, config) == []


@pytest.mark.parametrize("step", [0, 1, 2, 3, 4, 6, 10, 20, 40, 60, 79])
def test_nothing_stands_out_in_the_demonstration_when_it_is_killed(step: int) -> None:
    figures, config = demonstration()
    unfinished = figures.model_copy(
        update={
            "stages": {"mine": True, "train": False},
            "steps": figures.steps[:step],
            "groups": [group for group in figures.groups if group.step <= step],
            **dict.fromkeys(("base", "trained", "paired", "mean_square", "weights_changed")),
        }
    )
    assert diagnoses_of(unfinished, config) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("countdown-0", []),
        ("countdown-1", []),
        ("countdown-2", []),
        ("apigen-0", ["greedy-first-try-lost"]),  # -3.6 [-6.6, -0.6] points
        ("apigen-1", []),
        ("apigen-2", []),
    ],
)
def test_the_findings_of_the_published_results(name: str, expected: list[str], tmp_path: Path) -> None:
    record = json.loads((RECORDS / f"{name}.json").read_bytes())
    config = Config.model_validate(
        {key: value for key, value in record["config"].items() if key in Config.model_fields}
    )
    (tmp_path / "stages").mkdir()
    files = {"result": record["result"], "forecast": record["forecast"], "stages/mine": record["mined"]}
    files["stages/evaluate"] = {"trained": True}
    for file, value in files.items():
        if value is not None:
            (tmp_path / f"{file}.json").write_text(json.dumps(value))
    assert diagnosed((tmp_path, config)) == expected


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16, 48])
def test_chance_gives_no_finding_but_that_nothing_was_learned(steps: int, tmp_path: Path) -> None:
    found = set()
    for seed in range(8):
        chance = random.Random(100 * steps + seed)
        recorded = rows(tmp_path / str(seed), lambda part, _, chance=chance: chance.random() < 0.3, steps=steps)
        found |= set(diagnosed(recorded))
    assert found <= {"reward-flat", "few-updates"}


def test_a_run_without_a_record_is_examined_too(tmp_path: Path) -> None:
    config = resolve(Toy())
    explanation = explain(RunRecord(tmp_path), config)
    assert (explanation.diagnoses, explanation.examined) == ([], [])
    assert explanation.missing == ["certificate", "training", "evaluation"]


def test_an_unfinished_evaluation_is_read_from_its_episodes(tmp_path: Path) -> None:
    path, config = few_problems(tmp_path / "run")
    trained = path / "evaluate-trained.jsonl"
    trained.write_bytes(b"".join(trained.read_bytes().splitlines(keepends=True)[:30]) + b'{"torn')
    (path / "result.json").unlink()
    (path / "stages" / "evaluate.json").unlink()
    figures = figures_of(RunRecord(path), config)
    assert figures.stages == {"evaluate": False}
    assert figures.base
    assert figures.trained
    assert (figures.base.scores.first.total, figures.trained.scores.first.total, figures.problems) == (40, 30, 30)


@pytest.mark.parametrize(
    "fault",
    [
        few_problems,
        a_worse_first_try,
        a_gain_at_the_first_try_alone,
        retries_that_ignore_the_reflection,
        a_gain_on_the_training_problems_alone,
    ],
)
def test_an_evaluation_in_progress_is_not_compared(fault: Callable[[Path], Recorded], tmp_path: Path) -> None:
    recorded = fault(tmp_path / "run")
    assert len(diagnosed(recorded)) == 1
    (recorded[0] / "stages" / "evaluate.json").unlink()
    assert diagnosed(recorded) == []


def test_no_more_than_four_findings_are_made_the_most_important_first() -> None:
    figures, config = demonstration()
    assert figures.attempts_truncated
    many = rates_of_faults(figures)
    found = [one.name for one in diagnoses_of(many, config)]
    assert found == sorted(found, key=list(RULES).index)
    assert len(found) == MAX_FINDINGS
    assert found[0] == "weights-unchanged"


def rates_of_faults(figures: Figures) -> Figures:
    """Return the figures with several faults."""
    cut = wilson(90, 100)
    groups = [group._replace(truncated=group.reflections, retries_truncated=group.retries) for group in figures.groups]
    steps = [step._replace(finite=False) for step in figures.steps]
    return figures.model_copy(
        update={"weights_changed": 0.0, "attempts_truncated": cut, "groups": groups, "steps": steps}
    )


@pytest.mark.parametrize(
    ("steps", "logged", "name", "text"),
    [
        (16, {}, "few-updates", "ended after 16 steps"),
        (60, {"kl": 1e-5}, "learning-rate-low", "in 60 steps, whose learning rates add up to 0.012;"),
        (60, {"reflections/read_by_retry": 0.2}, "trained-tokens-unread", "trained tokens in steps 1 to 20;"),
        (60, {"sampling/importance_sampling_ratio/mean": 0.1}, "importance-ratio-low", "in the mean of 60 steps,"),
        (60, {"grad_norm": None}, "not-finite", "of {rows} of {rows} logged rows are NaN or infinite"),
    ],
)
@pytest.mark.parametrize("every", [1, 4])
def test_a_row_may_stand_for_several_steps(
    steps: int, logged: dict[str, Any], name: str, text: str, every: int, tmp_path: Path
) -> None:
    path, config = rows(tmp_path / "run", level, steps=steps, logging_steps=every, **logged)
    [found] = [one for one in explain(RunRecord(path), config).diagnoses if one.name == name]
    assert text.format(rows=steps // every) in found.finding


def test_sixty_steps_logged_every_tenth_are_not_few(tmp_path: Path) -> None:
    assert diagnosed(rows(tmp_path / "run", level, steps=60, logging_steps=10)) == ["reward-flat"]


def test_a_forecast_without_a_clear_majority_gives_no_direction(tmp_path: Path) -> None:
    path, config = easy_and_hopeless_forecast(tmp_path / "run")
    [found] = explain(RunRecord(path), config).diagnoses
    assert found.figures["reward"] == pytest.approx(0.55, abs=0.02)
    assert "some are all right and some are all wrong" in found.finding
    assert "too easy" not in found.finding
    assert found.advice == (
        "grpo.num_generations=8; mine other failures: mine.samples=8 mine.min_pass_rate=0.1 mine.max_pass_rate=0.75, "
        "or other options of the task; train.retries=4 makes finer rewards"
    )


@pytest.mark.parametrize(
    ("fault", "overrides", "absent", "present"),
    [
        (hopeless_forecast, (), "harder", "mine.samples=8 mine.min_pass_rate=0.1"),
        (hopeless_forecast, ("mine.max_pass_rate=0.05",), "?", "mine.min_pass_rate=0.1 mine.max_pass_rate=0.1"),
        (
            hopeless_forecast,
            ("mine.samples=8", "mine.max_pass_rate=1", "mine.min_pass_rate=0.1", "train.retries=4"),
            "mine.",
            "grpo.num_generations=8; easier options of the task",
        ),
        (too_easy_forecast, (), "train.retries", "mine.samples=8 mine.max_pass_rate=0.25"),
        (too_easy_forecast, ("mine.samples=16",), "mine.samples", "mine.max_pass_rate=0.25"),
        (too_easy_forecast, ("mine.samples=8", "mine.max_pass_rate=0.25"), "mine.", "harder options of the task"),
    ],
)
def test_settings_that_are_set_already_are_not_proposed(
    fault: Callable[[Path], Recorded], overrides: Sequence[str], absent: str, present: str, tmp_path: Path
) -> None:
    path, _ = fault(tmp_path / "run")
    config = resolve(Toy(problems=60), overrides=("grpo.num_generations=4", *overrides))
    [found] = explain(RunRecord(path), config).diagnoses
    assert present in found.advice
    assert absent not in found.advice


@pytest.mark.parametrize(
    ("limit", "samples", "in_split", "advice"),
    [
        (40, 1, None, "evaluate.limit={needed}"),
        (40, 1, 5000, "evaluate.limit={needed}"),
        (40, 1, 50, "evaluate.limit=null evaluate.samples=4 (the split has 50 problems), or several seeds"),
        (40, 4, 50, "evaluate.limit=null evaluate.samples=8 (the split has 50 problems), or several seeds"),
        (None, 4, 40, "evaluate.samples=8 (the split has 40 problems), or several seeds"),
        (None, 1, None, "evaluate.samples=4, or several seeds"),
        (5000, 1, 40, "evaluate.samples=4 (the split has 40 problems), or several seeds"),
    ],
)
def test_more_problems_are_proposed_by_settings_that_differ(
    limit: int | None, samples: int, in_split: int | None, advice: str, tmp_path: Path
) -> None:
    path, config = few_problems(tmp_path / "run")
    figures = figures_of(RunRecord(path), config).model_copy(update={"in_split": in_split})
    evaluation = config.evaluate.model_copy(update={"limit": limit, "samples": samples})
    [found] = diagnoses_of(figures, config.model_copy(update={"evaluate": evaluation}))
    assert found.advice == advice.format(needed=int(found.figures["needed"]))


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize(("problems", "expected"), [(5, ["evaluation-too-small"]), (100, [])])
def test_a_few_problems_without_any_change_show_nothing(
    problems: int, expected: list[str], samples: int, tmp_path: Path
) -> None:
    one = by_turn(lambda number: "no", retry=right_if(lambda number: number % 2 == 0))
    recorded = evaluated(tmp_path / "run", one, one, f"evaluate.samples={samples}", problems=problems)
    found = explain(RunRecord(recorded[0]), recorded[1]).diagnoses
    assert [one.name for one in found] == expected
    for diagnosis in found:
        assert diagnosis.finding.startswith("the second try is the same on 5 problems, too few to see a gain")
        assert diagnosis.figures["needed"] > 100


def test_no_interval_is_printed_where_there_are_too_few_failures_for_one(tmp_path: Path) -> None:
    path, config = rows(tmp_path / "run", level, steps=6)
    figures = figures_of(RunRecord(path), config)
    one = figures.model_copy(update={"groups": [group._replace(failure=0) for group in figures.groups]})
    [found] = diagnoses_of(one, config)
    assert (found.name, found.finding) == (
        "few-updates",
        "training ended after 6 steps; no change of the reward can be seen",
    )


def test_the_texts_of_an_evaluation_are_not_in_memory_at_once(tmp_path: Path) -> None:
    path, config = few_problems(tmp_path / "run")
    for side in ("base", "trained"):
        file = path / f"evaluate-{side}.jsonl"
        episodes = [json.loads(line) for line in file.read_bytes().splitlines()]
        for episode in episodes:
            episode["reflection"] |= {"text": "x" * 100_000}
        file.write_text("".join(json.dumps(episode) + "\n" for episode in episodes))
    tracemalloc.start()
    figures_of(RunRecord(path), config)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000  # of 8 MB of texts


def test_episodes_without_texts_have_the_rates_of_the_result(tmp_path: Path) -> None:
    path, config = retries_that_ignore_the_reflection(tmp_path / "run")
    result = json.loads((path / "result.json").read_bytes())
    figures = figures_of(RunRecord(path), config)
    for name, side in (("base", figures.base), ("trained", figures.trained)):
        assert side
        assert without_p_holm(side.scores.model_dump(mode="json")) == without_p_holm(result[name])
    assert figures.paired
    assert without_p_holm(figures.paired.model_dump(mode="json")) == without_p_holm(result["paired"])


def without_p_holm(value: Any) -> Any:
    """Return recorded rates without the corrected p-values, which only a whole result has."""
    if not isinstance(value, dict):
        return value
    return {key: without_p_holm(one) for key, one in value.items() if key != "p_holm"}


# The command.


def test_the_command_prints_the_findings_with_the_setting_to_change(r3: R3, tmp_path: Path) -> None:
    path, _ = attempts_that_are_cut_off(tmp_path / "run")
    before = sorted(file.stat().st_mtime_ns for file in path.rglob("*"))
    printed = r3("explain", path)
    assert printed.code == 0
    assert "1. attempts-truncated: 50.0% [37.7, 62.3] of 60 attempts in mining were cut off at sampling" in printed.out
    assert "   change: sampling.attempt.max_tokens=4, or more" in printed.out
    assert sorted(file.stat().st_mtime_ns for file in path.rglob("*")) == before


def test_the_command_prints_one_object(r3: R3, tmp_path: Path) -> None:
    path, _ = attempts_that_are_cut_off(tmp_path / "run")
    [found] = json.loads(r3("explain", path, "--json").out)["diagnoses"]
    assert found["name"] == "attempts-truncated"
    assert found["figures"]["share"] == 0.5
    assert found["figures"]["n"] == 60


def test_the_command_prints_one_line_when_nothing_stands_out(r3: R3, tmp_path: Path) -> None:
    path, _ = rows(tmp_path / "run", rising)
    assert r3("explain", path).out == (
        "nothing stands out: 1,536 reflections of 48 training steps; not recorded: certificate, evaluation\n"
    )


@pytest.mark.parametrize("name", ["nothing-here", "folder"])
def test_a_folder_that_is_no_run_is_an_error(r3: R3, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    printed = r3("explain", name)
    assert printed.code == 2
    assert f"error: `{name}` is not a run directory: it has no config.json" in printed.err


def test_a_damaged_file_is_an_error(r3: R3, tmp_path: Path) -> None:
    path, _ = rows(tmp_path / "run", rising)
    (path / "forecast.json").write_text("{")
    printed = r3("explain", path)
    assert printed.code == 1
    assert "forecast.json` is not JSON" in printed.err
