"""Function calls in the forms of chat templates: read exactly, or refused."""

# ruff: noqa: RUF001 - some models write their marks with fullwidth characters

import time
from contextlib import suppress

import call_tables
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TOOL_TEMPLATE, tiny_tokenizer

from r3core.generation.call_forms import END, FORMS
from r3core.generation.call_values import python_calls, strict_json
from r3core.generation.tool_calls import MAX_CALLS, MalformedCalls, ToolCall, canonical, form_of, read_calls

BY_NAME = {form.name: form for form in FORMS}
JSON = BY_NAME["JSON in <tool_call> tags"]
XML = BY_NAME["XML function tags in <tool_call>"]
PAIRS = BY_NAME["key and value tags in <tool_call>"]
BARE = BY_NAME["bare JSON"]
CHANNELS = BY_NAME["channels, JSON to=functions."]
PYTHON = BY_NAME["Python in <|tool_call_start|>"]
BRACES = BY_NAME['call:name{}, strings in <|"|>']
ARGS = BY_NAME["[TOOL_CALLS]name[ARGS]"]
INVOKE = BY_NAME["<｜DSML｜invoke name=> in <｜DSML｜tool_calls>"]
SECTIONS = BY_NAME["functions.name:0 sections"]


def tool(**properties):
    return {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}}


TOOLS = [
    tool(
        x={"type": "integer"},
        text={"type": "string"},
        flag={"type": "boolean"},
        items={"type": "array"},
        maybe={"anyOf": [{"type": "number"}, {"type": "null"}]},
        level={"enum": [1, 2]},
        untyped={},
    )
]


def calls_of(form, text, tools=TOOLS):
    return [(call.name, call.arguments) for call in read_calls(form, text, tools)[1]]


def xml(**arguments):
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function=f>\n{inner}</function>\n</tool_call>"


@pytest.mark.slow
def test_390_of_403_templates_are_read_back():
    found = call_tables.templates()
    assert found.total() == 403
    assert found[None] == 13
    assert found[JSON.name] >= 130
    assert found[XML.name] >= 77


def test_recorded_outputs_are_read_or_refused():
    counts = {family: [right for _, right in read] for family, read in call_tables.recorded().items()}
    assert counts == {  # calls read exactly, texts without calls left alone, broken refused, cut off refused
        "deepseek": [62, 9, 2, 11],
        "gemma4": [33, 6, 1, 5],
        "glm": [41, 5, 0, 4],
        "gpt-oss": [35, 5, 3, 7],
        "kimi": [20, 3, 0, 2],
        "llama": [26, 6, 0, 2],
        "mistral": [37, 5, 1, 4],
        "qwen3-hermes": [32, 8, 1, 9],
        "qwen3-xml": [41, 3, 0, 3],
    }
    assert all(read.broken[0] == read.broken[1] for read in call_tables.recorded().values())
    assert all(read.cut_off[0] == read.cut_off[1] for read in call_tables.recorded().values())


def test_a_template_without_a_place_for_calls_has_no_form_until_it_is_replaced():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TOOL_TEMPLATE
    assert form_of(tokenizer) is None
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% for c in m['tool_calls'] or [] %}<tool_call>"
        "{{ c['function'] | tojson }}</tool_call>{% endfor %}<|end|>{% endfor %}"
    )
    assert form_of(tokenizer) == JSON


def test_a_template_that_takes_arguments_as_text_alone_is_read_back():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% for c in m['tool_calls'] or [] %}"
        "{{ '[TOOL_CALLS]' + c['function']['name'] + '[ARGS]' + c['function']['arguments'] }}"
        "{% endfor %}<|end|>{% endfor %}"
    )
    assert form_of(tokenizer) == ARGS


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (JSON, '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>'),
        (XML, xml(x=1)),
        (PAIRS, "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"),
        (PAIRS, "<tool_call>f<arg_key>x</arg_key><arg_value>1</arg_value></tool_call><|observation|>"),
        (BARE, '{"name": "f", "parameters": {"x": 1}}<|eot_id|>'),
        (BARE, '{"name": "f", "parameters": {"x": 1}}'),
        (BARE, '<|python_tag|>{"type": "function", "name": "f", "arguments": {"x": 1}}'),
        (CHANNELS, '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>'),
        (CHANNELS, ' to=functions.f<|channel|>commentary json<|message|>{"x": 1}<|call|>'),
        (PYTHON, "<|tool_call_start|>[f(x=1)]<|tool_call_end|>"),
        (BRACES, "<|tool_call>call:f{x:1}<tool_call|><|tool_response>"),
        (ARGS, '[TOOL_CALLS]f[ARGS]{"x": 1}</s>'),
        (ARGS, '[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"x": 1}'),
        (
            INVOKE,
            '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="x" string="false">1'
            "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        ),
        (
            SECTIONS,
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
            '{"x": 1}<|tool_call_end|><|tool_calls_section_end|>',
        ),
    ],
)
def test_a_call_is_read_and_the_text_around_it_is_left(form, text):
    content, calls = read_calls(form, text, TOOLS)
    assert calls == [ToolCall(name="f", arguments={"x": 1})]
    assert "f" not in content
    before = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant" if form == CHANNELS else "I look.\n"
    content, calls = read_calls(form, before + text, TOOLS)
    assert content.startswith("I look.")
    assert calls == [ToolCall(name="f", arguments={"x": 1})]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_text_without_calls_is_left_as_it_is(form):
    assert read_calls(form, " Nothing fits: 3 < 4 [see {this}].\n", TOOLS) == (
        " Nothing fits: 3 < 4 [see {this}].\n",
        [],
    )
    assert read_calls(form, "", TOOLS) == ("", [])


