import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3_plugin_apigen.schema import check_tool
from r3_plugin_apigen.xlam import parameters_of

ITEMS = {"type": "integer"}
PAGE = Path(__file__).parents[3] / "docs/apigen.md"
STATED = re.findall(
    r"^\| `([^`]+)` \| (?:`(\{.*\})`|cannot be converted) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
)


def argument(**said):
    """Return the schema of one argument without its description, whether it is required, and whether it was read."""
    converted = parameters_of({"a": said})
    schema = dict(converted.schema["properties"]["a"])
    schema.pop("description", None)
    return schema, converted.schema["required"] == ["a"], converted.unconverted == []


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("str", {"type": "string"}),
        ("string", {"type": "string"}),
        ("int", {"type": "integer"}),
        ("float", {"type": "number"}),
        ("bool", {"type": "boolean"}),
        ("None", {"type": "null"}),
        ("Any", {}),
        ("list", {"type": "array"}),
        ("List", {"type": "array"}),
        ("dict", {"type": "object"}),
        ("Dict", {"type": "object"}),
        ("set", {"type": "array", "uniqueItems": True}),
        ("tuple", {"type": "array"}),
        ("datetime", {"type": "string"}),
        ("datetime.date", {"type": "string"}),
        ("typing.List[int]", {"type": "array", "items": ITEMS}),
        ("List[int]", {"type": "array", "items": ITEMS}),
        (" list[ int ] ", {"type": "array", "items": ITEMS}),
        ("List[Any]", {"type": "array"}),
        ("list[dict]", {"type": "array", "items": {"type": "object"}}),
        ("List[List[int]]", {"type": "array", "items": {"type": "array", "items": ITEMS}}),
        ("Set[int]", {"type": "array", "uniqueItems": True, "items": ITEMS}),
        ("Dict[str, float]", {"type": "object", "additionalProperties": {"type": "number"}}),
        ("Dict[int, Any]", {"type": "object"}),
        ("Tuple[int, int]", {"type": "array", "prefixItems": [ITEMS, ITEMS], "items": False, "minItems": 2}),
        ("Tuple[int, ...]", {"type": "array", "items": ITEMS}),
        ("Union[str, int]", {"type": ["string", "integer"]}),
        ("Union[str, Any]", {}),
        ("Union[int, List[int]]", {"anyOf": [ITEMS, {"type": "array", "items": ITEMS}]}),
        ("str | int | None", {"type": ["string", "integer", "null"]}),
        ("Literal['a', 'b']", {"enum": ["a", "b"]}),
        ("Literal[1, -2, None]", {"enum": [1, -2, None]}),
    ],
)
def test_a_type_becomes_a_schema(text, schema):
    assert argument(type=text) == (schema, True, True)
    assert argument(type=f"{text}, optional") == (schema, False, True)
    assert argument(type=f"{text}, required") == (schema, True, True)


def test_the_page_states_many_types():
    assert len(STATED) > 15
    assert ("Callable[[float], float]", "") in STATED


@pytest.mark.parametrize(("text", "schema"), STATED)
def test_the_page_documents_how_a_type_is_converted(text, schema):
    assert argument(type=text)[::2] == ((json.loads(schema), True) if schema else ({}, False))


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("Optional[str]", {"type": ["string", "null"]}),
        ("Optional[str], optional", {"type": ["string", "null"]}),
        ("Optional[Union[int, str]]", {"type": ["integer", "string", "null"]}),
        ("Optional[List[int]]", {"anyOf": [{"type": "array", "items": ITEMS}, {"type": "null"}]}),
    ],
)
def test_an_optional_type_allows_null_and_need_not_be_stated(text, schema):
    assert argument(type=text) == (schema, False, True)


@pytest.mark.parametrize(
    "text",
    [
        *("Callable", "Callable[[float], float]", "np.ndarray", "complex", "", "?", "List[", "List[int", "int]"),
        *("Dict[str]", "List[int, str]", "int[str]", "Literal[b'a']", "Literal[x]", "[int]"),
        *(
            "str, sometimes",
            "str or int",
            "1or 2",
            "f()",
            "lambda x: x",
            "List[int], length 3",
            "'str'",
            "0x1for x in y",
        ),
        *("[" * 150, "(" * 300, "List[" * 30 + "]" * 30, "\x00", "str\\", "x" * 201, None, 7, ["str"], {"type": "str"}),
    ],
)
def test_a_type_that_cannot_be_converted_is_reported_and_takes_any_value(text):
    assert argument(type=text) == ({}, True, False)


def test_what_cannot_be_converted_may_be_optional_all_the_same():
    assert argument(type="Callable[[float], float], optional") == ({}, False, False)


