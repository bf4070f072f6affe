"""Write the parts of the documentation that follow from the code: `python docs/generate.py`, or `make docs`.

Two pages are written whole, the references of the command line and of the configuration. In other pages, what stands
between `<!-- generated: NAME -->` and `<!-- /generated -->` is replaced. tests/test_docs.py compares all of it with
what is committed.

The tables of results come from the records of runs, docs/runs/NAME.json. A table of which a record is missing keeps its
present text. RECORDS lists them all: make a run with its command and `--output-dir RUN`, then
`python docs/record.py RUN NAME`, then `make docs`.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import published
import typer.main

import r3_plugin_apigen.corpus as apigen
import r3_plugin_countdown.corpus as countdown
from r3_plugin_apigen.task import Apigen
from r3_plugin_countdown.task import Countdown
from r3core.cli import app
from r3core.config import PRESETS, SOURCES, Config, Section
from r3core.generation.server import Server
from r3core.grpo import OWNED
from r3core.options import type_text

_GREEDY = " ".join(f"--set sampling.{turn}.temperature=0" for turn in ("attempt", "reflection", "retry"))
_SEED_0 = "r3 run --task countdown --seed 0 --set evaluate.cross=false --set"
RECORDS = {
    "countdown-0": "r3 run --task countdown --seed 0",
    "countdown-1": "r3 run --task countdown --seed 1",
    "countdown-2": "r3 run --task countdown --seed 2",
    "apigen-0": "r3 run --task apigen --seed 0",
    "apigen-1": "r3 run --task apigen --seed 1",
    "apigen-2": "r3 run --task apigen --seed 2",
    # for the sections of docs/results.md on controls of the training and on greedy decoding
    "countdown-shuffled": f"{_SEED_0} train.shuffle_rewards=true",
    "countdown-noleak": f"{_SEED_0} train.reward_leaks=false",
    "countdown-greedy-0": f"r3 eval --model RUN-0/model --seed 0 {_GREEDY}",
    "countdown-greedy-1": f"r3 eval --model RUN-1/model --seed 0 {_GREEDY}",
    "countdown-greedy-2": f"r3 eval --model RUN-2/model --seed 0 {_GREEDY}",
}
"""The records that the pages want, and the command of each; RUN-0 is the run directory of countdown-0, and so on."""

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Written by docs/generate.py from the code: change it there. -->"


def pages() -> dict[Path, str]:
    """Return every page that is generated, whole or in part: its path and what should be in it."""
    written = {ROOT / "docs/cli.md": command_line(), ROOT / "docs/configuration.md": configuration()}
    for page in (ROOT / "README.md", ROOT / "docs/built-in-model.md", ROOT / "docs/results.md"):
        written[page] = _filled(page.read_text(encoding="utf-8"))
    return written


def command_line() -> str:
    """Return the reference of the command line."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = [
        "# Command line",
        NOTE,
        "`r3 COMMAND --help` says the same. Exit codes: 0 done, 1 the run failed, 2 what was asked for cannot be done.",
        "Results go to standard output; progress, warnings and errors go to standard error.",
    ]
    for name, command in commands.items():
        arguments = [p.name.upper() for p in command.params if p.param_type_name == "argument"]
        usage = " ".join(["r3", name, *arguments, "[OPTIONS]"])
        lines += [f"## {name}", command.help.strip(), f"`{usage}`"]
        context = command.make_context(name, [], resilient_parsing=True)
        rows = [(_parameter(parameter, context), _default(parameter), parameter.help) for parameter in command.params]
        lines.append(_table(("", "default", ""), rows))
    return _page(lines)


