"""Discovery of tasks in installed plugins, modules and files; a broken plugin is reported, and the others work."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from r3core import hookspecs
from r3core.errors import TaskError, did_you_mean
from r3core.files import digest
from r3core.plugins.diagnostics import describe, fault_of
from r3core.plugins.options import set_options
from r3core.task import Frozen, Task

GROUP = "r3"
"""The entry-point group of plugins."""
FILE_MODULE = "r3_file_"
"""Prefix of the name of a module that was loaded from a task's file."""


class Installed(Frozen):
    """A usable task, and the distribution that installed it."""

    task: type[Task]
    distribution: str
    version: str
    """The distribution's version, not the task's."""

    @property
    def origin(self) -> str:
        """Distribution, version and class; the class is in the form that `--task` accepts."""
        return f"{self.distribution} {self.version} ({self.task.__module__}:{self.task.__qualname__})"


class Broken(Frozen):
    """A plugin, or one of its tasks, that cannot be used."""

    name: str
    """The entry point's name; the task's name when two tasks share it."""
    distribution: str
    version: str
    reason: str


class Discovery(Frozen):
    """The tasks of the installed plugins."""

    tasks: dict[str, Installed]
    """The usable tasks by name, sorted."""
    broken: list[Broken]
    clashes: dict[str, list[Installed]]
    """The tasks that share a name; none of them is in `tasks`, all of them are in `broken`."""


def discover() -> Discovery:
    """Return the tasks of all installed plugins; one that fails is listed under `broken`, and the others work.

    What plugins print while they are imported goes to standard error.
    """
    named: dict[str, list[Installed]] = {}
    broken: list[Broken] = []
    for entry in entry_points(group=GROUP):
        distribution, version = _origin(entry)
        try:
            tasks = _tasks_of(entry)
        except TaskError as error:
            broken.append(broken_plugin(entry, error))
            continue
        for task in tasks:
            rivals = named.setdefault(task.name, [])
            if all(rival.task is not task for rival in rivals):
                rivals.append(Installed(task=task, distribution=distribution, version=version))
    clashes = {name: rivals for name, rivals in sorted(named.items()) if len(rivals) > 1}
    broken += [clash for name, rivals in clashes.items() for clash in _broken_by_clash(name, rivals)]
    unique = {name: rivals[0] for name, rivals in sorted(named.items()) if len(rivals) == 1}
    return Discovery(tasks=unique, broken=broken, clashes=clashes)


def find_task(spec: str) -> type[Task]:
    """Return the task class for a name, `path/to/file.py:Class` or `module:Class`.

    Modules are also searched in the working directory, after everything that is installed.

    Raises:
        TaskError: there is no such task, or its code is broken.
    """
    location, colon, class_name = spec.rpartition(":")
    if not colon:
        if spec.endswith(".py"):
            with _quietly():
                classes = _classes_of(_import_file(spec)) or ["Class"]
            ways = " or ".join(f"`{spec}:{name}`" for name in classes)
            raise TaskError(f"`{spec}` does not name the task's class", f"write {ways}")
        return _find_installed(spec)
    if not location or not class_name:
        raise TaskError(f"`{spec}` is not a task", "write a task's name, `path/to/file.py:Class` or `module:Class`")
    with _quietly():
        module = _import_file(location) if location.endswith(".py") else _import_module(location)
    if not hasattr(module, class_name):
        classes = _classes_of(module)
        has = f"; its task classes: {', '.join(classes)}" if classes else ""
        raise TaskError(f"`{location}` has no class called `{class_name}`{has}", *did_you_mean(class_name, classes))
    found: Any = getattr(module, class_name)
    if fault := fault_of(found):
        raise TaskError(f"`{spec}` is not a task: {fault}")
    task: type[Task] = found
    return task


def get_task(spec: str, /, **options: Any) -> Task:
    """Return a task with its options set; `spec` is the value of `--task`, see `find_task`.

    Raises:
        TaskError: there is no such task, it has no such option, or the option does not allow the value.
    """
    return set_options(find_task(spec), options)


def _classes_of(module: ModuleType) -> list[str]:
    """Return the names of the classes in a module that are usable tasks."""
    return sorted(name for name, value in vars(module).items() if fault_of(value) is None)


def _origin(entry: EntryPoint) -> tuple[str, str]:
    if entry.dist is None:
        return "unknown distribution", "?"
    metadata = entry.dist.metadata
    return metadata["Name"] or "unknown distribution", metadata["Version"] or "?"


