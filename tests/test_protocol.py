import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from toy import Even, Toy

from r3core import Example, Message, Prompt, RunError, TaskError
from r3core.config import Config, resolve
from r3core.episode import Arm, Episode
from r3core.generation.chat import encode
from r3core.generation.generator import Completion, Ended, Sampling, overlong
from r3core.generation.scripted import ScriptedGenerator
from r3core.generation.thinking import Marks
from r3core.generation.transformers import TransformersGenerator
from r3core.prompts import PLACEBO
from r3core.protocol import Protocol, seed_of
from r3core.reward import reward_of
from r3core.verification.judge import Judge

WITHOUT_IDS: Any = {"attempt": {"token_ids"}, "reflection": {"token_ids"}}
FAILED = "Your answer is incorrect."
REFLECT = "Write a short reflection: what went wrong, and what will you do differently?"
RETRY = "Now solve the task again."
GENERIC = "I made a mistake. I will read the task again and check every step."


def protocol_of(*overrides: str, task: Toy | None = None) -> Protocol:
    task = task or Toy()
    return Protocol(task, Judge(task), resolve(task, overrides=overrides))


def turn(prompt: Prompt) -> str:
    """Return which turn a prompt is for."""
    last = prompt.messages[-1]["content"]
    return "reflection" if last.endswith(REFLECT) else "retry" if last.endswith(RETRY) else "attempt"


def scripted(**replies: str | Callable[[Prompt], str]) -> ScriptedGenerator:
    """Return a generator that gives each kind of turn its reply."""

    def reply(prompt: Prompt, index: int) -> str:
        scripted = replies[turn(prompt)]
        return scripted if isinstance(scripted, str) else scripted(prompt)

    return ScriptedGenerator(reply)


def messages_of(generator: ScriptedGenerator) -> list[list[Message]]:
    """Return the messages of every prompt that a generator has continued."""
    return [prompt.messages for prompt in generator.conversations]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def examples(*numbers: int) -> list[Example]:
    return [Example(id=f"n{number}", prompt=f"Say {number}.", answer=str(number)) for number in numbers]


def right(prompt: Prompt) -> str:
    return prompt.messages[0]["content"].removeprefix("Say ").removesuffix(".")


def wrong_on(*numbers: int) -> Callable[[Prompt], str]:
    return lambda prompt: "no" if right(prompt) in map(str, numbers) else right(prompt)


def attempted(protocol: Protocol, *numbers: int, wrong: tuple[int, ...]) -> list[Episode]:
    return protocol.attempt(examples(*numbers), scripted(attempt=wrong_on(*wrong)), seed=0)


def reflected(protocol: Protocol, *numbers: int, wrong: tuple[int, ...]) -> list[Episode]:
    episodes = attempted(protocol, *numbers, wrong=wrong)
    return protocol.reflect(episodes, scripted(reflection=lambda prompt: f"About {right(prompt)}!"), seed=0)


def test_an_attempt_continues_the_tasks_prompt_alone_and_is_judged() -> None:
    generator = scripted(attempt=wrong_on(2))
    one, two = protocol_of().attempt(examples(1, 2), generator, seed=0)
    assert messages_of(generator) == [[user("Say 1.")], [user("Say 2.")]]
    assert (one.attempt.text, one.attempt.tokens, one.attempt.stopped) == ("1", 1, "end")
    assert (one.attempt.verdict.outcome, one.failed) == ("pass", False)
    assert (two.attempt.verdict.outcome, two.attempt.verdict.reason, two.failed) == ("fail", "it should be 2", True)


def test_only_failures_are_reflected_on() -> None:
    protocol = protocol_of()
    generator = scripted(reflection="I was wrong.")
    episodes = attempted(protocol, 1, 2, 3, wrong=(2,))
    right_one, failed, right_other = protocol.reflect(episodes, generator, seed=0)
    assert messages_of(generator) == [[user("Say 2."), assistant("no"), user(f"{FAILED} {REFLECT}")]]
    assert failed.reflection is not None
    assert (failed.reflection.text, failed.reflection.tokens) == ("I was wrong.", 3)
    assert [right_one, right_other] == [episodes[0], episodes[2]]