def test_the_channel_of_an_answer_is_no_part_of_it():
    assert read_calls(CHANNELS, "<|start|>assistant<|channel|>final<|message|>Seven.<|return|>", []) == ("Seven.", [])


@pytest.mark.parametrize(
    ("form", "text", "what"),
    [
        (JSON, '<tool_call>\n{"name": "f", "arguments": {"x": 1}}', "not closed"),
        (JSON, '<tool_call>{"name": "f", "arguments": {"x": 1}', "not closed"),
        (JSON, '{"name": "f", "arguments": {}}</tool_call>', "outside of a call"),
        (JSON, '<tool_call>{"name": "f", "arguments": {"x": 1, "x": 2}}</tool_call>', "twice"),
        (JSON, '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>', "NaN"),
        (JSON, '<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>', "too large"),
        (JSON, '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', "no object"),
        (JSON, '<tool_call>{"name": "f", "arguments": {}, "more": 1}</tool_call>', "alone"),
        (JSON, '<tool_call>{"name": "f", "arguments": {}, "parameters": {}}</tool_call>', "alone"),
        (JSON, "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>", "JSON"),
        (JSON, '<tool_call>{"name": "f", "arguments": {}} too</tool_call>', "outside|not closed"),
        (XML, "<tool_call>\n<function=f>\n<parameter=x>\n1\n</function>\n</tool_call>", "its tags"),
        (XML, xml(x=1).replace("</parameter>", "</parameter>!"), "its tags"),
        (XML, xml(x=1).replace("</function>", "<parameter=x>\n2\n</parameter>\n</function>"), "twice"),
        (XML, '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>', "outside of a call"),
        (XML, xml(x="1_000"), "no number"),
        (XML, xml(x="٣"), "no number"),
        (XML, xml(items="[NaN]"), "NaN"),
        (PAIRS, "<tool_call>f<arg_key>x</arg_key><arg_value>1</tool_call>", "not closed"),
        (BARE, '{"name": "f", "parameters": {"x": 1}} That is all.', "not closed"),
        (BARE, '{"name": "f", "parameters": {"x": 1', "not closed"),
        (CHANNELS, '<|channel|>commentary to=functions.f<|message|>{"x": 1', "not closed"),
        (CHANNELS, "<|channel|>commentary to=functions.f", "outside of a call"),
        (PYTHON, "<|tool_call_start|>[f(1)]<|tool_call_end|>", "named arguments"),
        (PYTHON, "<|tool_call_start|>[f(x=1, x=2)]<|tool_call_end|>", "twice"),
        (PYTHON, "<|tool_call_start|>[f(x=g())]<|tool_call_end|>", "no literal"),
        (PYTHON, "<|tool_call_start|>[f(x=1)", "not closed"),
        (BRACES, "<|tool_call>call:f{x:1,x:2}<tool_call|>", "twice"),
        (BRACES, "<|tool_call>call:f{x:1}", "not closed"),
        (ARGS, "[TOOL_CALLS]f[ARGS]", "JSON|not closed"),
        (ARGS, "[TOOL_CALLS] not JSON", "outside of a call"),
        (
            SECTIONS,
            "<|tool_calls_section_begin|>so<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
            "{}<|tool_call_end|><|tool_calls_section_end|>",
            "inside",
        ),
        (
            SECTIONS,
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|>",
            "not closed",
        ),
        (
            SECTIONS,
            "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|>",
            "outside",
        ),
        (JSON, f"a{END}b", "no character of a text"),
        (JSON, "a" * 200_001, "more than 200,000 characters"),
        (JSON, '<tool_call>{"name": "f", "arguments": {}}</tool_call>' * (MAX_CALLS + 1), "more than 64 calls"),
        (JSON, f'<tool_call>{{"name": "f", "arguments": {{"x": {"[" * 40}{"]" * 40}}}}}</tool_call>', "inside each"),
        (JSON, f'<tool_call>{{"name": "f", "arguments": {{"x": {"[" * 9000}{"]" * 9000}}}}}</tool_call>', "recursion"),
    ],
)
def test_what_is_not_exactly_a_call_is_malformed(form, text, what):
    with pytest.raises(MalformedCalls, match=what):
        read_calls(form, text, TOOLS)


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ({"x": "3"}, {"x": 3}),
        ({"x": "three"}, {"x": "three"}),
        ({"text": "75001"}, {"text": "75001"}),
        ({"text": " two\n lines "}, {"text": " two\n lines "}),
        ({"text": "a </parameter> b"}, {"text": "a </parameter> b"}),
        ({"text": "a </tool_call> b"}, {"text": "a </tool_call> b"}),
        ({"flag": "true"}, {"flag": True}),
        ({"items": '[1, "a"]'}, {"items": [1, "a"]}),
        ({"maybe": "null"}, {"maybe": None}),
        ({"maybe": "2.5"}, {"maybe": 2.5}),
        ({"level": "2"}, {"level": 2}),
        ({"untyped": "2"}, {"untyped": 2}),
        ({"untyped": '{"a": true}'}, {"untyped": {"a": True}}),
        ({"untyped": "two"}, {"untyped": "two"}),
    ],
)
def test_values_of_tags_have_the_types_of_the_schema(arguments, read):
    (call,) = calls_of(XML, xml(**arguments))
    assert repr(call) == repr(("f", read))


