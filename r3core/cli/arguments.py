"""What a command line asks of a run, and the task and the configuration that follow from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r3core.errors import ConfigError
from r3core.files import digest

if TYPE_CHECKING:
    from r3core.config import Config
    from r3core.task import Task

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, all else elsewhere.")]
TaskOptions = Annotated[
    list[str] | None,
    typer.Option("--task-option", metavar="NAME=VALUE", help="An option of the task; may be repeated."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A key of the configuration, with its dots; may be repeated."),
]


@dataclass(frozen=True)
class Asked:
    """What a command line asks of a run."""

    task: str | None
    task_options: list[str]
    config: Path | None
    overrides: list[str]
    flags: dict[str, Any]
    """Dotted configuration keys and their values; None was not given."""
    dry_run: bool
    as_json: bool

    def resolve(self) -> tuple[Task, Config]:
        """Return the task and the configuration; those of an existing run directory when nothing else is named."""
        from r3core.config import PLACES, chosen_preset, chosen_task, resolve
        from r3core.plugins.discovery import get_task

        folder = self.flags["output_dir"]
        places = {key: self.flags[key] for key in PLACES if self.flags.get(key) is not None}
        named = (self.task, self.config, *(self.flags[key] for key in self.flags.keys() - {"output_dir", *PLACES}))
        given = self.overrides or self.task_options or any(value is not None for value in named)
        if not given and folder is not None and (folder / "config.json").exists():
            config = _stored(folder).model_copy(update=places)
            return get_task(config.task, **config.task_options), config
        options = {f"task_options.{name}": value for name, value in options_given(self.task_options).items()}
        flags = self.flags | {"task": self.task, **options}
        name, options = chosen_task(self.config, self.overrides, flags=flags)
        preset = chosen_preset(self.config, self.overrides, flags=flags)
        task = _task_of(name, options, preset)
        return task, resolve(task, self.config, overrides=self.overrides, flags=flags | {"task": name})


def _task_of(name: str, options: dict[str, Any], preset: str | None) -> Task:
    """Return a task with its options: those that are given, then those of the preset."""
    from r3core.errors import TaskError
    from r3core.plugins.discovery import find_task, get_task

    changed = find_task(name).presets.get(preset or "", {})
    try:
        return get_task(name, **(changed | options))
    except TaskError as error:
        if not changed:
            raise
        listed = ", ".join(f"{key}={value}" for key, value in changed.items())
        raise TaskError(error.message, *error.hints, f"the preset `{preset}` sets {listed} for this task") from None


def of_a_folder(asked: Asked, folder: Path) -> tuple[Asked, Task, Config, Path | None]:
    """Return what evaluating a folder means: against what it was trained from, where it says so."""
    from r3core.pipeline import origin_of

    origin = origin_of(folder)
    if not origin:
        return asked, *asked.resolve(), None
    asked = replace(
        asked,
        task=asked.task or origin["task"],
        flags=asked.flags | {key: origin[key] for key in ("model", "revision")},
    )
    if asked.task == origin["task"] and not asked.task_options:
        options = [f"{name}={json.dumps(value)}" for name, value in origin["task_options"].items()]
        asked = replace(asked, task_options=options)
    task, config = asked.resolve()
    if config.output_dir is None:
        name = config.directory.name
        config = config.model_copy(update={"output_dir": Path("runs") / f"eval-{name}-{_fingerprint(folder)}"})
    return asked, task, config, folder.resolve()


def trained_in(config: Config) -> Path | None:
    """Return the model from elsewhere that a run directory compares with its base, if it was made for that."""
    from r3core.runs import RunRecord

    stored = RunRecord(config.directory).read_json("config")
    named = stored.get("trained") if isinstance(stored, dict) else None
    return Path(named) if named else None


def _stored(folder: Path) -> Config:
    """Return the configuration of the run in a directory."""
    from pydantic import ValidationError

    from r3core.config import NOT_SETTINGS, Config
    from r3core.runs import RunRecord

    stored = RunRecord(folder).read_json("config")
    try:
        settings = {key: value for key, value in stored.items() if key not in NOT_SETTINGS}
        return Config.model_validate(settings | {"output_dir": folder})
    except (AttributeError, ValidationError):
        raise ConfigError(
            f"`{folder / 'config.json'}` is no configuration of this version of r3",
            "name the task and its settings again, and another --output-dir",
        ) from None


def options_given(given: list[str], *, flag: str = "--task-option", example: str = "numbers=4") -> dict[str, Any]:
    """Return options from the words `name=value` that stand behind a flag."""
    import yaml

    options = {}
    for option in given:
        name, separator, value = option.partition("=")
        if not separator or not name:
            raise ConfigError(f"`{flag} {option}` is not of the form name=value", f"for example {example}")
        try:
            options[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            options[name] = value
    return options


def _fingerprint(folder: Path) -> str:
    """Return a short name for the state of a model's folder: its files with their sizes and times."""
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.glob("*.safetensors"))]
    return digest(repr((folder.resolve(), files)), length=8)
