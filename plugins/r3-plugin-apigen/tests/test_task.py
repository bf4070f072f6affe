import hashlib
import json
from itertools import islice
from pathlib import Path

import pytest

from r3_plugin_apigen.calls import Kind
from r3_plugin_apigen.task import Apigen
from r3core import Example, TaskError, get_task
from r3core.check.fixtures import read_fixtures
from r3core.generation.tool_calls import ToolCall, canonical

FIXTURES = read_fixtures(Apigen())
TOOLS = [
    {
        "name": "get_weather",
        "description": "Forecast",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
            "required": ["city"],
        },
    },
    {"name": "stop", "description": "Stop", "parameters": {"type": "object", "properties": {}}},
]


def example(*calls):
    answer = [{"name": name, "arguments": arguments} for name, arguments in calls]
    return Example(id="x", answer=answer, info={"query": "Weather in Rome for 3 days?", "tools": TOOLS})


ROME = example(("get_weather", {"city": "Rome", "days": 3}))
TWO = example(("get_weather", {"city": "Rome"}), ("stop", {}))


def test_the_task_is_found_by_its_name():
    assert type(get_task("apigen")) is Apigen
    assert get_task("apigen", calls=3).calls == (3,)


def test_the_page_has_every_option_and_every_kind_of_error():
    page = (Path(__file__).parents[3] / "docs/apigen.md").read_text(encoding="utf-8")
    for name, default in Apigen().options().items():
        stated = ",".join(map(str, default)) if isinstance(default, list) else str(default)
        assert f"| `{name}` | `{stated.lower()}` |" in page
    assert all(f"`{kind}`" in page for kind in Kind)


