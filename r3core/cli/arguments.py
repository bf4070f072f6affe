"""The arguments of the commands on runs, and the task and the configuration that they stand for."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from r3core.errors import TaskError, UsageError
from r3core.files import digest
from r3core.progress import quiet
from r3core.training.launch import started_by_run

if TYPE_CHECKING:
    from r3core.config import Config
    from r3core.task import Task

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output, all else to stderr.")]
TaskName = Annotated[str | None, typer.Option("--task", help="Installed task, path/to/file.py:Class or module:Class.")]
TaskOptions = Annotated[
    list[str] | None, typer.Option("--task-option", metavar="NAME=VALUE", help="Option of the task; repeatable.")
]
ModelName = Annotated[
    str | None,
    typer.Option("--model", help="Local folder or model id on the Hugging Face Hub; default: the built-in model."),
]
ChatTemplateFile = Annotated[
    str | None,
    typer.Option("--chat-template", metavar="FILE", help="File with the chat template, for a base model without one."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Dotted key of the configuration and its value; repeatable."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Random seed.")]
Uncertified = Annotated[
    bool | None, typer.Option("--uncertified", help="Train even if the verifier does not pass `r3 check`.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print no progress; warnings and errors are printed.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved plan and exit; nothing is written.")]


class Flag(NamedTuple):
    """An option of the commands on runs."""

    annotation: Any
    """Its type, with typer's description."""
    keys: tuple[str, ...] = ()
    """The configuration keys that it sets."""
    default: Any = None


def _flag(kind: type, description: str, *keys: str, metavar: str | None = None) -> Flag:
    return Flag(Annotated[kind | None, typer.Option(help=description, metavar=metavar)], keys)


FLAGS: dict[str, Flag] = {
    "task": Flag(TaskName, ("task",)),
    "task_option": Flag(TaskOptions),
    "model": Flag(ModelName, ("model",)),
    "chat_template": Flag(ChatTemplateFile, ("chat_template",)),
    "preset": _flag(str, "Preset of configuration values: paper.", "preset"),
    "config": _flag(Path, "YAML configuration file."),
    "overrides": Flag(Overrides),
    "samples": _flag(int, "Attempts per problem in mining.", "mine.samples"),
    "keep": _flag(str, "Failures to collect: any-failed or all-failed.", "mine.keep"),
    "failures": _flag(Path, "Failure dataset or run directory to use instead of mining.", "mine.failures"),
    "engine": _flag(str, "Engine that generates text.", "engine"),
    "lora": _flag(
        list[str],
        "Train a LoRA adapter, with this option of peft's LoraConfig, such as r=32; repeatable.",
        metavar="NAME=VALUE",
    ),
    "processes": _flag(int, "Number of training processes; under FSDP2 by default.", "processes"),
    "accelerate_config": _flag(Path, "Configuration file of `accelerate launch` for training.", "accelerate_config"),
    "limit": _flag(int, "Maximum number of problems, in mining and in evaluation.", "mine.limit", "evaluate.limit"),
    "also": _flag(
        list[str],
        "Also evaluate on this task: a name, or NAME,OPTION=VALUE,...; repeatable.",
        "evaluate.also",
        metavar="TASK",
    ),
    "seed": Flag(Seed, ("seed",)),
    "seeds": _flag(
        str,
        "Random seeds, such as 0,1,2 or 0-4: one run per seed, in folders of --output-dir if that is given.",
        metavar="SEEDS",
    ),
    "share_mining": Flag(
        Annotated[
            bool,
            typer.Option(
                "--share-mining", help="With --seeds: mine once, with the first; all train on the same failures."
            ),
        ],
        default=False,
    ),
    "run": Flag(Annotated[Path | None, typer.Argument(metavar="RUN", help="Run directory.")]),
    "output_dir": _flag(Path, "Run directory.", "output_dir"),
    "csv": Flag(
        Annotated[bool, typer.Option("--csv", help="Also write the tables to RUN/tables, as CSV.")], default=False
    ),
    "png": Flag(
        Annotated[bool, typer.Option("--png", help="Also write the charts to RUN/charts, as PNG and SVG.")],
        default=False,
    ),
    "uncertified": Flag(Uncertified, ("uncertified",)),
    "dry_run": Flag(DryRun, default=False),
    "quiet": Flag(Quiet, default=False),
    "as_json": Flag(Json, default=False),
}
"""Every option of the commands on runs, in the order of their help."""
FIND = ("task", "task_option", "config", "overrides", "output_dir", "as_json")
"""The options that find an existing run."""
GENERATE = (*FIND, "model", "chat_template", "preset", "engine", "limit", "seed", "dry_run", "quiet")
"""The options of commands that generate text."""
MINE = ("samples", "keep", "failures")
"""The options of mining alone."""
TRAIN = ("lora", "processes", "accelerate_config", "uncertified")
"""The options of training alone."""
EVALUATE = ("also",)
"""The options of evaluation alone."""
SEEDS = ("seeds", "share_mining")
"""The options of several runs in one command."""
_SWITCHES = ("dry_run", "as_json", "csv", "png", "share_mining")


