"""The forms in which chat templates write function calls, as data for transformers' chat parsing.

A form is named for its syntax. Its response template has up to four fields besides the content: `tool_calls`, of which
each region is one or more calls, `begin` and `end`, the marks around all the calls of a turn, and `mark`, which is
dropped. Patterns are those of the package `regex`; every repetition in them is bounded or cannot backtrack.
"""

# ruff: noqa: RUF001 - some models write their marks with fullwidth characters

from __future__ import annotations

from typing import Any

from pydantic import JsonValue

from r3core.task import Frozen

END = "\ufdd0"
"""A character of no text: `read_calls` puts it behind the text, where a call may last until the end of the turn."""
_TURN_ENDS = rf"(?:\s*+<[^<>\s]{{1,40}}+>)*+\s*+{END}"  # with or without the end-of-turn token
_NAME = r"(?P<name>[^\s<>\[\](){}\"']{1,200}+)"
_NAMED = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
_TEXT = {"name": "text", "args": {"strip": False}}


class CallForm(Frozen):
    """A form of function calls: how the calls of an assistant's turn are written."""

    name: str
    """What the syntax looks like."""
    template: dict[str, JsonValue]
    """A response template of `transformers.utils.chat_parsing`."""
    marks: tuple[str, ...] = ()
    """Texts that belong to calls alone: one outside of a call means that a call is malformed."""
    canonical: bool = False
    """Whether a verifier of JSON calls reads the text as it is."""

    @property
    def field(self) -> dict[str, Any]:
        """The field of the response template that reads a call."""
        fields: Any = self.template["fields"]
        return dict(fields["tool_calls"])


def _form(
    name: str,
    call: dict[str, Any],
    *,
    marks: str,
    around: tuple[str, str] | None = None,
    mark: str = "",
    canonical: bool = False,
) -> CallForm:
    dropped = ({"begin": around[0], "end": around[1]} if around else {}) | ({"mark": mark} if mark else {})
    fields: dict[str, Any] = {key: {"open_pattern": pattern, "close_pattern": ""} for key, pattern in dropped.items()}
    fields |= {"content": {"content_args": {"strip": False}}, "tool_calls": {"repeats": True, **call}}
    template: dict[str, JsonValue] = {"start_anchor": END, "fields": fields}
    return CallForm(name=name, template=template, marks=tuple(marks.split()), canonical=canonical)


def _json(opened: str, closed: str, **arguments: Any) -> dict[str, Any]:
    """Return a field whose region is JSON; with a group `name` in what opens it, the JSON is the call's arguments."""
    call = {"open_pattern": opened, "close_pattern": closed, "content": "json", "content_args": arguments}
    return call | ({"transform": _NAMED} if "?P<name>" in opened else {})


def _tags(opened: str, closed: str, pair: str) -> dict[str, Any]:
    """Return a field whose region is one tag, or one pair of tags, per argument."""
    arguments = {"tag_pattern": pair, "value_parser": _TEXT}
    call = {"open_pattern": opened, "close_pattern": closed, "content": "xml-inline", "content_args": arguments}
    return call | {"transform": _NAMED}


def _python(opened: str, closed: str) -> dict[str, Any]:
    """Return a field whose region is calls in Python's syntax."""
    return {"open_pattern": opened, "close_pattern": closed, "content": "text"}


def _closed(mark: str) -> str:
    """Return a pattern of a mark behind a list or an object: one inside a string is not preceded by a bracket."""
    return rf"{mark}(?<=[}}\]]\s{{0,20}}{mark})"


def _pair(opened: str, closed: str, following: str, *, framed: str = "") -> str:
    """Return a pattern of an argument; its value ends at the mark that another argument or the call's end follows.

    A value does not contain the mark of another argument, else hostile text would take minutes.
    """
    value = rf"(?P<value>(?:(?!{following}).)*?)"
    return rf"{opened}{framed}{value}{framed}{closed}(?=\s*+(?:{following}|\Z))"


def _json_in(opening: str, closing: str) -> CallForm:
    fields = _json(_escaped(opening), _closed(_escaped(closing)))
    return _form(f"JSON between {opening} and {closing}", fields, marks=f"{opening} {closing}")


_PARAMETER = _pair(r"<parameter=(?P<key>[^>\n]{1,200}+)>", "</parameter>", "<parameter=", framed=r"\n?")


def _functions_in(prefix: str) -> CallForm:
    opening, closing = f"<{prefix}tool_call>", f"</{prefix}tool_call>"
    call = _tags(
        rf"{opening}\s*+<function={_NAME}>",
        rf"</function>\s*+{closing}",
        _PARAMETER,
    )
    return _form(f"XML function tags in {opening}", call, marks=f"{opening} {closing} <function= </function>")