MESSAGES: dict[Arm, list[Message]] = {
    "reflect": [
        user("Say 2."),
        assistant("no"),
        user(f"{FAILED} {REFLECT}"),
        assistant("About 2!"),
        user(RETRY),
    ],
    "none": [user("Say 2."), assistant("no"), user(f"{FAILED} {RETRY}")],
    "generic": [user("Say 2."), assistant("no"), user(f"{FAILED} {REFLECT}"), assistant(GENERIC), user(RETRY)],
    "shuffled": [user("Say 2."), assistant("no"), user(f"{FAILED} {REFLECT}"), assistant("About 4!"), user(RETRY)],
    "placebo": [user("Say 2."), assistant("no"), user(f"{FAILED} {REFLECT}"), assistant(PLACEBO[:8]), user(RETRY)],
    "resample": [user("Say 2.")],
}


@pytest.mark.parametrize("arm", MESSAGES)
def test_each_arm_has_its_own_prompt_of_the_retry(arm: Arm) -> None:
    protocol = protocol_of()
    generator = scripted(retry=right, attempt=right)
    episodes = protocol.retry(reflected(protocol, 1, 2, 3, 4, wrong=(2, 4)), generator, seed=0, arm=arm)
    assert messages_of(generator)[0] == MESSAGES[arm]
    assert [list(episode.retries) for episode in episodes] == [[], [arm], [], [arm]]
    assert episodes[1].retries[arm].text == "2"
    assert episodes[1].retries[arm].verdict.outcome == "pass"


def test_the_retries_of_all_arms_are_generated_together() -> None:
    protocol = protocol_of()
    episodes = reflected(protocol, 1, 2, 3, 4, wrong=(2, 4))
    arms: list[Arm] = ["reflect", "none", "generic", "shuffled", "placebo"]
    calls: list[int] = []

    class Counting(ScriptedGenerator):
        def generate(self, conversations: Any, *rest: Any, **options: Any) -> Any:
            calls.append(len(conversations))
            return super().generate(conversations, *rest, **options)

    def counting() -> ScriptedGenerator:
        return Counting(scripted(retry=right, attempt=right).reply)

    together = protocol.retries(episodes, counting(), seed=0, arms=arms)
    assert calls == [10]
    for arm in arms:
        episodes = protocol.retry(episodes, counting(), seed=0, arm=arm)
    assert together == episodes
    again = protocol.resample(together, counting(), seed=0, count=3)
    assert calls[6:] == [6]
    assert [len(episode.resamples) for episode in again] == [0, 2, 0, 2]
    assert [list(episode.retries) for episode in again] == [[], [*arms, "resample"]] * 2


@pytest.mark.parametrize(("arm", "ends"), [("generic", False), ("reflect", True)])
def test_only_overlong_retries_of_the_method_end_a_run(arm: Arm, ends: bool) -> None:
    numbers = tuple(range(100, 125))
    protocol = protocol_of("max_overlong=0.0")
    episodes = reflected(protocol, *numbers, wrong=numbers)

    class Short(ScriptedGenerator):
        def generate(self, conversations: Any, *rest: Any, **options: Any) -> Any:
            of_arm = [(prompt.messages[3]["content"] == GENERIC) == (arm == "generic") for prompt in conversations]
            answers = super().generate(conversations, *rest)
            found = [overlong("too long") if long else answer for long, answer in zip(of_arm, answers, strict=True)]
            options["ended"](list(enumerate(found)))
            return found

    generator = Short(scripted(retry=right).reply)
    if ends:
        with pytest.raises(RunError, match="25 of 75 conversations"):
            protocol.retries(episodes, generator, seed=0, arms=["reflect", "generic"])
    else:
        found = protocol.retries(episodes, generator, seed=0, arms=["reflect", "generic"])
        assert all(episode.retries["generic"].stopped == "overlong" for episode in found)
        assert all(episode.retries["reflect"].verdict.outcome == "pass" for episode in found)


def test_the_model_sees_nothing_but_that_it_failed() -> None:
    protocol = protocol_of()
    generator = scripted(reflection="Hm.", retry="no")
    protocol.retry(protocol.reflect(attempted(protocol, 7, wrong=(7,)), generator, seed=0), generator, seed=0)
    assert all("should be" not in message["content"] for messages in messages_of(generator) for message in messages)


