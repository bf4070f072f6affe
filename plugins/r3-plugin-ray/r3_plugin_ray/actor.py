"""What runs on the nodes of a cluster: an actor with a task, its judge and a model, which receives batches."""

from __future__ import annotations

import pickle
import platform
from collections.abc import Callable
from typing import Any, NamedTuple

from r3core.config import Config
from r3core.episode import Episode
from r3core.errors import R3Error, RunError, UsageError
from r3core.executor import Function
from r3core.plugins.discovery import FILE_MODULE
from r3core.plugins.engines import engine_of
from r3core.protocol import Protocol
from r3core.task import Task
from r3core.verification.judge import Judge, verifier_hash

RESUME = "the episodes that arrived are in the run directory; run the same command to resume"
"""A hint of every failure of the cluster."""


class Job(NamedTuple):
    """Everything that an actor needs."""

    load: Callable[[], Task]
    config: Config
    model: str
    function: Function
    verifier: str
    """The hash of the verifier in the main process."""


class Failed(NamedTuple):
    """An error of an actor, in a form that any process can unpickle."""

    usage: bool
    message: str
    hints: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: Exception) -> Failed:
        """Return an exception in this form."""
        if isinstance(error, R3Error):
            return cls(isinstance(error, UsageError), error.message, error.hints)
        line = f"a batch failed on node `{platform.node()}`: {type(error).__name__}: {last_line(error)}"
        return cls(False, line, (RESUME,))

    def error(self) -> R3Error:
        """Return the exception for the main process."""
        return (UsageError if self.usage else RunError)(self.message, *self.hints)


class Actor:
    """Holds a task, its judge and a model on some node, and runs the job's function on each batch it receives."""

    def __init__(self, job: Job) -> None:
        self.function = job.function
        self.failed: Failed | None = None
        try:
            task = _loaded(job)
            self.protocol = Protocol(task, Judge(task, job.config.judge), job.config)
            self.generator = engine_of(job.config).open(job.model)
        except Exception as error:
            self.failed = Failed.of(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the pickled episodes of one batch, or a `Failed`: an exception Ray would print over several pages."""
        result: list[Episode] | Failed | None = self.failed
        if result is None:
            try:
                result = self.function(self.protocol, self.generator, int(row["number"]), pickle.loads(row["batch"]))
            except Exception as error:
                result = Failed.of(error)
        return {"number": row["number"], "result": pickle.dumps(result)}


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message: those of Ray have the whole traceback of another process."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _loaded(job: Job) -> Task:
    """Return the job's task; RunError when this node has another version of it, or none."""
    node = platform.node()
    try:
        task = job.load()
    except Exception as error:
        reason = f"{type(error).__name__}: {last_line(error)}"
        raise RunError(
            f"the task cannot be loaded on node `{node}`: {reason}",
            "install r3core and the task's package on every node, all of the same versions",
        ) from None
    installed = not type(task).__module__.startswith(FILE_MODULE)  # modules of files were sent with the job
    if installed and verifier_hash(task) != job.verifier:
        raise RunError(
            f"node `{node}` has another version of task `{task.name}`: the hash of its verifier differs",
            "install the same version of the task's package on every node",
        )
    return task
