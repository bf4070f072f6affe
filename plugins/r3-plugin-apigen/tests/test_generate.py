import json
import re
from collections import Counter
from itertools import islice

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from r3_plugin_apigen.catalog import forms, tools
from r3_plugin_apigen.generate import MOST_CALLS, MOST_DISTRACTORS, SIZES, Space, fault, generate
from r3_plugin_apigen.schema import check_tool
from r3_plugin_apigen.values import COUNTED
from r3_plugin_apigen.words import MONTHS

pytestmark = pytest.mark.slow

SPLITS = ("train", "validation", "test")
RICH = Space(calls=(1, 2), distractors=2, nested=True, terse=False)
SPACES = [
    Space(),
    RICH,
    Space(calls=(1,), distractors=0, optional=1.0),
    Space(calls=(0, 3), distractors=5, optional=0.0),
    Space(calls=(MOST_CALLS,), distractors=MOST_DISTRACTORS, nested=False, terse=True),
]


def first(count, space=None, split="train", seed=0):
    return list(islice(generate(space or RICH, split, seed), count))


def of_all_splits(count, space=None):
    return [example for split in SPLITS for example in first(count, space, split)]


def base_of():
    """Return what tool each name stands for."""
    return {
        form.name: form.tool
        for split in SPLITS
        for terse in (False, True)
        for variants in forms(split, nested=True, terse=terse)
        for form in variants
    }


def offered(example):
    return {tool["name"]: tool["parameters"] for tool in example.info["tools"]}


def scalars(value):
    if isinstance(value, dict | list):
        return [one for inner in (value.values() if isinstance(value, dict) else value) for one in scalars(inner)]
    return [value]


def writings(value):
    """Return how a query may write a value that is not of an enum."""
    if isinstance(value, int | float):
        return [str(value), f"{value:,}", *([COUNTED[value]] if value in range(len(COUNTED)) else [])]
    if re.fullmatch(r"\d{4}-\d\d-\d\d", value):
        year, month, day = map(int, value.split("-"))
        name = MONTHS[month - 1]
        return [value, f"{day} {name} {year}", f"{name} {day}, {year}"]
    if re.fullmatch(r"\d\d:\d\d", value):
        hour, minute = map(int, value.split(":"))
        half = "am" if hour < 12 else "pm"
        return [value, f"{hour % 12}:{minute:02} {half}"] + ([] if minute else [f"{hour % 12} {half}"])
    return [value]


@pytest.mark.parametrize("space", SPACES)
def test_calls_are_valid_under_the_schemas_of_tools_on_offer(space):
    for example in of_all_splits(150, space):
        schemas = offered(example)
        assert len(schemas) == len(example.info["tools"])
        assert [check_tool(tool) for tool in example.info["tools"]] == [None] * len(schemas)
        for call in example.answer:
            schema = schemas[call["name"]] | {"additionalProperties": False}
            Draft202012Validator(schema, format_checker=FormatChecker()).validate(call["arguments"])


def test_defaults_are_valid_under_their_schemas():
    for split in SPLITS:
        for variants in forms(split, nested=True, terse=False):
            for schema in variants[0].offer["parameters"]["properties"].values():
                assert "default" not in schema or Draft202012Validator(schema).is_valid(schema["default"])


@pytest.mark.parametrize("space", SPACES)
def test_every_value_of_a_call_is_stated_in_the_query(space):
    for example in of_all_splits(150, space):
        query = example.info["query"]
        for call in example.answer:
            properties = offered(example)[call["name"]]["properties"]
            for name, value in call["arguments"].items():
                if "enum" not in json.dumps(properties[name]) and properties[name]["type"] != "boolean":
                    assert all(any(text in query for text in writings(one)) for one in scalars(value)), example


def test_values_of_an_enum_are_stated_in_their_own_words():
    kinds = [kind for split in SPLITS for tool in tools(split) for kind in tool.takes.values() if hasattr(kind, "of")]
    assert len(kinds) > 40
    for kind in kinds:
        texts = list(kind.of.values()) if isinstance(kind.of, dict) else kind.of
        assert len(set(texts)) == len(texts)


def test_queries_are_sentences():
    for example in of_all_splits(1_000):
        query = example.info["query"]
        assert re.fullmatch(r"[A-Z].*[.?]", query), query
        assert not re.search(r"[{}]|  | [.,?]|\ba [aeiou]|\b(the the|a the|the a|in in|at at)\b|[.?]\.", query), query


def test_splits_share_no_tool_and_no_way_of_asking():
    names = Counter(
        name
        for split in SPLITS
        for variants in forms(split, nested=True, terse=False)
        for name in {form.name for form in variants}
    )
    asks = Counter(ask for split in SPLITS for tool in tools(split) for ask in tool.asks)
    assert set(names.values()) == set(asks.values()) == {1}
    assert len(names) > 400


def test_examples_of_a_split_offer_tools_of_that_split_alone():
    found = {split: {name for example in first(500, split=split) for name in offered(example)} for split in SPLITS}
    assert len(found["train"]) > 150
    assert found["train"].isdisjoint(found["validation"] | found["test"])
    assert found["validation"].isdisjoint(found["test"])


@pytest.mark.parametrize("space", [Space(), RICH])
@pytest.mark.parametrize("split", SPLITS)
def test_a_split_has_at_least_5000_distinct_problems(split, space):
    examples = first(5_000, space, split)
    assert len(examples) == 5_000 <= SIZES[split]
    assert len({example.id for example in examples}) == 5_000
    assert len({example.info["query"] for example in examples}) == 5_000


