"""The configuration of a run: one frozen tree, made of defaults, a preset, a file, `--set` overrides and flags."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from r3core.errors import ConfigError, did_you_mean, one_line
from r3core.files import digest
from r3core.objective import Objective
from r3core.other_tasks import resolved
from r3core.plugins.engines import engine_of, find_engine
from r3core.plugins.objectives import find_objective
from r3core.presets import BUILT_IN, PRESETS
from r3core.sections import Dialogue, Evaluate, Limits, Mine, Phrases, Section, Train, Turn, Turns
from r3core.settings import assignments, merged, nested, read_file, typed
from r3core.task import Task, Wording

PLACEMENT = ("processes", "accelerate_config")
"""The keys that decide on which processes training runs; a run may be resumed with other values."""

_LATER = (
    *("template", "chat_template", "history", "wording.empty", "train.tokens", "train.drop_equal_groups"),
    *("evaluate.every", "evaluate.every_limit", "train.keep", "train.stop_after", "evaluate.resamples"),
    *("train.objective", "train.anchor", "train.budget_tokens", "train.interpolate", "train.order"),
    *("evaluate.also", "evaluate.decoding", "protocol.rounds"),
)
"""Keys that a run's record has only where they differ from their default: runs of 0.1 do not have them."""


class Config(Section):
    """The configuration of a run."""

    task: str
    """Name of an installed task, `path/to/file.py:Class` or `module:Class`."""
    task_options: dict[str, Any] = {}
    """Options of the task."""
    model: str | None = None
    """Local folder or model id on the Hugging Face Hub; null takes the built-in model of the task."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    trust_remote_code: bool = False
    """Allow a Hub model to run its own code."""
    engine: str = "transformers"
    """Name of the installed engine that generates text."""
    engine_options: dict[str, Any] = {}
    """Options of the engine."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype of the weights; `auto` takes the dtype they were saved in."""
    template: dict[str, Any] = {}
    """Arguments of the chat template, for example `enable_thinking: false`."""
    chat_template: str | None = None
    """File with the chat template, for a base model without one; the run stores its text. null takes the model's."""
    template_date: date | None = None
    """Date that the chat template shows as today; null takes the day on which the run was started."""
    seed: int = Field(default=0, ge=0)
    """Random seed."""
    processes: int | None = Field(default=None, gt=0)
    """Number of training processes, under FSDP2 by default; null takes the number in `accelerate_config`, or 1."""
    accelerate_config: Path | None = None
    """Configuration file of `accelerate launch` for training."""
    output_dir: Path | None = None
    """Run directory; null stands for `runs/TASK-HASH`, with a hash of the configuration."""
    preset: str | None = None
    """Name of a preset; the file and the command line override its values."""
    feedback: Literal["binary", "reason"] = "binary"
    """What the model sees of a failed verdict: only that it failed, or also the reason."""
    history: Literal["template", "answer", "verbatim"] = "template"
    """What later prompts show of a turn with thinking: what the chat template shows, the answer alone, or the generated
    tokens as they are, thinking included."""
    wording: Phrases = Phrases()
    """Sentences of r3 in the prompts."""
    protocol: Dialogue = Dialogue()
    """Further rounds of reflection and retry."""
    batch_size: int = Field(default=128, gt=0)
    """Maximum number of conversations generated at once, outside of training."""
    sampling: Turns = Turns()
    """Sampling parameters."""
    mine: Mine = Mine()
    """Mining."""
    train: Train = Train()
    """Training."""
    lora: dict[str, Any] | None = None
    """Train a LoRA adapter, with these options of peft's LoraConfig; null trains all weights."""
    quantization: Literal["4bit"] | None = None
    """Load the weights of the base model in 4 bits (NF4, by bitsandbytes); training then requires `lora`."""
    grpo: dict[str, Any] = {}
    """Options of TRL's GRPOConfig, under their own names."""
    evaluate: Evaluate = Evaluate()
    """Evaluation."""
    judge: Limits = Limits()
    """Limits on the verifier."""
    max_overlong: float = Field(default=0.05, ge=0, le=1)
    """Maximum share of conversations too long for the context; they are left out, and above it the run stops."""
    uncertified: bool = False
    """Train even if the verifier does not pass `r3 check`."""

    @field_validator("chat_template")
    @classmethod
    def _text_of_file(cls, given: str | None) -> str | None:
        """Read the file of a chat template: its text is part of the run, which then resumes from any folder."""
        if given is None or "{" in given:  # a text already
            return given
        try:
            text = Path(given).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ValueError(f"the file cannot be read: {one_line(error)}") from None
        if "{" not in text:
            raise ValueError("the file should contain a template in Jinja")
        return text

    @field_validator("grpo")
    @classmethod
    def _strategy_as_text(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Undo YAML's reading of `save_strategy: no`, which is False there."""
        return {key: "no" if key.endswith("_strategy") and value is False else value for key, value in options.items()}

    def wording_for(self, task: Task) -> Wording:
        """Return the sentences of the task, with those that this configuration replaces."""
        return task.wording.model_copy(update=self.wording.model_dump(exclude_none=True))

    @property
    def objective(self) -> Objective:
        """What training rewards; ConfigError when no objective has that name."""
        return find_objective(self.train.objective)

    def as_trained(self) -> Config:
        """Return a configuration whose trained turns are sampled by the options under `grpo`, as in training.

        The maximum number of tokens under `grpo` is that of the turn that is sampled in groups.
        """
        options, objective = self.grpo_options(), self.objective
        sampling = {"temperature": options["temperature"], "top_p": options["top_p"], "top_k": options["top_k"] or 0}
        longest = {"max_tokens": options["max_completion_length"] or 256}
        turns: dict[str, Turn] = {}
        for turn in objective.turns:
            changed = sampling | (longest if turn == objective.first else {})
            turns[turn] = getattr(self.sampling, turn).model_copy(update=changed)
        return self.model_copy(update={"sampling": self.sampling.model_copy(update=turns)})

    def grpo_options(self) -> dict[str, Any]:
        """Return the options of GRPOConfig that the run asks for; how the trained turn is sampled is among them."""
        turn: Turn = getattr(self.sampling, self.objective.first)
        sampling = {"temperature": turn.temperature, "top_p": turn.top_p, "top_k": turn.top_k}
        engine = dict(find_engine(self.engine).training)
        return engine | sampling | {"max_completion_length": turn.max_tokens, "seed": self.seed} | self.grpo

    def record(self) -> dict[str, Any]:
        """Return everything that decides the outcome of a run, as JSON values: no output directory and no placement.

        The number of training processes is stored with the checkpoints, the date of the chat template beside them.
        """
        record = self.model_dump(mode="json", exclude={"output_dir", "template_date", *PLACEMENT})
        defaults = Config(task=self.task).model_dump(mode="json")
        for key in _LATER:
            section, _, name = key.rpartition(".")
            tree, default = (one[section] if section else one for one in (record, defaults))
            if tree[name] == default[name]:
                del tree[name]
            if section and not tree:  # a section of later keys only
                del record[section]
        places, options = find_engine(self.engine).places, record["engine_options"]
        record["engine_options"] = {name: value for name, value in options.items() if name not in places}
        return record

    @property
    def directory(self) -> Path:
        """The run directory: `output_dir`, or a name made of the task and a hash of the configuration."""
        if self.output_dir is not None:
            return self.output_dir
        name = digest(json.dumps(self.record(), sort_keys=True), length=8)
        return Path("runs") / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', self.task.rsplit(':')[-1])}-{name}"


NOT_SETTINGS = ("trained", "grpo_resolved")
"""Keys of a run's config.json beside the configuration: the model to compare, and the options that TRL resolved."""


def known_keys(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a section, those of sections and of the keys in them."""
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from known_keys(field.annotation, f"{prefix}{name}.")


def read_settings(
    file: Path | None = None, overrides: Sequence[str] = (), *, flags: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return everything that is set, as one tree: the file, `--set` overrides and flags, from weak to strong.

    `flags` maps dotted keys to values; None stands for a flag that is not given. The task's options that were typed on
    the command line are still `Text`: only the task has their types.
    """
    layers = [read_file(file)] if file is not None else []
    given = assignments(overrides, flag="--set", example="mine.limit=100")
    given += [(key, value) for key, value in (flags or {}).items() if value is not None]
    for key, value in given:
        layer = nested({key: value})
        layers.append(layer if key.startswith("task_options.") else typed(layer, Config))
    return merged(*layers)


def chosen_task(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of the task; ConfigError when none is named."""
    name, options = settings.get("task"), settings.get("task_options") or {}
    if name is None:
        raise ConfigError(
            "no task is named",
            "name one with --task, or with `task` in the configuration file",
            "to resume an existing run, give --output-dir and nothing else",
        )
    if not isinstance(name, str):
        raise ConfigError(f"`task` cannot be {name!r}: it should be a valid string")
    if not isinstance(options, dict):
        raise ConfigError(f"`task_options` cannot be {options!r}: it should map options to values")
    return name, options


def chosen_preset(settings: Mapping[str, Any]) -> str | None:
    """Return the name of the preset, None without one; ConfigError when there is no such preset."""
    preset = settings.get("preset")
    if preset is None or (isinstance(preset, str) and preset in PRESETS):
        return preset
    near = did_you_mean(str(preset), list(PRESETS))
    raise ConfigError(f"no preset is called `{preset}`; known: {', '.join(sorted(PRESETS))}", *near)


def configure(task: Task, settings: Mapping[str, Any]) -> Config:
    """Return the configuration of a run of `task`, from the settings that `read_settings` returns.

    From weak to strong: defaults, the settings of the task's built-in model if the run uses it, the preset, `settings`.
    Raises ConfigError for an unknown key or a value that is not allowed.
    """
    preset = chosen_preset(settings)
    below = nested({key: value for key, (value, _) in PRESETS[preset].items()}) if preset else {}
    if task.demo is not None and merged(below, settings).get("model") is None:
        below = merged(nested(BUILT_IN), nested(task.demo.settings), below)
    values = {"task": task.name} | merged(below, settings) | {"task_options": task.options()}
    if isinstance(section := values.get("evaluate"), dict) and section.get("also"):
        also = resolved(section["also"], task=values["task"], task_options=values["task_options"])
        values = merged(values, {"evaluate": {"also": also}})
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise explained(error) from None
    find_engine(config.engine)  # raises
    _check_objective(config)
    return config


def objective_notes(config: Config) -> list[str]:
    """Return what is to know about settings that work against each other."""
    if not config.train.anchor or "attempt" not in config.objective.turns:
        return []
    return [
        f"train.objective={config.train.objective} trains first attempts, and train.anchor={config.train.anchor:g} "
        "holds them near the base model's: for the objective alone, set train.anchor=0"
    ]


def _check_objective(config: Config) -> None:
    """Raise ConfigError when there is no such objective, or a setting has no meaning with it."""
    objective, train = config.objective, config.train
    name = objective.name
    if train.retries > 1 and (objective.first == "retry" or not objective.retries):
        raise ConfigError(
            f"`train.retries` cannot be {train.retries} with `train.objective={name}`: it is the number of retries per "
            "reflection, and this objective samples no reflections in groups",
            "set train.retries=1",
        )
    if not train.reward_leaks and not objective.retries:
        raise ConfigError(
            f"`train.reward_leaks` cannot be false with `train.objective={name}`: it samples no reflections",
            "set train.reward_leaks=true",
        )
    if train.anchor > 0 and config.grpo.get("sync_ref_model"):
        raise ConfigError(
            "`grpo.sync_ref_model` cannot be true with `train.anchor`: the anchor's base model would follow the policy",
            "set grpo.sync_ref_model=false, or train.anchor=0",
        )
    if train.tokens == "answer-of-reflection" and "reflection" not in objective.turns:
        raise ConfigError(
            f"`train.tokens` cannot be {train.tokens} with `train.objective={name}`: it trains no reflections",
            "set train.tokens=reflection",
        )


def resolve(
    task: Task,
    file: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Return the configuration of a run of `task`, for programs: `read_settings` and `configure` in one call."""
    return configure(task, read_settings(file, overrides, flags=flags))


def model_of(config: Config, task: Task) -> str:
    """Return the folder or the name of the model; ConfigError when none is named and the task ships none.

    A server does not have a task's built-in model, so one of its models must be named.
    """
    if config.model is not None:
        return config.model
    if not engine_of(config).local:
        raise ConfigError(
            "no model is named, and a server has no built-in model", "name one of its models with --model"
        )
    if task.demo is None:
        raise ConfigError(f"task `{task.name}` ships no model of its own", "name one with --model")
    return str(task.demo.model)


def local_model(config: Config, task: Task, *, done: str) -> str:
    """Return the model as `model_of` does; ConfigError when it is behind a server, where it cannot be `done`."""
    if not engine_of(config).local:
        raise ConfigError(
            f"engine `{config.engine}`: a model behind a server cannot be {done} here; "
            "`r3 mine` and `r3 eval` work with one",
            "name a local folder or a Hub model, with another engine; "
            "--failures DIRECTORY trains on failures that were mined from a server",
        )
    return model_of(config, task)


def explained(error: ValidationError) -> ConfigError:
    """Return a readable error for a configuration that is not valid."""
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        hints = did_you_mean(key, list(known_keys()))
        trl = () if len(first["loc"]) > 1 else ("an option of TRL's GRPOConfig is set as `grpo.NAME`",)
        return ConfigError(f"there is no configuration key `{key}`", *hints, *trl)
    fault = first["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    fault = re.sub(r"a valid dictionary or instance of \w+", "a section with keys of its own", fault)
    return ConfigError(f"`{key}` cannot be {first['input']!r}: {fault}")
