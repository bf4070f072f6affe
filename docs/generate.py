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
from r3core.cli.main import app
from r3core.config import Config, Section, resolve
from r3core.estimate import clock
from r3core.estimate.memory import PHASES, Memory, memory_of
from r3core.estimate.plan import Plan, plan_of
from r3core.estimate.shape import Shape, shape_of
from r3core.estimate.speed import CARDS as DEVICES
from r3core.estimate.speed import seconds_of
from r3core.generation.server import Server
from r3core.plugins.options import type_text
from r3core.presets import PRESETS
from r3core.training.grpo_options import OWNED

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
    blocks = ("README.md", "docs/built-in-model.md", "docs/results.md", "docs/scale.md")
    for page in (ROOT / name for name in blocks):
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
        lines.append(_table(("", "default", ""), rows))
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
        _table(("key", "type", "default", "meaning"), list(_keys(Config))),
        "## Options of TRL",
        f"Every option of [TRL's `GRPOConfig`]({grpo}) can be set under `grpo`, by its own name. If they are not set "
        "there, `temperature`, `top_p`, `top_k` and `max_completion_length` follow `sampling.reflection`, and "
        "`use_vllm` and `vllm_mode` follow `engine` (see [scale.md](scale.md)). Only these options are refused:",
        _table(("key", "instead"), [(f"`grpo.{key}`", way) for key, way in OWNED.items()]),
        "## Options of a server",
        "With `engine: openai`, these are set under `engine_options`. The key is read from the environment variable "
        "`OPENAI_API_KEY` alone: one in the configuration is refused, as the run directory would hold it.",
        _table(("key", "type", "default", "meaning"), list(_keys(Server, "engine_options."))),
        "## Presets",
        "`--preset NAME` sets:",
    ]
    for name, values in PRESETS.items():
        rows = [(f"`{key}`", f"`{json.dumps(value)}`", source) for key, (value, source) in values.items()]
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
    """Return a table of the core's modules and their docstrings' first lines, from the top layer to the bottom one."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    rows = []
    for name in re.findall(r"\w+", " ".join(settings["contracts"][0]["layers"])):
        path = ROOT / "r3core" / name
        if path.is_dir():
            rows.append((f"**`{name}/`**", f"**{_summary(path / '__init__.py')}**"))
            modules = sorted(file for file in path.glob("*.py") if file.name != "__init__.py")
            rows += [(f"`{name}/{file.name}`", _summary(file)) for file in modules]
        else:
            rows.append((f"`{name}.py`", _summary(path.with_suffix(".py"))))
    return _table(("`r3core/`", "contents"), rows)


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


QWEN = {
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2}
    | {"vocab_size": 151936, "tie_word_embeddings": True},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4}
    | {"vocab_size": 152064, "tie_word_embeddings": False},
}
"""The published shapes of Qwen2.5-Instruct; a run reads them from the model's config.json."""
CARDS = (24, 40, 48, 80, 141)
"""GB of the cards that the tables speak of."""
BFLOAT16 = "train.dtype=bfloat16 grpo.optim=adamw_torch_8bit grpo.optim_args=bf16_stochastic_round=true"
FULL, LORA, EIGHT = "batch_size=32", "batch_size=32 lora.r=16", "batch_size=32 grpo.optim=adamw_8bit"
WAYS = [
    ("1.5B", "", 1),
    ("1.5B", FULL, 1),
    ("1.5B", EIGHT, 1),
    ("1.5B", f"{EIGHT} grpo.beta=0", 1),
    ("1.5B", LORA, 1),
    ("1.5B", f"batch_size=32 {BFLOAT16}", 1),
    ("1.5B", "engine=vllm", 1),
    ("1.5B", "grpo.gradient_accumulation_steps=4", 8),
    ("7B", FULL, 1),
    ("7B", f"{EIGHT} grpo.beta=0", 1),
    ("7B", LORA, 1),
    ("7B", f"{LORA} quantization=4bit train.merge=false", 1),
    ("7B", f"batch_size=32 grpo.beta=0 {BFLOAT16}", 1),
    ("7B", "batch_size=32 grpo.gradient_accumulation_steps=8", 4),
    ("7B", "batch_size=32 grpo.gradient_accumulation_steps=4", 8),
]
"""Runs of the preset `paper`: model, what is set on top, processes."""
TIMED = [
    ("1.5B", "", 1),
    ("1.5B", FULL, 1),
    ("1.5B", "engine=vllm", 1),
    ("1.5B", "grpo.gradient_accumulation_steps=4", 8),
    ("7B", "lora.r=16", 1),
    ("7B", "grpo.gradient_accumulation_steps=8", 4),
    ("7B", "grpo.gradient_accumulation_steps=4", 8),
]