def test_a_type_text_is_not_evaluated(tmp_path):
    path = tmp_path / "written"
    for text in (f"open('{path}', 'w')", f"List[open('{path}', 'w')]", f"Literal[open('{path}', 'w')]"):
        assert argument(type=text) == ({}, True, False)
    assert not path.exists()


@pytest.mark.parametrize(
    ("kind", "default", "schema"),
    [
        ("str", "en", {"type": "string", "default": "en"}),
        ("str", "7", {"type": "string", "default": "7"}),
        ("int", 7, {"type": "integer", "default": 7}),
        ("int", "7", {"type": "integer", "default": 7}),
        ("int", 7.0, {"type": "integer", "default": 7.0}),
        ("float", "0.5", {"type": "number", "default": 0.5}),
        ("bool", False, {"type": "boolean", "default": False}),
        ("bool", "True", {"type": "boolean", "default": True}),
        ("bool", "false", {"type": "boolean", "default": False}),
        ("List[int]", "[1, 2]", {"type": "array", "items": ITEMS, "default": [1, 2]}),
        ("dict", {}, {"type": "object", "default": {}}),
        ("str", None, {"type": ["string", "null"], "default": None}),
        ("int", "None", {"type": ["integer", "null"], "default": None}),
        ("Optional[int]", None, {"type": ["integer", "null"], "default": None}),
        ("Any", "x", {"default": "x"}),
    ],
)
def test_the_field_default_is_the_default_and_need_not_be_stated(kind, default, schema):
    assert argument(type=kind, default=default) == (schema, False, True)


@pytest.mark.parametrize(
    ("kind", "default"),
    [("int", "seven"), ("int", 7.5), ("int", True), ("bool", 1), ("str", 5), ("List[int]", "[1, 'a']")],
)
def test_a_default_of_another_type_is_reported_and_left_out(kind, default):
    assert argument(type=kind, default=default) == (argument(type=kind)[0], True, False)


def test_an_empty_text_is_a_default_only_of_an_optional_text():
    assert argument(type="str", default="") == ({"type": "string"}, True, True)
    assert argument(type="str, optional", default="") == ({"type": "string", "default": ""}, False, True)
    assert argument(type="str, optional") == ({"type": "string"}, False, True)
    assert argument(type="int, optional", default="") == ({"type": "integer"}, False, True)


@pytest.mark.parametrize(
    ("kind", "text", "default"),
    [
        ("str", "The language. Defaults to 'en'.", "en"),
        ("str", 'The country; the default is "US".', "US"),
        ("str", "A unit (default: `metric`)", "metric"),
        ("str", "A day. Defaults to today.", "today"),
        ("str", "The zip code. Default is 90210.", "90210"),
        ("int", "How many; default is 10", 10),
        ("int", "How many (default 10).", 10),
        ("int", "How many.\n  Default   value is -5, at most 9.", -5),
        ("float", "A share, by default=0.25", 0.25),
        ("bool", "Whether to sort. Default is True.", True),
        ("bool", "Whether to sort, defaults to false", False),
    ],
)
def test_a_description_may_state_the_default(kind, text, default):
    schema, required, read = argument(type=kind, description=text)
    assert (schema["default"], type(schema["default"]), required, read) == (default, type(default), False, True)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("str", "The default language."),
        ("str", "Used by default."),
        ("str", "Defaults to the current year."),
        ("str", "A duration. Defaults to 10 minutes."),
        ("str", "The default is used."),
        ("int", "Defaults to 10,000."),
        ("int", "Defaults to 'many'."),
        ("int", "No more than 10."),
    ],
)
def test_a_description_that_states_no_value_gives_no_default(kind, text):
    assert argument(type=kind, description=text) == (argument(type=kind)[0], True, True)


STATING = ("default", "defaults", "defaulted", "Default value")
LINKS = (" to ", " is ", ": ", ":", " = ", "=")
BEGINNINGS = (
    *("today", "tonight", "token", "top", "total", "Tokyo", "tomorrow", "to"),
    *("is", "island", "isbn", "ISO", "be", "best", "beta", "as", "asc", "ascending"),
    *("value", "valued", "values", "s", "edge", "ed", "of", "nonempty", "nullable", "falsely", "trueish"),
)


