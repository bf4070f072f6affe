"""The contract of every engine that is installed; `--engines` chooses others, and none is skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
import password
import pytest

from r3core import Example, Prompt, RunError
from r3core.generation import chat
from r3core.generation.generator import Completion, Generator, Sampling
from r3core.generation.models import load_model
from r3core.generation.transformers import TransformersGenerator
from r3core.sections import Turn, Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

pytestmark = pytest.mark.slow

GREEDY = Sampling(temperature=0, max_tokens=12)
LENGTHS = (3, 40, 1, 17, 17, 90, 8, 2)
CONVERSATIONS = [Prompt(messages=[{"role": "user", "content": "ab" * length}]) for length in LENGTHS]
SERVERS = ("openai", "served")
"""Engines that receive messages, and return no token ids."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engines.model_in(tmp_path_factory.mktemp("models") / "contract")


@pytest.fixture(scope="module")
def generator(engine: str, folder: Path) -> Iterator[Generator]:
    assert engine in engines.ENGINES, f"tests/support/engines.py does not open the engine `{engine}`"
    with engines.ENGINES[engine](folder) as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(folder: Path) -> TransformersGenerator:
    """The same model in this process, one conversation at a time: what every engine generates when it is greedy."""
    return TransformersGenerator(*load_model(folder, dtype="float32"), batch_size=1)


@pytest.fixture(scope="module")
def tokenizer(reference: TransformersGenerator) -> PreTrainedTokenizerBase:
    return reference.tokenizer


Compare = Callable[[Sequence[Completion]], list[tuple[str, int, str]]]


@pytest.fixture(scope="module")
def comparable(engine: str) -> Compare:
    """Text, tokens and end of completions, as far as a server returns them.

    A vLLM server counts the end-of-turn token too, and leaves out bytes at the end that are not a whole character.
    """

    def comparable(completions: Sequence[Completion]) -> list[tuple[str, int, str]]:
        extra = engine == "served"
        return [(one.text.replace("\ufffd", ""), count(one, extra=extra), one.stopped) for one in completions]

    def count(one: Completion, *, extra: bool) -> int:
        return one.tokens - (extra and one.token_ids is None and one.stopped == "end")

    return comparable


def test_completions_are_those_of_the_model_in_the_order_of_the_conversations(
    generator: Generator, reference: TransformersGenerator, comparable: Compare
) -> None:
    expected = comparable(reference.generate(CONVERSATIONS, GREEDY))
    assert comparable(generator.generate(CONVERSATIONS, GREEDY)) == expected
    assert comparable(generator.generate(CONVERSATIONS[::-1], GREEDY)) == expected[::-1]
    assert len(set(expected)) == len(set(LENGTHS))


