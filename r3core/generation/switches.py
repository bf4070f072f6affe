"""The arguments that a chat template reads, found by rendering conversations with and without them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

from r3core.errors import ConfigError, did_you_mean
from r3core.generation.rendering import SYSTEM, Refusal, rendering, turns
from r3core.generation.template import apply, names_read, original, using

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TRIED = (True, False, "low", "none", 0, 1)
"""Values with which a name is tried: one that the template reads changes a rendering with at least one of them."""


def check_arguments(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any], *, day: date | None) -> list[str]:
    """Return the names of those arguments whose value is what the chat template does without it.

    Raises:
        ConfigError: the template does not read one of the arguments, or raises with its value.
    """
    unchanged = []
    for name, value in arguments.items():
        others = {other: given for other, given in arguments.items() if other != name}
        with using(tokenizer, original(tokenizer)):
            apply(tokenizer, others, day=day)
            without, changed = _renderings(tokenizer), _renderings(tokenizer, **{name: value})
            if without == changed and name not in switches(tokenizer):
                raise _unread(tokenizer, name)
        if without == changed:
            unchanged.append(name)
        elif isinstance(changed[0], Refusal) and not isinstance(without[0], Refusal):
            raise ConfigError(f"`template.{name}` cannot be {value!r}: the chat template raises: {changed[0]}")
    return unchanged


def switches(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the names that change what a tokenizer's chat template writes, in alphabetical order."""
    without = _renderings(tokenizer)
    return [
        name
        for name in sorted(names_read(original(tokenizer)))
        if any(_renderings(tokenizer, **{name: value}) != without for value in _TRIED)
    ]


def _unread(tokenizer: PreTrainedTokenizerBase, name: str) -> ConfigError:
    found = switches(tokenizer)
    return ConfigError(
        f"`template.{name}` changes nothing: the chat template of `{tokenizer.name_or_path}` does not read it",
        *did_you_mean(f"template.{name}", [f"template.{one}" for one in found]),
        f"it reads {', '.join(found)}" if found else "it reads no arguments",
    )


def _renderings(tokenizer: PreTrainedTokenizerBase, **arguments: Any) -> list[str]:
    """Return the requests to reflect and to retry, with and without thoughts, tools and a system message."""
    talk, thoughts = turns(), turns(thoughts=True)
    return [
        rendering(tokenizer, talk[:1], **arguments),
        rendering(tokenizer, [{"role": "system", "content": SYSTEM}, *talk[:3]], **arguments),
        rendering(tokenizer, thoughts, **arguments),
        rendering(tokenizer, thoughts[:4], request=False, **arguments),
        rendering(tokenizer, thoughts[:3], tools=True, **arguments),
    ]
