import json

import pytest

from r3_plugin_apigen.benchmarks import MAX_ACCEPTED, Unusable, in_one_layout
from r3_plugin_apigen.rows import load, problem_of
from r3_plugin_apigen.task import Apigen
from r3core import Example

SPLITS = ("train", "validation", "test")
FUNCTION = {
    "name": "math.area",
    "description": "The area of a triangle.",
    "parameters": {
        "type": "dict",
        "properties": {
            "base": {"type": "float", "description": "In meters."},
            "corners": {"type": "tuple", "items": {"type": "integer"}},
            "unit": {"type": "string", "default": "m"},
            "style": {"type": "dict", "properties": {"color": {"type": "string"}, "width": {"type": "any"}}},
        },
        "required": ["base"],
    },
}
TOOLACE_TOOLS = [
    {
        "name": "Market Trends API",
        "description": "Trends [of today]",
        "parameters": {"type": "dict", "properties": {"kind": {"type": "string"}, "from": {"type": "int"}}},
        "required": None,
    },
    {"name": "now", "description": "The time", "parameters": {"type": "dict", "properties": {}, "required": None}},
]
SYSTEM = f"You are an expert [in calls]. You can invoke:\n{json.dumps(TOOLACE_TOOLS)}\nUse [f(x=1)]."


def bfcl(truth=({"math.area": {"base": [3], "unit": ["m", "cm"]}},), **changed):
    question = [[{"role": "user", "content": "The area?"}]]
    row = {"id": "simple_0", "question": question, "function": [FUNCTION], "ground_truth": list(truth)}
    return row | changed


def toolace(answer='[Market Trends API(kind="now(x)", from=3), now()]', **changed):
    turns = [{"from": "user", "value": "What is up?"}, {"from": "assistant", "value": answer}]
    return {"system": SYSTEM, "conversations": [*turns, {"from": "tool", "value": "[]"}]} | changed


def judged(row, *calls, **options):
    problem = problem_of(row)
    info = {"query": problem.query, "tools": problem.tools, "accepted": problem.accepted or []}
    example = Example.model_validate({"id": "x", "answer": problem.calls, "info": info})
    task = Apigen(**options)
    assert task.verify(example, task.reference(example)).outcome == "pass"
    written = [{"name": "math.area", "arguments": arguments} for arguments in calls]
    return task.verify(example, json.dumps(written)).outcome == "pass"


def test_a_row_of_bfcl_is_read_and_its_types_are_converted():
    problem = problem_of(bfcl())
    assert problem.query == "The area?"
    assert problem.calls == [{"name": "math.area", "arguments": {"base": 3, "unit": "m"}}]
    properties = problem.tools[0]["parameters"]["properties"]
    assert problem.tools[0]["parameters"]["type"] == "object"
    assert properties["base"]["type"] == "number"
    assert properties["corners"] == {"type": "array", "items": {"type": "integer"}}
    assert properties["style"]["properties"]["width"] == {}
    assert problem.dialect == {"dict": 2, "float": 1, "tuple": 1, "any": 1}
    assert problem.unconverted == []


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ({"base": 3, "unit": "m"}, True),
        ({"base": 3.0, "unit": "cm"}, True),
        ({"base": 3}, True),  # the default is accepted
        ({"base": 3, "unit": "km"}, False),
        ({"base": 4, "unit": "cm"}, False),
        ({"unit": "cm"}, False),
        ({"base": 3, "unit": "cm", "corners": [1]}, False),
    ],
)
def test_each_accepted_value_is_right(arguments, right):
    assert judged(bfcl(), arguments) is right


def test_without_defaults_only_the_empty_text_lets_an_argument_be_left_out():
    assert not judged(bfcl(), {"base": 3}, defaults=False)
    row = bfcl([{"math.area": {"base": [3], "unit": ["cm", ""]}}])
    assert judged(row, {"base": 3}, defaults=False)
    assert judged(row, {"base": 3, "unit": "cm"}, defaults=False)
    assert not judged(row, {"base": 3, "unit": ""}, defaults=False)
    assert judged(bfcl([{"math.area": {"base": [3], "unit": ["", "cm"]}}]), {"base": 3, "unit": "cm"})


def test_values_inside_objects_are_combined():
    row = bfcl([{"math.area": {"base": [3], "style": [{"color": ["red", "blue"], "width": [1, ""]}]}}])
    assert judged(row, {"base": 3, "style": {"color": "blue"}})
    assert judged(row, {"base": 3, "style": {"color": "red", "width": 1}})
    assert not judged(row, {"base": 3, "style": {"width": 1}})


