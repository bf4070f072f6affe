"""The chat template of a run: the model's own, behind a prelude that sets its arguments and stops its clock.

The prelude is part of `tokenizer.chat_template`, so transformers, vLLM, TRL and `r3 show` get the same text with no
further options. Saved models get the original back.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from typing import TYPE_CHECKING, Any, TypeVar

from r3core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = """\
{{- bos_token }}
{%- for message in messages %}
{{- message['role'] | capitalize + ':\\n' + message['content'] }}
{{- (eos_token or '') if message['role'] == 'assistant' else '' }}
{{- '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- 'Assistant:\\n' }}
{%- endif %}
"""
"""The template of a base model without one: texts under the name of their role, an answer ends with the end token."""
_END = "{# end of the prelude of r3 #}\n"
"""Ends a prelude. Templates are compiled with `trim_blocks`, so neither it nor the lines before it print anything."""
_CLOCK = "strftime_now"
"""The function of today's date in chat templates."""
_DIRECTIVE = re.compile(r"%-?[aAbBcdHIjmMpSUwWxXyYZf]")
_GENERATION = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
_OWN = frozenset({"messages", "tools", "documents", "add_generation_prompt", _CLOCK, "raise_exception", "namespace"})
"""Names that transformers passes to a template, apart from those of special tokens."""
_KEYWORDS = frozenset({"true", "false", "none", "not", "and", "or", "in", "is", "if", "else"})
"""Words of Jinja's expressions that cannot be names."""

T = TypeVar("T")


def apply(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any], *, day: date | None) -> None:
    """Set the arguments of a tokenizer's chat template, and the day that it shows as today; None leaves its clock.

    An earlier prelude is replaced.

    Raises:
        ConfigError: A name or a value cannot be one of a chat template.
    """
    lines = "".join(f"{{% set {_checked(name)} = {_literal(value, name)} %}}\n" for name, value in arguments.items())
    tokenizer.chat_template = _mapped(
        original(tokenizer), lambda text: _with_prelude(text, lines + (_clock(text, day) if day else ""))
    )


def original(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return a tokenizer's chat template without a prelude; a dict where the model has several templates."""
    return _mapped(tokenizer.chat_template, lambda text: text.rpartition(_END)[2])


def on(tokenizer: PreTrainedTokenizerBase, day: date) -> Any:
    """Return the chat template of a tokenizer, with its arguments, as it is on another day."""

    def moved(text: str) -> str:
        prelude, _, plain = text.rpartition(_END)
        return _with_prelude(plain, prelude + _clock(plain, day))

    return _mapped(tokenizer.chat_template, moved)


@contextmanager
def using(tokenizer: PreTrainedTokenizerBase, template: Any) -> Iterator[None]:
    """Give a tokenizer another chat template for the block: its `original` one where the tokenizer is saved."""
    before = tokenizer.chat_template
    tokenizer.chat_template = template
    try:
        yield
    finally:
        tokenizer.chat_template = before


def names_read(template: str | Mapping[str, str]) -> set[str]:
    """Return the names that a chat template may read from its arguments; some of them are its own variables.

    Empty for a template that is not valid Jinja.
    """
    from jinja2 import Environment, TemplateSyntaxError
    from jinja2.meta import find_undeclared_variables

    if not isinstance(template, str):
        return set().union(*map(names_read, template.values()))
    environment = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)
    try:
        parsed = environment.parse(_GENERATION.sub("", template))
    except TemplateSyntaxError:
        return set()
    found = find_undeclared_variables(parsed)
    return {name for name in found if name not in _OWN and name[0] != "_" and not name.endswith("_token")}


def reads_clock(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the chat template may ask for the date."""
    return _CLOCK in str(original(tokenizer))


def _mapped(template: T, change: Callable[[str], str]) -> T:
    """Return a template, or each of several, changed."""
    changed: Any = template
    if isinstance(template, str):
        changed = change(template)
    elif isinstance(template, dict):
        changed = {name: change(text) for name, text in template.items()}
    return changed  # type: ignore[no-any-return]


def _with_prelude(template: str, prelude: str) -> str:
    return prelude + _END + template if prelude else template


def _clock(template: str, day: date) -> str:
    """Return a macro that replaces the clock of a template, empty where the template has none.

    It computes every format whose directives occur in the template; the time of the day is always midnight.
    """
    if _CLOCK not in template:
        return ""
    # `%%` is set aside first, so that `%%d` stays the text `%d`
    replaced = "".join(
        f" | replace({_literal(one)}, {_literal(day.strftime(one))})" for one in sorted({*_DIRECTIVE.findall(template)})
    )
    percent = _literal("\ue000")
    return (
        f"{{% macro {_CLOCK}(format) %}}"
        f"{{{{ format | replace('%%', {percent}){replaced} | replace({percent}, '%') }}}}{{% endmacro %}}\n"
    )


def _checked(name: str) -> str:
    if name in _OWN or name.endswith("_token"):
        raise ConfigError(f"`template.{name}` is refused: it is set by the conversation or the tokenizer")
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) or name.lower() in _KEYWORDS:
        raise ConfigError(
            f"`template.{name}` is refused: {name!r} cannot be the name of a template's argument",
            "a name consists of letters, digits and `_`, for example template.enable_thinking=false",
        )
    return name


def _literal(value: Any, name: str = "") -> str:
    """Return a JSON value as Jinja writes it, which reads it back as the same value."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # Jinja reads escapes as Python does. Characters beyond ASCII stay as they are: JSON would split some in two.
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return f"({value!r})"
    if isinstance(value, list):
        return f"[{', '.join(_literal(one, name) for one in value)}]"
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return f"{{{', '.join(f'{_literal(key)}: {_literal(one, name)}' for key, one in value.items())}}}"
    raise ConfigError(
        f"`template.{name}` cannot be {value!r}: it should be a JSON value",
        "allowed are texts, finite numbers, true, false, null, lists, and dicts with texts as keys",
    )
