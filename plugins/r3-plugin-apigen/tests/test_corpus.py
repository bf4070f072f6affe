"""The built-in model and what it was trained on: the prompts in the code are the ones it knows."""

import importlib.util
import json
import random
import re
import sys
from collections import Counter
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest

from r3_plugin_apigen import coined, corpus
from r3_plugin_apigen.calls import kind_of
from r3_plugin_apigen.catalog import tools
from r3_plugin_apigen.task import Apigen
from r3core import Example, Verdict
from r3core.config import Config
from r3core.episode import Answer, Episode
from r3core.pretraining import text_of
from r3core.protocol import Protocol
from r3core.verification.judge import Judge

TASK = Apigen()
MODEL = TASK.demo.model
BROAD = replace(corpus.BROAD, drills=0.0)
MIXTURES = {"broad": BROAD, "final": corpus.FINAL}


def problem_of(episodes, rng, mixture=BROAD):
    return episodes.problem(rng, mixture.splits, disguised=mixture.disguised, mixed=mixture.mixed)


def teachers(mixture=BROAD, count=1_500, seed=0):
    rng, episodes = random.Random(seed), corpus.Episodes(TASK)
    for _ in range(count):
        problem = problem_of(episodes, rng)
        yield problem.example(), corpus.Teacher(problem, mixture, rng)


def transcripts(mixture=BROAD, count=1_500, seed=0):
    rng, episodes = random.Random(seed), corpus.Episodes(TASK)
    return [episodes(rng, mixture) for _ in range(count)]


def said_by(conversation, role):
    return [turn for speaker, turn in conversation if speaker == role]


