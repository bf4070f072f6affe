import json
from collections import Counter

import pytest

from r3_plugin_apigen.calls import find_calls
from r3_plugin_apigen.rows import Unusable, load, problem_of, splits
from r3core import TaskError

SPLITS = ("train", "validation", "test")
CALLS = [{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}]
XLAM_TOOL = {
    "name": "weather",
    "description": "Weather of a city",
    "parameters": {
        "city": {"description": "The city", "type": "str"},
        "days": {"description": "How many", "type": "int, optional", "default": 1},
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
    "required": ["city"],
}
OPENAI_TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Weather of a city", "parameters": SCHEMA},
}
USER = {"role": "user", "content": "Weather in Oslo?"}


def said(calls=CALLS):
    """Return the assistant's turn with calls, as OpenAI's API gives it."""
    functions = [{"name": call["name"], "arguments": json.dumps(call["arguments"])} for call in calls]
    listed = [{"id": str(i), "type": "function", "function": one} for i, one in enumerate(functions)]
    return {"role": "assistant", "content": None, "tool_calls": listed}


def xlam(**changed):
    row = {"id": 0, "query": "Weather in Oslo?", "tools": json.dumps([XLAM_TOOL]), "answers": json.dumps(CALLS)}
    return row | changed


def openai(*turns, **changed):
    return {"messages": list(turns) or [USER, said()], "tools": [OPENAI_TOOL]} | changed


def many(count):
    return [xlam(id=i, query=f"Weather in city {i}?") for i in range(count)]


def write(tmp_path, rows, suffix=".json"):
    path = tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return str(path)


def load_all(source):
    return [example for split in SPLITS for example in load(source, split)]


@pytest.mark.parametrize(
    "row",
    [
        xlam(),
        xlam(tools=[XLAM_TOOL], answers=CALLS),
        xlam(tools=json.dumps([OPENAI_TOOL])),
        xlam(tools=[OPENAI_TOOL["function"]]),
        xlam(tools=[XLAM_TOOL, XLAM_TOOL]),
        xlam(answers=[{"name": "weather", "arguments": '{"city": "Oslo", "days": 3}'}]),
        openai(),
        openai(tools=json.dumps([OPENAI_TOOL]), messages=json.dumps([USER, said()])),
        openai({"role": "user", "content": [{"type": "text", "text": "Weather in Oslo?"}]}, said()),
        openai(USER, said(), {"role": "tool", "content": "7 degrees"}, {"role": "assistant", "content": "Cold."}),
        openai(USER, {"role": "assistant", "function_call": said()["tool_calls"][0]["function"]}),
    ],
)
def test_every_layout_gives_the_same_problem(row):
    problem = problem_of(row)
    assert (problem.query, problem.calls, problem.unconverted) == ("Weather in Oslo?", CALLS, [])
    (tool,) = problem.tools
    assert (tool["name"], tool["description"]) == ("weather", "Weather of a city")
    assert tool["parameters"]["type"] == "object"
    assert tool["parameters"]["properties"].keys() == {"city", "days"}
    assert tool["parameters"]["properties"]["days"]["default"] == 1
    assert tool["parameters"]["required"] == ["city"]


@pytest.mark.parametrize("row", [xlam(answers="[]"), openai(USER, {"role": "assistant", "tool_calls": []})])
def test_an_answer_may_be_that_nothing_is_called(row):
    assert problem_of(row).calls == []


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_turn_is_put_before_the_query(role):
    problem = problem_of(openai({"role": role, "content": "Today is Monday."}, USER, said()))
    assert problem.query == "Today is Monday.\n\nWeather in Oslo?"


