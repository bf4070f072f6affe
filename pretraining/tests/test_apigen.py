"""The corpus and tokenizer of function calling: the prompts in the code are those of the built-in model."""

import json
import random
import re
from collections import Counter
from dataclasses import replace
from math import sqrt

import pytest

from pretraining import apigen, apigen_disguise, apigen_teacher
from pretraining import apigen_corpus as corpus
from pretraining.trainer import text_of
from r3_plugin_apigen.catalog import tools
from r3_plugin_apigen.task import Apigen
from r3core import Example, Verdict
from r3core.config import Config
from r3core.episode import Answer, Episode
from r3core.protocol import Protocol
from r3core.verification.judge import Judge

pytestmark = pytest.mark.slow

TASK = Apigen()
BROAD = replace(corpus.BROAD, drills=0.0)
MIXTURES = {"broad": BROAD, "final": corpus.FINAL}


def problem_of(episodes, rng, mixture=BROAD):
    return episodes.problem(rng, mixture.splits, disguised=mixture.disguised, mixed=mixture.mixed)


def teachers(mixture=BROAD, count=1_500, seed=0):
    rng, episodes = random.Random(seed), corpus.Episodes(TASK)
    for _ in range(count):
        problem = problem_of(episodes, rng)
        yield problem.example(), apigen_teacher.Teacher(problem, mixture, rng)


def transcripts(mixture=BROAD, count=1_500, seed=0):
    rng, episodes = random.Random(seed), corpus.Episodes(TASK)
    return [episodes(rng, mixture) for _ in range(count)]


def turns_of(conversation, role):
    return [turn for speaker, turn in conversation if speaker == role]


def near(count, total, share):
    return abs(count / total - share) < 4 * sqrt(share * (1 - share) / total)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TASK.demo.model)


def test_right_calls_pass_and_wrong_ones_fail():
    errors, kinds = Counter(), Counter()
    for example, teacher in teachers():
        assert TASK.verify(example, teacher.right().text()).outcome == "pass"
        wrong = teacher.wrong()
        verdict = TASK.verify(example, wrong.text())
        assert verdict.outcome == "fail", wrong
        errors[wrong.error] += 1
        kinds[verdict.kind] += 1
    assert errors.keys() == apigen_teacher.ERRORS.keys()
    assert min(errors.values()) > 50
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
        assert text_of(right) == f"{apigen_teacher.DIAGNOSES[attempt.error]}{attempt.about}."
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
        state, made, known = rng.getstate(), episodes._count, episodes._forms
        rng.random()  # whether it is a drill
        example = problem_of(episodes, rng).example()
        rng.setstate(state)
        episodes._count, episodes._forms = made, known
        conversation = episodes(rng, BROAD)
        messages = [{"role": role, "content": text_of(turn)} for role, turn in conversation]
        attempted, *reflected, last = [text_of(turn) for turn in turns_of(conversation, "assistant")] * 2
        request = protocol.attempt_request(example)
        if len(messages) > 2:
            episode = Episode(example=example, attempt=Answer(text=attempted, tokens=1, verdict=Verdict.failed()))
            request = protocol.retry_request(episode, reflected[0] if len(messages) > 4 else None)
        assert messages == [*request.messages, {"role": "assistant", "content": last}]
        assert (TASK.verify(example, attempted).outcome == "pass") == (len(messages) == 2)
        lengths[len(messages)] += 1
    assert set(lengths) == {2, 4, 6}


def test_only_the_opening_of_practice_carries_no_loss_in_the_final_mixture_and_in_others_wrong_calls_too():
    silent = Counter()
    for name, mixture in MIXTURES.items():
        for conversation in transcripts(mixture):
            assert not any(piece.trained for turn in turns_of(conversation, "user") for piece in turn)
            first, *others = turns_of(conversation, "assistant")
            assert first[0].trained == (name == "final" or not others)
            silent[name, "review"] += any(
                p.text == apigen_teacher.REVIEW and not p.trained for turn in others for p in turn
            )
            silent[name, "call"] += any(p.text[0] == "[" and not p.trained for turn in others for p in turn)
    assert min(silent["broad", "review"], silent["broad", "call"], silent["final", "review"]) > 100
    assert silent["final", "call"] == 0