@dataclass(frozen=True)
class Arguments:
    """The arguments of a command line that concern a run."""

    config: Path | None = None
    overrides: list[str] = field(default_factory=list)
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Dotted configuration keys and their values, only those that are given."""
    dry_run: bool = False
    as_json: bool = False
    csv: bool = False
    png: bool = False
    run: Path | None = None
    """The run directory that is named by itself."""
    seeds: str | None = None
    """The seeds as they are given, for example 0-4."""
    share_mining: bool = False

    @classmethod
    def of(cls, **given: Any) -> Arguments:
        """Return the arguments with these values, by the names in `FLAGS`; None stands for one that is not given."""
        flags = {key: given[name] for name in FLAGS if given.get(name) not in (None, []) for key in FLAGS[name].keys}
        return cls(
            config=given.get("config"),
            run=given.get("run"),
            overrides=given.get("overrides") or [],
            seeds=given.get("seeds"),
            flags=flags
            | _named_values("task_options", given.get("task_option"), flag="--task-option", example="numbers=4")
            | _named_values("lora", given.get("lora"), flag="--lora", example="r=32"),
            **{name: given.get(name, False) for name in _SWITCHES},
        )

    def resolve(self) -> tuple[Task, Config]:
        """Return the task and the configuration; those of an existing run if nothing but its directory is given."""
        from r3core.config import PLACEMENT, chosen_preset, chosen_task, configure, read_settings
        from r3core.plugins.discovery import get_task
        from r3core.recorded import config_of

        folder = self.flags.get("output_dir")
        given = self.overrides or self.config or self.flags.keys() - {"output_dir", *PLACEMENT}
        if not given and folder is not None and (folder / "config.json").exists():
            placement = {key: value for key, value in self.flags.items() if key in PLACEMENT}
            config = config_of(folder, placement)
            return get_task(config.task, **config.task_options), config
        settings = read_settings(self.config, self.overrides, flags=self.flags)
        task = configured_task(*chosen_task(settings), preset=chosen_preset(settings))
        return task, configure(task, settings)

    def directory(self) -> Path:
        """Return the directory of an existing run: the one that is named, or that of the configuration."""
        if self.run is None:
            named: Path | None = self.flags.get("output_dir")
            return self.resolve()[1].directory if named is None else named
        if self.flags or self.overrides or self.config:
            raise UsageError(
                f"`{self.run}` names the run, and has its own settings",
                "leave the other options out, or leave the directory out to find a run by its settings",
            )
        return self.run


@contextmanager
def interruptible() -> Iterator[None]:
    """Print how to resume when the block is interrupted by Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        if not started_by_run():  # else the process that started this one prints it
            typer.echo("interrupted; run the same command to resume", err=True)
        raise


def with_flags(*names: str) -> Callable[[Callable[[Arguments], None]], Callable[..., None]]:
    """Return a decorator that makes a typer command with these of the `FLAGS` of a function of their values."""

    def decorate(work: Callable[[Arguments], None]) -> Callable[..., None]:
        def command(**given: Any) -> None:
            with interruptible(), quiet(given.pop("quiet", False)):
                work(Arguments.of(**given))

        # typer reads the options of a command from its signature
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, annotation=flag.annotation, default=flag.default
                )
                for name, flag in FLAGS.items()
                if name in names
            ]
        )
        command.__name__, command.__doc__ = work.__name__, work.__doc__
        return command

    return decorate


def trained_from(arguments: Arguments, folder: Path) -> tuple[Task, Config] | None:
    """Return the task and the configuration that compare the model in a folder with the model it was trained from.

    The folder names task and base model; the run directory is a new one, unless it is given. None for a model that
    was not trained by r3.
    """
    from r3core.pipeline import origin_of

    origin = origin_of(folder)
    if not origin:
        return None
    flags = {key: value for key, value in arguments.flags.items() if key != "model"}
    flags |= {key: origin[key] for key in ("model", "revision") if origin[key] is not None}
    flags.setdefault("task", origin["task"])
    if flags["task"] == origin["task"] and not any(key.startswith("task_options.") for key in flags):
        flags["task_options"] = origin["task_options"]
    # below --set and flags, above a --config file: the model is compared as it was trained
    trained = [f"template.{name}={json.dumps(value)}" for name, value in origin.get("template", {}).items()]
    for name in ("chat_template", "history", "template_date"):  # folders of earlier versions lack some of them
        if origin.get(name):
            trained.append(f"{name}={origin[name]}")
    task, config = replace(arguments, flags=flags, overrides=[*trained, *arguments.overrides]).resolve()
    if config.output_dir is None:
        name = f"eval-{config.directory.name}-{_fingerprint(folder)}"
        config = config.model_copy(update={"output_dir": Path("runs") / name})
    return task, config


def model_to_compare(config: Config) -> Path | None:
    """Return the trained model that an existing run directory compares with its base; None if it is the run's own."""
    from r3core.runs import RunRecord

    stored = RunRecord(config.directory).read_json("config")
    trained = stored.get("trained") if isinstance(stored, dict) else None
    return Path(trained) if trained else None


def _named_values(section: str, given: list[str] | None, *, flag: str, example: str) -> dict[str, Any]:
    """Return dotted keys and values for the `name=value` arguments of a flag."""
    if not given:  # most commands: leave pydantic and yaml alone
        return {}
    from r3core.settings import assignments

    return {f"{section}.{name}": value for name, value in assignments(given, flag=flag, example=example)}


def configured_task(name: str, options: dict[str, Any], *, preset: str | None) -> Task:
    """Return a task with its options: those that are given, and below them those of the preset."""
    from r3core.plugins.discovery import find_task, get_task

    changed = find_task(name).presets.get(preset or "", {})
    try:
        return get_task(name, **(changed | options))
    except TaskError as error:
        if not changed:
            raise
        listed = ", ".join(f"{key}={value}" for key, value in changed.items())
        raise TaskError(error.message, *error.hints, f"the preset `{preset}` sets {listed} for this task") from None


def _fingerprint(folder: Path) -> str:
    """Return a short hash of the state of a model's folder: its files with their sizes and times."""
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.glob("*.safetensors"))]
    return digest(repr((folder.resolve(), files)), length=8)
