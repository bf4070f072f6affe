import pytest

from r3_plugin_apigen.dialect import is_schema, json_schema
from r3_plugin_apigen.rows import problem_of


@pytest.mark.parametrize(
    ("schema", "converted", "renamed", "unknown"),
    [
        ({"type": "object", "properties": {"type": {"type": "string"}}}, None, {}, []),
        ({"properties": {"a": {}}}, {"type": "object", "properties": {"a": {}}}, {}, []),
        (
            {"type": "dict", "properties": {"a": {"type": "float"}}, "required": None},
            {"type": "object", "properties": {"a": {"type": "number"}}},
            {"dict": 1, "float": 1},
            [],
        ),
        (
            {"type": "dict", "properties": {"a": {"type": "ArrayList", "items": {"type": "any"}}}},
            {"type": "object", "properties": {"a": {"type": "array", "items": {}}}},
            {"dict": 1, "ArrayList": 1, "any": 1},
            [],
        ),
        (
            {"type": "object", "properties": {"a": {"properties": {"b": {"type": "Frame", "default": 1}}}}},
            {"type": "object", "properties": {"a": {"properties": {"b": {"default": 1}}}}},
            {},
            ["a.b"],
        ),
        (
            {"type": "object", "properties": {"a": {"anyOf": [{"type": "tuple"}, {"type": "null"}], "required": True}}},
            {"type": "object", "properties": {"a": {"anyOf": [{"type": "array"}, {"type": "null"}]}}},
            {"tuple": 1},
            [],
        ),
    ],
)  # fmt: skip
def test_types_of_other_languages_become_those_of_json_schema(schema, converted, renamed, unknown):
    assert json_schema(schema) == (converted or schema, renamed, unknown)


@pytest.mark.parametrize(
    ("described", "schema"),
    [
        ({"properties": {"a": {"type": "string"}}}, True),
        ({"properties": {}, "required": []}, True),
        ({"type": "dict", "properties": {"a": {}}}, True),
        ({}, False),
        ({"a": {"type": "str", "description": "b"}}, False),
        ({"properties": {"type": "str", "description": "b"}}, False),
        ({"properties": {"a": {}}, "type": {"type": "str"}}, False),
    ],
)
def test_a_schema_without_a_type_is_told_from_a_list_of_arguments(described, schema):
    assert is_schema(described) is schema


def test_a_tool_whose_schema_has_no_types_is_usable():
    tool = {
        "name": "weather",
        "parameters": {"properties": {"city": {"description": "The city"}}, "required": ["city"]},
    }
    row = {
        "messages": [
            {"role": "user", "content": "Oslo?"},
            {
                "role": "assistant",
                "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}],
            },
        ],
        "tools": [tool],
    }
    problem = problem_of(row)
    assert problem.calls == [{"name": "weather", "arguments": {"city": "Oslo"}}]
    assert problem.tools[0]["parameters"]["properties"] == {"city": {"description": "The city"}}
    assert problem.unconverted == []