def test_a_tool_without_parameters_takes_none():
    bare = {"type": "function", "function": {"name": "now"}}
    problem = problem_of(openai(USER, said([{"name": "now", "arguments": {}}]), tools=[bare]))
    assert problem.tools == [{"name": "now", "description": "", "parameters": {"type": "object"}}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (None, "the row is not a JSON object"),
        ("{'query'", "the row is not a JSON object"),
        ({}, "there is no query"),
        (xlam(query=None), "there is no query"),
        (xlam(query="  "), "there is no query"),
        (xlam(tools=None), "there is no `tools`"),
        (xlam(tools="[{]"), "`tools` is not JSON"),
        (xlam(tools="[" * 100_000), "`tools` is not JSON"),
        (xlam(tools="{}"), "`tools` is not a list"),
        (xlam(tools="[]"), "there are no tools"),
        (xlam(tools=["weather"]), "a tool is not usable"),
        (xlam(tools=[{"parameters": {}}]), "a tool is not usable"),
        (xlam(tools=[XLAM_TOOL | {"parameters": [1]}]), "a tool is not usable"),
        (xlam(tools=[OPENAI_TOOL["function"] | {"parameters": {"type": "object", "properties": {"city": 1}}}]),
         "a tool is not usable"),
        (xlam(tools=[XLAM_TOOL, XLAM_TOOL | {"description": "Another"}]), "two tools have one name"),
        (xlam(answers=None), "there is no `answers`"),
        (xlam(answers="weather(city='Oslo')"), "`answers` is not JSON"),
        (xlam(answers='[{"name": "weather", "arguments": {"city": NaN}}]'), "`answers` is not JSON"),
        (xlam(answers='{"name": "weather", "arguments": {}}'), "`answers` is not a list"),
        (xlam(answers='["weather"]'), "a call is not an object"),
        (xlam(answers=[{"name": "weather", "arguments": "city=Oslo"}]), "`arguments` is not JSON"),
        (xlam(answers=[{"name": "weather"}]), "the answer could not pass (not a list of calls)"),
        (xlam(answers=[{"arguments": {}}]), "the answer could not pass (not a list of calls)"),
        (xlam(answers=[{"name": "whether", "arguments": {}}]), "the answer could not pass (unknown tool)"),
        (xlam(answers=[{"name": "weather", "arguments": {}}]), "the answer could not pass (schema violation)"),
        (xlam(answers=[{"name": "weather", "arguments": {"city": 5}}]), "the answer could not pass (schema violation)"),
        (xlam(answers=CALLS * 65), "the answer could not pass (too long)"),
        (xlam(query="half a \ud83d"), "a text holds half a character"),
        (openai(USER), "there is not one user turn and an answer"),
        (openai(said()), "there is not one user turn and an answer"),
        (openai(USER, USER, said()), "there is not one user turn and an answer"),
        (openai({"role": "user", "content": None}, said()), "there is not one user turn and an answer"),
        (openai("weather"), "there is not one user turn and an answer"),
        (openai(messages="weather"), "there is not one user turn and an answer"),
        (openai(USER, {"role": "assistant", "content": "Cold."}), "there is no `tool_calls`"),
        (openai(USER, {"role": "assistant", "tool_calls": {}}), "`tool_calls` is not a list"),
        (openai(tools=None), "there is no `tools`"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_has_its_reason(row, reason):
    with pytest.raises(Unusable) as caught:
        problem_of(row)
    assert caught.value.reason == reason
    assert len(str(caught.value)) < 300


def test_sixty_thousand_rows_are_split_as_in_the_paper():
    counts = Counter(splits([{"query": str(number)} for number in range(60_000)]))
    assert counts == {"train": 43_200, "validation": 4_800, "test": 12_000}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 99])
def test_small_files_are_split_in_the_same_shares(count):
    counts = Counter(splits(many(count)))
    assert counts["test"] == round(0.2 * count)
    assert counts["validation"] == round(0.28 * count) - round(0.2 * count)


def test_no_rows_have_no_splits():
    assert splits([]) == []


def test_the_split_of_a_query_does_not_depend_on_the_order_of_rows(tmp_path):
    rows = many(100)
    held_out = {example.id for example in load(write(tmp_path, rows), "test")}
    assert len(held_out) == 20
    assert {example.id for example in load(write(tmp_path, rows[::-1]), "test")} == held_out


def test_a_query_is_in_one_split_however_it_is_spaced_and_whatever_else_is_in_its_rows():
    rows = [xlam(query=query, id=i) for i in range(100) for query in (f"Oslo  {i}", f"oslo {i}", f"Oslo {i}\n")]
    found = splits(rows)
    assert set(found) == set(SPLITS)
    assert found[0::3] == found[1::3] == found[2::3]


