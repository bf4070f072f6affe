"""Terminal output: model text escaped so that it cannot control the terminal, and libraries without their own bars."""

from __future__ import annotations


def visible(text: str, *, longest: int | None = None, keep: str = "") -> str:
    """Return a text with unprintable characters escaped, except those in `keep`, and cut after `longest` characters."""
    cut = text if longest is None or len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in cut)


def escape_unencodable() -> None:
    """Let standard output escape the characters that its encoding lacks; without this, printing one is an error."""
    import io
    import sys

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def quiet_libraries() -> None:
    """Turn off progress bars and messages of the libraries."""
    import logging
    import os
    import warnings

    # TRL uses names that transformers has deprecated; a user cannot do anything about it.
    warnings.filterwarnings("ignore", message=".(is_)?gradient_checkpointing.* is deprecated", category=FutureWarning)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    for name in ("accelerate", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
