import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3_plugin_apigen.calls import (
    MAX_CALLS,
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_LIST,
    MAX_RESPONSE,
    Call,
    Kind,
    Wrong,
    find_calls,
    key_of,
)

pytestmark = pytest.mark.slow

ROME = '[{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}]'
OSLO = ROME.replace("Rome", "Oslo")
ROME_CALL = Call("get_weather", {"city": "Rome", "days": 3})
OSLO_CALL = Call("get_weather", {"city": "Oslo", "days": 3})

texts = st.text(st.characters(exclude_characters="<"))  # a tag counts as a tag inside a text too
scalars = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    scalars | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
lists_of_calls = st.lists(st.builds(Call, texts, st.dictionaries(texts, values, max_size=4)), max_size=4)


def kind(response):
    with pytest.raises(Wrong) as caught:
        find_calls(response)
    assert str(caught.value).startswith(f"{caught.value.kind}: ")
    return caught.value.kind


def nested(depth):
    """Return a list of calls in which lists and objects stand so deeply inside each other."""
    inner = depth - 3  # the list, the call, its arguments
    return f'[{{"name": "f", "arguments": {{"a": {"[" * inner}{"]" * inner}}}}}]'


def of_length(length):
    empty = '[{"name": "f", "arguments": {"a": ""}}]'
    return empty.replace('""', f'"{"x" * (length - len(empty))}"')


@pytest.mark.parametrize(
    "response",
    [
        ROME,
        f"  {ROME}\n",
        f"I call it: {ROME}. Done.",
        f"```\n{ROME}\n```",
        f"```json\n{ROME}\n```\nThat is all.",
        json.dumps(json.loads(ROME), indent=4),
        f"<tool_call>{ROME}</tool_call>",
        f"<tool_call>\n{ROME[1:-1]}\n</tool_call>",
        f"I think.\n<tool_call>{ROME[1:-1]}</tool_call>\nDone.",
        f"{ROME}\n{ROME}",
        f"{ROME}\n{ROME.replace('3', '3.0')}",
        f"<tool_call>{ROME[1:-1]}</tool_call> {ROME}",
        f"[see the tools] {{and}} [1, 2] (or) {ROME}",
        f'[{{"type": "string"}}, {{"type": "null"}}] {ROME}',
        f'{{"calls": {ROME}}}',
        '[{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}]',
    ],
)
def test_one_list_is_found_wherever_it_stands(response):
    assert find_calls(response) == [ROME_CALL]


@pytest.mark.parametrize(
    "response",
    [
        f"[{ROME[1:-1]}, {OSLO[1:-1]}]",
        f"<tool_call>{ROME[1:-1]}</tool_call><tool_call>{OSLO[1:-1]}</tool_call>",
        f"<tool_call>{ROME}</tool_call> and <tool_call>{OSLO[1:-1]}</tool_call>",
        f"<tool_call>[]</tool_call><tool_call>[{ROME[1:-1]}, {OSLO[1:-1]}]</tool_call>",
    ],
)
def test_all_tags_together_are_one_list_in_their_order(response):
    assert find_calls(response) == [ROME_CALL, OSLO_CALL]


@pytest.mark.parametrize(
    "response",
    [
        "[]",
        "[ ]",
        " []\n",
        "```json\n[]\n```",
        "`[]`",
        "No tool fits.\n\n[]",
        "[]\r\nDone.",
        "<tool_call>[]</tool_call>",
    ],
)
def test_an_empty_list_is_an_answer_when_it_is_alone_on_its_line(response):
    assert find_calls(response) == []


@pytest.mark.parametrize(
    "response",
    ["It is not [].", "play(songs=[])", "{'songs': []}", "- []", "[   ]", "[[]]", "[\n\n]", f"<tool_call>{ROME}"],
)
def test_an_empty_list_inside_other_text_is_none(response):
    assert kind(response) in (Kind.NO_CALLS, Kind.NOT_JSON)


@pytest.mark.parametrize("text", ['{"default": []}', '{"a": [], "b": 1}', "f([])", "x[] y", "a=[]"])
def test_an_empty_list_that_is_a_part_of_something_takes_no_answer_away(text):
    assert find_calls(f"{text} {ROME}") == [ROME_CALL]


def test_an_empty_list_among_the_arguments_is_no_list_of_its_own():
    (call,) = find_calls('[{"name": "f", "arguments": {"a": [\n[]\n]}}]')
    assert call == Call("f", {"a": [[]]})


@pytest.mark.parametrize(
    "response",
    [
        f"{ROME} {OSLO}",
        f"{OSLO}\n```json\n{ROME}\n```",
        f"```\n{ROME}\n```\n```\n{OSLO}\n```",
        f"<tool_call>{ROME}</tool_call> {OSLO}",
        f"{OSLO} <tool_call>{ROME}</tool_call>",
        f"<tool_call>{ROME}</tool_call> {OSLO} <tool_call>{OSLO}</tool_call>",
        f"{ROME}\n[]",
        f"[]\n{ROME}",
        f"{ROME} or []",
        f"`[]` or {ROME}",
        f"{ROME}, or it is [].",
        f"<tool_call>{ROME}</tool_call> []",
        f"{ROME} {ROME.replace('3', 'true')}",
        f"{ROME} {ROME.replace('3', '1')} {ROME.replace('3', 'true')}",
        f"[{ROME[1:-1]}, {OSLO[1:-1]}] [{OSLO[1:-1]}, {ROME[1:-1]}]",
    ],
)
def test_different_lists_fail_wherever_they_stand(response):
    assert kind(response) is Kind.SEVERAL_LISTS


