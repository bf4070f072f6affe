"""Write the generated parts of the documentation: `python docs/generate.py`, or `make docs`.

The references of the command line and of the configuration are generated as whole pages. In other pages, the text
between `<!-- generated: NAME -->` and `<!-- /generated -->` is replaced. tests/test_docs.py compares all of it with the
committed pages.

The tables of results come from the records of runs, docs/runs/NAME.json. A table without its record keeps its present
text. RECORDS lists them all: run the command with `--output-dir RUN`, then `python docs/record.py RUN NAME`, then
`make docs`.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `pretraining`, which is never installed

import call_tables
import memory_tables
import paper_tables
import published
import study_tables
import typer.main
from pydantic import BaseModel
from tables import table

from pretraining import apigen, countdown
from pretraining import apigen_corpus as apigen_corpora
from pretraining import countdown_corpus as countdown_corpora
from pretraining.apigen_teacher import FOLLOWS
from pretraining.trainer import Phase
from r3_plugin_apigen.task import Apigen
from r3_plugin_countdown.task import Countdown
from r3_plugin_openai.server import ServerOptions
from r3_plugin_ray.engine import RayOptions
from r3core.cli.main import app
from r3core.config import Config
from r3core.explain.rules import RULES
from r3core.plugins.options import type_text
from r3core.presets import PRESETS
from r3core.sections import Section
from r3core.training.grpo_options import OWNED

RECORDS = {
    "countdown-0": "r3 run --task countdown --seed 0",
    "countdown-1": "r3 run --task countdown --seed 1",
    "countdown-2": "r3 run --task countdown --seed 2",
    "apigen-0": "r3 run --task apigen --seed 0",
    "apigen-1": "r3 run --task apigen --seed 1",
    "apigen-2": "r3 run --task apigen --seed 2",
}
"""The records that the pages need, and the command of each."""

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Written by docs/generate.py from the code: change it there. -->"
COUNTDOWN = {"broad": countdown_corpora.BROAD, "final": countdown_corpora.FINAL}
APIGEN = {
    "drills": apigen_corpora.DRILLS,
    "mixed": apigen_corpora.MIXED,
    "broad": apigen_corpora.BROAD,
    "final": apigen_corpora.FINAL,
}


def pages() -> dict[Path, str]:
    """Return the path and the text of every page that is generated, whole or in part."""
    written = {ROOT / "docs/cli.md": command_line(), ROOT / "docs/configuration.md": configuration()}
    names = ("built-in-model", "explain", "paper", "results", "scale", "study")
    for page in (ROOT / "README.md", *(ROOT / f"docs/{name}.md" for name in names)):
        written[page] = _filled(page.read_text(encoding="utf-8"))
    return written


def command_line() -> str:
    """Return the reference of the command line."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = [
        "# Command line",
        NOTE,
        "The same as `r3 COMMAND --help`. Exit codes: 0 success, 1 the run failed, 2 the arguments, the configuration "
        "or the task are wrong.",
        "Results go to standard output; progress, warnings and errors go to standard error.",
    ]
    for name, command in commands.items():
        arguments = [p.name.upper() for p in command.params if p.param_type_name == "argument"]
        usage = " ".join(["r3", name, *arguments, "[OPTIONS]"])
        lines += [f"## {name}", command.help.strip(), f"`{usage}`"]
        context = command.make_context(name, [], resilient_parsing=True)
        rows = [(_parameter(parameter, context), _default(parameter), parameter.help) for parameter in command.params]
        lines.append(table(("", "default", ""), rows))
    return _page(lines)


