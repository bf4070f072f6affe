"""Examples from rows of existing datasets, in the format of xLAM, OpenAI's API, BFCL or ToolACE.

- xlam: `query`, `tools` and `answers`; tools describe their parameters in xlam's way or by JSON Schema.
- OpenAI: `messages` and `tools`. There is one user turn, with or without a system turn, whose text is put before the
  query. The assistant's turn after it has the calls in `tool_calls`, none when that list is empty. What comes later is
  not read.
- BFCL and ToolACE: benchmarks.py reads them.

Lists and objects may be written as JSON texts, everywhere. A row that cannot be used is skipped, and counted by reason.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from r3_plugin_apigen import dialect, hub
from r3_plugin_apigen.benchmarks import Unusable, in_one_layout
from r3_plugin_apigen.calls import Wrong, find_calls, parse
from r3_plugin_apigen.compare import check_valid
from r3_plugin_apigen.schema import check_tool
from r3_plugin_apigen.xlam import Converted, parameters_of
from r3core import Example, Split, TaskError

TEST_SHARE = 0.2
"""Of all rows: 12,000 of 60,000."""
VALIDATION_SHARE = 0.08
"""Of all rows, a tenth of what is not in test: 4,800 of 60,000, which leaves 43,200 in train."""
_NAMED = 5  # maximum number of unconverted parameters that a warning lists


class Problem(NamedTuple):
    """What a row holds."""

    query: str
    tools: list[dict[str, Any]]
    calls: list[dict[str, Any]]
    unconverted: list[str]
    """`tool.parameter` of each parameter whose description could not be converted as a whole."""
    dialect: Counter[str]
    """Type names that are not JSON Schema's and were converted, each as often as it occurs."""
    accepted: list[dict[str, Any]] | None = None
    """For each call, the other values of its arguments that are right, and which may be left out; of BFCL alone."""


def load(source: str, split: Split) -> Iterator[Example]:
    """Yield the distinct problems of one split, in the source's order; `source` is `hub` or a file.

    Rows are split by the rank of a hash of their query: a query is in one split alone. What was skipped, and what could
    not be converted, is reported in a warning at the end, or when the iterator is closed.

    Raises:
        TaskError: the source cannot be read, or no row of it can be used.
    """
    rows = [in_one_layout(row) for row in hub.raw_rows(source)]
    if not any(map(_usable, rows)):
        raise _useless(source, rows)
    names = Counter(_name(row) for row in rows)
    report = _Report(f"`{source}`, split `{split}`")
    seen: set[str] = set()
    try:
        for number, (row, place) in enumerate(zip(rows, splits(rows), strict=True), start=1):
            if place != split:
                continue
            report.rows += 1
            try:
                problem = problem_of(row)
                key = _digest([problem.query, problem.tools])
                if key in seen:
                    raise Unusable("the same query and tools came before")
            except Unusable as unusable:
                report.skip(number, unusable)
                continue
            seen.add(key)
            report.unconverted.update(problem.unconverted)
            report.dialect.update(problem.dialect)
            name = _name(row)
            yield _example(name if name is not None and names[name] == 1 else key[:16], problem)
    finally:
        report.warn()


def splits(rows: Sequence[Any]) -> list[Split]:
    """Return the split of each row: of all queries by their hash, the first fifth is test, then comes validation."""
    digests = [_digest(" ".join((_query_of(row) or "").casefold().split())) for row in rows]
    ranked = sorted(digests) or [""]
    test = ranked[round(TEST_SHARE * len(rows))]
    validation = ranked[round((TEST_SHARE + VALIDATION_SHARE) * len(rows))]
    return ["test" if digest < test else "validation" if digest < validation else "train" for digest in digests]


def problem_of(row: Any) -> Problem:
    """Return what a row holds; raises `Unusable` when no response could pass."""
    if isinstance(row := in_one_layout(row), Unusable):
        raise row
    if not isinstance(row, dict):
        raise Unusable("the row is not a JSON object", repr(row))
    try:
        query = _query_of(row)
        if query is None:
            raise Unusable("there is no query" if "messages" not in row else "there is not one user turn and an answer")
        converted = [_tool(item) for item in _listed(row, "tools")]
        calls = [_call(item) for item in _calls_of(row)]
        tools = {tool["name"]: tool for tool, _, _ in converted}
        if any(tool != tools[tool["name"]] for tool, _, _ in converted):
            raise Unusable("two tools have one name")
        if not tools:
            raise Unusable("there are no tools")
        json.dumps([query, converted, calls], ensure_ascii=False).encode()
        check_valid(find_calls(json.dumps(calls)), {name: tool["parameters"] for name, tool in tools.items()})
    except Wrong as wrong:
        raise Unusable(f"the answer could not pass ({wrong.kind})", str(wrong)) from None
    except UnicodeEncodeError as error:
        raise Unusable("a text holds half a character", str(error)) from None
    except RecursionError:
        raise Unusable("it is nested too deeply") from None
    unconverted = [name for _, names, _ in converted for name in names]
    renamed = sum((counts for _, _, counts in converted), Counter[str]())
    accepted = row.get("accepted") if any(_has_choice(one) for one in row.get("accepted") or ()) else None
    return Problem(query, list(tools.values()), calls, unconverted, renamed, accepted)


def _has_choice(accepted: dict[str, Any]) -> bool:
    return bool(accepted["optional"]) or any(len(values) > 1 for values in accepted["values"].values())


def _example(name: str, problem: Problem) -> Example:
    info: dict[str, Any] = {"query": problem.query, "tools": problem.tools}
    if problem.accepted is not None:
        info["accepted"] = problem.accepted
    return Example.model_validate({"id": name, "answer": problem.calls, "info": info})


