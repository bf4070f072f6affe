"""New tasks: a plugin package or a single file, around a small task that already works."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from r3core.errors import UsageError
from r3core.files import atomic_write
from r3core.plugins.discovery import discover
from r3core.task import Frozen

_NAME = re.compile("[A-Za-z](?:[-_]?[A-Za-z0-9])*")
_USED = {"Example", "Field", "Iterable", "Path", "Split", "Task", "Verdict", "FENCED", "NUMBER", "SPLITS"}
"""Names in the template's module, which its class must not have."""


class NewTask(Frozen):
    """The files of a task that was created."""

    path: Path
    """The package's folder, or the single file."""
    source: Path
    """The file that has the task's class."""
    task: str
    """The value for `--task`."""


def make_package(name: str, directory: Path) -> NewTask:
    """Create the plugin package `r3-plugin-NAME` in a directory; it can be installed and passes its own tests.

    Raises:
        UsageError: the name is not allowed or taken, or the folder exists or cannot be written.
    """
    _check(name)
    folder = directory / f"r3-plugin-{name}"
    module = f"r3_plugin_{_identifier(name)}"
    source = folder / module / "__init__.py"
    files = {
        folder / "pyproject.toml": "pyproject.toml",
        folder / "README.md": "README.md",
        folder / "tests" / f"test_{_identifier(name)}.py": "test.py",
        source: "task.py",
        source.with_name("fixtures.jsonl"): "fixtures.jsonl",
    }  # path -> template
    values = {"task": name, "spec": name, "class_name": _class_name(name), "module": module, "bare": False}
    _write(folder, {path: _rendered(template, values) for path, template in files.items()})
    return NewTask(path=folder, source=source, task=name)


def make_file(name: str, directory: Path) -> NewTask:
    """Create a single file with the task's class in a directory, for `--task file.py:Class`.

    Raises:
        UsageError: the name is not allowed or taken, or the file exists or cannot be written.
    """
    _check(name)
    path = directory / f"{_identifier(name)}.py"
    class_name = _class_name(name)
    values = {"task": name, "spec": f"{path.name}:{class_name}", "class_name": class_name, "bare": True}
    _write(path, {path: _rendered("task.py", values)})
    return NewTask(path=path, source=path, task=f"{path}:{class_name}")


def _check(name: str) -> None:
    """Raise UsageError when a name is not allowed for a task, or taken."""
    if not _NAME.fullmatch(name):
        allowed = re.sub("[^A-Za-z0-9]+", "-", name.lstrip("0123456789")).strip("-")
        raise UsageError(
            f"a task cannot be called `{name}`; a letter comes first, then letters and digits, with single `-` or `_` "
            "between them",
            *([f"`{allowed}` is allowed"] if _NAME.fullmatch(allowed) else []),
        )
    found = discover()
    taken = {installed.task.name: installed.distribution for installed in found.tasks.values()}
    taken |= {broken.name: broken.distribution for broken in found.broken}
    for other, distribution in taken.items():
        # To pip, packages whose names differ only in case, `-` and `_` are the same.
        if _identifier(other).lower() == _identifier(name).lower():
            raise UsageError(
                f"the name `{name}` is taken: {distribution} brings the task `{other}`",
                f"choose another name, or call `pip uninstall {distribution}` first",
            )


def _identifier(name: str) -> str:
    return name.replace("-", "_")


def _class_name(name: str) -> str:
    capitals = "".join(part[:1].upper() + part[1:] for part in re.split("[-_]", name))
    return f"{capitals}Task" if keyword.iskeyword(capitals) or capitals in _USED else capitals


def _rendered(template: str, values: dict[str, object]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(  # no autoescape: the templates are Python, TOML and Markdown, not HTML
        loader=PackageLoader("r3core.plugins", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template(f"{template}.jinja").render(values)


def _write(target: Path, files: dict[Path, str]) -> None:
    """Write the files of a package or file that does not exist yet."""
    try:
        if target.exists():
            raise UsageError(f"`{target}` exists already", "choose another name, or another --output-dir")
        for path, text in files.items():
            atomic_write(path, text)
    except OSError as error:
        raise UsageError(f"`{error.filename}` cannot be written: {error.strerror}") from None
