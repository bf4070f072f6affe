"""Function calls in the form that the model's own chat template teaches, read from a completion.

`form_of` renders a call with the template and returns the form that reads it back. `read_calls` is strict: what is not
exactly a call is malformed, and nothing is repaired. `canonical` is the text that a verifier reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from pydantic import JsonValue, ValidationError

from r3core.episode import ToolCall
from r3core.errors import one_line
from r3core.generation.call_forms import END, FORMS, CallForm
from r3core.generation.call_values import MAX_DIGITS, in_dialect, python_calls, strict_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TEXT = 200_000
"""Characters of an answer."""
MAX_CALLS = 64
MAX_CALL = 50_000
"""Characters of one call."""

_TOOL = "probe_tool"
_ARGUMENTS: dict[str, JsonValue] = {"probe_text": "zebra quartz", "probe_number": 731}
_PROBE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": _TOOL,
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {
                "probe_text": {"type": "string", "description": "t"},
                "probe_number": {"type": "integer", "description": "n"},
            },
            "required": ["probe_text"],
        },
    },
}
_REQUEST = "qqrequest"

_ANY_TYPE = ["integer", "number", "boolean", "null", "object", "array"]
_JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
_NUMBER = re.compile(r"\s*-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?\s*")
_IGNORED = {"id", "tool_call_id", "type"}

_cache: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, CallForm | None]] = WeakKeyDictionary()


class MalformedCalls(ValueError):
    """A text has marks of calls, and is not calls."""


def form_of(tokenizer: PreTrainedTokenizerBase) -> CallForm | None:
    """Return the form in which a chat template writes calls; None when it writes none, or in an unknown form.

    Cached until the chat template changes.
    """
    cached = _cache.get(tokenizer)
    if cached is None or cached[0] != tokenizer.chat_template:
        cached = _cache[tokenizer] = (tokenizer.chat_template, _probed(tokenizer))
    return cached[1]


def read_calls(
    form: CallForm, text: str, tools: Sequence[Mapping[str, Any]], *, request: str = ""
) -> tuple[str, list[ToolCall]]:
    """Return an answer without its calls, and the calls.

    Args:
        form: The form of the model's template.
        text: The answer, without the thinking, decoded with special tokens; it may have the end-of-turn token.
        tools: The tools of the prompt, in OpenAI's format. By their schemas, values of tags get their types.
        request: The rendered prompt; a mark of a call at its very end belongs to the answer.

    Raises:
        MalformedCalls: There are marks of calls that are not calls, or a bound is exceeded.
    """
    opened = next((mark for mark in form.marks if request.rstrip().endswith(mark)), "")
    text = opened + text
    if len(text) > MAX_TEXT:
        raise MalformedCalls(f"the answer has more than {MAX_TEXT:,} characters")
    if END in text:
        raise MalformedCalls(f"the answer contains the character {END!a}, which is no character of a text")
    try:
        regions = _regions(form, text, tools)
        _check_marks(form, regions)
        calls = [call for region in regions if region.field == "tool_calls" for call in _calls(form, region)]
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        what = ascii(one_line(error, first=True))[1:-1][:200]
        raise MalformedCalls(f"a call is not in the form of the chat template ({form.name}): {what}") from None
    if len(calls) > MAX_CALLS:
        raise MalformedCalls(f"more than {MAX_CALLS} calls")
    if all(region.field == "content" for region in regions):
        return text, []
    return "\n".join(region.body.strip() for region in regions if region.field == "content"), calls


def canonical(content: str, calls: Iterable[ToolCall]) -> str:
    """Return the text that a verifier reads: the content, then each call as JSON in <tool_call> tags."""
    return "\n".join([*([content] if content else []), *map(_tagged, calls)])


def _tagged(call: ToolCall) -> str:
    written = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
    escaped = written.replace("<", r"\u003c")  # all are inside strings: no text in an argument looks like a tag
    return f"<tool_call>\n{escaped}\n</tool_call>"


# --- the probe


def written_calls(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return what a chat template writes for a turn with one call, empty when the call is lost.

    The arguments are an object, then a JSON text: some templates accept one of the two alone.
    """
    rendered = [_rendered_call(tokenizer, arguments) for arguments in (_ARGUMENTS, json.dumps(_ARGUMENTS))]
    return [text for text in rendered if text is not None]


