"""Rows of BFCL and ToolACE in the layout of the others: `query`, `tools` and `answers`.

- BFCL: `question` (turns of messages) and `function`, with the answer in `ground_truth`, which lists the accepted
  values of each argument; "" among them means that the argument may be left out. Inside an object, each key has a list.
- ToolACE: `system`, whose text contains the tools as a JSON list, and `conversations`. The calls are in Python's
  syntax, with any name that a tool has.

A row that is in none of these layouts stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice, product
from typing import Any

from r3_plugin_apigen.calls import MAX_LIST, Wrong, first_list, parse
from r3core.generation.call_values import python_calls

MAX_ACCEPTED = 64
"""Accepted values of one argument, after those inside of an object are combined."""
ABSENT = ""
"""What BFCL lists as a value of an argument that may be left out."""
_STRING = r"""'(?:[^'\\\n]|\\.)*+'|"(?:[^"\\\n]|\\.)*+\""""


class Unusable(Exception):
    """A row cannot be used: the reason, one of few, and what exactly is wrong."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail:.200}" if detail else reason)
        self.reason = reason


def in_one_layout(row: Any) -> Any:
    """Return a row of BFCL or ToolACE with `query`, `tools`, `answers` and perhaps `accepted`, any other as it is.

    A row that cannot be converted comes as the `Unusable` that states why.
    """
    if not isinstance(row, dict):
        return row
    try:
        if {"question", "function"} <= row.keys():
            return _bfcl(row)
        if {"system", "conversations"} <= row.keys():
            return _toolace(row)
    except Unusable as unusable:
        return unusable
    except (Wrong, ValueError, TypeError, RecursionError) as error:
        return Unusable("the answer or the tools cannot be read", str(error))
    return row


# --- BFCL


def _bfcl(row: dict[str, Any]) -> dict[str, Any]:
    functions = row["function"] if isinstance(row["function"], list) else [row["function"]]
    schemas = {one.get("name"): one.get("parameters") for one in functions if isinstance(one, dict)}
    gold = row.get("ground_truth", [] if "irrelevance" in str(row.get("id")) else None)
    if not isinstance(gold, list):
        raise Unusable("there is no `ground_truth`: a file of BFCL has its answers in `possible_answer/`, beside it")
    answers, accepted = [], []
    for call in gold:
        name, listed = _only_call(call)
        values = {key: list(_accepted(value, _property(schemas.get(name), key))) for key, value in listed.items()}
        first = {key: found[0] for key, found in values.items() if found and listed[key][0] != ABSENT}
        answers.append({"name": name, "arguments": first})
        accepted.append({"values": values, "optional": [key for key, value in listed.items() if ABSENT in value]})
    tools = [{"type": "function", "function": one} for one in functions]
    converted = {"query": _query(row["question"]), "tools": tools, "answers": answers, "accepted": accepted}
    return converted | ({"id": row["id"]} if "id" in row else {})


def _query(question: Any) -> str:
    """Return the text of a question of one turn: the system's message and the user's."""
    turns = question if isinstance(question, list) else []
    messages = turns[0] if len(turns) == 1 and isinstance(turns[0], list) else turns
    roles = [message.get("role") if isinstance(message, dict) else None for message in messages]
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    texts = [text.strip() for text in contents if isinstance(text, str)]
    if roles not in (["user"], ["system", "user"]) or len(texts) < len(messages):
        raise Unusable("the question has not one user turn")
    return "\n\n".join(texts)


def _only_call(call: Any) -> tuple[str, dict[str, list[Any]]]:
    if not isinstance(call, dict) or len(call) != 1:
        raise Unusable("a call of the `ground_truth` is not one name with its arguments", repr(call))
    ((name, listed),) = call.items()
    if not isinstance(listed, dict) or not all(isinstance(value, list) and value for value in listed.values()):
        raise Unusable("an argument of the `ground_truth` has no list of accepted values", repr(call))
    return name, listed


def _property(schema: Any, key: str) -> Any:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return properties.get(key) if isinstance(properties, dict) else None


def _accepted(listed: list[Any], schema: Any) -> Iterator[Any]:
    """Yield the accepted values of an argument; in an object, and in the objects of a list, each key has a list too."""
    count = 0
    for value in listed:
        if value == ABSENT and isinstance(value, str):
            if _type(schema) in ("string", None) and len(listed) == 1:
                yield ""  # the only value: an empty text
            continue
        for combined in _combined(value):
            count += 1
            if count > MAX_ACCEPTED:
                raise Unusable(f"an argument has more than {MAX_ACCEPTED} accepted values")
            yield combined


def _combined(value: Any) -> Iterator[Any]:
    if isinstance(value, dict) and all(isinstance(inner, list) for inner in value.values()):
        choices = [[(key, item) for item in inner] for key, inner in value.items()]
        for chosen in product(*choices):
            yield {key: item for key, item in chosen if item != ABSENT}
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        for items in product(*(list(islice(_combined(item), MAX_ACCEPTED + 1)) for item in value)):
            yield list(items)
    else:
        yield value


def _type(schema: Any) -> Any:
    return schema.get("type") if isinstance(schema, dict) else None


# --- ToolACE


def _toolace(row: dict[str, Any]) -> dict[str, Any]:
    turns = row["conversations"] if isinstance(row["conversations"], list) else []
    texts = {turn.get("from"): turn.get("value") for turn in turns[:2] if isinstance(turn, dict)}
    query, answer = texts.get("user"), texts.get("assistant")
    if not isinstance(query, str) or not isinstance(answer, str) or not isinstance(row["system"], str):
        raise Unusable("there is not one user turn and an answer")
    written = first_list(row["system"])
    tools = parse(written) if written else None
    if not isinstance(tools, list):
        raise Unusable("the system's text has no list of tools")
    names = [tool["name"] for tool in tools if isinstance(tool, dict) and isinstance(tool.get("name"), str)]
    wrapped = [{"type": "function", "function": tool} for tool in tools]
    return {"query": query, "tools": wrapped, "answers": _calls(answer, names)} | (
        {"id": row["id"]} if "id" in row else {}
    )


def _calls(answer: str, names: list[str]) -> list[dict[str, Any]]:
    """Return calls such as `[Market Trends API(country="us")]`, in which names are those of the tools."""
    if not answer.strip().startswith("[") or len(answer) > MAX_LIST:
        raise Unusable("the answer is no list of calls")
    listed = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or "(?!)"
    named = re.compile(rf"{_STRING}|(?<=[\[,\s])({listed})(?=\()", re.DOTALL)

    def numbered(found: re.Match[str]) -> str:
        return f"tool_{names.index(found[1])}_" if found[1] else found[0]

    by_number: Mapping[str, str] = {f"tool_{number}_": name for number, name in enumerate(names)}
    calls = python_calls(named.sub(numbered, answer))
    return [{"name": by_number.get(name, name), "arguments": arguments} for name, arguments in calls]
