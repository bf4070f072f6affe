"""The configuration: one frozen tree, read from a preset, a file, `--set` overrides and flags."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from r3core.errors import ConfigError, did_you_mean, one_line
from r3core.files import digest
from r3core.task import Frozen, Split, Task, Wording

MACHINES = ("address", "actors", "cpus", "gpus", "patience")
"""The options of the engine `ray` that may differ from one session of a run to the next."""


PLACES = ("processes", "accelerate_config")
"""The keys that say where a run's training works; they may be named when a run goes on."""


class Section(Frozen):
    """One part of the configuration; the string under a field is its description in the reference."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Turn(Section):
    """How the tokens of one kind of turn are drawn."""

    temperature: float = Field(default=1.0, ge=0)
    """0 decodes greedily."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Only the most probable tokens that together reach this probability are drawn."""
    top_k: int = Field(default=0, ge=0)
    """Only so many of the most probable tokens are drawn; 0 keeps every token."""
    max_tokens: int = Field(default=512, gt=0)
    """A turn is cut off after so many tokens."""


class Turns(Section):
    """How tokens are drawn, turn by turn, in mining, training and evaluation alike."""

    attempt: Turn = Turn()
    """The first attempt."""
    reflection: Turn = Turn(max_tokens=256)
    """The reflection; in training, the options of the same meaning under `grpo` come first."""
    retry: Turn = Turn()
    """The second attempt."""


class Phrases(Section):
    """Sentences that replace those of the task; what is not set stays the task's."""

    failed: str | None = None
    """Opens the turn after a wrong attempt."""
    failed_because: str | None = None
    """The same under `feedback: reason`; `{reason}` is the verdict's reason."""
    reflect: str | None = None
    """Asks for the reflection."""
    retry: str | None = None
    """Asks for the second attempt."""
    generic: str | None = None
    """The reflection of the control that puts a generic sentence in its place."""