def _probed(tokenizer: PreTrainedTokenizerBase) -> CallForm | None:
    readable = (form for text in written_calls(tokenizer) for form in FORMS if _reads_back(form, text))
    return next(readable, None)


def _rendered_call(tokenizer: PreTrainedTokenizerBase, arguments: Any) -> str | None:
    """Return what a template writes behind a request for a turn with one call; None when the call is lost."""
    function = {"name": _TOOL, "arguments": arguments}
    call = {"id": "abcdefghi", "type": "function", "function": function}  # some templates accept 9 characters alone
    messages: list[Any] = [
        {"role": "user", "content": _REQUEST},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    try:
        rendered = str(tokenizer.apply_chat_template(messages, tools=[_PROBE_TOOL], tokenize=False))
    except Exception:  # a template is a program: any error means that it does not accept such a turn
        return None
    _, _, written = rendered.rpartition(_REQUEST)
    return written if _TOOL in written and str(_ARGUMENTS["probe_text"]) in written else None


def _reads_back(form: CallForm, written: str) -> bool:
    try:
        _, calls = read_calls(form, written, [_PROBE_TOOL])
    except MalformedCalls:
        return False
    return calls == [ToolCall(name=_TOOL, arguments=_ARGUMENTS)]


# --- regions of a text


class _Region(NamedTuple):
    """A part of a text: the field of the response template that it belongs to, as written and as read."""

    field: str
    body: str
    value: Any


def _regions(form: CallForm, text: str, tools: Sequence[Mapping[str, Any]]) -> list[_Region]:
    from transformers.utils.chat_parsing import ResponseParser

    # JSON has types of its own, and a text that should be a number stays wrong
    offered: Any = _typed(tools) if form.field["content"] == "xml-inline" else None
    parser = ResponseParser(_loaded(form.name), prefix="", tools=offered)
    # The space: the parser waits for more where a pattern matches at the very end.
    events = parser.feed(f"{text}{END} ")
    if _left_open(events):
        raise MalformedCalls("a call is not closed")
    events += parser.finalize()[1]
    regions: list[_Region] = []
    body: list[str] = []
    for event in events:
        if event["type"] == "region_open":
            body = []
        elif event["type"] == "region_chunk":
            body.append(event["text"])
        else:
            regions.append(_Region(event["field"], "".join(body).replace(f"{END} ", ""), event["value"]))
    return [region for region in regions if region.field != "content" or region.body.strip()]


@cache
def _loaded(name: str) -> Any:
    """Return a form's response template with its patterns compiled."""
    from transformers.utils.chat_parsing.response_templates import load_response_template

    return load_response_template(next(form.template for form in FORMS if form.name == name))


def _left_open(events: list[dict[str, Any]]) -> bool:
    last = next((event for event in reversed(events) if event["type"] != "region_chunk"), None)
    return last is not None and last["type"] == "region_open" and last["field"] != "content"


def _check_marks(form: CallForm, regions: Sequence[_Region]) -> None:
    """Raise unless no mark of a call stands alone, and the marks around the calls are around calls and nothing else."""
    around = "begin" in _fields(form)
    inside = False
    for field, body, _ in regions:
        if field in ("begin", "end") and inside == (field == "begin"):
            raise ValueError("a mark around the calls has no partner")
        inside = field == "begin" if field in ("begin", "end") else inside
        if around and field in ("content", "tool_calls") and inside == (field == "content"):
            raise ValueError("a call outside of the marks around the calls, or a text inside of them")
        if field == "content" and (mark := next((mark for mark in form.marks if mark in body), None)):
            raise ValueError(f"{mark} outside of a call")
    if inside:
        raise ValueError("the calls are not closed")


def _fields(form: CallForm) -> dict[str, Any]:
    fields: Any = form.template["fields"]
    return dict(fields)


# --- calls of a region


def _calls(form: CallForm, region: _Region) -> list[ToolCall]:
    if len(region.body) > MAX_CALL:
        raise ValueError(f"a call has more than {MAX_CALL:,} characters")
    arguments = form.field.get("content_args", {})
    if form.field["content"] == "text":
        return [ToolCall(name=name, arguments=values) for name, values in python_calls(region.body)]
    if form.field["content"] == "xml-inline":
        return [_of_tags(region, re.compile(arguments["tag_pattern"], re.DOTALL))]
    strict_json(in_dialect(region.body, **arguments) if arguments else region.body)  # the library's is lenient
    return [_of_object(item) for item in (region.value if isinstance(region.value, list) else [region.value])]


def _of_object(value: Any) -> ToolCall:
    if isinstance(value, dict) and isinstance(value.get("function"), dict) and value.keys() <= {*_IGNORED, "function"}:
        value = value["function"]
    if not isinstance(value, dict):
        raise ValueError("a call is no object")
    names = [key for key in ("name", "tool_name") if key in value]
    arguments = [key for key in ("arguments", "parameters") if key in value]
    if len(names) != 1 or len(arguments) != 1 or value.keys() - {*names, *arguments, *_IGNORED}:
        raise ValueError("a call is no object with a name and arguments alone")
    return _call(value[names[0]], value[arguments[0]])


def _of_tags(region: _Region, pair: re.Pattern[str]) -> ToolCall:
    """Return a call whose arguments are tags: nothing but them, each once, with exactly what they contain as values."""
    function = region.value["function"]
    read: dict[str, Any] = function["arguments"]
    found = list(pair.finditer(region.body))
    if pair.sub("", region.body).strip() or len(read) < len(found):
        raise ValueError("an argument that is not in its tags, or occurs twice")
    for argument in found:
        groups = argument.groupdict()
        key, written = groups["key"], groups["value"]
        if groups.get("text"):  # an attribute of the tag marks the value as text or as JSON
            read[key] = written if groups["text"] == "true" else strict_json(written)
        elif isinstance(read[key], int | float) and not isinstance(read[key], bool):
            if not _NUMBER.fullmatch(written) or len(written) > MAX_DIGITS:  # Python's numbers are more than JSON's
                raise ValueError(f"{key} is no number")
        elif isinstance(read[key], dict | list):
            read[key] = strict_json(written)
    return _call(function["name"], read)


def _call(name: Any, arguments: Any) -> ToolCall:
    try:
        return ToolCall(name=name, arguments=arguments)
    except ValidationError:
        raise ValueError("the name of a call is no text, or its arguments are no object") from None


# --- tools


def _typed(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return tools whose parameters have a type each: one without may be any, and is a text when it is not JSON."""
    typed = []
    for tool in tools:
        function = tool.get("function", tool)
        parameters = function.get("parameters") or {}
        properties = parameters.get("properties")
        if isinstance(properties, Mapping):
            types = {name: {"type": _types(schema)} for name, schema in properties.items()}
            parameters = {"type": "object", "properties": types}
        typed.append({"type": "function", "function": {"name": function.get("name"), "parameters": parameters}})
    return typed


def _types(schema: Any) -> list[str]:
    if not isinstance(schema, Mapping):
        return _ANY_TYPE
    declared = schema.get("type")
    types = [declared] if isinstance(declared, str) else list(declared or ())
    for choice in [*(schema.get("anyOf") or ()), *(schema.get("oneOf") or ())]:
        types += _types(choice)
    values = [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else ())]
    if not types:
        types = [_JSON_TYPES.get(type(value), "null") for value in values]
    return [*types, *(["null"] if schema.get("nullable") else ())] or _ANY_TYPE