def test_the_model_sees_the_reason_under_feedback_reason() -> None:
    protocol = protocol_of("feedback=reason")
    generator = scripted(reflection="Hm.", retry="no")
    episodes = protocol.reflect(attempted(protocol, 7, wrong=(7,)), generator, seed=0)
    protocol.retry(episodes, generator, seed=0)
    protocol.retry(episodes, generator, seed=0, arm="none")
    because = "Your answer is incorrect: it should be 7."
    reflection, retry, plain = messages_of(generator)
    assert reflection[-1] == user(f"{because} {REFLECT}")
    assert retry[2] == user(f"{because} {REFLECT}")
    assert plain[-1] == user(f"{because} {RETRY}")


def test_a_configuration_replaces_single_sentences() -> None:
    protocol = protocol_of("wording.failed=Nope.", "wording.generic=Careful now.")
    episodes = protocol.reflect(attempted(protocol, 7, wrong=(7,)), scripted(reflection="Hm."), seed=0)
    generator = scripted(retry="7")
    protocol.retry(episodes, generator, seed=0, arm="generic")
    assert messages_of(generator)[0][2:4] == [user(f"Nope. {REFLECT}"), assistant("Careful now.")]


def test_a_task_replaces_sentences_and_the_configuration_takes_precedence() -> None:
    class Terse(Toy):
        name = "terse"
        wording = Toy.wording.model_copy(update={"reflect": "Why?", "failed": "Bad."})

    protocol = protocol_of("wording.reflect=How come?", task=Terse())
    generator = ScriptedGenerator(lambda prompt, index: "no")
    protocol.reflect(protocol.attempt(examples(7), generator, seed=0), generator, seed=0)
    assert messages_of(generator)[-1][-1] == user("Bad. How come?")


def test_an_attempt_that_could_not_be_judged_is_no_failure() -> None:
    protocol = protocol_of()
    episodes = protocol.attempt(examples(1), scripted(attempt="unclear"), seed=0)
    assert episodes[0].attempt.verdict.outcome == "error"
    assert not episodes[0].failed
    generator = scripted(reflection="Hm.", retry="1", attempt="1")
    episodes = protocol.reflect(episodes, generator, seed=0)
    for arm in MESSAGES:
        episodes = protocol.retry(episodes, generator, seed=0, arm=arm)
    assert generator.conversations == []
    assert episodes[0].reflection is None
    assert episodes[0].retries == {}


def test_a_retry_that_could_not_be_judged_is_an_error() -> None:
    protocol = protocol_of()
    episodes = protocol.retry(reflected(protocol, 1, wrong=(1,)), scripted(retry="unclear"), seed=0)
    assert episodes[0].retries["reflect"].verdict.outcome == "error"


def test_too_many_errors_end_the_run() -> None:
    with pytest.raises(RunError, match="could not judge 24 of 24 responses"):
        protocol_of().attempt(list(Toy().load("train")), scripted(attempt="unclear"), seed=0)


def test_a_prompt_of_the_wrong_form_is_found_before_anything_is_generated() -> None:
    generator = scripted(attempt="1")
    broken = Example(id="x", prompt=[{"role": "assistant", "content": "?"}])
    with pytest.raises(TaskError, match="it must end with the user's"):
        protocol_of().attempt([broken], generator, seed=0)
    assert generator.calls == []


def test_each_kind_of_turn_is_one_call() -> None:
    protocol = protocol_of()
    generator = scripted(attempt="no", reflection="Hm.", retry="no")
    episodes = protocol.attempt(examples(*range(20)), generator, seed=0, samples=3)
    protocol.retry(protocol.reflect(episodes, generator, seed=0), generator, seed=0)
    assert generator.calls == [60, 60, 60]


def test_attempts_at_the_same_example_are_adjacent() -> None:
    generator = ScriptedGenerator(lambda prompt, index: str(index))
    episodes = protocol_of().attempt(examples(5, 6), generator, seed=10, samples=2)
    assert [(e.example.id, e.sample, e.attempt.text) for e in episodes] == [
        ("n5", 0, "10"),
        ("n5", 1, "11"),
        ("n6", 0, "12"),
        ("n6", 1, "13"),
    ]