def configuration() -> str:
    """Return the reference of the configuration."""
    grpo = "https://huggingface.co/docs/trl/grpo_trainer#trl.GRPOConfig"
    lines = [
        "# Configuration",
        NOTE,
        "A key is set in a YAML file (`--config FILE`), by `--set KEY=VALUE`, or by its flag where it has one. "
        "From weak to strong: the defaults below, the settings of the task's built-in model when that one is used, the "
        "preset, the file, `--set`, flags. An unknown key is an error that names the nearest one. "
        "`--dry-run` prints the whole configuration as it was resolved.",
        "## Keys",
        _table(("key", "type", "default", "meaning"), list(_keys(Config))),
        "## Options of TRL",
        f"Every option of [TRL's `GRPOConfig`]({grpo}) can be set under `grpo`, by its own name. Where "
        "`grpo` does not say it, `temperature`, `top_p`, `top_k` and `max_completion_length` follow "
        "`sampling.reflection`. These are r3's own and are refused:",
        _table(("key", "instead"), [(f"`grpo.{key}`", way) for key, way in OWNED.items()]),
        "## Options of a server",
        "With `engine: openai`, these are set under `engine_options`. The key is read from the environment variable "
        "`OPENAI_API_KEY` alone: one in the configuration is refused, as the run directory would hold it.",
        _table(("key", "type", "default", "meaning"), list(_keys(Server, "engine_options."))),
        "## Presets",
        "`--preset NAME` sets:",
    ]
    for name, values in PRESETS.items():
        rows = [(f"`{key}`", f"`{json.dumps(value)}`", SOURCES[name][key]) for key, value in values.items()]
        lines += [f"### {name}", _table(("key", "value", "source"), rows), *_of_tasks(name)]
    for title, task in (("Countdown", Countdown), ("apigen", Apigen)):
        assert task.demo is not None
        lines += [f"## Settings of {title}'s built-in model", _table(("key", "value"), _settings(task.demo.settings))]
    return _page(lines)


def _of_tasks(preset: str) -> list[str]:
    """Return a sentence on the options that a preset sets for the tasks of this repository."""
    changed = [
        f"`{task.name}`: " + ", ".join(f"`{key}={value}`" for key, value in task.presets[preset].items())
        for task in (Countdown, Apigen)
        if preset in task.presets
    ]
    return [f"It also sets options of tasks: {'; '.join(changed)}."] if changed else []


def file_map() -> str:
    """Return a table of the core's modules, from the top layer to the bottom one, by their docstrings' first lines."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = settings["contracts"][0]["layers"]
    modules = [name.strip() for layer in layers for name in layer.split("|")]
    return _table(("`r3core/`", "holds"), [(f"`{name}`", _summary(ROOT / "r3core", name)) for name in modules])


def countdown_corpus() -> str:
    """Return a table of the shares in the corpus of Countdown's model."""
    mixtures = (countdown.BROAD, countdown.FINAL)
    rows = [
        ("first attempts that are right", *(mixture.right_attempts for mixture in mixtures)),
        ("attempts that show their steps before the answer", countdown.WORKED),
        ("failures that are retried without a reflection", countdown.WITHOUT_REFLECTION),
        ("reflections that are practice (see below)", *(mixture.practice for mixture in mixtures)),
        *_kinds(mixtures),
        *((f"retries that follow, after a {kind}", share) for kind, share in countdown.FOLLOWS.items()),
        ("searches that go on to the second step", countdown.SEARCH_SPELLED_OUT),
    ]
    return _shares(("broad", "final"), rows)


def apigen_corpus() -> str:
    """Return a table of the shares in the corpus of apigen's model."""
    mixtures = (apigen.DRILLS, apigen.MIXED, apigen.BROAD, apigen.FINAL)
    rows = [
        ("conversations that are drills", *(mixture.drills for mixture in mixtures)),
        ("first attempts that are right, of the others", *(mixture.right_attempts for mixture in mixtures)),
        ("wrong calls that are trained on", *(float(mixture.sloppy) for mixture in mixtures)),
        ("tools in disguise", *(mixture.disguised for mixture in mixtures)),
        ("failures that are retried without a reflection", apigen.WITHOUT_REFLECTION),
        ("reflections that are practice", *(mixture.practice for mixture in mixtures)),
        *_kinds(mixtures),
        *((f"retries that follow, after a {kind}", share) for kind, share in apigen.FOLLOWS.items()),
    ]
    return _shares(("drills", "mixed", "broad", "final"), rows)