class Mine(Section):
    """Which failures are collected."""

    split: Split = "train"
    """The split whose problems are attempted."""
    limit: int | None = Field(default=512, gt=0)
    """Maximum number of problems; null takes all of them."""
    order: Literal["random", "head"] = "random"
    """Which problems `limit` takes: a random sample that follows from `seed`, or the first ones of the split."""
    samples: int = Field(default=1, gt=0)
    """Attempts at each problem."""
    keep: Literal["any-failed", "all-failed"] = "any-failed"
    """Keep the failures of a problem when any of its attempts failed, or only when all of them did."""
    min_pass_rate: float = Field(default=0.0, ge=0, le=1)
    """Problems whose pass rate is lower are left out; the bound itself is allowed."""
    max_pass_rate: float = Field(default=1.0, ge=0, le=1)
    """Problems whose pass rate is higher are left out; the bound itself is allowed."""
    keep_truncated: bool = False
    """Also keep attempts as failures that the token limit cut off before they gave a right answer."""
    probe: int = Field(default=64, ge=0)
    """Failures, a random sample, on which the forecast after mining tries a few reflections; 0 makes no forecast."""
    failures: Path | None = None
    """An existing set of failures, used instead of mining."""

    @field_validator("max_pass_rate")
    @classmethod
    def _bounds_in_order(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("min_pass_rate", 0.0):
            raise ValueError(f"it should not be below mine.min_pass_rate, which is {info.data['min_pass_rate']}")
        return value


class Train(Section):
    """What a reflection is rewarded for."""

    retries: int = Field(default=1, gt=0)
    """Retries after each reflection; the reward is the share of them that passed."""
    reward_leaks: bool = True
    """False: a reflection that contains a passing answer earns nothing."""
    merge: bool = True
    """With `lora`, put the merged weights into `model/`; false puts the adapter alone there."""
    shuffle_rewards: bool = False
    """A control: rewards are permuted within the batch, so that they carry no information."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of weights that are all trained; bfloat16 halves the memory, and rounds most small updates away."""


class Evaluate(Section):
    """What base and trained model are compared on."""

    split: Split = "test"
    """The split whose problems are attempted."""
    limit: int | None = Field(default=500, gt=0)
    """Maximum number of problems; null takes all of them."""
    order: Literal["random", "head"] = "random"
    """Which problems `limit` takes: a random sample, the same for every `seed` and model, or the first ones."""
    samples: int = Field(default=1, gt=0)
    """Attempts at each problem; intervals and tests then count problems, not attempts."""
    controls: bool = False
    """Also retry without a reflection, with a generic one, with another problem's, and by plain resampling."""
    cross: bool = False
    """Also compare reflections by base or trained with retries by base or trained."""


class Limits(Section):
    """What a verifier may need for one answer; one that needs more gives an error, and its worker is replaced."""

    seconds: float = Field(default=5.0, gt=0)
    """Time for one answer."""
    memory_mb: int = Field(default=1024, ge=64)
    """Memory for one answer, on top of what the task's code itself takes; held on Linux only."""
    characters: int = Field(default=200_000, gt=0)
    """A longer answer fails unread."""
    workers: int | None = Field(default=None, gt=0)
    """Worker processes, of each process that trains; by default they share the processors, and are at most 8."""
    max_errors: float = Field(default=0.05, ge=0, le=1)
    """When a larger share of the answers cannot be judged, the run stops."""
    max_group_errors: float = Field(default=0.25, ge=0, le=1)
    """When the verifier broke on a larger share of a group, the group teaches nothing; 1 sets no bound."""

    def alone(self) -> Limits:
        """Return the same limits for a judge with one worker."""
        return self.model_copy(update={"workers": 1})


class Config(Section):
    """Everything that decides what a run does."""

    task: str
    """The name of an installed task, `path/to/file.py:Class` or `module:Class`."""
    task_options: dict[str, Any] = {}
    """The task's own options."""
    model: str | None = None
    """A folder or a name on the hub; null takes the small model that the task ships."""
    revision: str | None = None
    """The branch, tag or commit of a model on the hub."""
    trust_remote_code: bool = False
    """Let a model on the hub run code of its own."""
    engine: Literal["transformers", "vllm", "openai", "ray"] = "transformers"
    """What generates text: this process, vLLM, a server that speaks OpenAI's protocol, or engines on a Ray cluster."""
    engine_options: dict[str, Any] = {}
    """The engine's own options: those of `vllm.LLM`, of a server and how it is asked, or of the cluster."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The type of the weights; `auto` takes the one they were saved in."""
    seed: int = Field(default=0, ge=0)
    """The one seed that everything random follows from."""
    processes: int | None = Field(default=None, gt=0)
    """Processes that train together, under FSDP2 unless `accelerate_config` says otherwise; null takes its number."""
    accelerate_config: Path | None = None
    """The file that `accelerate launch` starts the training with."""
    output_dir: Path | None = None
    """The run directory; null makes `runs/TASK-HASH`, where the hash is that of the configuration."""
    preset: str | None = None
    """A named set of values, below those of the file and the command line."""
    feedback: Literal["binary", "reason"] = "binary"
    """Whether the model is told only that it failed, or also why."""
    wording: Phrases = Phrases()
    """The sentences that r3 says to the model."""
    batch_size: int = Field(default=128, gt=0)
    """Conversations generated at once, outside of training."""
    sampling: Turns = Turns()
    """How tokens are drawn."""
    mine: Mine = Mine()
    """Which failures are collected."""
    train: Train = Train()
    """What a reflection is rewarded for."""
    lora: dict[str, Any] | None = None
    """Train an adapter of low rank: options of peft's LoraConfig, under their own names; null trains all weights."""
    quantization: Literal["4bit"] | None = None
    """Keep the base's weights in 4 bits (NF4, by bitsandbytes); for training it takes `lora` too."""
    grpo: dict[str, Any] = {}
    """Any option of TRL's GRPOConfig, under its own name."""
    evaluate: Evaluate = Evaluate()
    """What base and trained model are compared on."""
    judge: Limits = Limits()
    """What a verifier may need for one answer."""
    max_overlong: float = Field(default=0.05, ge=0, le=1)
    """When a larger share of the conversations does not fit the model's context, the run stops; others are left out."""
    uncertified: bool = False
    """Train also when the task's verifier does not pass `r3 check`."""

    @field_validator("grpo")
    @classmethod
    def _read_no_as_a_word(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Undo YAML's reading of `save_strategy: no`, which is False there."""
        return {key: "no" if key.endswith("_strategy") and one is False else one for key, one in value.items()}

    def wording_for(self, task: Task) -> Wording:
        """Return the task's sentences, with those that this configuration replaces."""
        return task.wording.model_copy(update=self.wording.model_dump(exclude_none=True))

    def grpo_options(self) -> dict[str, Any]:
        """Return the options of GRPOConfig that the run asks for; how reflections are sampled is among them."""
        turn = self.sampling.reflection
        sampling = {"temperature": turn.temperature, "top_p": turn.top_p, "top_k": turn.top_k}
        vllm = {"use_vllm": True, "vllm_mode": "colocate"} if self.engine == "vllm" else {}
        return vllm | sampling | {"max_completion_length": turn.max_tokens, "seed": self.seed} | self.grpo

    def record(self) -> dict[str, Any]:
        """Return all that decides a run's outcome, as JSON values: everything but where it works and is written.

        How many processes train is kept with the checkpoints.
        """
        record = self.model_dump(mode="json", exclude={"output_dir", *PLACES})
        if self.engine == "ray":
            options = record["engine_options"]
            record["engine_options"] = {name: options[name] for name in options if name not in MACHINES}
        return record

    @property
    def directory(self) -> Path:
        """Where the run is written: `output_dir`, or a name that follows from the configuration."""
        if self.output_dir is not None:
            return self.output_dir
        name = digest(json.dumps(self.record(), sort_keys=True), length=8)
        return Path("runs") / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', self.task.rsplit(':')[-1])}-{name}"


_PAPER: dict[str, tuple[Any, str]] = {
    "mine.samples": (64, "paper: up to 64 responses to a prompt"),
    "grpo.beta": (0.001, "paper"),
    "grpo.learning_rate": (5e-7, "paper"),
    "grpo.lr_scheduler_type": ("cosine", "paper"),
    "grpo.warmup_steps": (0.03, "paper; below 1 it is a share of all steps"),
    "grpo.max_steps": (1750, "paper: at most"),
    "grpo.per_device_train_batch_size": (8, "paper: 8 x 32 = the effective batch of 256, on one process"),
    "grpo.gradient_accumulation_steps": (32, "paper: 8 x 32 = the effective batch of 256, on one process"),
    "evaluate.limit": (None, "paper: all of the held-out problems"),
    "mine.limit": (10_000, "not published; our choice"),
    "grpo.num_generations": (8, "not published; TRL's default in May 2025"),
    "grpo.loss_type": ("bnpo", "not published; TRL's default in May 2025"),
    "grpo.scale_rewards": ("group", "not published; TRL's default in May 2025"),
    "grpo.epsilon": (0.2, "not published; TRL's default in May 2025"),
    "grpo.num_iterations": (1, "not published; TRL's default in May 2025"),
    "grpo.importance_sampling_level": ("token", "not published; TRL had nothing else in May 2025"),
    "grpo.mask_truncated_completions": (False, "not published; TRL's default in May 2025"),
    "sampling.reflection.max_tokens": (256, "not published; TRL's default in May 2025"),
    "sampling.attempt.temperature": (1.0, "not published; our choice"),
    "sampling.reflection.temperature": (1.0, "not published; TRL's default in May 2025 (0.18)"),
    "sampling.retry.temperature": (1.0, "not published; our choice"),
    "evaluate.controls": (True, "ours: the paper has no controls"),
}
"""The settings of "Reflect, Retry, Reward" (arXiv 2505.24726), each with its source. May 2025 is TRL 0.17 and 0.18."""
SOURCES = {"paper": {key: source for key, (_, source) in _PAPER.items()}}
"""Where the values of each preset come from."""
PRESETS: dict[str, dict[str, Any]] = {"paper": {key: value for key, (value, _) in _PAPER.items()}}
"""Named sets of values: dotted keys, as in `--set`. A task may add options of its own: `Task.presets`."""
NOT_SETTINGS = ("trained", "grpo_resolved")
"""Keys of a run's config.json that are no settings: the model that it compares, and what TRL made of `grpo`."""


def known_keys(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of the configuration, sections as well as what is in them."""
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from known_keys(field.annotation, f"{prefix}{name}.")


def chosen_task(
    file: Path | None = None, overrides: Sequence[str] = (), *, flags: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of the task that is asked for, which must be known before all else."""
    asked = _asked(file, overrides, flags or {})
    name, options = asked.get("task"), asked.get("task_options") or {}
    if name is None:
        raise ConfigError(
            "no task is named",
            "name one with --task, or with `task` in the configuration file",
            "--output-dir goes on with the run that is there, when nothing else is given",
        )
    if not isinstance(name, str):
        raise ConfigError(f"`task` cannot be {name!r}: it should be a valid string")
    if not isinstance(options, dict):
        raise ConfigError(f"`task_options` cannot be {options!r}: it should be a set of options and their values")
    return name, options


def chosen_preset(
    file: Path | None = None, overrides: Sequence[str] = (), *, flags: Mapping[str, Any] | None = None
) -> str | None:
    """Return the name of the preset, None where none is chosen; ConfigError when there is no such preset."""
    preset = _asked(file, overrides, flags or {}).get("preset")
    if preset is None or preset in PRESETS:
        return preset
    near = did_you_mean(str(preset), list(PRESETS))
    raise ConfigError(f"no preset is called `{preset}`; known: {', '.join(sorted(PRESETS))}", *near)


def resolve(
    task: Task,
    file: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Return the configuration of a run of `task`; a flag that is None was not given.

    From weak to strong: defaults, the settings of the task's built-in model when that is the one used, the preset,
    the file, `--set` overrides, flags. Raises ConfigError for an unknown key or a value that is not allowed.
    """
    asked = _asked(file, overrides, flags or {})
    preset = chosen_preset(file, overrides, flags=flags)
    below = _nested(PRESETS[preset]) if preset else {}
    if task.demo is not None and _merged([below, asked]).get("model") is None:
        below = _merged([_nested(task.demo.settings), below])
    values = {"task": task.name} | _merged([below, asked]) | {"task_options": task.options()}
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise explained(error) from None


def model_of(config: Config, task: Task) -> str:
    """Return the folder or the name of the model; ConfigError when none is named and the task ships none.

    A server has no model that a task ships: there one is always named.
    """
    if config.model is not None:
        return config.model
    if config.engine == "openai":
        raise ConfigError("no model is named, and a server has to be asked for one by its name", "name it with --model")
    if task.demo is None:
        raise ConfigError(f"task `{task.name}` ships no model of its own", "name one with --model")
    return str(task.demo.model)


def local_model(config: Config, task: Task, *, done: str) -> str:
    """Return the model as `model_of` does; ConfigError when it is behind a server, where it cannot be `done`."""
    if config.engine == "openai":
        raise ConfigError(
            f"engine `openai`: a model behind a server cannot be {done} here; `r3 mine` and `r3 eval` work with one",
            "name a local model or one of the hub, without --engine openai; "
            "--failures DIRECTORY trains on what was mined from a server",
        )
    return model_of(config, task)


def _asked(file: Path | None, overrides: Sequence[str], flags: Mapping[str, Any]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    layers: list[Any] = []
    source = f"the configuration file {file}"
    try:
        if file is not None:
            layers.append(OmegaConf.load(file))
        for override in overrides:
            source = f"--set {override}"
            if not re.match(r"[^=\s]+=", override):
                raise ConfigError(f"`{source}` is not of the form key=value", "for example --set mine.limit=100")
            layers.append(OmegaConf.from_dotlist([override]))
        source = "the configuration"
        layers.append(_nested({key: value for key, value in flags.items() if value is not None}))
        return _merged(layers)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {file}") from None
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException, TypeError, ValueError) as error:
        raise ConfigError(f"{source} cannot be read: {one_line(error)}") from None


def _nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    tree = OmegaConf.create()
    for key, value in dotted.items():
        OmegaConf.update(tree, key, value)
    return cast(dict[str, Any], OmegaConf.to_container(tree))


def _merged(layers: Sequence[Any]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge({}, *layers), resolve=True))


def explained(error: ValidationError, section: type[Section] = Config, *, prefix: str = "") -> ConfigError:
    """Return what is wrong with a section of the configuration, whose keys begin with a prefix."""
    first = error.errors(include_url=False)[0]
    key = prefix + ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        known = list(known_keys(section, prefix))
        hints = did_you_mean(key, known)
        if section is not Config:
            return ConfigError(f"there is no configuration key `{key}`; known: {', '.join(known)}", *hints)
        trl = () if len(first["loc"]) > 1 else ("an option of TRL's GRPOConfig is set as `grpo.NAME`",)
        return ConfigError(f"there is no configuration key `{key}`", *hints, *trl)
    said = first["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    said = re.sub(r"a valid dictionary or instance of \w+", "a section with keys of its own", said)
    return ConfigError(f"`{key}` cannot be {first['input']!r}: {said}")
