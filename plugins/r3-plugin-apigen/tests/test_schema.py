import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from r3_plugin_apigen.calls import MAX_DEPTH
from r3_plugin_apigen.schema import check_tool, violation, with_defaults

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 1, "maximum": 14, "default": 1},
        "unit": {"enum": ["C", "F"]},
        "hours": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        "where": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]},
    },
    "required": ["city"],
}


def tool(parameters, **changed):
    return {"name": "f", "description": "", "parameters": parameters, **changed}


def of(**properties):
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    "arguments",
    [
        {"city": "Rome"},
        {"city": "", "days": 14, "unit": "C"},
        {"city": "Rome", "days": 3.0},
        {"city": "Rome", "hours": []},
        {"city": "Rome", "hours": [1, 2], "where": {"lat": 41}},
    ],
)
def test_valid_arguments_have_no_violation(arguments):
    assert violation(WEATHER, arguments) is None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "'city' is a required property"),
        ({"city": 1}, "city: 1 is not of type 'string'"),
        ({"city": None}, "city: None is not of type 'string'"),
        ({"city": "Rome", "days": "3"}, "days: '3' is not of type 'integer'"),
        ({"city": "Rome", "days": True}, "days: True is not of type 'integer'"),
        ({"city": "Rome", "days": 0}, "days: 0 is less than the minimum of 1"),
        ({"city": "Rome", "days": 3.5}, "days: 3.5 is not of type 'integer'"),
        ({"city": "Rome", "unit": "K"}, "unit: 'K' is not one of ['C', 'F']"),
        ({"city": "Rome", "hours": [1, "2"]}, "hours[1]: '2' is not of type 'integer'"),
        ({"city": "Rome", "hours": [1, 1]}, "hours: an item is there twice"),
        ({"city": "Rome", "where": {}}, "where: 'lat' is a required property"),
        ({"city": "Rome", "town": "Rome"}, "Additional properties are not allowed ('town' was unexpected)"),
        ({"city": ["\ud800"]}, "city: ['\\\\ud800'] is not of type 'string'"),
    ],
)
def test_a_violation_names_the_place_in_plain_characters(arguments, told):
    assert violation(WEATHER, arguments) == told


def test_properties_that_no_schema_names_are_refused_unless_it_allows_them():
    assert violation(of(), {"a": 1}) is not None
    assert violation({"type": "object"}, {"a": 1}) is not None
    assert violation(of() | {"additionalProperties": True}, {"a": 1}) is None
    assert violation(of() | {"additionalProperties": {"type": "string"}}, {"a": 1}) is not None
    assert violation(of() | {"unevaluatedProperties": True}, {"a": 1}) is None
    assert violation(of() | {"patternProperties": {"^a": {"type": "integer"}}}, {"a": 1}) is None
    assert violation({"type": "object", "allOf": [of(a={"type": "integer"})]}, {"a": 1}) is None
    assert violation({"type": "object", "allOf": [of(a={"type": "integer"})]}, {"b": 1}) is not None


def test_a_schema_of_another_draft_is_read_as_this_one():
    schema = of(a={"prefixItems": [{"type": "integer"}]}) | {"$schema": "http://json-schema.org/draft-07/schema#"}
    assert violation(schema, {"a": ["x"]}) == "a[0]: 'x' is not of type 'integer'"


scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, "", "a", "b"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner), max_leaves=6
)
kinds = st.sampled_from(["string", "integer", "number", "boolean", "null", "array", "object"])
schemas = st.recursive(
    st.fixed_dictionaries(
        {},
        optional={
            "type": kinds | st.lists(kinds, min_size=1, unique=True),
            "enum": st.lists(scalars, min_size=1),
            "minimum": st.integers(-2, 2),
            "multipleOf": st.sampled_from([2, 0.5]),
            "maxLength": st.just(0),
            "pattern": st.just("^a"),
            "uniqueItems": st.booleans(),
            "default": scalars,
            "format": st.just("date"),
        },
    ),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": st.just("object"),
            "properties": st.dictionaries(st.sampled_from("ab"), inner | st.booleans()),
            "items": inner,
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "required": st.just(["a"]),
        },
    ),
    max_leaves=6,
)


@given(schemas, values)
def test_what_is_valid_is_what_jsonschema_accepts(schema, value):
    parameters = of(value=schema) | {"additionalProperties": False}
    assert (violation(parameters, {"value": value}) is None) == Draft202012Validator(schema).is_valid(value)


def test_a_list_without_order_takes_work_in_proportion_to_its_length():
    def work(count):
        events = 0

        def note(frame, event, argument):
            nonlocal events
            events += 1

        arguments = {"a": [[{}, [number], str(number)][number % 3] for number in range(count)]}
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            violation(of(a={"type": "array", "uniqueItems": True}), arguments)
        finally:
            sys.setprofile(before)
        return events

    assert work(100) < work(4_000) < 50 * work(100)