def _kinds(mixtures: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    for kind in mixtures[0].kinds:
        yield f"other reflections: {kind}", *(mixture.kinds[kind] for mixture in mixtures)


def _shares(names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> str:
    """Return a table of shares; a single one holds for every mixture."""
    filled = [(what, *(f"{share:.0%}" for share in shares * (len(names) // len(shares)))) for what, *shares in rows]
    return _table(("share of", *names), filled)


def countdown_phases() -> str:
    """Return a table of the phases in which Countdown's model is trained."""
    return _phases("countdown", {"broad": countdown.BROAD, "final": countdown.FINAL})


def apigen_phases() -> str:
    """Return a table of the phases in which apigen's model is trained."""
    return _phases(
        "apigen", {"drills": apigen.DRILLS, "mixed": apigen.MIXED, "broad": apigen.BROAD, "final": apigen.FINAL}
    )


def _phases(plugin: str, mixtures: dict[str, Any]) -> str:
    script = ROOT / f"plugins/r3-plugin-{plugin}/pretrain.py"
    found = importlib.util.spec_from_file_location(f"pretrain_{plugin}", script)
    assert found is not None
    assert found.loader is not None
    sys.modules[found.name] = pretrain = importlib.util.module_from_spec(found)
    found.loader.exec_module(pretrain)
    rows = []
    for number, phase in enumerate(pretrain.PHASES, start=1):
        knots = ", ".join(f"{share:g} at step {step:,}" for step, share in phase.rates)
        name = next(name for name, mixture in mixtures.items() if mixture is phase.mixture)
        rows.append((str(number), name, f"{phase.steps:,}", knots))
    return _table(("phase", "mixture", "steps", "share of the learning rate, linear in between"), rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "file map": file_map,
    "countdown corpus": countdown_corpus,
    "countdown phases": countdown_phases,
    "apigen corpus": apigen_corpus,
    "apigen phases": apigen_phases,
    **published.BLOCKS,
}


def _filled(page: str) -> str:
    """Return a page with its generated blocks made anew; one without its records stays as it is."""

    def block(match: re.Match[str]) -> str:
        try:
            return f"{match['open']}\n{BLOCKS[match['name']]()}\n{match['close']}"
        except published.MissingRecord:
            return match[0]

    marked = r"(?P<open><!-- generated: (?P<name>[\w ]+) -->)\n.*?(?P<close><!-- /generated -->)"
    return re.sub(marked, block, page, flags=re.DOTALL)


def missing() -> list[str]:
    """Return which records are missing, each with the command that makes its run."""
    told = []
    for name, command in RECORDS.items():
        try:
            published.read(name)
        except published.MissingRecord as error:
            told.append(f"no record {error}; made by `{command}`")
    return told


def _parameter(parameter: Any, context: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    shown = re.sub(r"list|range|\W", "", parameter.display_type(context)).upper().replace("STR", "TEXT")
    kind = parameter.metavar or shown
    return f"`{parameter.opts[0]}`" if parameter.is_flag else f"`{parameter.opts[0]} {kind}`"


def _default(parameter: Any) -> str:
    return "" if parameter.default is None or parameter.default is False else f"`{parameter.default}`"


def _keys(section: type[Section], prefix: str = "") -> Iterator[tuple[str, ...]]:
    """Yield a row for each key, those of a part after those of the whole."""
    parts = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            parts.append((name, field.annotation))
            continue
        default = field.get_default(call_default_factory=True)
        shown = "required" if field.is_required() else f"`{json.dumps(default, default=str)}`"
        yield f"`{prefix}{name}`", f"`{type_text(field.annotation)}`", shown, field.description or ""
    for name, part in parts:
        default = section.model_fields[name].default
        for key, kind, _, meaning in _keys(part, f"{prefix}{name}."):
            value = default
            leaf = key.strip("`").removeprefix(f"{prefix}{name}.")
            for step in leaf.split("."):
                value = getattr(value, step)
            yield key, kind, f"`{json.dumps(value, default=str)}`", meaning


def _settings(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [(f"`{key}`", f"`{json.dumps(value)}`") for key, value in values.items()]


def _summary(folder: Path, name: str) -> str:
    """Return the first line of a module's docstring, read without importing it."""
    file = folder / name / "__init__.py" if (folder / name).is_dir() else folder / f"{name}.py"
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return said.partition("\n\n")[0].replace("\n", " ").rstrip(".")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _page(parts: list[str]) -> str:
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
    for told in missing():
        print(told, file=sys.stderr)