def _usable(row: Any) -> bool:
    try:
        problem_of(row)
    except Unusable:
        return False
    return True


def _useless(source: str, rows: Sequence[Any]) -> TaskError:
    report = _Report(source)
    for number, row in enumerate(rows, start=1):
        report.rows += 1
        try:
            problem_of(row)
        except Unusable as unusable:
            report.skip(number, unusable)
    why = report.describe() if rows else "it is empty"
    return TaskError(f"`{source}` holds no row that can be used: {why}", hub.LAYOUTS)


# --- the fields of a row


def _name(row: Any) -> str | None:
    """Return the row's own id, if it has one."""
    found = row.get("id") if isinstance(row, dict) else None
    return str(found) if type(found) in (int, str) and found != "" and str(found).isprintable() else None


def _query_of(row: Any) -> str | None:
    """Return the query of a row, or `None` when it has none; of messages, the system turn and the only user turn."""
    if not isinstance(row, dict):
        return None
    if "messages" not in row:
        query = row.get("query")
        return query if isinstance(query, str) and query.strip() else None
    turns = _turns(row)
    before_answer = turns[: next((place for place, turn in enumerate(turns) if turn.get("role") == "assistant"), 0)]
    texts = [_text(turn.get("content")) for turn in before_answer]
    roles = [turn.get("role") for turn in before_answer]
    if roles not in (["user"], ["system", "user"], ["developer", "user"]) or not all(texts):
        return None
    return "\n\n".join(texts)


def _turns(row: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        turns = _listed(row, "messages")
    except Unusable:
        return []
    return turns if all(isinstance(turn, dict) for turn in turns) else []


def _text(content: Any) -> str:
    """Return the text of a turn, which may be in parts."""
    if isinstance(content, list):
        content = "".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return content.strip() if isinstance(content, str) else ""


def _calls_of(row: dict[str, Any]) -> list[Any]:
    if "messages" not in row:
        return _listed(row, "answers")
    answer = next(turn for turn in _turns(row) if turn.get("role") == "assistant")
    if isinstance(answer.get("function_call"), dict):  # what came before `tool_calls`
        return [answer["function_call"]]
    calls = _listed(answer, "tool_calls")
    return [call["function"] if isinstance(call, dict) and "function" in call else call for call in calls]


def _listed(row: dict[str, Any], key: str) -> list[Any]:
    """Return a list of a row, or of a JSON text in it."""
    value = row.get(key)
    if value is None:
        raise Unusable(f"there is no `{key}`")
    value = _parsed(value, key)
    if not isinstance(value, list):
        raise Unusable(f"`{key}` is not a list", repr(value))
    return value


def _parsed(value: Any, key: str) -> Any:
    try:
        return parse(value) if isinstance(value, str) else value
    except (Wrong, RecursionError) as error:
        raise Unusable(f"`{key}` is not JSON", str(error)) from None


def _call(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unusable("a call is not an object", repr(value))
    return {"name": value.get("name"), "arguments": _parsed(value.get("arguments"), "arguments")}


def _tool(value: Any) -> tuple[dict[str, Any], list[str], Counter[str]]:
    """Return a tool as an example offers it, its parameters that could not be converted, and the dialect's types."""
    wrapped = isinstance(value, dict) and isinstance(value.get("function"), dict)
    inner = value["function"] if wrapped else value
    described = inner.get("parameters") or {} if isinstance(inner, dict) else None
    if not isinstance(described, dict):
        raise Unusable("a tool is not usable", repr(value))
    is_schema = wrapped or dialect.is_schema(described)
    converted = Converted({"type": "object"} | described, []) if is_schema else parameters_of(described)
    schema, renamed, unknown = dialect.json_schema(converted.schema)
    name = inner.get("name")
    tool = {"name": name, "description": inner.get("description") or "", "parameters": schema}
    if why := check_tool(tool):
        raise Unusable("a tool is not usable", f"{name}: {why}")
    return tool, [f"{name}.{parameter}" for parameter in [*converted.unconverted, *unknown]], renamed


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class _Report:
    """What was skipped of a source's rows, and what was not converted."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.rows = 0
        self.skipped: Counter[str] = Counter()
        self.first = ""
        self.unconverted: Counter[str] = Counter()
        self.dialect: Counter[str] = Counter()

    def skip(self, number: int, unusable: Unusable) -> None:
        self.skipped[unusable.reason] += 1
        self.first = self.first or f"row {number}: {unusable}"

    def describe(self) -> str:
        reasons = ", ".join(f"{count:,} because {reason}" for reason, count in self.skipped.most_common())
        return f"skipped {self.skipped.total():,} of {self.rows:,} rows: {reasons}; the first is {self.first}"

    def warn(self) -> None:
        if self.skipped:
            warnings.warn(f"{self.where}: {self.describe()}", stacklevel=2)
        if self.dialect:
            counts = ", ".join(f"`{name}` {count:,} times" for name, count in self.dialect.most_common())
            warnings.warn(f"{self.where}: types that are not JSON Schema's were converted: {counts}", stacklevel=2)
        if self.unconverted:
            names = ", ".join(list(self.unconverted)[:_NAMED])
            more = f" and {len(self.unconverted) - _NAMED:,} others" if len(self.unconverted) > _NAMED else ""
            warnings.warn(
                f"{self.where}: type or default of {len(self.unconverted):,} parameters could not be converted to JSON "
                f"Schema, in {self.unconverted.total():,} places: {names}{more}",
                stacklevel=2,
            )
