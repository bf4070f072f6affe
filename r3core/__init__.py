"""r3: train models to reflect on their failures, from a yes/no signal alone.

Names are imported on first use, so that the command line starts without importing pydantic.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from r3core.check import assert_certified, check_task
    from r3core.engine import Engine
    from r3core.errors import BusyError, ConfigError, R3Error, RunError, TaskError, UsageError
    from r3core.hookspecs import hookimpl
    from r3core.objective import Objective, Segment
    from r3core.plugins.discovery import get_task
    from r3core.task import Demo, Example, Message, Prompt, Split, Task, Verdict, Wording

    __version__: str

_HOMES = {
    "check": ("assert_certified", "check_task"),
    "engine": ("Engine",),
    "errors": ("BusyError", "ConfigError", "R3Error", "RunError", "TaskError", "UsageError"),
    "hookspecs": ("hookimpl",),
    "objective": ("Objective", "Segment"),
    "plugins.discovery": ("get_task",),
    "task": ("Demo", "Example", "Message", "Prompt", "Split", "Task", "Verdict", "Wording"),
}  # module -> its public names

__all__ = [
    "BusyError",
    "ConfigError",
    "Demo",
    "Engine",
    "Example",
    "Message",
    "Objective",
    "Prompt",
    "R3Error",
    "RunError",
    "Segment",
    "Split",
    "Task",
    "TaskError",
    "UsageError",
    "Verdict",
    "Wording",
    "assert_certified",
    "check_task",
    "get_task",
    "hookimpl",
]


def __getattr__(name: str) -> object:
    value: object
    if name == "__version__":
        from importlib.metadata import version

        value = version("r3core")
    else:
        home = next((module for module, names in _HOMES.items() if name in names), None)
        if home is None:
            raise AttributeError(f"module `r3core` has no attribute `{name}`")
        value = getattr(import_module(f"r3core.{home}"), name)
    globals()[name] = value  # later lookups do not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