def near(count, total, share):
    return abs(count / total - share) < 4 * sqrt(share * (1 - share) / total)


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
    spec = importlib.util.spec_from_file_location("pretrain_apigen", Path(__file__).parents[1] / "pretrain.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_right_calls_pass_and_wrong_ones_fail():
    mistakes, kinds = Counter(), Counter()
    for example, teacher in teachers():
        assert TASK.verify(example, teacher.right().text()).outcome == "pass"
        wrong = teacher.wrong()
        verdict = TASK.verify(example, wrong.text())
        assert verdict.outcome == "fail", wrong
        mistakes[wrong.mistake] += 1
        kinds[kind_of(verdict.reason)] += 1
    assert mistakes.keys() == corpus.MISTAKES.keys()
    assert min(mistakes.values()) > 50
    assert len(kinds) >= 3


def test_no_reflection_gives_the_calls_away():
    for example, teacher in teachers(count=600):
        attempt = teacher.wrong()
        for kind in corpus.FINAL.kinds:
            reflection, _ = teacher.reflection(kind, attempt)
            stated = [value for value in teacher.values.values() if not isinstance(value, bool)]
            assert not stated or not TASK.leaks(example, text_of(reflection)), text_of(reflection)


def test_a_review_ends_on_the_tool_and_the_arguments_of_the_request():
    for _, teacher in teachers(count=300):
        reflection, follows = teacher.reflection("review", teacher.wrong())
        tool, stated = re.search(r"(\S+) yes\.(?: The request states ([^.]*)\.)?", text_of(reflection)).groups()
        assert tool == follows.form.name == teacher.form.name
        assert (stated.split(", ") if stated else []) == list(teacher.values)


def test_a_diagnosis_is_of_the_attempt_when_it_is_right_and_of_something_else_when_it_is_wrong():
    for _, teacher in teachers(count=600):
        attempt = teacher.wrong()
        right, follows = teacher.reflection("right diagnosis", attempt)
        assert text_of(right) == f"{corpus.DIAGNOSES[attempt.mistake]}{attempt.about}."
        assert follows == teacher.right()
        wrong, _ = teacher.reflection("wrong diagnosis", attempt)
        assert text_of(wrong) != text_of(right)


def test_an_episode_is_the_conversation_of_the_protocol():
    protocol, rng, episodes = (
        Protocol(TASK, Judge(TASK), Config(task="apigen")),
        random.Random(0),
        corpus.Episodes(TASK),
    )
    lengths = Counter()
    for _ in range(300):
        state, made, known = rng.getstate(), episodes._made, episodes._forms
        rng.random()  # whether it is a drill
        example = problem_of(episodes, rng).example()
        rng.setstate(state)
        episodes._made, episodes._forms = made, known
        conversation = episodes(rng, BROAD)
        messages = [{"role": role, "content": text_of(turn)} for role, turn in conversation]
        attempted, *reflected, last = [text_of(turn) for turn in said_by(conversation, "assistant")] * 2
        asked = protocol.attempt_request(example)
        if len(messages) > 2:
            episode = Episode(example=example, attempt=Answer(text=attempted, tokens=1, verdict=Verdict.failed()))
            asked = protocol.retry_request(episode, reflected[0] if len(messages) > 4 else None)
        assert messages == [*asked.messages, {"role": "assistant", "content": last}]
        assert (TASK.verify(example, attempted).outcome == "pass") == (len(messages) == 2)
        lengths[len(messages)] += 1
    assert set(lengths) == {2, 4, 6}


def test_only_the_opening_of_practice_carries_no_loss_in_the_final_mixture_and_in_others_wrong_calls_too():
    silent = Counter()
    for name, mixture in MIXTURES.items():
        for conversation in transcripts(mixture):
            assert not any(piece.trained for turn in said_by(conversation, "user") for piece in turn)
            first, *others = said_by(conversation, "assistant")
            assert first[0].trained == (name == "final" or not others)
            silent[name, "review"] += any(p.text == corpus.REVIEW and not p.trained for turn in others for p in turn)
            silent[name, "call"] += any(p.text[0] == "[" and not p.trained for turn in others for p in turn)
    assert min(silent["broad", "review"], silent["broad", "call"], silent["final", "review"]) > 100
    assert silent["final", "call"] == 0


def test_a_drill_asks_once_for_each_of_its_tools_and_is_answered_rightly():
    rng, episodes = random.Random(0), corpus.Episodes(TASK)
    sizes = Counter()
    for _ in range(100):
        conversation = episodes(rng, replace(BROAD, drills=1.0))
        questions = [text_of(turn) for turn in said_by(conversation, "user")]
        head = questions[0][: questions[0].index(corpus.REQUEST)]
        offered = [json.loads(line) for line in head.splitlines()[1:]]
        called = []
        for question, turn in zip(questions, said_by(conversation, "assistant"), strict=True):
            asked = question[question.index(corpus.REQUEST) :]
            (call,) = json.loads(text_of(turn))
            told = {"query": asked.removeprefix(corpus.REQUEST).split("\n")[0], "tools": offered}
            example = Example.model_validate({"id": "x", "answer": [call], "info": told})
            assert TASK.prompt(example) == head + asked
            assert TASK.verify(example, text_of(turn)).outcome == "pass"
            called.append(call["name"])
        assert len(set(called)) == len(called)  # a tool is left out when its query is one of the test split
        sizes[len(called)] += 1
    assert min(sizes[size] for size in (2, 3, 4)) > 10


@pytest.mark.parametrize("name", MIXTURES)
def test_practice_and_platitudes_come_as_often_as_the_mixture_says(name):
    mixture = MIXTURES[name]
    turns = [said_by(conversation, "assistant") for conversation in transcripts(mixture, 3_000)]
    first = [len(said) == 1 for said in turns]
    assert near(sum(first), len(first), mixture.right_attempts)
    reflections = [said[1] for said in turns if len(said) == 3]
    practice = [not turn[0].trained for turn in reflections]
    assert near(sum(practice), len(practice), mixture.practice)
    others = [text_of(turn) for turn in reflections if turn[0].trained]
    assert near(sum(text.startswith(corpus.REVIEW) for text in others), len(others), mixture.kinds["review"])


def test_the_same_seed_makes_the_same_corpus():
    assert transcripts(count=50) == transcripts(count=50)
    assert transcripts(count=50) != transcripts(count=50, seed=1)


@pytest.mark.parametrize("mixed", [False, True])
def test_disguised_tools_have_other_names_and_requests_that_fit(mixed):
    rng = random.Random(0)
    changed = 0
    for tool in tools("train"):
        other = coined.disguised(tool, rng, mixed=mixed)
        changed += other.name != tool.name
        type(tool).model_validate(other.model_dump())  # every required argument is in every request
    assert changed > len(tools("train")) / 2


@pytest.mark.parametrize(
    ("mixture", "unseen"),
    [(corpus.DRILLS, ("validation", "test")), (corpus.MIXED, ("validation", "test")), (BROAD, ("validation",))],
)
def test_the_corpus_knows_the_tools_it_says_and_no_others(mixture, unseen):
    plain = replace(mixture, disguised=0.0, drills=0.0)
    rng, episodes = random.Random(0), corpus.Episodes(TASK)
    offered = {form.tool.name for _ in range(2_000) for form in problem_of(episodes, rng, plain).offered}
    known = {tool.name for split in mixture.splits for tool in tools(split)}
    assert len(offered) > 0.8 * len(known)
    assert offered <= known
    assert offered.isdisjoint(tool.name for split in unseen for tool in tools(split))


def test_no_query_of_the_test_split_is_in_the_corpus():
    held_out = {example.info["query"] for example in TASK.load("test")}
    rng, episodes = random.Random(0), corpus.Episodes(TASK)
    plain = replace(BROAD, disguised=0.0)
    for drills in (0.0, 1.0):
        for _ in range(1_500):
            for _, turn in episodes(rng, replace(plain, drills=drills)):
                asked = text_of(turn).partition(corpus.REQUEST)[2].partition("\n\nWhich calls")[0]
                assert asked not in held_out


@pytest.mark.parametrize("phrase", dict.fromkeys(corpus.phrases(TASK)))
def test_a_fixed_phrase_of_the_prompts_and_the_corpus_is_one_token_of_the_model(phrase, tokenizer):
    assert len(tokenizer.encode(phrase, add_special_tokens=False)) == 1, (
        "the built-in model does not know this phrase: take the change back, or run pretrain.py"
    )


def test_the_script_makes_the_tokenizer_that_is_shipped(tokenizer, pretrain):
    made = pretrain.make_tokenizer()
    assert made.get_vocab() == tokenizer.get_vocab()
    assert made.chat_template == tokenizer.chat_template


def test_what_is_said_comes_back_from_tokens_as_it_was(tokenizer):
    for conversation in transcripts(count=100):
        for _, turn in conversation:
            ids = tokenizer.encode(text_of(turn), add_special_tokens=False)
            assert tokenizer.decode(ids) == text_of(turn)


def test_the_model_is_small_and_vllm_takes_its_heads(model):
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 8_000_000
    assert model.config.head_dim == 64
    assert not list(MODEL.glob("*.bin"))


def test_the_model_calls_some_tools_it_has_not_seen(model, tokenizer):
    from r3core.config import resolve
    from r3core.generation.transformers import TransformersGenerator

    config = resolve(TASK, overrides=["sampling.attempt.temperature=0"])
    problems = [problem for problem, _ in zip(TASK.load("validation"), range(32), strict=False)]
    generator = TransformersGenerator(model, tokenizer, batch_size=32)
    attempted = Protocol(TASK, Judge(TASK), config).attempt(problems, generator, seed=0)
    assert sum(episode.attempt.verdict.outcome == "pass" for episode in attempted) > 0