@pytest.mark.parametrize(
    ("space", "split", "ids"),
    [
        (RICH, "train", ["currencyConverter-76c39a38b302", "plan_route-c15c1de9138e", "searchRecipes-99f6a6cd23d6"]),
        (Space(), "train", ["trackOrder-e82087f453d6", "get_headlines-39ef7c71f56b", "get_distance-375fa35ed537"]),
        (RICH, "test", ["followArtist-d6b76ce90394", "send_application-52f8560f002e", "get_nutrition-1d6b14c4dbae"]),
        (
            Space(calls=(0, 1), distractors=2, optional=0.2, nested=False, terse=True),
            "validation",
            ["nothing-9a7b7dad7d41", "spellCheck-7591507a100e", "bus_tickets-d874bda23f92"],
        ),
    ],
)
def test_the_first_problems_are_the_same_everywhere(space, split, ids):
    assert [example.id for example in first(3, space, split)] == ids


def test_a_split_is_generated_twice_alike_and_otherwise_with_another_seed():
    assert first(200) == first(200)
    queries = {seed: {example.info["query"] for example in first(200, seed=seed)} for seed in (0, 1)}
    assert len(queries[0] & queries[1]) < 20


def test_queries_ask_for_as_many_calls_as_the_options_say():
    counts = Counter(len(example.answer) for example in first(600, Space(calls=(0, 1, 3))))
    assert counts.keys() == {0, 1, 3}
    assert min(counts.values()) > 150


def test_some_queries_ask_for_two_calls_of_one_tool():
    twice = sum(len({call["name"] for call in example.answer}) == 1 for example in first(500, Space(calls=(2,))))
    assert 50 < twice < 150


@pytest.mark.parametrize("distractors", [0, 1, 2, 5, MOST_DISTRACTORS])
def test_as_many_tools_are_offered_that_no_call_needs_as_the_options_say(distractors):
    for example in of_all_splits(100, Space(distractors=distractors)):
        assert len(offered(example)) - len({call["name"] for call in example.answer}) == distractors


def test_distractors_are_of_the_same_domain_and_of_others():
    bases = base_of()
    for split in SPLITS:
        near = far = 0
        for example in first(200, RICH._replace(calls=(1,)), split):
            domain = bases[example.answer[0]["name"]].domain
            others = [bases[name].domain == domain for name in offered(example) if name != example.answer[0]["name"]]
            near, far = near + sum(others), far + len(others) - sum(others)
        assert near == far == 200


def test_no_example_offers_two_forms_of_one_tool():
    bases = base_of()
    for example in of_all_splits(200, Space(calls=(2,), distractors=MOST_DISTRACTORS)):
        assert len({bases[name].name for name in offered(example)}) == len(offered(example))


def test_where_no_call_is_right_at_least_one_tool_is_offered():
    bases = base_of()
    starts = {tool.name: [ask.split("{")[0].lower() for ask in tool.asks] for split in SPLITS for tool in tools(split)}
    for example in of_all_splits(100, Space(calls=(0,), distractors=0)):
        assert example.answer == []
        (name,) = offered(example)
        query = example.info["query"].lower()
        assert not any(start in query for start in starts[bases[name].name] if len(start) > 8), example


@pytest.mark.parametrize(("optional", "low", "high"), [(0.0, 0, 0), (0.3, 0.25, 0.35), (1.0, 1, 1)])
def test_the_share_of_optional_arguments_is_what_the_options_say(optional, low, high):
    stated = possible = 0
    for example in first(500, Space(optional=optional)):
        for call in example.answer:
            parameters = offered(example)[call["name"]]
            free = parameters["properties"].keys() - parameters["required"]
            stated, possible = stated + len(free & call["arguments"].keys()), possible + len(free)
    assert low <= stated / possible <= high


def test_objects_are_there_only_when_nested():
    def objects(space):
        schemas = [schema for example in of_all_splits(300, space) for schema in offered(example).values()]
        return sum('"type": "object"' in json.dumps(schema["properties"]) for schema in schemas)

    assert objects(Space(nested=False)) == 0
    assert objects(Space(nested=True)) > 200


def test_terse_schemas_are_small():
    sizes = {}
    for terse in (False, True):
        examples = of_all_splits(300, Space(distractors=2, terse=terse))
        sizes[terse] = sum(len(json.dumps(example.info["tools"])) for example in examples) / len(examples)
        for example in examples:
            for parameters in offered(example).values():
                optional = len(parameters["properties"]) - len(parameters["required"])
                assert not terse or (optional <= 1 and "description" not in json.dumps(parameters))
    assert sizes[True] < 0.85 * sizes[False] < 1_200


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (RICH, None),
        (Space(calls=()), "calls=[] should be"),
        (Space(calls=(1, 5)), "calls=[1, 5] should be numbers from 0 to 4"),
        (Space(distractors=-1), "distractors=-1 is not between 0 and 8"),
        (Space(distractors=9), "distractors=9"),
        (Space(optional=1.5), "optional=1.5 is not between 0 and 1"),
    ],
)
def test_a_space_without_problems_is_an_error(space, said):
    found = fault(space)
    assert found is None if said is None else found is not None and said in found


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_enough_tools_for_the_hardest_space(split):
    known = forms(split, nested=False, terse=True)
    assert len(known) >= MOST_CALLS + MOST_DISTRACTORS
    for _ in range(3):
        (example,) = first(1, Space(calls=(MOST_CALLS,), distractors=MOST_DISTRACTORS, nested=False), split)
        assert len(example.answer) == MOST_CALLS
