"""This process among those that train together: rank, world size, and how a lost process is reported."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from r3core.errors import RunError

_GOES_ON = "the same command goes on from the last checkpoint"


class LostError(RunError):
    """Another process of the training is gone."""


def rank() -> int:
    """Return this process's place among all that train, from 0 on; the first of them writes the run directory."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def world_size() -> int:
    """Return the number of processes that were started to train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Return how many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


def first_alone() -> Any:
    """Return a context in which the first process goes ahead; the others enter it when it has left."""
    if world_size() == 1:
        return nullcontext()
    from accelerate import PartialState

    return PartialState().main_process_first()


@contextmanager
def losses_told() -> Iterator[None]:
    """Raise LostError in place of what torch says when the connection to the other processes is gone."""
    try:
        yield
    except RuntimeError as error:
        from torch.distributed import DistError

        if world_size() == 1 or not (isinstance(error, DistError) or "gloo" in str(error)):
            raise
        first = str(error).strip().partition("\n")[0]
        raise LostError(f"the connection to the other processes of the training is lost: {first}", _GOES_ON) from error


def wait_for_others(error: Exception) -> None:
    """Wait a moment before an error is told that another process may tell better, or tells just the same.

    When it has ended, the launcher ends this one too. So what goes wrong in all processes is told by the first alone.
    """
    if rank() > 0 or isinstance(error, LostError):
        time.sleep(3)