def configuration() -> str:
    """Return the reference of the configuration."""
    grpo = "https://huggingface.co/docs/trl/grpo_trainer#trl.GRPOConfig"
    lines = [
        "# Configuration",
        NOTE,
        "A key is set in a YAML file (`--config FILE`), by `--set KEY=VALUE`, or by its flag where it has one. "
        "From weak to strong: the defaults below, the settings of the task's built-in model if the run uses it, the "
        "preset, the file, `--set`, flags. An unknown key is an error that suggests the nearest one. "
        "`--dry-run` prints the resolved configuration.",
        "In `--set`, `--task-option` and `--lora`, the value of a text key (`str`, `Path` or a choice of texts) is "
        "taken as typed: `--set 'wording.retry=Try: again'`, `--task-option language=no`. `null` unsets it where "
        "`None` is allowed. Every other value is YAML: `--set mine.limit=null`, `--set grpo.learning_rate=5e-7`, "
        "`--set 'lora.target_modules=[q_proj, v_proj]'`. There is no interpolation: `${...}` is plain text.",
        "## Keys",
        table(("key", "type", "default", "meaning"), list(_keys(Config))),
        "## Options of TRL",
        f"Every option of [TRL's `GRPOConfig`]({grpo}) can be set under `grpo`, by its own name. If they are not set "
        "there, `temperature`, `top_p`, `top_k` and `max_completion_length` follow `sampling.reflection` (or the turn "
        "that [`train.objective`](concepts.md#objectives) samples in groups), and "
        "`use_vllm` and `vllm_mode` follow `engine` (see [scale.md](scale.md)). Only these options are refused:",
        table(("key", "instead"), [(f"`grpo.{key}`", way) for key, way in OWNED.items()]),
        "## Options of engines",
        "`engine_options` are those of the selected `engine`: `vllm` has the options of `vllm.LLM`, under their own "
        "names; `transformers` has none.",
        "### openai",
        "The key is read from the environment variable `OPENAI_API_KEY` alone: one in the configuration is refused, "
        "because the run directory would contain it.",
        table(("key", "type", "default", "meaning"), list(_keys(ServerOptions, "engine_options."))),
        "### ray",
        table(("key", "type", "default", "meaning"), list(_keys(RayOptions, "engine_options."))),
        "## Presets",
        "`--preset NAME` sets:",
    ]
    for name, values in PRESETS.items():
        rows = [(f"`{key}`", f"`{json.dumps(value)}`", source) for key, (value, source) in values.items()]
        lines += [f"### {name}", table(("key", "value", "source"), rows), *_of_tasks(name)]
    for title, task in (("Countdown", Countdown), ("apigen", Apigen)):
        assert task.demo is not None
        lines += [f"## Settings of {title}'s built-in model", table(("key", "value"), _settings(task.demo.settings))]
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
    """Return a table of the core's files, then of its folders, from the top layer to the bottom one.

    Each is described by the first paragraph of its docstring.
    """
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    names = [name for layer in settings["contracts"][0]["layers"] for name in re.split(r" [|:] ", layer)]
    folder = ROOT / "r3core"
    files = [(f"`{name}.py`", _summary(folder / f"{name}.py")) for name in names if not (folder / name).is_dir()]
    folders = [(f"`{name}/`", _summary(folder / name / "__init__.py")) for name in names if (folder / name).is_dir()]
    return table(("`r3core/`", "contents"), [*files, *folders])


def diagnoses() -> str:
    """Return a table of the diagnoses of `r3 explain`, the most important first."""
    rows = [(f"`{name}`", rule.found.format(limit=rule.limit), rule.why) for name, rule in RULES.items()]
    return table(("finding", "is made when", "reason for the limit"), rows)


def countdown_corpus() -> str:
    """Return a table of the shares in the corpus of Countdown's model."""
    mixtures = COUNTDOWN.values()
    rows = [
        ("first attempts that are right", *(mixture.right_attempts for mixture in mixtures)),
        ("attempts that show their steps before the answer", countdown_corpora.WORKED),
        ("failures that are retried without a reflection", countdown_corpora.WITHOUT_REFLECTION),
        ("reflections that are practice (see below)", *(mixture.practice for mixture in mixtures)),
        *_kinds(COUNTDOWN),
        *((f"retries that follow, after a {kind}", share) for kind, share in countdown_corpora.FOLLOWS.items()),
        ("searches that write the second step too", countdown_corpora.SEARCH_SPELLED_OUT),
    ]
    return _shares(COUNTDOWN, rows)


