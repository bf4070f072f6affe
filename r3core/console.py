"""Terminal output: progress bars, and model text escaped so that it cannot control the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from r3core.distributed import rank


@contextmanager
def progress_bar(label: str, total: int, *, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a progress bar for the block; the yielded function advances it by a number of finished items.

    Shows nothing where standard error is not a terminal, or in a training process other than that of rank 0.
    """
    if not sys.stderr.isatty() or rank() > 0:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total, completed=done)
        yield lambda count: progress.advance(task, count)


def visible(text: str, *, longest: int | None = None, keep: str = "") -> str:
    """Return a text with unprintable characters escaped, except those in `keep`, and cut after `longest` characters."""
    cut = text if longest is None or len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in cut)


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