def test_another_problems_reflection_is_never_that_of_another_sample() -> None:
    protocol = protocol_of()
    attempts = protocol.attempt(examples(1, 2), scripted(attempt="no"), seed=0, samples=2)
    written = ScriptedGenerator(lambda prompt, index: f"{prompt.messages[0]['content']} {index}")
    episodes = protocol.reflect(attempts, written, seed=0)
    generator = scripted(retry="no")
    protocol.retry(episodes, generator, seed=0, arm="shuffled")
    assert [messages[3]["content"] for messages in messages_of(generator)] == [
        "Say 2. 2",
        "Say 2. 2",
        "Say 1. 0",
        "Say 1. 0",
    ]


def test_where_there_is_no_other_problem_no_retry_is_made() -> None:
    protocol = protocol_of()
    episodes = reflected(protocol, 1, 2, wrong=(1,))
    generator = scripted(retry="1")
    assert protocol.retry(episodes, generator, seed=0, arm="shuffled") == episodes
    assert generator.calls == []


def test_no_retry_follows_a_failure_without_a_reflection() -> None:
    protocol = protocol_of()
    episodes = attempted(protocol, 1, wrong=(1,))
    assert protocol.retry(episodes, scripted(retry="1"), seed=0)[0].retries == {}
    assert protocol.retry(episodes, scripted(retry="1"), seed=0, arm="none")[0].retries["none"].text == "1"


@pytest.mark.parametrize(("reflection", "leaked"), [("It is 7.", True), ("Read again.", False)])
def test_a_reflection_is_tested_for_the_answer(reflection: str, leaked: bool) -> None:
    protocol = protocol_of()
    episode = protocol.reflect(attempted(protocol, 7, wrong=(7,)), scripted(reflection=reflection), seed=0)[0]
    assert episode.reflection is not None
    assert episode.reflection.leaked is leaked