def test_values_of_json_keep_their_own_types():
    assert calls_of(BARE, '{"name": "f", "parameters": {"x": "3"}}') == [("f", {"x": "3"})]


def test_a_tag_that_states_the_type_of_its_value_is_believed():
    text = (
        '<｜DSML｜tool_calls><｜DSML｜invoke name="f"><｜DSML｜parameter name="x" string="true">3'
        "</｜DSML｜parameter></｜DSML｜invoke></｜DSML｜tool_calls>"
    )
    assert calls_of(INVOKE, text) == [("f", {"x": "3"})]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (JSON, '<tool_call>{"name": "f", "arguments": {"text": "a </tool_call> <tool_call> b"}}</tool_call>'),
        (BARE, '{"name": "f", "parameters": {"text": "a </tool_call> <tool_call> b"}}'),
        (ARGS, '[TOOL_CALLS]f[ARGS]{"text": "a </tool_call> <tool_call> b"}'),
        (BRACES, '<|tool_call>call:f{text:<|"|>a </tool_call> <tool_call> b<|"|>}<tool_call|>'),
        (PYTHON, '<|tool_call_start|>[f(text="a </tool_call> <tool_call> b")]<|tool_call_end|>'),
        (XML, xml(text="a </tool_call> <tool_call> b")),
    ],
)
def test_marks_inside_a_text_are_text_in_the_answer_and_for_the_verifier(form, text):
    content, calls = read_calls(form, text, TOOLS)
    assert calls == [ToolCall(name="f", arguments={"text": "a </tool_call> <tool_call> b"})]
    assert canonical(content, calls).count("<tool_call>") == 1
    assert read_calls(JSON, canonical(content, calls), TOOLS) == ("", calls)


def test_canonical_puts_each_call_on_lines_of_its_own():
    calls = [ToolCall(name="f", arguments={"x": "é"}), ToolCall(name="g", arguments={})]
    assert canonical("I look.", calls) == (
        'I look.\n<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    )
    assert canonical("", []) == ""


def test_a_mark_that_the_request_opened_belongs_to_the_answer():
    text = '\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    assert read_calls(JSON, text, TOOLS, request="...<|assistant|>\n<tool_call>\n") == (
        "",
        [ToolCall(name="f", arguments={"x": 1})],
    )
    with pytest.raises(MalformedCalls):
        read_calls(JSON, text, TOOLS, request="What does <tool_call> mean?<|assistant|>")


def test_a_call_of_the_request_is_never_read():
    request = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call><|assistant|>'
    assert read_calls(JSON, "No.", TOOLS, request=request) == ("No.", [])


