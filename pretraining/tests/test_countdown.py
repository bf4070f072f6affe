"""Countdown's corpus and tokenizer: the prompts in the code are those that the built-in model was trained on."""

import random
import re
from collections import Counter
from itertools import pairwise
from math import sqrt

import pytest

from pretraining import countdown
from pretraining import countdown_corpus as corpus
from pretraining.trainer import IGNORED, Piece, encode, text_of
from r3_plugin_countdown.task import Countdown
from r3core import Verdict
from r3core.config import Config
from r3core.episode import Answer, Episode
from r3core.protocol import Protocol
from r3core.verification.judge import Judge

pytestmark = pytest.mark.slow

TASK = Countdown()
PROBLEMS = [problem for problem, _ in zip(TASK.load("train"), range(400), strict=False)]
MIXTURES = {"broad": corpus.BROAD, "final": corpus.FINAL}


def episodes(mixture=corpus.BROAD, count=1_500, seed=0):
    rng = random.Random(seed)
    for _ in range(count):
        example = rng.choice(PROBLEMS)
        yield example, corpus.episode(TASK, example, rng, mixture)


def turns_of(conversation, role):
    return [turn for speaker, turn in conversation if speaker == role]


def reflections(mixture, count=3_000):
    for example, conversation in episodes(mixture, count):
        turns = turns_of(conversation, "assistant")
        if len(turns) == 3:
            yield example, turns[1]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TASK.demo.model)


@pytest.mark.parametrize("phrase", dict.fromkeys(corpus.phrases(TASK)))
def test_a_fixed_phrase_of_the_prompts_and_the_corpus_is_one_token_of_the_model(phrase, tokenizer):
    assert len(tokenizer.encode(phrase, add_special_tokens=False)) == 1, (
        "the built-in model was not trained on this phrase: revert the change, or run `python -m pretraining.countdown`"
    )


def test_every_whole_number_up_to_the_largest_result_is_one_token(tokenizer):
    numbers = map(str, range(corpus.LARGEST_RESULT + 1))
    assert all(len(tokenizer.encode(number, add_special_tokens=False)) == 1 for number in numbers)


def test_the_script_makes_the_tokenizer_that_is_shipped(tokenizer):
    made = countdown.make_tokenizer()
    assert made.get_vocab() == tokenizer.get_vocab()
    assert made.chat_template == tokenizer.chat_template


def test_prompts_contain_no_byte_tokens_other_than_digits(tokenizer):
    for _, conversation in episodes(count=200):
        for turn in turns_of(conversation, "user"):
            tokens = tokenizer.encode(text_of(turn), add_special_tokens=False)
            spelled = [tokenizer.decode(token) for token in tokens if token < 256]  # the first 256 are the bytes
            assert all(map(str.isdecimal, spelled))


def test_an_episode_is_the_conversation_of_the_protocol():
    protocol = Protocol(TASK, Judge(TASK), Config(task="countdown"))
    lengths = Counter()
    for example, conversation in episodes():
        messages = [{"role": role, "content": text_of(turn)} for role, turn in conversation]
        attempted, *reflected, last = [text_of(turn) for turn in turns_of(conversation, "assistant")] * 2
        request = protocol.attempt_request(example)
        if len(messages) > 2:
            episode = Episode(example=example, attempt=Answer(text=attempted, tokens=1, verdict=Verdict.failed()))
            request = protocol.retry_request(episode, reflected[0] if len(messages) > 4 else None)
        assert messages == [*request.messages, {"role": "assistant", "content": last}]
        lengths[len(messages)] += 1
    assert set(lengths) == {2, 4, 6}


def test_an_episode_ends_after_the_attempt_exactly_when_the_verifier_accepts_it():
    for example, conversation in episodes():
        turns = turns_of(conversation, "assistant")
        passed = TASK.verify(example, text_of(turns[0])).outcome == "pass"
        assert passed == (len(turns) == 1)


def test_every_calculation_in_a_reflection_is_right():
    seen = 0
    for _, turn in reflections(corpus.BROAD, count=800):
        for left, operator, right, result in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", text_of(turn)):
            left, right, result = int(left), int(right), int(result)
            known = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}
            assert known[operator] == result
            assert operator != "/" or left % right == 0
            seen += 1
    assert seen > 1_000


def test_the_step_that_a_search_ends_on_leads_to_the_target():
    found = 0
    for example, turn in reflections(corpus.BROAD, count=800):
        match = re.search(r"(\d+ [-+*/] \d+) = \d+ yes\.", text_of(turn))
        if match:
            teacher = corpus.Teacher(example, corpus.BROAD, random.Random(0))
            assert match[1] in {str(solution.first) for solution in teacher.solutions}
            found += 1
    assert found > 200


def test_only_the_opening_of_practice_and_failing_steps_carry_no_loss():
    silent = Counter()
    for _, conversation in episodes():
        turns = turns_of(conversation, "assistant")
        assert not any(piece.trained for turn in turns_of(conversation, "user") for piece in turn)
        assert all(piece.trained for turn in (turns[0], turns[-1]) for piece in turn)
        for piece, after in pairwise([*turns[1], Piece("")] if len(turns) == 3 else []):
            failing = after.text.endswith(corpus.NO)
            assert piece.trained != failing or piece.text == corpus.SEARCH
            silent["proposal" if failing else "opening"] += not piece.trained
    assert min(silent["proposal"], silent["opening"]) > 100


@pytest.mark.parametrize("name", MIXTURES)
def test_practice_and_the_kinds_of_reflections_come_as_often_as_in_the_mixture(name):
    mixture = MIXTURES[name]
    practice, kinds = [], Counter()
    for _, turn in reflections(mixture):
        opening = next((piece for piece in turn if piece.text == corpus.SEARCH), None)
        practice.append(opening is not None and not opening.trained)
        if not practice[-1]:
            stepped = any(piece.text.startswith(corpus.BEGIN_WITH) for piece in turn)
            kinds["search" if opening else "step" if stepped else "platitude"] += 1
    assert near(sum(practice), len(practice), mixture.practice)
    expected = dict(mixture.kinds)
    expected["step"] = expected.pop("right step") + expected.pop("wrong step")
    for kind, share in expected.items():
        assert near(kinds[kind], kinds.total(), share), kind


def near(count, total, share):
    return abs(count / total - share) < 4 * sqrt(share * (1 - share) / total)


def test_the_same_seed_generates_the_same_corpus():
    assert list(episodes(count=50)) == list(episodes(count=50))
    assert list(episodes(count=50)) != list(episodes(count=50, seed=1))


def test_labels_are_what_is_trained_and_the_ends_of_the_assistants_turns(tokenizer):
    end = tokenizer.eos_token_id
    for _, conversation in episodes(count=50):
        ids, labels = encode(tokenizer, conversation)
        assert all(label in (token, IGNORED) for token, label in zip(ids, labels, strict=True))
        assert ids == tokenizer.apply_chat_template(
            [{"role": role, "content": text_of(turn)} for role, turn in conversation], return_dict=False
        )
        assert labels.count(end) == len(turns_of(conversation, "assistant"))
        trained = "".join(text_of([p for p in turn if p.trained]) for turn in turns_of(conversation, "assistant"))
        kept = [label for label in labels if label not in (IGNORED, end)]
        assert tokenizer.decode(kept) == trained