@pytest.mark.parametrize("judged", ["verdicts", "leaks"])
def test_completions_are_judged_while_others_are_being_generated(
    judged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generator ends its second half only after the verifier has judged some of the first."""
    log = tmp_path / "log"
    monkeypatch.setenv("TOY_VERDICTS", str(log))

    class Halves(ScriptedGenerator):
        def generate(self, conversations: Any, sampling: Any, *, ended: Any = None) -> Any:
            finished: list[Any] = []
            completions = super().generate(conversations, sampling, ended=finished.extend)
            half = len(finished) // 2
            ended(finished[:half])
            deadline = time.monotonic() + 60
            while not log.exists():
                assert time.monotonic() < deadline, "nothing was judged before the second half ended"
            ended(finished[half:])
            return completions

    task = Leaky() if judged == "leaks" else Even()
    with Judge(task) as judge:
        protocol = Protocol(task, judge, resolve(task))
        if judged == "verdicts":
            episodes = protocol.attempt(examples(*range(8)), Halves(lambda prompt, index: "ab"), seed=0)
            assert {episode.attempt.verdict.outcome for episode in episodes} == {"pass"}
        else:
            failed = protocol.attempt(examples(*range(8)), ScriptedGenerator(lambda prompt, index: "odd"), seed=0)
            log.unlink()
            reflected = protocol.reflect(failed, Halves(lambda prompt, index: "ab"), seed=0)
            assert [episode.reflection and episode.reflection.leaked for episode in reflected] == [True] * 8


class Leaky(Even):
    """Its test for leaks is its verifier, as by default."""

    def leaks(self, example: Example, reflection: str) -> bool:
        return bool(self.verify(example, reflection))


def test_a_new_reflection_removes_the_earlier_retries() -> None:
    protocol = protocol_of()
    episodes = protocol.retry(reflected(protocol, 7, wrong=(7,)), scripted(retry="7"), seed=0)
    again = protocol.reflect(episodes, scripted(reflection="Other."), seed=0)
    assert again[0].retries == {}


def test_each_turn_has_its_own_sampling_parameters() -> None:
    class Remembering(ScriptedGenerator):
        def generate(self, conversations: Any, sampling: Any, *, ended: Any = None) -> Any:
            seen.append(sampling)
            return super().generate(conversations, sampling, ended=ended)

    seen: list[Any] = []
    turns = ("attempt", "reflection", "retry")
    protocol = protocol_of(
        *(f"sampling.{turn}.max_tokens={5 + place}" for place, turn in enumerate(turns)),
        *(f"sampling.{turn}.temperature=0.{5 + place}" for place, turn in enumerate(turns)),
        "sampling.retry.top_k=3",
        "sampling.retry.top_p=0.5",
    )
    generator = Remembering(lambda prompt, index: "no one two three four five six seven")
    episodes = protocol.attempt(examples(7), generator, seed=1)
    episodes = protocol.retry(protocol.reflect(episodes, generator, seed=2), generator, seed=3)
    assert [(s.max_tokens, s.temperature, s.seed) for s in seen] == [(5, 0.5, 1), (6, 0.6, 2), (7, 0.7, 3)]
    assert [(s.top_k, s.top_p) for s in seen] == [(0, 1.0), (0, 1.0), (3, 0.5)]
    assert (episodes[0].attempt.tokens, episodes[0].attempt.stopped) == (5, "length")
    assert (episodes[0].retries["reflect"].tokens, episodes[0].retries["reflect"].stopped) == (7, "length")


def test_resampling_is_sampled_as_an_attempt_and_other_arms_as_a_retry() -> None:
    seen: list[Any] = []

    class Remembering(ScriptedGenerator):
        def generate(self, conversations: Any, sampling: Any, *, ended: Any = None) -> Any:
            seen.append((sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens))
            return super().generate(conversations, sampling, ended=ended)

    attempt = ("temperature=0.2", "top_p=0.5", "top_k=3", "max_tokens=40")
    retry = ("temperature=1.5", "top_p=0.9", "top_k=5", "max_tokens=7")
    protocol = protocol_of(
        *(f"sampling.attempt.{option}" for option in attempt), *(f"sampling.retry.{option}" for option in retry)
    )
    episodes = reflected(protocol, 1, 2, wrong=(1, 2))
    for arm in MESSAGES:
        protocol.retry(episodes, Remembering(lambda prompt, index: "no"), seed=0, arm=arm)
    sampled = dict(zip(MESSAGES, seen, strict=True))
    assert sampled.pop("resample") == (0.2, 0.5, 3, 40)
    assert set(sampled.values()) == {(1.5, 0.9, 5, 7)}


def test_an_episode_survives_json() -> None:
    protocol = protocol_of()
    episode = protocol.retry(reflected(protocol, 7, wrong=(7,)), scripted(retry="7"), seed=0)[0]
    assert Episode.model_validate_json(episode.model_dump_json()) == episode


def test_a_seed_follows_from_its_parts_alone() -> None:
    assert seed_of(0, "mine", 1) == seed_of(0, "mine", 1)
    assert seed_of(0, "mine", 1) == 13_010_417_577_330_635  # the same on every machine
    assert len({seed_of(0, "mine", 1), seed_of(1, "mine", 0), seed_of(0, "mine1"), seed_of("0", "mine", 1)}) == 4
    assert 0 <= seed_of("x") < 2**63


def test_a_configuration_without_wording_uses_the_tasks() -> None:
    task = Toy()
    assert Config(task="toy").wording_for(task) == task.wording


def test_recorded_episodes_give_exactly_the_prompts_of_the_sampled_ones() -> None:
    tokenizer = tiny.tiny_tokenizer()
    generator = TransformersGenerator(tiny.tiny_model(tokenizer, spread=0.3), tokenizer)
    protocol = protocol_of(*(f"sampling.{turn}.max_tokens=9" for turn in ("attempt", "reflection")))
    episodes = protocol.attempt(examples(*range(12)), generator, seed=0)
    reflected = [one for one in protocol.reflect(episodes, generator, seed=0) if one.reflection is not None]
    read = [Episode.model_validate_json(one.model_dump_json()) for one in reflected]
    older = [Episode.model_validate_json(one.model_dump_json(exclude=WITHOUT_IDS)) for one in reflected]

    def encoded(episodes: list[Episode]) -> list[list[int]]:
        return [encode(tokenizer, protocol.retry_request(one, one.reflection)) for one in episodes]

    assert encoded(read) == encoded(reflected)
    assert encoded(older) != encoded(reflected), "the text alone gives the same tokens: the test proves nothing"
    assert [one.attempt.text for one in older] == [one.attempt.text for one in reflected]


THOUGHT = "<think>I count.</think>"


class ThinkingScript(ScriptedGenerator):
    """A script whose replies may begin with a thought; one without its end is cut off at the token limit."""

    def generate(
        self, conversations: Sequence[Prompt], sampling: Sampling, *, ended: Ended | None = None
    ) -> list[Completion]:
        made = []
        for one in super().generate(conversations, sampling):
            parts = Marks("<think>", "</think>").split(one.text)
            stopped = "end" if parts.closed else "length"
            split = {"text": parts.answer, "thinking": parts.thinking, "thought_closed": parts.closed}
            made.append(one.model_copy(update={**split, "raw": one.text, "stopped": stopped}))
        if ended:
            ended(list(enumerate(made)))
        return made


def thinking(**replies: str) -> ThinkingScript:
    return ThinkingScript(lambda prompt, index: replies[turn(prompt)])


def test_the_verifier_and_the_leak_test_read_the_answer_without_the_thinking() -> None:
    protocol = protocol_of()
    generator = thinking(
        attempt=f"{THOUGHT}8", reflection="<think>It is 3.</think>Too many.", retry="<think>8</think>3"
    )
    episodes = protocol.attempt(examples(3), generator, seed=0)
    assert episodes[0].attempt.verdict.outcome == "fail"
    [episode] = protocol.retry(protocol.reflect(episodes, generator, seed=0), generator, seed=0)
    assert episode.reflection is not None
    assert episode.reflection.leaked is False
    assert episode.retries["reflect"].verdict.outcome == "pass"
    assert episode.retries["reflect"].raw == "<think>8</think>3"


class ReadsEverything(Toy):
    """A task whose verifier reads the thinking too."""

    reads = "everything"

    def verify(self, example: Example, response: str) -> bool:
        return "I count" in response


def test_a_task_may_read_everything() -> None:
    [episode] = protocol_of(task=ReadsEverything()).attempt(examples(3), thinking(attempt=f"{THOUGHT}8"), seed=0)
    assert episode.attempt.verdict.outcome == "pass"


def test_an_attempt_that_was_cut_off_in_its_thinking_is_never_judged() -> None:
    class Counting(Toy):
        def verify(self, example: Example, response: str) -> bool:
            raise AssertionError("there is no answer to judge")

    [episode] = protocol_of(task=Counting()).attempt(examples(3), thinking(attempt="<think>It is 3"), seed=0)
    assert episode.attempt.cut_in_thought
    assert (episode.attempt.verdict.outcome, episode.attempt.verdict.reason) == (
        "error",
        "the token limit cut it off in its thinking",
    )
    assert not episode.failed


def test_no_retry_follows_a_reflection_that_was_cut_off_in_its_thinking() -> None:
    protocol = protocol_of()
    generator = thinking(attempt="8", reflection="<think>It was", retry="3")
    episodes = protocol.reflect(protocol.attempt(examples(3), generator, seed=0), generator, seed=0)
    [episode] = protocol.retry(episodes, generator, seed=0)
    assert episode.reflection is not None
    assert episode.reflection.leaked is None
    assert episode.retries["reflect"].stopped == "skipped"
    assert [turn(prompt) for prompt in generator.conversations] == ["attempt", "reflection"]
    assert reward_of([episode]) is None


@pytest.mark.parametrize("history", ["template", "answer", "verbatim"])
def test_later_prompts_show_what_the_history_is_set_to(history: str) -> None:
    protocol = protocol_of(f"history={history}")
    generator = thinking(attempt=f"{THOUGHT}8", reflection="Hm.", retry="3")
    [episode] = protocol.attempt(examples(3), generator, seed=0)
    shown = protocol.reflection_request(episode).messages[1]
    assert shown["content"] == "8"
    assert shown.get("reasoning_content") == ("I count." if history == "template" else None)