def apigen_corpus() -> str:
    """Return a table of the shares in the corpus of apigen's model."""
    mixtures = APIGEN.values()
    rows = [
        ("conversations that are drills", *(mixture.drills for mixture in mixtures)),
        ("first attempts that are right, of the others", *(mixture.right_attempts for mixture in mixtures)),
        ("wrong calls that are trained on", *(float(mixture.sloppy) for mixture in mixtures)),
        ("tools in disguise", *(mixture.disguised for mixture in mixtures)),
        ("failures that are retried without a reflection", apigen_corpora.WITHOUT_REFLECTION),
        ("reflections that are practice", *(mixture.practice for mixture in mixtures)),
        *_kinds(APIGEN),
        *((f"retries that follow, after a {kind}", share) for kind, share in FOLLOWS.items()),
    ]
    return _shares(APIGEN, rows)


def _kinds(mixtures: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for kind in next(iter(mixtures.values())).kinds:
        yield f"other reflections: {kind}", *(mixture.kinds[kind] for mixture in mixtures.values())


def _shares(mixtures: Mapping[str, Any], rows: Sequence[tuple[Any, ...]]) -> str:
    """Return a table of shares; a row with a single share holds for every mixture."""
    filled = [(what, *(f"{share:.0%}" for share in shares * (len(mixtures) // len(shares)))) for what, *shares in rows]
    return table(("share of", *mixtures), filled)


def _phases(phases: Sequence[Phase], mixtures: Mapping[str, Any]) -> str:
    rows = []
    for number, phase in enumerate(phases, start=1):
        knots = ", ".join(f"{share:g} at step {step:,}" for step, share in phase.rates)
        name = next(name for name, mixture in mixtures.items() if mixture is phase.mixture)
        rows.append((str(number), name, f"{phase.steps:,}", knots))
    return table(("phase", "mixture", "steps", "share of the learning rate, linear in between"), rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "file map": file_map,
    "diagnoses": diagnoses,
    "countdown corpus": countdown_corpus,
    "countdown phases": partial(_phases, countdown.PHASES, COUNTDOWN),
    "apigen corpus": apigen_corpus,
    "apigen phases": partial(_phases, apigen.PHASES, APIGEN),
    **published.BLOCKS,
    **paper_tables.BLOCKS,
    **study_tables.BLOCKS,
    **memory_tables.BLOCKS,
    **call_tables.BLOCKS,
}


def _filled(page: str) -> str:
    """Return a page with its generated blocks replaced; a block without its records stays as it is."""

    def block(match: re.Match[str]) -> str:
        try:
            return f"{match['open']}\n{BLOCKS[match['name']]()}\n{match['close']}"
        except published.MissingRecord:
            return match[0]

    marked = r"(?P<open><!-- generated: (?P<name>[\w ]+) -->)\n.*?(?P<close><!-- /generated -->)"
    return re.sub(marked, block, page, flags=re.DOTALL)


def missing() -> list[str]:
    """Return a line for each missing record, with the command that makes its run."""
    lines = []
    for name, command in RECORDS.items():
        try:
            published.read(name)
        except published.MissingRecord as error:
            lines.append(f"no record {error}; made by `{command}`")
    return lines


def _parameter(parameter: Any, context: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    shown = re.sub(r"list|range|\W", "", parameter.display_type(context)).upper().replace("STR", "TEXT")
    kind = parameter.metavar or shown
    return f"`{parameter.opts[0]}`" if parameter.is_flag else f"`{parameter.opts[0]} {kind}`"


def _default(parameter: Any) -> str:
    return "" if parameter.default is None or parameter.default is False else f"`{parameter.default}`"


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, ...]]:
    """Yield a row for each key, first the section's own, then those of its parts."""
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


def _summary(file: Path) -> str:
    """Return the first line of a module's docstring, read without importing it."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n\n")[0].replace("\n", " ").rstrip(".")


def _page(parts: list[str]) -> str:
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
    for line in missing():
        print(line, file=sys.stderr)