def test_a_drill_requests_each_of_its_tools_once_and_is_answered_correctly():
    rng, episodes = random.Random(0), corpus.Episodes(TASK)
    sizes = Counter()
    for _ in range(100):
        conversation = episodes(rng, replace(BROAD, drills=1.0))
        questions = [text_of(turn) for turn in turns_of(conversation, "user")]
        head = questions[0][: questions[0].index(corpus.REQUEST)]
        offered = [json.loads(line) for line in head.splitlines()[1:]]
        called = []
        for question, turn in zip(questions, turns_of(conversation, "assistant"), strict=True):
            request = question[question.index(corpus.REQUEST) :]
            (call,) = json.loads(text_of(turn))
            info = {"query": request.removeprefix(corpus.REQUEST).split("\n")[0], "tools": offered}
            example = Example.model_validate({"id": "x", "answer": [call], "info": info})
            assert TASK.prompt(example) == head + request
            assert TASK.verify(example, text_of(turn)).outcome == "pass"
            called.append(call["name"])
        assert len(set(called)) == len(called)  # a tool is left out when its query is one of the test split
        sizes[len(called)] += 1
    assert min(sizes[size] for size in (2, 3, 4)) > 10


@pytest.mark.parametrize("name", MIXTURES)
def test_practice_and_platitudes_come_as_often_as_in_the_mixture(name):
    mixture = MIXTURES[name]
    turns = [turns_of(conversation, "assistant") for conversation in transcripts(mixture, 3_000)]
    first = [len(said) == 1 for said in turns]
    assert near(sum(first), len(first), mixture.right_attempts)
    reflections = [said[1] for said in turns if len(said) == 3]
    practice = [not turn[0].trained for turn in reflections]
    assert near(sum(practice), len(practice), mixture.practice)
    others = [text_of(turn) for turn in reflections if turn[0].trained]
    assert near(sum(text.startswith(apigen_teacher.REVIEW) for text in others), len(others), mixture.kinds["review"])


def test_the_same_seed_generates_the_same_corpus():
    assert transcripts(count=50) == transcripts(count=50)
    assert transcripts(count=50) != transcripts(count=50, seed=1)


@pytest.mark.parametrize("mixed", [False, True])
def test_disguised_tools_have_other_names_and_requests_that_fit(mixed):
    rng = random.Random(0)
    changed = 0
    for tool in tools("train"):
        other = apigen_disguise.disguised(tool, rng, mixed=mixed)
        changed += other.name != tool.name
        type(tool).model_validate(other.model_dump())  # every required argument is in every request
    assert changed > len(tools("train")) / 2


@pytest.mark.parametrize(
    ("mixture", "unseen"),
    [(corpus.DRILLS, ("validation", "test")), (corpus.MIXED, ("validation", "test")), (BROAD, ("validation",))],
)
def test_the_corpus_has_the_tools_of_the_splits_in_its_mixture_and_no_others(mixture, unseen):
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
                request = text_of(turn).partition(corpus.REQUEST)[2].partition("\n\nWhich calls")[0]
                assert request not in held_out


@pytest.mark.parametrize("phrase", dict.fromkeys(corpus.phrases(TASK)))
def test_a_fixed_phrase_of_the_prompts_and_the_corpus_is_one_token_of_the_model(phrase, tokenizer):
    assert len(tokenizer.encode(phrase, add_special_tokens=False)) == 1, (
        "the built-in model was not trained on this phrase: revert the change, or run `python -m pretraining.apigen`"
    )


def test_the_script_makes_the_tokenizer_that_is_shipped(tokenizer):
    made = apigen.make_tokenizer()
    assert made.get_vocab() == tokenizer.get_vocab()
    assert made.chat_template == tokenizer.chat_template


def test_texts_survive_encoding_and_decoding(tokenizer):
    for conversation in transcripts(count=100):
        for _, turn in conversation:
            ids = tokenizer.encode(text_of(turn), add_special_tokens=False)
            assert tokenizer.decode(ids) == text_of(turn)