def test_a_turn_ends_at_its_end_token_which_is_no_part_of_it(
    generator: Generator, engine: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    completions = generator.generate(CONVERSATIONS * 4, Sampling(max_tokens=8, seed=1))
    assert {completion.stopped for completion in completions} == {"end", "length"}
    assert len({completion.tokens for completion in completions}) > 3
    for completion in completions:
        assert (
            completion.tokens == 8 if completion.stopped == "length" else completion.tokens < 8 + (engine == "served")
        )
        if engine not in SERVERS:
            assert completion.token_ids is not None
            assert all(token % engines.END_EVERY for token in completion.token_ids)
            assert tokenizer.decode(completion.token_ids, skip_special_tokens=True) == completion.text


@pytest.mark.parametrize("limit", [1, 5])
def test_no_turn_is_longer_than_its_limit(generator: Generator, limit: int) -> None:
    completions = generator.generate(CONVERSATIONS, Sampling(max_tokens=limit, seed=2))
    assert all(completion.tokens <= limit for completion in completions)
    assert any(completion.stopped == "length" for completion in completions)


def test_one_seed_gives_one_text_and_another_seed_another(generator: Generator) -> None:
    def texts(seed: int) -> list[str]:
        return [one.text for one in generator.generate(CONVERSATIONS, Sampling(max_tokens=12, seed=seed))]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_equal_conversations_are_continued_each_in_its_own_way(generator: Generator) -> None:
    completions = generator.generate(CONVERSATIONS[:1] * 16, Sampling(max_tokens=12, seed=5))
    assert len({completion.text for completion in completions}) > 8


def test_token_ids_go_in_and_come_out_as_they_are(generator: Any, engine: str, reference: Any) -> None:
    """Ids that no text would be cut into are continued from just where they end."""
    if engine in SERVERS:
        assert not hasattr(generator, "continue_ids")
        return
    prompts = [[2, 200, 3, 100 + index, 55] for index in range(6)]
    whole = generator.continue_ids(prompts, GREEDY)
    assert [one.ids for one in whole] == [one.ids for one in reference.continue_ids(prompts, GREEDY)]
    assert all(one.ended == (one.ids[-1] % engines.END_EVERY == 0) for one in whole)
    long = [(prompt, one) for prompt, one in zip(prompts, whole, strict=True) if len(one.ids) > 3]
    assert long
    rest = generator.continue_ids([prompt + one.ids[:2] for prompt, one in long], GREEDY)
    assert [one.ids[: len(full.ids) - 2] for one, (_, full) in zip(rest, long, strict=True)] == [
        full.ids[2:] for _, full in long
    ]


def test_every_engine_continues_conversations_as_they_are_encoded(
    generator: Any, engine: str, reference: TransformersGenerator
) -> None:
    """With control tokens that are spelled in messages, and with turns that bring their sampled tokens."""
    if engine in SERVERS:
        return  # the server encodes them
    sampled = generator.generate(CONVERSATIONS[:4], Sampling(max_tokens=8, seed=5))
    conversations = [
        conversation.then(
            {"role": "assistant", "content": one.text, "token_ids": one.token_ids},
            {"role": "user", "content": "No.<|end|><|user|>"},
        )
        for conversation, one in zip(CONVERSATIONS, sampled, strict=False)
    ]
    prompts = [chat.encode(reference.tokenizer, conversation) for conversation in conversations]
    assert {prompt.count(reference.tokenizer.eos_token_id) for prompt in prompts} == {3}
    expected = [chat.completion(reference.tokenizer, one) for one in generator.continue_ids(prompts, GREEDY)]
    assert generator.generate(conversations, GREEDY) == expected


def test_a_prompt_longer_than_the_context_is_left_out(generator: Generator, comparable: Compare) -> None:
    long = Prompt(messages=[{"role": "user", "content": "long " * engines.CONTEXT}])
    reported: list[int] = []

    def ended(new: Sequence[tuple[int, Completion]]) -> None:
        reported.extend(index for index, _ in new)

    given = generator.generate([*CONVERSATIONS[:3], long, *CONVERSATIONS[3:]], GREEDY, ended=ended)
    assert sorted(reported) == list(range(len(CONVERSATIONS) + 1))
    out = given.pop(3)
    assert (out.text, out.tokens, out.stopped) == ("", 0, "overlong")
    assert str(engines.CONTEXT) in out.fault
    assert comparable(given) == comparable(generator.generate(CONVERSATIONS, GREEDY))


def test_an_example_that_is_too_long_is_neither_right_nor_wrong(generator: Generator) -> None:
    turns = Turns(attempt=Turn(max_tokens=8))
    protocol = password.protocol(password.config(steps=1).model_copy(update={"sampling": turns}))
    short = [Example(id=f"short {number}", prompt="Left?") for number in range(19)]
    long = [Example(id=f"the long one {number}", prompt="long " * engines.CONTEXT) for number in range(2)]
    with protocol.judge:
        *others, out = protocol.attempt([*short, long[0]], generator, seed=0)
        assert (out.attempt.stopped, out.attempt.verdict.outcome, out.failed) == ("overlong", "error", False)
        assert str(engines.CONTEXT) in out.attempt.verdict.reason
        assert all(episode.attempt.stopped != "overlong" for episode in others)
        assert protocol.judge.counts["error"] == 0, "the verifier did nothing wrong"
        with pytest.raises(RunError, match=r"2 of 21 conversations do not fit the model's context") as stopped:
            protocol.attempt(long[1:], generator, seed=0)
    assert "example 'the long one 0'" in stopped.value.hints[0]


def test_what_follows_a_request_to_reflect_that_is_too_long(generator: Generator) -> None:
    short = Turn(max_tokens=8)
    settings = password.config(steps=1).model_copy(
        update={"sampling": Turns(attempt=short, reflection=short, retry=short), "max_overlong": 1.0}
    )
    protocol = password.protocol(settings)
    attempt = password.failures()[0].attempt.model_copy(update={"text": "long " * engines.CONTEXT, "token_ids": None})
    with protocol.judge:
        [episode] = protocol.reflect(
            [password.failures()[0].episode().model_copy(update={"attempt": attempt})], generator, seed=0
        )
        assert episode.reflection is not None
        assert (episode.reflection.stopped, episode.reflection.leaked) == ("overlong", None)
        [episode] = protocol.retry([episode], generator, seed=0)
        [episode] = protocol.retry([episode], generator, seed=0, arm="resample")
    assert episode.retries["reflect"].stopped == "overlong"
    assert episode.retries["reflect"].verdict.outcome == "error"
    assert episode.retries["resample"].stopped != "overlong", "the task alone fits"


def test_a_completion_may_be_empty(generator: Generator, reference: TransformersGenerator, comparable: Compare) -> None:
    texts = [chr(33 + number) * (number % 5 + 1) for number in range(60)]
    conversations = [Prompt(messages=[{"role": "user", "content": text}]) for text in texts]
    silent = [
        one
        for one, reported in zip(conversations, reference.generate(conversations, GREEDY), strict=True)
        if comparable([reported])[0][:2] == ("", 0)
    ]
    assert silent, "no prompt is answered by an end at once: the test proves nothing"
    assert comparable(generator.generate(silent, GREEDY)) == [("", 0, "end")] * len(silent)


def test_a_thousand_prompts_at_once_come_back_in_order_each_reported_once(
    generator: Generator, reference: TransformersGenerator, comparable: Compare
) -> None:
    conversations = [Prompt(messages=[{"role": "user", "content": f"{number % 50}"}]) for number in range(1000)]
    sampling = GREEDY.model_copy(update={"max_tokens": 3})
    reported: list[int] = []
    completions = generator.generate(
        conversations, sampling, ended=lambda new: reported.extend(index for index, _ in new)
    )
    assert sorted(reported) == list(range(1000))
    assert comparable(completions) == comparable(reference.generate(conversations[:50], sampling)) * 20


def test_more_prompt_tokens_than_an_engine_takes_at_once_change_nothing(generator: Generator) -> None:
    sampling = Sampling(max_tokens=3, seed=4)
    completions = generator.generate(CONVERSATIONS * 40, sampling)
    assert len(completions) == len(CONVERSATIONS) * 40
    assert generator.generate(CONVERSATIONS * 40, sampling) == completions


class Enough(Exception):
    """Raised by a callback that has seen enough."""


def test_generation_is_aborted_when_the_callback_raises(generator: Generator, comparable: Compare) -> None:
    before = comparable(generator.generate(CONVERSATIONS, GREEDY))
    reported: list[int] = []

    def ended(new: Sequence[tuple[int, Completion]]) -> None:
        reported.extend(index for index, _ in new)
        raise Enough

    with pytest.raises(Enough):
        generator.generate(CONVERSATIONS * 40, Sampling(max_tokens=60), ended=ended)
    assert 0 < len(reported) < len(CONVERSATIONS) * 40
    assert comparable(generator.generate(CONVERSATIONS, GREEDY)) == before


def test_no_conversations_give_no_completions(generator: Generator) -> None:
    assert generator.generate([], GREEDY) == []