def returned_by(entry: EntryPoint, hook: str) -> list[Any]:
    """Import one plugin and return what its implementation of a hook returns; empty when it does not implement it.

    It has a plugin manager of its own, so that no failure affects another plugin; what it prints goes to standard
    error.

    Raises:
        TaskError: the plugin cannot be imported, or its hook does not return a list.
    """
    with _quietly():
        try:
            plugin = entry.load()
        except (Exception, SystemExit) as error:
            raise TaskError(f"`{entry.value}` cannot be imported: {describe(error)}") from error
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(hookspecs)
        _check_hook_names(manager, plugin)
        caller = getattr(manager.hook, hook)
        try:
            manager.register(plugin)
            results = (caller() or [None]) if caller.get_hookimpls() else []  # pluggy drops a result that is None
            return [value for values in results for value in values]
        except (Exception, SystemExit) as error:
            things = hook.removeprefix("r3_")
            raise TaskError(f"its hook `{hook}` did not return a list of {things}: {describe(error)}") from error


def broken_plugin(entry: EntryPoint, error: TaskError) -> Broken:
    """Return the report of a plugin that raised an error."""
    distribution, version = _origin(entry)
    reason = "; ".join([error.message, *error.hints])
    return Broken(name=entry.name, distribution=distribution, version=version, reason=reason)


def _tasks_of(entry: EntryPoint) -> list[type[Task]]:
    tasks = returned_by(entry, "r3_tasks")
    for task in tasks:
        if fault := fault_of(task):
            raise TaskError(f"its hook `r3_tasks` returned something that is not a task: {fault}")
    return tasks


def _check_hook_names(manager: pluggy.PluginManager, plugin: object) -> None:
    hooks = [name for name in vars(manager.hook) if name.startswith("r3_")]
    functions = [name for name in dir(plugin) if inspect.isroutine(getattr(plugin, name, None))]
    marked = [name for name in functions if manager.parse_hookimpl_opts(plugin, name) is not None]
    for name in functions:
        if name not in hooks and (name in marked or name.startswith("r3_")):
            raise TaskError(f"there is no hook `{name}`; the hooks: {', '.join(hooks)}", *did_you_mean(name, hooks))
        if name in hooks and name not in marked:
            raise TaskError(f"its function `{name}` is not marked as a hook", "put `@r3core.hookimpl` above it")
    if not marked:
        raise TaskError(f"it implements no hook; the hooks: {', '.join(hooks)}")


def _broken_by_clash(name: str, rivals: list[Installed]) -> Iterator[Broken]:
    for index, rival in enumerate(rivals):
        others = ", ".join(other.origin for other in rivals[:index] + rivals[index + 1 :])
        reason = f"its task `{name}` has the same name as that of {others}"
        yield Broken(name=name, distribution=rival.distribution, version=rival.version, reason=reason)


def _find_installed(name: str) -> type[Task]:
    discovery = discover()
    if name in discovery.tasks:
        return discovery.tasks[name].task
    if name in discovery.clashes:
        origins = [rival.origin for rival in discovery.clashes[name]]
        raise TaskError(
            f"{len(origins)} tasks are called `{name}`: {', '.join(origins)}",
            "uninstall all but one, or use `module:Class` instead of the name",
        )
    for broken in discovery.broken:
        if broken.name == name:
            raise TaskError(f"the plugin `{name}` of {broken.distribution} {broken.version} is broken: {broken.reason}")
    installed = list(discovery.tasks)
    hints = did_you_mean(name, installed)
    if discovery.broken:
        hints += ("some plugins are broken: `r3 tasks` shows why",)
    if not hints:
        hints = ("install its package first, or name a task in a file as `path/to/file.py:Class`",)
    if not installed:
        raise TaskError(f"no task is called `{name}`; none is installed", *hints, "pip install r3-plugin-countdown")
    raise TaskError(f"no task is called `{name}`; installed: {', '.join(installed)}", *hints)


@contextmanager
def _quietly() -> Iterator[None]:
    """Send what imports print to standard error; hide the warning about what `fault_of` reports."""
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Field name .* shadows an attribute", category=UserWarning)
        yield


def _import_file(location: str) -> ModuleType:
    path = Path(location).expanduser()
    if not path.is_file():
        raise TaskError(f"there is no file `{location}`")
    path = path.resolve()
    # The name is derived from the content: loading a file again returns the same classes, and new ones once it changed.
    code = path.read_bytes()
    name = f"{FILE_MODULE}{path.stem}_{digest(str(path).encode() + code, length=12)}"
    if name in sys.modules:
        return sys.modules[name]
    _look_in(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader_state = code  # for the workers: the file may be changed before they start
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f" (line {lines[-1]})" if lines else ""
        raise TaskError(f"`{location}` cannot be imported: {describe(error)}{where}") from error
    return module


def _import_module(name: str) -> ModuleType:
    _look_in(Path.cwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            raise TaskError(
                f"there is no module `{missing}`", f"to load a file, use its path: `{name}.py:Class`"
            ) from None
        raise TaskError(f"`{name}` cannot be imported: {describe(error)}") from error


def _look_in(folder: Path) -> None:
    """Add a folder to the end of the import path, so that a folder `datasets` in it does not hide the library."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
