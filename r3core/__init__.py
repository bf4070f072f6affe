"""r3: train models to reflect on their failures, from a yes/no signal alone."""

from importlib.metadata import version

from r3core.errors import (
    BusyError,
    ConfigError,
    R3Error,
    RunError,
    TaskError,
    UsageError,
)
from r3core.hookspecs import hookimpl
from r3core.plugins import get_task
from r3core.task import Demo, Example, Message, Split, Task, Verdict, Wording

__version__ = version("r3core")

__all__ = [
    "BusyError",
    "ConfigError",
    "Demo",
    "Example",
    "Message",
    "R3Error",
    "RunError",
    "Split",
    "Task",
    "TaskError",
    "UsageError",
    "Verdict",
    "Wording",
    "get_task",
    "hookimpl",
]