@pytest.mark.parametrize(
    "response", ["", " ", "Rome, 3 days", "null", "{}", "[1]", f"[,{ROME[1:]}", '["get_weather"]', ROME[1:-1]]
)
def test_a_response_without_a_list_of_objects_has_no_calls(response):
    assert kind(response) is Kind.NO_CALLS


@pytest.mark.parametrize("response", ['get_weather(city="Rome")', '[get_weather(city="Rome", days=3)]', "f()"])
def test_a_call_in_python_syntax_is_none(response):
    assert kind(response) is Kind.NO_CALLS


@pytest.mark.parametrize(
    "response",
    [
        ROME.replace('"', "'"),
        ROME.replace("3", "3,"),
        ROME.replace("3", "3 // days"),
        ROME.replace("3", "03"),
        ROME.replace("3", "+3"),
        ROME.replace("3", "0x3"),
        ROME.replace("3", "٣"),
        ROME.replace("3", "1 + 2"),
        ROME.replace("3", "None"),
        ROME.replace("3", "NaN"),
        ROME.replace("3", "-Infinity"),
        ROME.replace("3", "1e999"),
        ROME.replace("Rome", "Ro\nme"),
        ROME.replace("Rome", "Ro\\xme"),
        ROME.replace('"days"', '"city": "Rome", "days"'),
        ROME.replace("3", '{"a": 1, "a": 1}'),
        ROME[:-1],
        ROME[:-2],
        f"{ROME} {ROME[:-1]}",
        f"{ROME} [{{",
        f"<tool_call>{ROME}",
        f"{ROME}</tool_call>",
        f"</tool_call>{ROME}<tool_call>",
        f"<tool_call><tool_call>{ROME}</tool_call></tool_call>",
        "<tool_call></tool_call>",
        f"<tool_call>call {ROME}</tool_call>",
        f"<tool_call>{ROME} {ROME}</tool_call>",
        '<tool_call>"get_weather"</tool_call>',
        f"<tool_call>{ROME[:-1]}</tool_call>]",
    ],
)
def test_what_is_nearly_json_fails(response):
    assert kind(response) is Kind.NOT_JSON


@pytest.mark.parametrize("text", ["<tool_call>", "</tool_call>", f"<tool_call>{OSLO}</tool_call>", "\\"])
def test_a_tag_inside_a_text_is_text(text):
    calls = [{"name": "get_weather", "arguments": {"city": text}}]
    written = json.dumps(calls)
    assert [call._asdict() for call in find_calls(written)] == calls
    assert [call._asdict() for call in find_calls(f"<tool_call>{written}</tool_call>")] == calls
    assert [
        call._asdict() for call in find_calls(f"I see [1] it.\n<tool_call>\n{written[1:-1]}\n</tool_call>")
    ] == calls


@pytest.mark.parametrize(
    "response",
    [
        f'{ROME} [{{"a": 1}} <tool_call>{OSLO}</tool_call>]',
        f'{ROME} [{{"a": 1, <tool_call>{OSLO}</tool_call>: 2}}]',
        f"{ROME} [{{'a': '<tool_call>{OSLO}</tool_call>'}}]",
        f'{ROME} [{{"a": "b"<tool_call>"\\u0061rguments"</tool_call>}}]',
        f'<tool_call>{{"a": <tool_call>{ROME}</tool_call>}}</tool_call>',
    ],
)
def test_a_list_hides_no_tag(response):
    assert kind(response) is Kind.NOT_JSON


def test_a_second_answer_cannot_hide_behind_a_text_that_is_not_closed():
    assert kind(f'{ROME} [{{"a": "<tool_call>{OSLO}</tool_call>') is Kind.NOT_JSON
    assert kind(f'"<tool_call>{ROME}</tool_call>" {OSLO}') is Kind.SEVERAL_LISTS


@pytest.mark.parametrize(
    "response",
    [
        ROME.replace("arguments", "parameters"),
        ROME.replace('"name"', '"tool"'),
        ROME.replace('"name"', '"id": 1, "name"'),
        ROME.replace('"get_weather"', "7"),
        ROME.replace('{"city": "Rome", "days": 3}', '["Rome", 3]'),
        ROME.replace('{"city": "Rome", "days": 3}', '"{\\"city\\": \\"Rome\\"}"'),
        ROME.replace("}}]", "}}, 5]"),
        f"[{ROME}]",
        f"[[{ROME}]]",
        f"{ROME} {ROME.replace('name', 'tool')}",
        '<tool_call>{"name": "get_weather"}</tool_call>',
    ],
)
def test_json_that_is_no_list_of_calls_fails(response):
    assert kind(response) is Kind.NOT_CALLS