def _pairs_in(prefix: str, suffix: str = "", separator: str = "") -> CallForm:
    def tag(name: str) -> tuple[str, str]:
        return f"<{prefix}{name}{suffix}>", f"</{prefix}{name}{suffix}>"

    (opening, closing), (key, key_ends), (value, value_ends) = map(tag, ("tool_call", "arg_key", "arg_value"))
    call = _tags(
        rf"{opening}{_NAME}{separator}(?=\s*+(?:{key}|{closing}))",
        rf"{closing}(?<=(?:{value_ends}|{opening}[^\s<>]{{1,200}}{separator})\s{{0,20}}{closing})",
        _pair(rf"{key}(?P<key>[^<]{{1,200}}+){key_ends}\s*+{value}", value_ends, rf"{key}[^<]{{1,200}}+{key_ends}"),
    )
    around = (f"<tool_calls{suffix}>", f"</tool_calls{suffix}>") if separator else None
    name = f"key and value tags in {opening}" + (f", name{separator}" if separator else "")
    return _form(name, call, marks=f"{opening} {closing} {key} {value}", around=around)


def _invoke_in(prefix: str, around: str, separator: str = "") -> CallForm:
    start, stop = f"<{prefix}", f"</{prefix}"
    call = _tags(
        rf'{start}invoke name="(?P<name>[^"\n]{{1,200}}+)">',
        rf"{stop}invoke>",
        _pair(
            rf'{start}parameter name="(?P<key>[^"\n]{{1,200}}+)"(?:\s++string="(?P<text>true|false)")?>',
            f"{stop}parameter>",
            f"{start}parameter",
        ),
    )
    return _form(
        f"{start}invoke name=> in <{around}>",
        call,
        marks=f"{start}invoke {stop}invoke> {start}parameter {stop}parameter>",
        around=(f"<{around}>", f"</{around}>"),
    )


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "|[](){}.?*+^$" else letter for letter in text)


_OBJECT = r'(?=\{\s*+(?:"type":\s*+"function",\s*+)?"name":\s*+"[^"]*+",\s*+"(?:parameters|arguments)":)'
_CHANNEL = (
    r"(?:<\|start\|>assistant)?(?:<\|channel\|>(?:commentary|analysis))?\s{0,3}to=functions\."
    rf"{_NAME}(?:<\|channel\|>(?:commentary|analysis))?\s*+(?:<\|constrain\|>)?(?:json)?\s*+<\|message\|>"
)
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_DEEPSEEK_MARKS = "<｜tool▁call▁begin｜> <｜tool▁call▁end｜> <｜tool▁sep｜>"