def test_tools_may_be_anything_that_a_prompt_can_hold():
    odd = [{"name": "f"}, {"function": {"name": "f", "parameters": None}}, tool(x=True), tool(x={"type": ["integer"]})]
    assert calls_of(XML, xml(x="3"), odd) == [("f", {"x": 3})]
    assert calls_of(XML, xml(x="3"), []) == [("f", {"x": "3"})]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("f()", [("f", {})]),
        ("[f(x=1), g.h(y=-2.5)]", [("f", {"x": 1}), ("g.h", {"y": -2.5})]),
        ("f(x=1)\ng(y=None)", [("f", {"x": 1}), ("g", {"y": None})]),
        ("f(x=true, y=False, z=null)", [("f", {"x": True, "y": False, "z": None})]),
        ("f(x=[1, 'a'], y={'k': (1, 2)})", [("f", {"x": [1, "a"], "y": {"k": [1, 2]}})]),
        ("f(from='Rome', in=1, text='from = 1')", [("f", {"from": "Rome", "in": 1, "text": "from = 1"})]),
        (r'f(x="\ud83d\ude00 \d")', [("f", {"x": "😀 \\d"})]),
    ],
)
def test_calls_in_pythons_syntax_are_read(text, calls):
    assert python_calls(text) == calls


@pytest.mark.parametrize(
    "text",
    [
        *("f", "f(x)", "f(*x)", "f(**{'x': 1})", "f(x=y)", "f(x=f'{1}')", "f(x=b'a')", "f(x=1j)", "f(x={1})"),
        *("f(x=...)", "f(x={1: 2})", "f(x={**{}})", "f(x={'a': 1, 'a': 2})", "f(x=1e999)", f"f(x={'9' * 101})"),
        *("f(x=1 + 1)", "f(x=-'a')", "f(x=__import__('os'))", "(lambda: 1)()", "f(x=1) if 1 else 2", "import os"),
        "x = f()",
        r'f(x="\ud83d")',
        *("f(x=" + "[" * 40 + "]" * 40 + ")", "f(x=" + "-" * 9000 + "1)", "f(x=" + "not " * 9000 + "1)"),
        "f(x=-True)",
        *("f" + "()" * 9000, "f" + ".a" * 9000 + "()", "f(x=" + "1 if 1 else " * 4000 + "1)"),
        "f(x=" + "1+" * 9000 + "1)",
        *("f(x=\x00)", "f(x='\n')", "f(x=" + "9" * 5000 + ")", "f(x=True.a)", "f(x=-(-1))"),
    ],
)  # fmt: skip
def test_what_is_no_call_with_literals_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - any of its messages
        python_calls(text)


@pytest.mark.parametrize("text", ["", "{", '{"a": 1, "a": 2}', "NaN", "-Infinity", "1e400", "9" * 101, "[" * 99_999])
def test_strict_json_refuses(text):
    with pytest.raises(ValueError):  # noqa: PT011 - any of its messages
        strict_json(text)


PIECES = sorted({mark for form in FORMS for mark in form.marks})


@settings(max_examples=300, deadline=2000)
@given(
    st.sampled_from(FORMS),
    st.lists(
        st.sampled_from(
            [*PIECES, '{"name": "f", "arguments": {', '"x": 1', "}}", "f", "[", "]", "(", ")", "\n", " ", '"']
        )
        | st.text(max_size=6),
        max_size=20,
    ),
)
def test_any_text_is_read_or_malformed(form, pieces):
    text = "".join(pieces)
    try:
        content, calls = read_calls(form, text, TOOLS)
    except MalformedCalls:
        return
    assert calls or content.strip() in ("", text.strip()) or form == CHANNELS
    assert not any(mark in content for mark in form.marks)


@pytest.mark.parametrize(
    "piece",
    [
        *("<tool_call>", "<tool_call>{", "<parameter=a>", "<parameter=a>1</parameter>", "<a>"),
        "<arg_key>a</arg_key><arg_value>",
        *(" ", "\n", "} ", '{"name": "f", "parameters": {', "[f(", "a:", '<|"|>', "[TOOL_CALLS]f[ARGS]{}", "<inv"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", [JSON, XML, PAIRS, BARE, PYTHON, BRACES, ARGS, INVOKE], ids=lambda form: form.name)
def test_a_hostile_text_takes_no_longer_than_its_length_allows(form, piece):
    around = {
        XML.name: ("<tool_call>\n<function=f>\n", "</function>\n</tool_call>"),
        BRACES.name: ("<|tool_call>call:f{", "}<tool_call|>"),
        PAIRS.name: ("<tool_call>f", "</arg_value></tool_call>"),
    }
    opening, closing = around.get(form.name, ("", ""))
    text = opening + piece * (40_000 // len(piece)) + closing
    started = time.process_time()
    with suppress(MalformedCalls):
        read_calls(form, text, TOOLS)
    assert time.process_time() - started < 2
