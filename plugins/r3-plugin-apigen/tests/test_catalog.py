import pytest
from pydantic import ValidationError

from r3_plugin_apigen.catalog import Tool, forms

TOLD = {
    "domain": "weather",
    "name": "get_forecast",
    "about": "Weather of a city",
    "asks": ["Get the weather in {city} on {date}"],
    "takes": {"city": "city", "date": "date", "units": {"of": ["C", "F"], "say": "in {}", "default": "C"}},
}


def form_of(name, number, *, terse=False):
    variants = forms("train", nested=True, terse=terse)
    return next(forms[number] for forms in variants if forms[0].tool.name == name)


def test_a_description_of_a_tool_becomes_a_tool():
    tool = Tool.model_validate(TOLD)
    assert tool.required == ["city", "date"]


@pytest.mark.parametrize(
    "ask", ["Get the weather in {city}", "{city} on {date} in {units}", "{city} {city} {date}", ""]
)
def test_a_request_names_every_required_argument_once(ask):
    with pytest.raises(ValidationError, match=r"should name \['city', 'date'\], once each"):
        Tool.model_validate(TOLD | {"asks": [ask]})


def test_forms_of_a_tool_differ_in_names_alone():
    first, camel, second = (form_of("get_forecast", number) for number in range(3))
    assert [form.name for form in (first, camel, second)] == ["get_forecast", "getForecast", "weather_forecast"]
    assert list(first.arguments.values()) == ["city", "date", "units"]
    assert list(camel.arguments.values()) == ["location", "day", "units"]
    assert list(second.arguments.values()) == ["town", "on_date", "units"]
    schemas = [list(form.offer["parameters"]["properties"].values()) for form in (first, camel, second)]
    assert schemas[0] == schemas[1] == schemas[2]


def test_a_schema_describes_what_an_argument_may_be():
    parameters = form_of("search_flights", 0).offer["parameters"]
    assert parameters == {
        "type": "object",
        "properties": {
            "origin": {"type": "string"},
            "destination": {"type": "string"},
            "date": {"type": "string", "format": "date", "description": "YYYY-MM-DD"},
            "cabin": {"type": "string", "enum": ["economy", "business", "first"], "default": "economy"},
            "passengers": {"type": "integer", "minimum": 1, "maximum": 6, "default": 1},
        },
        "required": ["origin", "destination", "date"],
    }


def test_a_terse_schema_has_less_text():
    properties = form_of("search_flights", 0, terse=True).offer["parameters"]["properties"]
    assert properties.keys() == {"origin", "destination", "date", "cabin"}
    assert properties["date"] == {"type": "string", "format": "date"}