FORMS: tuple[CallForm, ...] = (
    _form(
        "JSON in <tool_call> tags",
        _json("<tool_call>(?=\\s*+[\\[{])", _closed("</tool_call>")),
        marks="<tool_call> </tool_call>",
        canonical=True,
    ),
    _functions_in(""),
    _pairs_in(""),
    _form(
        "bare JSON",
        _json(
            rf"<\|python_tag\|>\s*+{_OBJECT}|(?<![\[,]\s{{0,20}})(?<![^|]>\s{{0,20}}){_OBJECT}",
            rf"(?<=\}})(?:{_TURN_ENDS}|\s*+;\s*+(?=\{{))",
        ),
        marks="<|python_tag|>",
    ),
    _form(
        "channels, JSON to=functions.",
        _json(_CHANNEL, rf"<\|call\|>(?<=\}}\s{{0,20}}<\|call\|>)|(?<=\}}){_TURN_ENDS}"),
        marks="to=functions. <|call|> <|constrain|>",
        mark=r"(?:<\|start\|>assistant)?<\|channel\|>(?:final|commentary)<\|message\|>|<\|end\|>|<\|return\|>",
    ),
    _form(
        "Python in <|tool_call_start|>",
        _python(r"<\|tool_call_start\|>", r"<\|tool_call_end\|>(?<=[\])`]\s{0,20}<\|tool_call_end\|>)"),
        marks="<|tool_call_start|> <|tool_call_end|>",
    ),
    _form(
        'call:name{}, strings in <|"|>',
        _json(
            rf"<\|tool_call>call:{_NAME}(?=\{{)",
            _closed(r"<tool_call\|>"),
            unquoted_keys=True,
            string_delims=[['<|"|>', '<|"|>']],
        ),
        marks="<|tool_call> <tool_call|>",
    ),
    _form(
        "call:name{}, strings in <escape>",
        _json(
            rf"<start_function_call>call:{_NAME}(?=\{{)",
            _closed("<end_function_call>"),
            unquoted_keys=True,
            string_delims=[["<escape>", "<escape>"]],
        ),
        marks="<start_function_call> <end_function_call>",
    ),
    _form(
        "[TOOL_CALLS]name[ARGS]",
        _json(
            rf"\[TOOL_CALLS\]{_NAME}(?:\[CALL_ID\]\w{{1,64}}+)?\[ARGS\]",
            rf"(?<=\}}\s{{0,20}})(?=\[TOOL_CALLS\])|(?<=\}}){_TURN_ENDS}",
        ),
        marks="[TOOL_CALLS] [ARGS]",
    ),
    _form(
        "[TOOL_CALLS] and a JSON list",
        _json(r"\[TOOL_CALLS\](?=\s*+\[)", rf"(?<=\]){_TURN_ENDS}"),
        marks="[TOOL_CALLS]",
    ),
    _form(
        "<｜tool▁sep｜>name and fenced JSON",
        _json(
            rf"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{_NAME}\n```json\n",
            r"\n```\s*+<｜tool▁call▁end｜>",
        ),
        marks=_DEEPSEEK_MARKS,
        around=_DEEPSEEK,
    ),
    _form(
        "name<｜tool▁sep｜>JSON",
        _json(rf"<｜tool▁call▁begin｜>{_NAME}<｜tool▁sep｜>", _closed("<｜tool▁call▁end｜>")),
        marks=_DEEPSEEK_MARKS,
        around=_DEEPSEEK,
    ),
    _invoke_in("", "minimax:tool_call"),
    _invoke_in("｜DSML｜", "｜DSML｜tool_calls"),
    _invoke_in("｜DSML｜", "｜DSML｜function_calls"),
    _invoke_in("｜DSML｜ ", "｜DSML｜ calls"),
    _invoke_in("atem:", "atem:function_calls"),
    _form(
        "Python in <function_calls>",
        _python("<function_calls>", r"</function_calls>(?<=\)\s{0,20}</function_calls>)"),
        marks="<function_calls> </function_calls>",
    ),
    _form(
        "bare Python list",
        _python(r"(?:<\|python_start\|>\s*+)?(?=\[[\w.]{1,200}+\()", rf"(?<=\)\s{{0,20}}\]){_TURN_ENDS}"),
        marks="<|python_start|>",
    ),
    _functions_in("seed:"),
    _form(
        "XML function tags",
        _tags(
            rf"<function={_NAME}>(?=\s*+<)",
            "</function>",
            _PARAMETER,
        ),
        marks="<function= </function> <parameter= </parameter>",
    ),
    _form(
        "<function name=>, <param name=>",
        _tags(
            r'<function name="(?P<name>[^"\n]{1,200}+)">',
            "</function>",
            _pair(r'<param name="(?P<key>[^"\n]{1,200}+)">', "</param>", "<param "),
        ),
        marks="<function </function> <param </param>",
    ),
    _form(
        "JSON in <function=name>",
        _json(rf"<function={_NAME}>(?=\s*+\{{)", _closed("</function>")),
        marks="<function= </function>",
    ),
    _form(
        "functions.name:0 sections",
        _json(
            r"<\|tool_call_begin\|>\s*+(?:functions\.)?(?P<name>[^\s<>:]{1,200}+):\d{1,9}+\s*+"
            r"<\|tool_call_argument_begin\|>",
            _closed(r"<\|tool_call_end\|>"),
        ),
        marks="<|tool_call_begin|> <|tool_call_end|> <|tool_call_argument_begin|>",
        around=(r"<\|tool_calls_section_begin\|>", r"<\|tool_calls_section_end\|>"),
    ),
    _form(
        "name and fenced JSON in <tool_call> tags",
        _json(rf"<tool_call>{_NAME}\n```json\n", r"\n```\s*+</tool_call>"),
        marks="<tool_call> </tool_call>",
        around=("<tool_calls>", "</tool_calls>"),
    ),
    _pairs_in("", "", "<tool_sep>"),
    _pairs_in("", ":opensource", "<tool_sep:opensource>"),
    _pairs_in("longcat_"),
    *(
        _json_in(opening, closing)
        for opening, closing in (
            ("<|START_ACTION|>", "<|END_ACTION|>"),
            ("<tool_calls>", "</tool_calls>"),
            ("<TOOLCALL>", "</TOOLCALL>"),
            ("<longcat_tool_call>", "</longcat_tool_call>"),
            ("<|tool_call|>", "<|tool_call_end|>"),
            ("<|action_start|><|plugin|>", "<|action_end|>"),
        )
    ),
    _form(
        "JSON behind <|function_call|>",
        _json(r"<\|function_call\|>", rf"(?<=\}})(?:\s*+<\|message_sep\|>|{_TURN_ENDS})"),
        marks="<|function_call|>",
    ),
    _form(
        "JSON behind <|tool_call|>",
        _json(r"<\|tool_call\|>", rf"(?<=[}}\]]){_TURN_ENDS}"),
        marks="<|tool_call|>",
    ),
    _form(
        "bare JSON list",
        _json(r'(?<![^\s>])(?=\[\s*+\{\s*+"name":)', rf"(?<=\]){_TURN_ENDS}"),
        marks="",
        canonical=True,
    ),
)
"""The forms, in the order in which they are tried on a template."""