def _need(model: str, overrides: str = "", processes: int = 1) -> tuple[Config, Shape, Plan, Memory]:
    """Return a run of the preset `paper` on one of QWEN, and what it needs."""
    from transformers import Qwen2Config

    config = resolve(Countdown(), overrides=overrides.split(), flags={"model": model, "preset": "paper"})
    read = Qwen2Config(**QWEN[model], num_hidden_layers=28, max_position_embeddings=32768, dtype="bfloat16")
    shape = shape_of(read, lora=config.lora)
    plan = plan_of(config, shape, processes=processes, sharded=processes > 1)
    return config, shape, plan, memory_of(shape, plan)


def needs() -> str:
    """Return a table of what the preset `paper` needs, term by term."""
    found = [_need(model) for model in QWEN]

    def row(name: str, formula: str, value: Callable[[Memory], float]) -> tuple[str, ...]:
        return name, formula, *(f"{value(memory) / 2**30:.1f}" for *_, memory in found)

    def term(phase: str, key: str, formula: str) -> tuple[str, ...]:
        return row(key, formula, lambda memory: memory.terms(phase)[key])

    model = ("weights", "reference model", "optimizer states", "gradients")
    rest = "activations and the widest moment of a pass"
    rows: list[tuple[str, ...]] = [
        ("parameters", "counted", *(f"{shape.parameters:,}" for _, shape, _, _ in found)),
        term("training", "weights", "4 bytes each"),
        term("training", "reference model", "4 bytes each (beta > 0)"),
        term("training", "optimizer states", "2 x 4 bytes each (AdamW)"),
        term("training", "gradients", "4 bytes each"),
        row(rest, "8 rows x 1,068 tokens", lambda m: m.total("training") - sum(m.training[key] for key in model)),
        row("**while training**", "", lambda memory: memory.total("training")),
        term(
            "generating", "key-value cache", "2 x layers x heads x width x 4 bytes x 128 conversations x 1,068 tokens"
        ),
        term("generating", "prompts", "128 retries' prompts of 1,068 tokens at once"),
        term("generating", "16-bit copy of the weights", "2 bytes each, by autocast"),
        row("**while generating**", "weights, reference, states and the three above", lambda m: m.total("generating")),
        row("**while mining and evaluating**", "weights, cache, prompts in 16 bits", lambda m: m.total("evaluating")),
        ("fits, with a tenth left free", "", *(_card(memory) for *_, memory in found)),
    ]
    return _table(("GiB on the device", "formula", *QWEN), rows)


def ways_out() -> str:
    """Return a table of what the preset `paper` needs with other settings."""
    rows = []
    for model, overrides, processes in WAYS:
        *_, memory = _need(model, overrides, processes)
        phases = (_phase(memory, phase) for phase in PHASES)
        rows.append((model, _said(overrides, processes), *phases, _card(memory)))
    return _table(("", "set on top of the preset", "training", "generating", "mining, evaluating", "fits"), rows)


def _phase(memory: Memory, phase: str) -> str:
    if not memory.terms(phase):
        return "vLLM's own"
    vllm = f" + {memory.share(phase):.0%} of the card" if memory.share(phase) else ""
    return f"{memory.total(phase) / 2**30:.1f}{vllm}"


def times() -> str:
    """Return a table of the time that the preset `paper` takes on one kind of card, every turn at its limit."""
    rows = []
    for model, overrides, processes in TIMED:
        config, shape, plan, _ = _need(model, overrides, processes)
        cells = []
        for card in ("A100", "H100"):
            taken = seconds_of(config, shape, plan, DEVICES[card])
            assert taken.mining is not None
            parts = f"{clock(taken.generating)} + {clock(taken.training)}"
            cells += [f"{clock(taken.step)} ({parts})", clock(1750 * taken.step), clock(taken.mining)]
        rows.append((model, _said(overrides, processes), *cells))
    head = [f"{card}: {what}" for card in ("A100", "H100") for what in ("a step", "1,750 steps", "mining")]
    return _table(("", "set on top of the preset", *head), rows)


def _said(overrides: str, processes: int) -> str:
    """Return what is set on top of the preset, as it is written on the command line."""
    said = [f"--processes {processes}"] * (processes > 1) + [f"--set {one}" for one in overrides.split()]
    return f"`{' '.join(said)}`" if said else "nothing"


def _card(memory: Memory) -> str:
    """Return the smallest of the CARDS that is enough."""
    return next((f"{size} GB" for size in CARDS if memory.fits(size * 2**30)), "no single card")


BLOCKS: dict[str, Callable[[], str]] = {
    "file map": file_map,
    "countdown corpus": countdown_corpus,
    "countdown phases": countdown_phases,
    "apigen corpus": apigen_corpus,
    "apigen phases": apigen_phases,
    **published.BLOCKS,
    "needs": needs,
    "ways out": ways_out,
    "times": times,
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


def _summary(file: Path) -> str:
    """Return the first line of a module's docstring, read without importing it."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n\n")[0].replace("\n", " ").rstrip(".")


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