@pytest.mark.parametrize("word", BEGINNINGS)
@pytest.mark.parametrize("named", STATING)
def test_a_default_is_a_whole_word(named, word):
    for link in LINKS:
        expected = {} if link == " is " else {"default": word}
        for text in (f"The date, {named}{link}{word}", f"The date ({named}{link}{word})", f"Day. {named}{link}{word}."):
            assert argument(type="str, optional", description=text)[0] == {"type": "string"} | expected, text
    for text in (f"The date, {named} {word}", f"The date ({named} {word})", f"The {named} {word}."):
        assert argument(type="str, optional", description=text)[0] == {"type": "string"}, text


@pytest.mark.parametrize("link", [*LINKS, " "])
@pytest.mark.parametrize("named", STATING)
def test_a_default_may_be_linked_in_many_ways(named, link):
    stated = [("str", "'to'", "to"), ("str", '"is today"', "is today"), ("int", "-5", -5), ("float", "0.5", 0.5)]
    stated += [("bool", "True", True), ("bool", "false", False)]
    for kind, text, default in stated:
        schema, required, read = argument(type=kind, description=f"A ({named}{link}{text}).")
        assert (schema["default"], required, read) == (default, False, True), f"{named}{link}{text}"
    assert argument(type="str", description=f"A, {named}{link}None")[0] == {"type": ["string", "null"], "default": None}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *(("str", f"A day. {text}") for text in ("Default is 2024-01-01.", "Default: 10:30.", "default 1/2")),
        *(("int", f"A number, {text}") for text in ("default5", "default-5", "default value5", "default to5")),
        *(("int", f"A number, {text}") for text in ("default 5-10", "default is 10:30", "default: 1/2", "default 1e5")),
        *(("bool", f"Sorted, {text}") for text in ("by default true to size", "default truest", "default tofalse")),
    ],
)
def test_a_part_of_a_word_or_number_is_no_default(kind, text):
    assert "default" not in argument(type=kind, description=text)[0]


def test_the_field_comes_before_the_description():
    assert argument(type="int", default=3, description="Defaults to 5.")[0]["default"] == 3
    assert argument(type="int", default="", description="Defaults to 5.")[0]["default"] == 5


def test_none_as_a_default_in_the_description_allows_null():
    assert argument(type="str, optional", description="Defaults to None.") == (
        {"type": ["string", "null"], "default": None},
        False,
        True,
    )


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("One of 'asc', 'desc'.", ["asc", "desc"]),
        ("The order: either `up` or `down`", ["up", "down"]),
        ('Allowed values are: "a", "b", and "c".', ["a", "b", "c"]),
        ("Options: 'a' | 'b' | 'c'", ["a", "b", "c"]),
        ("Options: 'a'|'b'", ["a", "b"]),
        ("One of 'asc', 'desc'. Default: asc.", ["asc", "desc"]),
        ("One of 'asc', 'desc'. Defaults to 'none'.", ["asc", "desc", "none"]),
        ("One of 'a', 'b', etc.", None),
        ("One of the cities.", None),
        ("One of 'a'.", None),
    ],
)
def test_a_description_may_list_the_values(text, listed):
    assert argument(type="str", description=text)[0].get("enum") == listed


def test_values_are_listed_for_texts_alone():
    assert "enum" not in argument(type="int", description="One of '1', '2'.")[0]


def test_a_description_is_put_on_one_line():
    converted = parameters_of({"a": {"type": "str", "description": " The\n city. "}, "b": {"type": "str"}})
    assert converted.schema == {
        "type": "object",
        "properties": {"a": {"type": "string", "description": "The city."}, "b": {"type": "string"}},
        "required": ["a", "b"],
    }


def test_what_is_a_schema_already_stays_as_it_is():
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert parameters_of(schema) == (schema, [])
    assert parameters_of({"type": {"type": "str"}}).schema["properties"] == {"type": {"type": "string"}}


@pytest.mark.parametrize("said", [None, "str", [], 3])
def test_an_argument_that_is_not_described_is_reported(said):
    assert parameters_of({"a": said, "b": {"type": "int"}}).unconverted == ["a"]


texts = (
    st.text() | st.text("LlistIntDdUuO[], |'\".optional0()") | st.sampled_from(["str", "int, optional", "List[str]"])
)
described = st.dictionaries(
    st.text(max_size=5),
    st.fixed_dictionaries(
        {},
        optional={
            "type": texts,
            "description": texts | st.text("default is'\"10.,;) onef"),
            "default": st.none() | st.booleans() | st.integers() | texts | st.lists(st.integers()),
        },
    ),
    max_size=3,
)


@given(described)
def test_every_description_becomes_a_usable_schema(said):
    converted = parameters_of(said)
    assert check_tool({"name": "f", "description": "", "parameters": converted.schema}) is None
    assert list(converted.schema["properties"]) == list(said)
    assert set(converted.unconverted) <= set(said)