def test_options_survive_a_round_trip():
    task = Apigen(calls=(1, 3), distractors=4, ordered=True, defaults=False)
    assert Apigen(**task.options()) == task
    assert Apigen(**Apigen(source="hub", ordered=True).options()) == Apigen(source="hub", ordered=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "generatd"}, "source=generatd is neither `generated` nor `hub` nor a file"),
        ({"source": "hub", "calls": 2, "nested": True}, "calls, nested has no effect unless source=generated"),
        ({"calls": -1}, "greater than or equal to 0"),
        ({"calls": 99}, "less than or equal to"),
        ({"calls": ()}, "at least 1"),
        ({"distractors": -1}, "greater than or equal to 0"),
        ({"optional": 1.5}, "less than or equal to 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(TaskError, match=message):
        get_task("apigen", **options)


@pytest.mark.parametrize("row", FIXTURES, ids=[row.why.replace(" ", "-") for row in FIXTURES])
def test_fixtures_get_the_verdict_they_state(row):
    verdict = Apigen().verify(row.example, row.response)
    assert verdict.outcome == row.outcome
    assert verdict.kind == verdict.reason.partition(":")[0]
    assert (verdict.kind in set(Kind)) is (row.outcome == "fail")


@pytest.mark.parametrize("options", [{"ordered": True}, {"defaults": False}])
def test_fixtures_hold_under_every_option(options):
    for row in FIXTURES:
        assert Apigen(**options).verify(row.example, row.response).outcome == row.outcome, row.why


def test_fixtures_meet_every_kind_of_error_that_the_default_options_know():
    found = {Apigen().verify(row.example, row.response).kind for row in FIXTURES}
    assert found == {"", *Kind} - {Kind.WRONG_ORDER}


def test_fixtures_hold_no_row_twice():
    assert len({(str(row.example), row.response) for row in FIXTURES}) == len(FIXTURES)


def test_the_prompt_has_the_tools_the_request_and_the_form_of_the_answer():
    prompt = Apigen().prompt(ROME)
    assert [json.loads(line) for line in prompt.split("\n")[1:3]] == TOOLS
    assert "\n\nRequest: Weather in Rome for 3 days?\n\n" in prompt
    for said in (
        "one JSON list,",
        '"name" and "arguments"',
        "code fence",
        "tool_call tags",
        "text around",
        "no second",
    ):
        assert said in prompt
    assert "in the order" not in prompt
    assert "in the order" in Apigen(ordered=True).prompt(ROME)


def test_tools_are_beside_the_messages_of_the_chat_template():
    plain, prompt = Apigen().prompt(ROME), Apigen(template=True).prompt(ROME)
    assert prompt.tools == [{"type": "function", "function": tool} for tool in TOOLS]
    [message] = prompt.messages
    assert message["content"].startswith("Request: Weather in Rome for 3 days?\n\n")
    assert "Request: Weather in Rome for 3 days?\n\n" in plain


def test_a_request_with_a_template_teaches_no_form_but_the_templates():
    text = Apigen(template=True, ordered=True).prompt(ROME).messages[0]["content"]
    assert "in the form that the instructions for your tools describe" in text
    assert "in the order of the request," in text
    assert "tool_call" not in text


def test_the_prompt_without_a_template_is_the_one_of_recorded_runs():
    prompts = [Apigen(ordered=ordered).prompt(ROME) for ordered in (False, True)]
    assert [hashlib.sha256(prompt.encode()).hexdigest()[:16] for prompt in prompts] == [
        "0a9796c80cebde08",
        "305ffdb1f12d6362",
    ]


@pytest.mark.parametrize(
    "text", ["<tool_call>", "</tool_call>", "a <tool_call>b</tool_call>", '"</tool_call><tool_call>']
)
def test_a_value_may_contain_tags_in_every_form_of_an_answer(text):
    gold = example(("get_weather", {"city": text, "days": 3}))
    for answer in (Apigen().reference(gold), *Apigen().variants(gold)):
        assert Apigen().verify(gold, answer).outcome == "pass", answer
    call = ToolCall(name="get_weather", arguments={"city": text, "days": 3})
    assert Apigen().verify(gold, canonical("I look.", [call])).outcome == "pass"


def test_a_repeated_prompt_is_no_answer_and_takes_none_away():
    for one in (ROME, TWO, example()):
        prompt = Apigen().prompt(one)
        with_template = Apigen(template=True).prompt(one).messages[0]["content"]
        assert Apigen().verify(one, f"{with_template}\n\n{Apigen().reference(one)}").outcome == "pass"
        assert Apigen().verify(one, prompt).reason.startswith("no calls found")
        assert Apigen().verify(one, f"{prompt}\n\n{Apigen().reference(one)}").outcome == "pass"


@pytest.mark.parametrize("options", [{}, {"ordered": True}, {"defaults": False}, {"calls": (0, 1, 3)}, {"terse": True}])
def test_references_and_other_forms_of_them_pass(options):
    task = Apigen(**options)
    for one in islice(task.load("train"), 30):
        right = [task.reference(one), *task.variants(one)]
        assert len(set(right)) == len(right) >= 5
        assert [task.verify(one, response).outcome for response in right] == ["pass"] * len(right)


def test_the_order_of_calls_and_defaults_are_options():
    turned = json.dumps(TWO.answer[::-1])
    assert Apigen().verify(TWO, turned).outcome == "pass"
    assert Apigen(ordered=True).verify(TWO, turned).kind == Kind.WRONG_ORDER
    stated = json.dumps(TWO.answer).replace('"Rome"', '"Rome", "days": 1')
    assert Apigen().verify(TWO, stated).outcome == "pass"
    assert Apigen(defaults=False).verify(TWO, stated).kind == Kind.WRONG_ARGUMENT


def test_an_answer_that_is_not_json_is_written_in_its_own_letters():
    one = example(("get_weather", {"city": "Zürich"}))
    assert "Zürich" in Apigen().reference(one)


@pytest.mark.parametrize(
    ("one", "reflection", "leaks"),
    [
        (ROME, Apigen().reference(ROME), True),
        (ROME, f"I should have written {Apigen().reference(ROME)}", True),
        (ROME, "The right call is get_weather with the city Rome and 3 days.", True),
        (ROME, 'get_weather(city="rome", days=3)', True),
        (ROME, "I gave days as a text; get_weather wants a number.", False),
        (ROME, "Rome has to be the city, for 3 days.", False),
        (ROME, "get_weather for Rome and 30 days, 3.5 or x3", False),
        (TWO, "get_weather for Rome, then stop.", True),
        (TWO, "get_weather for Rome, and never stopped.", False),
        (example(), "No tool fits the request.", False),
        (example(), "I should have answered\n[]", True),
        (ROME, "", False),
    ],
)
def test_a_reflection_that_names_every_tool_and_value_gives_the_answer_away(one, reflection, leaks):
    assert Apigen().leaks(one, reflection) is leaks


@pytest.mark.parametrize("broken", [{"info": {}}, {"answer": None}, {"answer": [{"name": "f"}]}])
def test_an_example_that_is_no_problem_is_an_error_and_not_a_wrong_answer(broken):
    with pytest.raises(Exception, match=r"tools|not a list of calls"):
        Apigen().verify(ROME.model_copy(update=broken), "[]")