def test_a_file_is_split_without_loss_and_keeps_its_order(tmp_path):
    source = write(tmp_path, many(50))
    examples = load_all(source)
    assert {example.id for example in examples} == set(map(str, range(50)))
    ids = [int(example.id) for example in load(source, "train")]
    assert ids == sorted(ids)
    assert load_all(source) == examples


def test_an_example_holds_what_the_task_needs(tmp_path):
    (example,) = load_all(write(tmp_path, [xlam(id=17)]))
    assert example.id == "17"
    assert example.answer == CALLS
    assert example.info.keys() == {"query", "tools"}
    assert find_calls(json.dumps(example.answer))


@pytest.mark.parametrize("own", [None, "", True, 1.5, "two\nlines", "half \ud83d"])
def test_a_row_without_a_usable_id_is_called_by_its_content(tmp_path, own):
    (example,) = load_all(write(tmp_path, [xlam(id=own)]))
    (other,) = load_all(write(tmp_path, [xlam(id=own, query="Weather in Rome?")]))
    assert len(example.id) == len(other.id) == 16
    assert example.id != other.id


def test_an_id_that_two_rows_have_is_given_up(tmp_path):
    rows = [*many(20), xlam(id=3, query="Weather in Rome?")]
    ids = {example.id for example in load_all(write(tmp_path, rows))}
    assert len(ids) == 21
    assert "3" not in ids
    assert "4" in ids


def test_rows_that_cannot_be_used_are_counted_by_reason_and_the_others_are_loaded(tmp_path):
    rows = [*many(10), *(xlam(id=name, query=f"Bad {name}", answers="?") for name in "abc"), "no row", "no row"]
    with pytest.warns(UserWarning, match="skipped") as caught:
        examples = load_all(write(tmp_path, rows, ".jsonl"))
    assert {example.id for example in examples} == set(map(str, range(10)))
    told = " ".join(str(warning.message) for warning in caught)
    assert told.count("rows.jsonl`, split") == len(caught) <= 3
    assert "because `answers` is not JSON" in told
    assert "because the row is not a JSON object" in told
    assert "the first is row 1" in told


def test_skipped_rows_are_reported_also_when_iteration_stops_early(tmp_path):
    rows = [
        xlam(id="bad", answers="?"),
        *(xlam(id=i, tools=[XLAM_TOOL | {"name": f"t{i}"}, XLAM_TOOL]) for i in range(5)),
    ]
    some = load(write(tmp_path, rows), "train")
    assert next(some).id == "0"
    with pytest.warns(UserWarning, match="skipped 1 of 2 rows: 1 because `answers` is not JSON; the first is row 1"):
        some.close()


def test_the_same_problem_comes_once(tmp_path):
    rows = [xlam(id=1), xlam(id=2), xlam(id=3, tools=[XLAM_TOOL | {"description": "Other"}])]
    with pytest.warns(UserWarning, match="skipped 1 of 3 rows: 1 because the same query and tools came before"):
        assert [example.id for example in load_all(write(tmp_path, rows))] == ["1", "3"]


def test_parameters_that_could_not_be_converted_are_warned_of(tmp_path):
    odd = {f"odd{i}": {"description": "", "type": "Frobnicator, optional"} for i in range(7)}
    tool = XLAM_TOOL | {"parameters": XLAM_TOOL["parameters"] | odd}
    rows = [xlam(id=1, tools=[tool]), xlam(id=2, tools=[tool, XLAM_TOOL | {"name": "other"}])]
    with pytest.warns(
        UserWarning, match=r"of 7 parameters .* in 14 places: weather\.odd0, .*, weather\.odd4 and 2 oth"
    ):
        assert len(load_all(write(tmp_path, rows))) == 2


def test_a_file_without_a_row_that_can_be_used_is_an_error(tmp_path):
    rows = [xlam(answers="?"), xlam(tools=None), xlam(answers="!")]
    with pytest.raises(
        TaskError, match="skipped 3 of 3 rows: 2 because `answers` is not JSON, 1 because there"
    ) as caught:
        load_all(write(tmp_path, rows))
    assert "`messages`" in caught.value.hints[0]


def test_an_empty_file_is_an_error(tmp_path):
    with pytest.raises(TaskError, match="holds no row that can be used: it is empty"):
        load_all(write(tmp_path, []))
