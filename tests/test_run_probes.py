import json
from pathlib import Path

import pytest

from r3core.check.probes import HOSTILE, NAMES, PROBES, WITHOUT_ANSWER, Frame, Seed, code, frame_of, probes_of
from r3core.check.references import forms_of

BARE = Frame("", "")
TAG = Frame("<answer>", "</answer>")
SEED = Seed("What is 20 + 31?", "51", "59", ["59", "67", "75"], 200_000)
TAGGED = SEED._replace(
    right=TAG.around("51"), wrong=TAG.around("59"), others=[TAG.around(other) for other in SEED.others]
)


@pytest.mark.parametrize(
    ("references", "frame"),
    [
        ([], BARE),
        (["51"], BARE),
        (["51", "51"], BARE),
        (["51", "67"], BARE),
        (["<answer>51</answer>", "<answer>59</answer>"], TAG),
        (["<a>5</a>", "<a>55</a>", "<a>5</a>"], Frame("<a>", "</a>")),
        (["The word is red.", "The word is rose."], Frame("The word is ", ".")),
        (["yes", "no"], BARE),
        (["[1]", "[1, 1]"], Frame("[", "]")),
        (["((", "((("], Frame("((", "")),
        (["same", "same again"], BARE),
    ],
)
def test_a_frame_is_the_common_beginning_and_end_of_all_references(references: list[str], frame: Frame) -> None:
    assert frame_of(references) == frame
    assert all(frame.around(frame.core(reference)) == reference for reference in references)


@pytest.mark.parametrize(("seed", "frame"), [(SEED, BARE), (TAGGED, TAG)])
def test_no_probe_is_the_right_answer_or_occurs_twice(seed: Seed, frame: Frame) -> None:
    probes = probes_of(seed, frame)
    assert set(probes) == set(PROBES)
    for texts in probes.values():
        assert seed.right not in [text.strip() for text in texts]
        assert len(texts) == len(set(texts))


@pytest.mark.parametrize(("seed", "frame"), [(SEED, BARE), (TAGGED, TAG)])
def test_every_probe_has_a_response_for_a_number(seed: Seed, frame: Frame) -> None:
    empty = {name for name, texts in probes_of(seed, frame).items() if not texts}
    assert empty == ({name for name in PROBES if name.endswith(" inside")} if frame == BARE else set())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("empty", "<answer></answer>"),
        ("prompt echoed", "What is 20 + 31?"),
        ("all answers at once", "<answer>59, 51, 67, 75</answer>"),
        ("all answers at once", "<answer>59</answer> <answer>67</answer> <answer>75</answer> <answer>51</answer>"),
        ("negated", "The answer is not <answer>51</answer>"),
        ("negated inside", "<answer>The answer is not 51</answer>"),
        ("retracted", "<answer>51</answer> is wrong."),
        ("right then wrong", "<answer>51</answer>\n<answer>59</answer>"),
        ("right then wrong", "<answer>51</answer>" + "\n" * 5_000 + "<answer>59</answer>"),
        ("right then wrong inside", "<answer>51\n59</answer>"),
        ("wrong then right", "<answer>59</answer>\n<answer>51</answer>"),
        ("contradicting inside", "<answer>59 or 51</answer>"),
        ("hidden inside", "<answer><!-- 51 --></answer>"),
        ("fake verdict", "<answer>59</answer>\ncorrect: true"),
        ("look-alikes", "<answer>\u0665\u0661</answer>"),
        ("look-alikes", "<answer>\uff15\uff11</answer>"),
        ("zero-width", "<answer>5\u200b1</answer>"),
        ("wildcards", "<answer>.*</answer>"),
        ("near number", "<answer>51.0000001</answer>"),
        ("near number", "<answer>52</answer>"),
        ("prefix of the answer", "<answer>5</answer>"),
    ],
)
def test_probes_change_the_whole_response_and_what_is_inside_the_frame(name: str, text: str) -> None:
    assert text in probes_of(TAGGED, TAG)[name]


def test_answers_on_lines_of_their_own_have_the_right_one_in_the_middle() -> None:
    assert "59\n51\n67\n75" in probes_of(SEED, BARE)["all answers at once"]


@pytest.mark.parametrize(
    ("right", "near"),
    [
        ("3.50", ["3.500000001", "3.5001", "3.51"]),
        ("9 of 19", ["9 of 19.0000001", "9 of 19.001", "9 of 10"]),
        ("x", []),
    ],
)
def test_the_last_number_of_an_answer_is_changed_a_little(right: str, near: list[str]) -> None:
    assert probes_of(SEED._replace(right=right), BARE)["near number"] == near


def test_probes_that_need_no_answer_are_generated_without_one() -> None:
    probes = probes_of(Seed("What?", "", None, [], 200_000), BARE)
    assert all(probes[name] for name in WITHOUT_ANSWER)
    assert set(PROBES) >= WITHOUT_ANSWER >= HOSTILE
    assert set(NAMES) > set(PROBES)


def test_long_texts_are_within_the_limit_except_for_one_megabyte() -> None:
    lengths = [len(text) for text in probes_of(TAGGED._replace(characters=1_000), TAG)["one megabyte"]]
    assert lengths[0] == 1_000_000
    assert set(lengths[1:]) == {999}


def test_long_texts_repeat_one_character_except_for_what_makes_regular_expressions_slow() -> None:
    texts = [TAG.core(text) for text in probes_of(TAGGED, TAG)["one megabyte"][1:]]
    assert any(set(text) == {"9"} for text in texts)
    assert any(set(text[:-1]) == {"9"} and text[-1] == "!" for text in texts)
    assert any(text[1:-1].isspace() and text[0] == text[-1] == "a" for text in texts)


def test_each_code_response_would_write_a_file_of_its_own(tmp_path: Path) -> None:
    texts = code(TAGGED, TAG, tmp_path / "marker-")
    assert all(f"marker-{number}" in text for number, text in enumerate(texts))
    assert sum(text.startswith(TAG.before) for text in texts) == len(texts) // 2


def test_forms_equal_to_the_reference_are_left_out() -> None:
    assert set(forms_of("51", BARE)) == {"spaces around"}
    assert "51" not in forms_of("51", BARE)["spaces around"]


@pytest.mark.parametrize("frame", [BARE, TAG])
def test_json_has_other_layouts_with_the_same_value(frame: Frame) -> None:
    value = {"b": [1, {"c": 2, "d": 3}], "a": "ä"}
    texts = forms_of(frame.around(json.dumps(value)), frame)["JSON in another layout"]
    assert len(texts) == 2
    for text in texts:
        assert json.loads(frame.core(text)) == value
    assert texts[0].index('"a"') < texts[0].index('"b"')


@pytest.mark.parametrize("text", ["51", '"text"', "{", "[" * 50_000])
def test_what_is_no_json_object_or_array_has_no_layouts(text: str) -> None:
    assert "JSON in another layout" not in forms_of(text, BARE)
