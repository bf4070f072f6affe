import random

import pytest
from pydantic import TypeAdapter

from r3_plugin_apigen.values import AnyValue, draw_unlike, listed
from r3_plugin_apigen.words import Stated

pytestmark = pytest.mark.slow


def value_of(told):
    return TypeAdapter(AnyValue).validate_python(told)


def draws(told, count=300):
    rng = random.Random(0)
    return [value_of(told).ask(rng) for _ in range(count)]


@pytest.mark.parametrize(
    ("told", "drawn"),
    [
        ({"whole": [2, 4]}, {2, 3, 4}),
        ({"whole": [10, 30], "step": 10}, {10, 20, 30}),
        ({"number": [0.5, 2]}, {0.5, 1, 1.5, 2}),
        ({"of": ["a", "b"]}, {"a", "b"}),
        ({"yes": "with it", "no": "without it"}, {True, False}),
        ({"yes": "with it"}, {True}),
    ],
)
def test_every_value_of_a_range_is_sampled_and_no_other(told, drawn):
    values = [value for value, _ in draws(told)]
    assert set(values) == drawn
    assert all(type(value) is not float or not value.is_integer() for value in values)


def test_numbers_are_stated_in_figures_and_written_out():
    assert {text for _, text in draws({"whole": [7, 7]})} == {"7", "seven"}
    assert {text for _, text in draws({"number": [1200, 1200]})} == {"1200", "1,200"}


def test_lists_hold_different_values():
    for value, text in draws({"several": {"of": ["a", "b", "c"]}, "size": [1, 3]}):
        assert len(set(value)) == len(value)
        assert text == listed(value)


def test_rising_fields_rise():
    told = {"fields": {"from": "date", "to": "date"}, "text": "from {from} to {to}", "rising": True}
    assert all(value["from"] < value["to"] for value, _ in draws(told))


def test_too_few_different_values_are_an_error():
    with pytest.raises(ValueError, match="there are no 2 different values like 'a'"):
        draw_unlike(lambda: Stated("a", "a"), [Stated("a", "a")])


@pytest.mark.parametrize(("texts", "said"), [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")])
def test_a_list_reads_as_in_a_sentence(texts, said):
    assert listed(texts) == said


def test_the_name_of_a_kind_alone_is_a_required_value():
    assert value_of("date") == value_of({"kind": "date"})
    assert not value_of("date").optional
    assert value_of({"kind": "date", "say": "on {}"}).optional
    assert value_of({"yes": "with it"}).optional