@pytest.mark.parametrize(
    ("schema", "given", "filled"),
    [
        (of(a={"default": 1}), {}, {"a": 1}),
        (of(a={"default": 1}), {"a": 2}, {"a": 2}),
        (of(a={"default": None}), {}, {"a": None}),
        (of(a={"type": "integer"}), {}, {}),
        (of(a=of(b={"default": 1})), {}, {}),
        (of(a=of(b={"default": 1})), {"a": {}}, {"a": {"b": 1}}),
        (of(a=of(b={"default": 1}) | {"default": {}}), {}, {"a": {"b": 1}}),
        (of(a={"type": "array", "items": of(b={"default": 1})}), {"a": [{}, {"b": 2}]}, {"a": [{"b": 1}, {"b": 2}]}),
        (of(a={"type": "array"}), {"a": [{}]}, {"a": [{}]}),
        (of(a=True, b={"default": 1}), {"a": {"c": 3}, "d": 4}, {"a": {"c": 3}, "b": 1, "d": 4}),
        ({"type": "object"}, {"a": 1}, {"a": 1}),
    ],
)
def test_defaults_fill_what_is_left_out(schema, given, filled):
    before = json.dumps([schema, given])
    assert with_defaults(given, schema) == filled
    assert json.dumps([schema, given]) == before


def deep(depth):
    return {"type": "object", "default": json.loads("[" * (depth - 1) + "]" * (depth - 1))}


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object"},
        WEATHER,
        deep(MAX_DEPTH),
        of(a={"$ref": "#/$defs/a"}) | {"$defs": {"a": {"type": "string"}}},
        of(a={"$ref": "#/definitions/a"}) | {"definitions": {"a": {"type": "string"}}},
        of(a={"$ref": "#/$defs/a"}) | {"$defs": {"a": of(next={"$ref": "#/$defs/a"})}},
        of(a={"$ref": "#/$defs/a"}) | {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"type": "string"}}},
    ],
)
def test_a_tool_with_a_schema_is_usable(parameters):
    assert check_tool(tool(parameters)) is None
    assert violation(parameters, {}) is None or "city" in parameters["properties"]


def test_a_type_that_holds_itself_is_read_as_deep_as_it_goes():
    parameters = of(a={"$ref": "#/$defs/a"}) | {
        "$defs": {"a": of(next={"$ref": "#/$defs/a"}, value={"type": "integer"})}
    }
    assert violation(parameters, {"a": {"next": {"next": {"value": 1}}}}) is None
    assert (
        violation(parameters, {"a": {"next": {"next": {"value": "1"}}}})
        == "a.next.next.value: '1' is not of type 'integer'"
    )


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (None, "it is no object"),
        ([], "it is no object"),
        ({"name": "f", "parameters": {}}, "it is no object with `name`, `description` and `parameters`"),
        (tool({"type": "object"}, name=7), "its name is 7"),
        (tool({"type": "object"}, name=" "), "its name is empty"),
        (tool({"type": "object"}, description=None), "its description is None"),
        (tool([]), "its parameters is []"),
        (tool({}), "no schema of type object"),
        (tool({"type": "array"}), "no schema of type object"),
        (tool(deep(MAX_DEPTH + 1)), "nested more than 32 deep"),
        (tool(deep(900)), "nested more than 32 deep"),
        (tool(of(a={"minimum": float("nan")})), "hold NaN or Infinity"),
        (tool(of(a={"type": "float"})), "its parameters are no JSON Schema: $.properties.a.type: 'float' is not valid"),
        (tool(of(a={"type": "str, optional"})), "no JSON Schema"),
        (tool(of(a={"pattern": "("})), "'(' is not a 'regex'"),
        (tool(of(a={"required": True})), "no JSON Schema"),
        (tool(of(a="string")), "no JSON Schema"),
        (tool({"type": "object", "properties": []}), "no JSON Schema"),
        (tool(of(a={"$ref": "https://example.com/a.json"})), "refers to 'https://example.com/a.json'"),
        (tool(of(a={"$ref": "#"})), "refers to '#'"),
        (tool(of(a={"$ref": "#/$defs/b"}) | {"$defs": {"a": {}}}), "refers to '#/$defs/b'"),
        (tool(of(a={"$ref": "#/$defs/a"}) | {"$defs": {"a": {"$ref": "#/$defs/a"}}}), "defined by itself"),
        (
            tool(
                of(a={"$ref": "#/$defs/a"})
                | {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"not": {"$ref": "#/$defs/a"}}}}
            ),
            "defined by itself",
        ),
    ],
)
def test_a_tool_that_is_not_usable_has_a_reason(given, why):
    assert why in check_tool(given)


def test_the_task_is_imported_without_what_takes_long():
    code = (
        "import sys, r3_plugin_apigen.task; "
        "print([name for name in ('jsonschema', 'datasets', 'pandas', 'torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
