import pytest

from r3_plugin_apigen.calls import Call, Kind, Wrong
from r3_plugin_apigen.compare import check, check_valid

SCHEMAS = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "number", "default": 1},
            "hourly": {"type": "boolean", "default": False},
            "places": {"type": "array"},
            "where": {"type": "object", "properties": {"zone": {"type": "string", "default": "EU"}}},
            "any": {},
        },
        "required": ["city"],
    },
    "alarm": {"type": "object", "properties": {"time": {"type": "string"}}},
}


def weather(**arguments):
    return Call("weather", {"city": "Rome", **arguments})


def alarm(**arguments):
    return Call("alarm", arguments)


def kind(said, asked, *, ordered=False, defaults=True):
    """Return what is wrong with calls, or `None` when nothing is."""
    try:
        check(said, asked, SCHEMAS, ordered=ordered, defaults=defaults)
    except Wrong as wrong:
        return wrong.kind
    return None


def reason(said, asked):
    with pytest.raises(Wrong) as caught:
        check(said, asked, SCHEMAS, ordered=False, defaults=True)
    return str(caught.value)


@pytest.mark.parametrize(
    ("said", "asked", "expected"),
    [
        ([], [], None),
        ([weather()], [weather()], None),
        ([weather(), alarm()], [alarm(), weather()], None),
        ([alarm(), alarm()], [alarm(), alarm()], None),
        ([Call("rain", {})], [weather()], Kind.UNKNOWN_TOOL),
        ([weather(), Call("rain", {})], [weather()], Kind.UNKNOWN_TOOL),
        ([Call("weather", {})], [weather()], Kind.SCHEMA_VIOLATION),
        ([weather(town="Rome")], [weather()], Kind.SCHEMA_VIOLATION),
        ([weather(days="3")], [weather(days=3)], Kind.SCHEMA_VIOLATION),
        ([alarm()], [weather()], Kind.WRONG_TOOL),
        ([alarm(), alarm()], [alarm(), weather()], Kind.WRONG_TOOL),
        ([], [weather()], Kind.MISSING_CALL),
        ([weather()], [weather(), alarm()], Kind.MISSING_CALL),
        ([weather()], [weather(), weather()], Kind.MISSING_CALL),
        ([weather()], [], Kind.EXTRA_CALL),
        ([weather(), alarm()], [weather()], Kind.EXTRA_CALL),
        ([weather(), weather()], [weather()], Kind.EXTRA_CALL),
        ([weather(days=2)], [weather(days=3)], Kind.WRONG_ARGUMENT),
        ([weather(days=2)], [weather()], Kind.WRONG_ARGUMENT),
        ([weather()], [weather(days=2)], Kind.WRONG_ARGUMENT),
        ([weather(places=[])], [weather()], Kind.WRONG_ARGUMENT),
        ([weather()], [weather(places=[])], Kind.WRONG_ARGUMENT),
        ([weather(days=2), weather(days=2)], [weather(days=2), weather(days=3)], Kind.WRONG_ARGUMENT),
    ],
)
def test_every_kind_of_difference_has_its_name(said, asked, expected):
    assert kind(said, asked) is expected


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1.0, True),
        (1, "1", False),
        (1, True, False),
        (0, False, False),
        (1.0, True, False),
        ("1", True, False),
        (None, False, False),
        (None, "", False),
        ([], {}, False),
        ([1], [1.0], True),
        ([1], [True], False),
        ([1, 2], [2, 1], False),
        ([1], [1, 1], False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"a": 1, "b": None}, False),
        (0.1 + 0.2, 0.3, False),
        (2**53, 2**53 + 1, False),
        ("Rome", "rome", False),
        ("é", "e\u0301", False),
    ],
)
def test_arguments_are_equal_as_json_values(one, other, same):
    assert (kind([weather(any=one)], [weather(any=other)]) is None) is same
    assert (kind([weather(any=other)], [weather(any=one)]) is None) is same


def test_the_order_of_calls_counts_only_with_ordered():
    said, asked = [weather(), alarm()], [alarm(), weather()]
    assert kind(said, asked, ordered=True) is Kind.WRONG_ORDER
    assert kind(asked, asked, ordered=True) is None
    assert kind([weather(), alarm(time="7")], asked, ordered=True) is Kind.WRONG_ARGUMENT


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        (weather(), weather(days=1)),
        (weather(), weather(days=1.0, hourly=False)),
        (weather(hourly=False), weather(days=1)),
        (weather(where={}), weather(where={"zone": "EU"})),
    ],
)
def test_an_argument_left_out_equals_its_default_unless_the_option_is_off(said, asked):
    for one, other in ((said, asked), (asked, said)):
        assert kind([one], [other]) is None
        assert kind([one], [other], defaults=False) is Kind.WRONG_ARGUMENT
        assert kind([one], [one], defaults=False) is None


@pytest.mark.parametrize(
    ("said", "asked", "expected"),
    [
        ([weather(days=2)], [weather(days=3)], "wrong argument: weather: days should not be 2"),
        ([weather(days=2)], [weather()], "wrong argument: weather: days should not be 2"),
        ([weather()], [weather(places=[])], "wrong argument: weather: places is left out"),
        ([weather(places=["x"])], [weather()], 'wrong argument: weather: "places" is not to be stated'),
        ([weather(any="\ud800")], [weather(any="x")], 'wrong argument: weather: any should not be "\\ud800"'),
        (
            [weather(days=2), weather(any="a", days=5)],
            [weather(any="b", days=5), weather(days=2)],
            'wrong argument: weather: any should not be "a"',
        ),
        ([alarm()], [weather()], "wrong tool: alarm is not to be called, or not so often"),
        ([weather()], [weather(), alarm()], "missing call: 1 of 2 calls"),
        ([weather(), alarm()], [alarm()], "extra call: 2 calls in place of 1"),
        ([Call("ra\ud800in", {})], [], 'unknown tool: no tool is called "ra\\ud800in"'),
        ([weather(days="3")], [], "schema violation: weather: days: '3' is not of type 'number'"),
    ],
)
def test_a_reason_names_what_is_wrong_and_not_what_is_right(said, asked, expected):
    assert reason(said, asked) == expected


def test_a_reason_is_short():
    for call in (weather(any="x" * 10_000), weather(days="x" * 10_000), Call("x" * 10_000, {})):
        assert len(reason([call], [weather()])) < 200


def test_calls_of_one_tool_are_each_held_against_the_nearest():
    asked = [weather(any=1, days=3), weather(any=2, days=4)]
    assert reason([weather(any=2, days=4), weather(any=1, days=9)], asked).endswith("days should not be 9")


def test_calls_may_be_checked_without_gold_calls():
    check_valid([weather(), alarm()], SCHEMAS)
    with pytest.raises(Wrong, match="unknown tool"):
        check_valid([weather()], {"alarm": SCHEMAS["alarm"]})
    with pytest.raises(Wrong, match="schema violation: weather: 'city' is a required property"):
        check_valid([Call("weather", {})], SCHEMAS)
