"""This process among those that train together: rank, world size, and errors when another process is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from r3core.activity import PROCESS, waiting_for
from r3core.errors import RunError, one_line

RESUME_TRAINING = "run the same command to resume from the last checkpoint"
_SECONDS_FOR_FIRST_REPORT = 10  # a process with torch takes seconds to end on a busy machine


class LostProcessError(RunError):
    """Another process of the training has ended."""


def rank() -> int:
    """Return this process's rank among all that train, from 0 on; rank 0 writes the run directory."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def world_size() -> int:
    """Return the number of processes that train together, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Return the number of processes that train together on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the block in rank 0 first; the others enter it when rank 0 has left it."""
    if rank() > 0:
        wait_for_all("rank 0")
    yield
    if rank() == 0:
        wait_for_all("the other ranks")


def wait_for_all(detail: str = "") -> None:
    """Wait until every training process is here; `detail` names those that come last."""
    if world_size() > 1:
        from accelerate import PartialState

        with waiting_for(PROCESS, detail):
            PartialState().wait_for_everyone()


@contextmanager
def lost_process_errors() -> Iterator[None]:
    """Raise LostProcessError in place of torch's errors about a connection that another process has closed."""
    try:
        yield
    except RuntimeError as error:
        from torch.distributed import DistError

        # gloo, the backend on CPUs, raises a plain RuntimeError
        if world_size() == 1 or not (isinstance(error, DistError) or "gloo" in str(error)):
            raise
        raise LostProcessError(
            f"lost the connection to the other training processes: {one_line(error, first=True)}", RESUME_TRAINING
        ) from error


def wait_before_reporting(error: Exception) -> None:
    """Wait some seconds before an error is printed that another process can explain better, or prints too.

    When that process has ended, the launcher ends this one during the wait. So an error that occurs in all processes is
    printed once, by rank 0.
    """
    if rank() > 0 or isinstance(error, LostProcessError):
        time.sleep(_SECONDS_FOR_FIRST_REPORT)
