"""Every hook that a plugin can implement, on one screen.

A plugin is a module that an entry point of the group `r3` names. It implements a hook by a function of the hook's
name, marked with `hookimpl`; names that begin with `r3_` are reserved for hooks.
"""

from __future__ import annotations

import pluggy

from r3core.engine import Engine
from r3core.objective import Objective
from r3core.task import Task

hookspec = pluggy.HookspecMarker("r3")

hookimpl = pluggy.HookimplMarker("r3")
"""Marks a plugin's implementation of one of the hooks below."""


@hookspec
def r3_tasks() -> list[type[Task]]:
    """Return the task classes of the plugin."""
    raise NotImplementedError


@hookspec
def r3_engines() -> list[type[Engine]]:
    """Return the engine classes of the plugin."""
    raise NotImplementedError


@hookspec
def r3_objectives() -> list[Objective]:
    """Return the objectives of training that the plugin adds."""
    raise NotImplementedError