def test_each_expected_call_stands_for_one_call():
    two = bfcl([{"math.area": {"base": [1, 2]}}, {"math.area": {"base": [1]}}])
    assert judged(two, {"base": 2}, {"base": 1})
    assert judged(two, {"base": 1}, {"base": 2})
    assert judged(two, {"base": 1}, {"base": 1})
    assert not judged(two, {"base": 2}, {"base": 2})
    assert not judged(two, {"base": 1})
    assert not judged(two, {"base": 1}, {"base": 1}, {"base": 1})
    assert not judged(two, {"base": 1}, {"base": 2}, ordered=True)


def test_rows_with_one_value_each_need_no_list_of_accepted_values():
    assert problem_of(bfcl([{"math.area": {"base": [3]}}])).accepted is None


def test_a_row_of_irrelevance_has_no_call():
    row = bfcl(id="live_irrelevance_7-0")
    del row["ground_truth"]
    assert problem_of(row).calls == []


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({key: value for key, value in bfcl().items() if key != "ground_truth"}, "there is no `ground_truth`"),
        (bfcl(question=[[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]), "not one user turn"),
        (bfcl(question="The area?"), "not one user turn"),
        (bfcl([{"math.area": {"base": 3}}]), "no list of accepted values"),
        (bfcl([{"math.area": {}, "now": {}}]), "not one name with its arguments"),
        (bfcl([{"math.area": {"style": [{str(n): [1, 2] for n in range(40)}]}}]), f"more than {MAX_ACCEPTED}"),
        (bfcl([{"volume": {"base": [3]}}]), "unknown tool"),
        (toolace("I need more details."), "no list of calls"),
        (toolace("[now("), "cannot be read"),
        (toolace("[now(print())]"), "cannot be read"),
        (toolace("[later()]"), "unknown tool"),
        (toolace(system="No tools."), "no list of tools"),
        (toolace(system="[{'name': 1}]"), "cannot be read"),
        (toolace(conversations=[]), "not one user turn"),
        (toolace(conversations=[{"from": ["user"]}]), "cannot be read"),
        (bfcl(function=[{"name": ["x"]}]), "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_reported(row, reason):
    with pytest.raises(Unusable, match=reason):
        problem_of(row)


def test_a_row_of_toolace_is_read():
    problem = problem_of(toolace())
    assert problem.query == "What is up?"
    assert problem.calls == [
        {"name": "Market Trends API", "arguments": {"kind": "now(x)", "from": 3}},
        {"name": "now", "arguments": {}},
    ]
    assert [tool["name"] for tool in problem.tools] == ["Market Trends API", "now"]
    assert problem.dialect == {"dict": 2, "int": 1}


def test_other_rows_stay_as_they_are():
    for row in (None, "text", {}, {"query": "a", "tools": []}):
        assert in_one_layout(row) is row


def test_a_file_of_bfcl_is_read_with_the_answers_beside_it(tmp_path):
    rows = [bfcl(id=f"simple_{n}", question=[[{"role": "user", "content": f"Area {n}?"}]]) for n in range(20)]
    truths = [{"id": row["id"], "ground_truth": row.pop("ground_truth")} for row in rows]
    path = tmp_path / "BFCL_v4_simple.json"
    path.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "possible_answer").mkdir()
    (tmp_path / "possible_answer" / path.name).write_text("\n".join(map(json.dumps, truths)))
    with pytest.warns(UserWarning, match="types that are not JSON Schema's were converted: `dict` [0-9]+ times"):
        found = [example for split in SPLITS for example in load(str(path), split)]
    assert sorted(example.id for example in found) == sorted(row["id"] for row in rows)
    task = Apigen(source=str(path))
    assert all(task.verify(example, task.reference(example)).outcome == "pass" for example in found)
    assert all(example.info["accepted"][0]["values"]["unit"] == ["m", "cm"] for example in found)


def test_a_file_of_toolace_is_read(tmp_path):
    rows = [
        toolace(conversations=[{"from": "user", "value": f"Up {n}?"}, *toolace()["conversations"][1:]])
        for n in range(9)
    ]
    path = tmp_path / "data.json"
    path.write_text(json.dumps([*rows, toolace("Which market?")]))
    skipped = pytest.warns(UserWarning, match="1 because the answer is no list of calls")
    with pytest.warns(UserWarning, match="types that are not JSON Schema's were converted"), skipped:
        found = [example for split in SPLITS for example in load(str(path), split)]
    assert len(found) == 9
    assert all("accepted" not in example.info for example in found)