def test_the_bounds_are_where_they_are_documented():
    assert find_calls(of_length(MAX_LIST))
    assert kind(of_length(MAX_LIST + 1)) is Kind.TOO_LONG
    assert find_calls(nested(MAX_DEPTH))
    assert kind(nested(MAX_DEPTH + 1)) is Kind.TOO_LONG
    assert len(find_calls(f"[{', '.join([ROME[1:-1]] * MAX_CALLS)}]")) == MAX_CALLS
    assert kind(f"[{', '.join([ROME[1:-1]] * (MAX_CALLS + 1))}]") is Kind.TOO_LONG
    assert kind(f"<tool_call>{ROME[1:-1]}</tool_call>" * (MAX_CALLS + 1)) is Kind.TOO_LONG
    assert find_calls(ROME.replace("3", "9" * MAX_DIGITS))[0].arguments["days"] == 10**MAX_DIGITS - 1
    assert kind(ROME.replace("3", "9" * (MAX_DIGITS + 1))) is Kind.TOO_LONG
    assert kind(ROME.replace("3", f"0.{'0' * MAX_DIGITS}")) is Kind.TOO_LONG
    assert find_calls(ROME + " " * (MAX_RESPONSE - len(ROME))) == [ROME_CALL]
    assert kind(ROME + " " * (MAX_RESPONSE - len(ROME) + 1)) is Kind.TOO_LONG


def test_brackets_in_a_text_are_not_depth():
    text = "[{" * 100 + '\\"' + "]" * 50
    assert find_calls(ROME.replace("Rome", text))[0].arguments["city"] == text.replace("\\", "")


UNITS = [
    "x",
    " ",
    "\n",
    "[",
    "{",
    "]",
    "}",
    '"',
    "\\",
    '[{"',
    '[{"a\\"',
    "[{}]",
    "[{}",
    "[{]}",
    "[ ",
    "[\n",
    "`",
    "[]\n",
]
UNITS += [
    "[" * 31 + "{",
    "<tool_call>",
    "<tool_call></tool_call>",
    '[{"arguments":1',
    '[{"a":[',
    "\ud800",
    "[]",
    ROME,
    "9",
]
UNITS += ["'arguments' :", '"arguments"' + " " * 50, "[{" + " " * 50]


@pytest.mark.parametrize("unit", UNITS)
def test_the_work_grows_no_faster_than_the_response(unit):
    for text in (unit * (MAX_RESPONSE // len(unit)), f"[{{{unit * (MAX_LIST // len(unit) - 2)}}}]"):
        assert work(text) < 30 * len(text)


def work(response):
    """Count the calls of functions that it takes to read a response."""
    events = 0

    def count(frame, event, argument):
        nonlocal events
        events += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        find_calls(response)
    except Wrong:
        pass
    finally:
        sys.setprofile(before)
    return events


@given(lists_of_calls)
def test_what_is_written_as_json_is_read_again(calls):
    written = json.dumps([call._asdict() for call in calls])
    for response in (
        written,
        f"```json\n{written}\n```",
        f"{written}\n\n{written}",
        f"<tool_call>{written}</tool_call>",
    ):
        assert key_of(find_calls(response)) == key_of(calls)


@given(st.text() | st.text("[]{}\"',:\\ 01eE-`<>/tolca_nmrgus\n") | values.map(json.dumps))
def test_every_text_is_read_or_refused(text):
    try:
        reason = "" if all(isinstance(call, Call) for call in find_calls(text)) else "these are no calls"
    except Wrong as wrong:
        reason = str(wrong)
    assert reason.isascii()
    assert reason == "" or reason.partition(":")[0] in set(Kind)


DIFFERENT = [
    1,
    "1",
    True,
    None,
    "true",
    "",
    0,
    False,
    1.5,
    [],
    {},
    [1],
    [True],
    ["1"],
    {"a": 1},
    {"a": True},
    [[]],
    [1, 2],
]
DIFFERENT += [
    [2, 1],
    {"a": []},
    {"a": {}},
    {"b": 1},
    {"a": 1, "b": 1},
    2**53,
    2**53 + 1,
    "Rome",
    "rome",
    "é",
    "e\u0301",
]


@pytest.mark.parametrize(("place", "value"), [*enumerate(DIFFERENT)])
def test_values_that_differ_in_json_have_different_keys(place, value):
    assert [other for other in DIFFERENT if key_of(other) == key_of(value)] == [DIFFERENT[place]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (0, -0.0),
        (10**20, 1e20),
        ([1, {"a": 2}], [1.0, {"a": 2.0}]),
        ({"a": 1, "b": [True]}, {"b": [True], "a": 1}),
    ],
)
def test_values_that_are_equal_in_json_have_one_key(one, other):
    assert key_of(one) == key_of(other)
    assert hash(key_of(one)) == hash(key_of(other))
