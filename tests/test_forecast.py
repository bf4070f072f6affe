"""The forecast after mining: it reflects and rewards as training will."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from toy import Toy

from r3core import Prompt, Verdict
from r3core.config import resolve
from r3core.episode import Answer
from r3core.executor import LocalExecutor
from r3core.failures import Failure
from r3core.forecast import Forecast, forecast
from r3core.generation.scripted import ScriptedGenerator
from r3core.protocol import Protocol
from r3core.runs import Run
from r3core.stats import clustered, expected_signal, mean_reward
from r3core.verification.judge import Judge

Told = Callable[..., Forecast]


def failures(count: int) -> list[Failure]:
    attempt = Answer(text="no", tokens=1, verdict=Verdict.failed("no"))
    return [
        Failure(
            id=example.id,
            prompt=[{"role": "user", "content": str(example.prompt)}],
            answer=example.answer,
            sample=0,
            attempt=attempt,
            passed=0,
            samples=1,
        )
        for example in Toy(problems=count).load("train")
    ]


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    """Return a function that makes a forecast from so many failures; `run` is the run directory."""
    opened: list[Run] = []

    def told(*overrides: str, count: int = 4, generator: ScriptedGenerator, of: Any = None) -> Any:
        config = resolve(Toy(), overrides=overrides)
        opened.append(Run.open(tmp_path / f"run-{len(opened)}", config.record()))
        protocol = Protocol(Toy(), Judge(Toy()), config)
        executor = LocalExecutor(protocol, lambda model: generator)
        return forecast(opened[-1], protocol, of or failures(count), executor=executor, model="any")

    yield told
    for run in opened:
        run.close()


class Remembering(ScriptedGenerator):
    """A script that keeps how each call was to be sampled."""

    def __init__(self, reply: Callable[[Prompt, int], str]) -> None:
        super().__init__(reply)
        self.samplings: list[Any] = []

    def generate(self, conversations: Any, sampling: Any, *, ended: Any = None) -> Any:
        self.samplings.append(sampling)
        return super().generate(conversations, sampling, ended=ended)


def retry(conversation: Prompt) -> bool:
    return conversation.messages[-1]["content"].startswith("Now solve")


def number_in(conversation: Prompt) -> str:
    return conversation.messages[0]["content"].removeprefix("Say ").removesuffix(".")


def in_turn(*replies: str, reflection: str = "I see my mistake") -> Remembering:
    """Return a model whose retries pass (`p`), fail (`f`) or break the verifier (`e`), one after the other."""
    place = count()
    outcomes = "".join(replies)

    def reply(conversation: Prompt, index: int) -> str:
        if not retry(conversation):
            return reflection
        said = {"p": number_in(conversation), "f": "no", "e": "unclear"}
        return said[outcomes[next(place) % len(outcomes)]]

    return Remembering(reply)


def by_failure(*rows: list[float]) -> dict[int, Any]:
    return {group: expected_signal(list(rows), group) for group in (2, 4, 8, 16, 32, 64)}


def test_the_forecast_counts_by_hand(told: Told, tmp_path: Path) -> None:
    generator = in_turn("ppff", "pfff", "pppp", "ffff")
    found = told(generator=generator)
    assert generator.calls == [16, 16]
    assert (found.failures, found.probed, found.retries) == (4, 4, 1)
    assert (found.fix_rate.passed, found.fix_rate.total) == (7, 16)
    assert found.signal == by_failure([1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0])
    assert found.tokens == 5.0  # four words and one
    assert found.seconds > 0
    assert Forecast.model_validate_json((tmp_path / "run-0/forecast.json").read_bytes()) == found
    assert "forecast" in (tmp_path / "run-0/clock.jsonl").read_text()


def test_every_share_has_an_interval_around_it(told: Told) -> None:
    found = told(generator=in_turn("ppff", "pfff", "pppp", "ffff"))
    for share in (found.fix_rate, found.reward, *found.signal.values()):
        assert 0 <= share.low < share.rate < share.high <= 1


def test_there_are_as_many_retries_as_in_training(told: Told) -> None:
    # two retries a reflection: failure 0 is rewarded 1, 0.5, 0.5, 0; failure 1 always 0.5
    generator = in_turn("pp", "pf", "fp", "ff", "pfpfpfpf")
    found = told("train.retries=2", count=2, generator=generator)
    assert generator.calls == [8, 16]
    assert found.retries == 2
    assert sorted(found.signal) == [2, 4, 8, 16, 32, 64]
    levels = [1.0, 0.5, 0.5, 0.0], [0.5] * 4
    assert found.signal in (by_failure(*levels), by_failure(*levels[::-1]))
    assert (found.fix_rate.passed, found.fix_rate.total) == (8, 16)
    assert found.tokens == 4 + 2 * 1  # a reflection with all its retries


def test_a_reflection_is_rewarded_as_in_training(told: Told) -> None:
    def leaky(conversation: Prompt, index: int) -> str:
        return number_in(conversation) if retry(conversation) else f"It is {number_in(conversation)}"

    rewarded = told(generator=ScriptedGenerator(leaky))
    assert (rewarded.reward.rate, rewarded.fix_rate.rate) == (1.0, 1.0)
    punished = told("train.reward_leaks=false", generator=ScriptedGenerator(leaky))
    assert (punished.reward.rate, punished.fix_rate.rate) == (0.0, 1.0)


def test_reflections_are_sampled_with_the_options_of_training(told: Told) -> None:
    generator = in_turn("p")
    own = ("grpo.temperature=0.3", "grpo.top_p=0.9", "grpo.top_k=7", "grpo.max_completion_length=3")
    found = told(*own, "sampling.retry.temperature=0.6", generator=generator)
    reflecting, retrying = generator.samplings
    assert (reflecting.temperature, reflecting.top_p, reflecting.top_k, reflecting.max_tokens) == (0.3, 0.9, 7, 3)
    assert (retrying.temperature, retrying.max_tokens) == (0.6, 512)
    assert found.tokens == 4.0  # three words of the reflection and one


def test_without_options_of_its_own_training_samples_as_configured(told: Told) -> None:
    generator = in_turn("p")
    told("sampling.reflection.temperature=0.4", "sampling.reflection.max_tokens=9", generator=generator)
    assert (generator.samplings[0].temperature, generator.samplings[0].max_tokens) == (0.4, 9)


def test_the_probe_is_a_random_sample_of_the_failures(told: Told) -> None:
    def probed(seed: int, of: list[Failure]) -> set[str]:
        generator = in_turn("p")
        assert told("mine.probe=10", f"seed={seed}", of=of, generator=generator).probed == 10
        return {number_in(conversation) for conversation in generator.conversations}

    everything = failures(60)
    assert probed(0, everything) == probed(0, everything[::-1])
    assert probed(0, everything) != probed(1, everything)
    assert probed(0, everything) != {str(number) for number in range(10)}


def test_what_could_not_be_judged_has_no_reward(told: Told) -> None:
    found = told(count=2, generator=in_turn("eeee", "pfpf"))
    assert found.signal in (by_failure([], [1, 0, 1, 0]), by_failure([1, 0, 1, 0], []))
    assert (found.fix_rate.passed, found.fix_rate.total) == (2, 4)
    assert (found.unrewarded.passed, found.unrewarded.total) == (4, 8)
    assert found.reward.rate == 0.5


def test_turns_that_were_cut_off_are_counted_and_warned_of(told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    def reply(conversation: Prompt, index: int) -> str:
        return "I think it is none" if retry(conversation) else "I see my mistake"

    limits = ("grpo.max_completion_length=2", "sampling.retry.max_tokens=3")
    found = told(*limits, count=2, generator=ScriptedGenerator(reply))
    assert (found.reflections_truncated.passed, found.retries_truncated.passed) == (8, 8)
    assert (found.unrewarded.passed, found.fix_rate.total) == (8, 0)  # never 0 for an answer that was not given
    said = capsys.readouterr().err
    assert "100.0% of 8 reflections of the forecast were cut off at grpo.max_completion_length=2: raise it" in said
    assert "100.0% of 8 retries of the forecast were cut off at sampling.retry.max_tokens=3: raise it" in said


def test_no_probe_gives_no_forecast(told: Told) -> None:
    generator = in_turn("p")
    assert told("mine.probe=0", generator=generator) is None
    assert generator.calls == []


def test_the_group_size_that_is_set_is_among_those_compared(told: Told) -> None:
    found = told("grpo.num_generations=6", generator=in_turn("pf"))
    assert list(found.signal) == [2, 4, 6, 8, 16, 32, 64]


def test_the_estimates_are_those_of_the_statistics(told: Told) -> None:
    found = told(count=1, generator=in_turn("ppfp"))
    assert found.fix_rate == clustered([("n0", True), ("n0", True), ("n0", False), ("n0", True)])
    assert found.reward == mean_reward([[1, 1, 0, 1]])
