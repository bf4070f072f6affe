"""The built-in model and what it was trained on: the prompts in the code are the ones it knows."""

import importlib.util
import random
import re
import sys
from collections import Counter
from itertools import pairwise
from math import sqrt
from pathlib import Path

import pytest

from r3_plugin_countdown import corpus
from r3_plugin_countdown.task import Countdown
from r3core import Verdict, Wording
from r3core.config import Config
from r3core.episode import Answer, Episode
from r3core.pretraining import IGNORED, Piece, encode, text_of
from r3core.protocol import Protocol
from r3core.verification.judge import Judge

TASK = Countdown()
MODEL = TASK.demo.model
PROBLEMS = [problem for problem, _ in zip(TASK.load("train"), range(400), strict=False)]
MIXTURES = {"broad": corpus.BROAD, "final": corpus.FINAL}


def episodes(mixture=corpus.BROAD, count=1_500, seed=0):
    rng = random.Random(seed)
    for _ in range(count):
        example = rng.choice(PROBLEMS)
        yield example, corpus.episode(TASK, example, rng, mixture)


def said_by(conversation, role):
    return [turn for speaker, turn in conversation if speaker == role]


def reflections(mixture, count=3_000):
    for example, conversation in episodes(mixture, count):
        turns = said_by(conversation, "assistant")
        if len(turns) == 3:
            yield example, turns[1]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def pretrain():
    spec = importlib.util.spec_from_file_location("pretrain_script", Path(__file__).parents[1] / "pretrain.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("phrase", dict.fromkeys(corpus.phrases(TASK)))
def test_a_fixed_phrase_of_the_prompts_and_the_corpus_is_one_token_of_the_model(phrase, tokenizer):
    assert len(tokenizer.encode(phrase, add_special_tokens=False)) == 1, (
        "the built-in model does not know this phrase: take the change back, or run pretrain.py"
    )


def test_every_whole_number_that_can_be_written_is_one_token(tokenizer):
    numbers = map(str, range(corpus.LARGEST_RESULT + 1))
    assert all(len(tokenizer.encode(number, add_special_tokens=False)) == 1 for number in numbers)


def test_the_script_makes_the_tokenizer_that_is_shipped(tokenizer, pretrain):
    made = pretrain.make_tokenizer()
    assert made.get_vocab() == tokenizer.get_vocab()
    assert made.chat_template == tokenizer.chat_template


def test_nothing_the_user_says_is_spelled_out_in_bytes(tokenizer):
    for _, conversation in episodes(count=200):
        for turn in said_by(conversation, "user"):
            tokens = tokenizer.encode(text_of(turn), add_special_tokens=False)
            spelled = [tokenizer.decode(token) for token in tokens if token < 256]  # the first 256 are the bytes
            assert all(map(str.isdecimal, spelled))


def test_an_episode_is_the_conversation_of_the_protocol():
    protocol = Protocol(TASK, Judge(TASK), Config(task="countdown"))
    lengths = Counter()
    for example, conversation in episodes():
        messages = [{"role": role, "content": text_of(turn)} for role, turn in conversation]
        attempted, *reflected, last = [text_of(turn) for turn in said_by(conversation, "assistant")] * 2
        asked = protocol.attempt_request(example)
        if len(messages) > 2:
            episode = Episode(example=example, attempt=Answer(text=attempted, tokens=1, verdict=Verdict.failed()))
            asked = protocol.retry_request(episode, reflected[0] if len(messages) > 4 else None)
        assert messages == [*asked.messages, {"role": "assistant", "content": last}]
        lengths[len(messages)] += 1
    assert set(lengths) == {2, 4, 6}


def test_an_attempt_stands_alone_when_the_verifier_accepts_it_and_only_then():
    for example, conversation in episodes():
        turns = said_by(conversation, "assistant")
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


def test_only_the_opening_of_practice_and_failing_proposals_carry_no_loss():
    silent = Counter()
    for _, conversation in episodes():
        turns = said_by(conversation, "assistant")
        assert not any(piece.trained for turn in said_by(conversation, "user") for piece in turn)
        assert all(piece.trained for turn in (turns[0], turns[-1]) for piece in turn)
        for piece, after in pairwise([*turns[1], Piece("")] if len(turns) == 3 else []):
            failing = after.text.endswith(corpus.NO)
            assert piece.trained != failing or piece.text == corpus.SEARCH
            silent["proposal" if failing else "opening"] += not piece.trained
    assert min(silent["proposal"], silent["opening"]) > 100


@pytest.mark.parametrize("name", MIXTURES)
def test_practice_and_the_kinds_of_reflections_come_as_often_as_the_mixture_says(name):
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


def test_the_same_seed_makes_the_same_corpus():
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
        assert labels.count(end) == len(said_by(conversation, "assistant"))
        trained = "".join(text_of([p for p in turn if p.trained]) for turn in said_by(conversation, "assistant"))
        kept = [label for label in labels if label not in (IGNORED, end)]
        assert tokenizer.decode(kept) == trained


def test_the_model_is_small_and_vllm_takes_its_heads(model):
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 8_000_000
    assert 1_000_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 3_000_000
    assert model.config.head_dim == 64
    assert not list(MODEL.glob("*.bin"))


def test_the_model_solves_some_problems(model, tokenizer):
    from r3core.config import resolve
    from r3core.generation.transformers import TransformersGenerator

    config = resolve(TASK, overrides=["sampling.attempt.temperature=0"])
    problems = [problem for problem, _ in zip(TASK.load("validation"), range(32), strict=False)]
    generator = TransformersGenerator(model, tokenizer, batch_size=32)
    attempted = Protocol(TASK, Judge(TASK), config).attempt(problems, generator, seed=0)
    assert sum(episode.attempt.verdict.outcome == "pass" for episode in attempted) > 0
    assert all(episode.attempt.stopped == "end" for episode in attempted)


class Rephrased(Countdown):
    """Countdown in other words."""

    name = "rephrased"

    def prompt(self, example):
        return "Please: " + super().prompt(example)


class Reworded(Countdown):
    """Countdown with another request to reflect."""

    name = "reworded"
    wording = Wording(reflect="Why?")


@pytest.mark.parametrize(
    ("task", "values", "changed"),
    [
        (TASK, {}, []),
        (TASK, {"wording": {"retry": "Again."}}, ["`wording.retry` is set"]),
        (TASK, {"feedback": "reason"}, ["`feedback` is reason"]),
        (Rephrased(), {}, ["`Rephrased` has a `prompt` of its own"]),
        (Reworded(), {}, ["`Reworded` has a `wording` of its own"]),
        (Reworded(), {"model": "another/one", "feedback": "reason"}, []),
        (Countdown(numbers=(4,), data_seed=7), {}, ["option `numbers` is (4,)"]),
    ],
)
def test_changes_of_what_the_built_in_model_knows_are_told(task, values, changed):
    from r3core.pipeline import unfamiliar

    assert unfamiliar(task, Config(task=task.name, **values)) == changed


def test_a_run_with_changed_prompts_is_warned(tmp_path, capsys):
    from r3core.pipeline import Pipeline

    config = Config(task="countdown", output_dir=tmp_path / "run", feedback="reason")
    with Pipeline.open(TASK, config):
        pass
    assert capsys.readouterr().err == (
        "warning: the built-in model knows only what it was made for: `feedback` is reason\n"
        "hint: name another model with --model\n"
    )
