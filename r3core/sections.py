"""The sections of the configuration, with their keys, defaults and limits; `config.py` puts them into one tree."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from r3core.other_tasks import OtherTask
from r3core.task import Frozen, Split


class Section(Frozen):
    """A part of the configuration; the string under a field is its description in the reference."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Turn(Section):
    """Sampling parameters of one kind of turn."""

    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 decodes greedily."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: sample from the most probable tokens whose probabilities add up to this value."""
    top_k: int = Field(default=0, ge=0)
    """Sample from this number of most probable tokens; 0 turns it off."""
    max_tokens: int = Field(default=512, gt=0)
    """Maximum number of tokens in a turn; a longer one is cut off."""


class Turns(Section):
    """Sampling parameters of each turn, the same in mining, training and evaluation."""

    attempt: Turn = Turn()
    """Sampling parameters of the first attempt."""
    reflection: Turn = Turn(max_tokens=256)
    """Sampling parameters of the reflection; in training, the same options under `grpo` override them."""
    retry: Turn = Turn()
    """Sampling parameters of the retry."""


class Phrases(Section):
    """Sentences that replace those of the task; null keeps the task's own."""

    failed: str | None = None
    """First sentence of the turn after a failed attempt."""
    failed_because: str | None = None
    """First sentence of that turn with `feedback: reason`; `{reason}` stands for the reason in the verdict."""
    reflect: str | None = None
    """Request to reflect."""
    retry: str | None = None
    """Request to retry."""
    empty: str | None = None
    """Text that stands for an answer without text in later prompts."""
    generic: str | None = None
    """Sentence that takes the place of the reflection in the control `generic`."""


class Dialogue(Section):
    """How a conversation continues after a failed retry."""

    rounds: int = Field(default=1, gt=0)
    """Rounds of reflection and retry in an evaluation, each after another failed retry; training has the first only."""


class Mine(Section):
    """Which problems are attempted in mining, and which failures are collected."""

    split: Split = "train"
    """Dataset split to attempt."""
    limit: int | None = Field(default=512, gt=0)
    """Maximum number of problems; null takes all of them."""
    order: Literal["random", "head"] = "random"
    """Which problems `limit` selects: a random sample, which depends on `seed`, or the first ones of the split."""
    samples: int = Field(default=1, gt=0)
    """Attempts per problem."""
    keep: Literal["any-failed", "all-failed"] = "any-failed"
    """Collect the failures of a problem if any of its attempts failed, or only if all of them failed."""
    min_pass_rate: float = Field(default=0.0, ge=0, le=1)
    """Leave out problems with a lower pass rate."""
    max_pass_rate: float = Field(default=1.0, ge=0, le=1)
    """Leave out problems with a higher pass rate."""
    keep_truncated: bool = False
    """Also collect failed attempts that were cut off by the token limit."""
    probe: int = Field(default=64, ge=0)
    """Number of failures, sampled at random, that the forecast after mining reflects on; 0 turns the forecast off."""
    failures: Path | None = None
    """Existing failure dataset or run directory to use instead of mining."""

    @field_validator("max_pass_rate")
    @classmethod
    def _bounds_in_order(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("min_pass_rate", 0.0):
            raise ValueError(f"it should not be below mine.min_pass_rate, which is {info.data['min_pass_rate']}")
        return value


class Train(Section):
    """What is rewarded and trained, apart from the options of TRL and LoRA."""

    objective: str = "reflection"
    """Which turns are trained, by which verdict: reflection, retry, reflection+retry, attempt, erl, or a plugin's."""
    anchor: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence from the base model to the trained one on first attempts; 0 turns it off."""
    budget_tokens: int | None = Field(default=None, gt=0)
    """End training after this number of generated tokens, mining included; null trains `grpo.max_steps` steps."""
    retries: int = Field(default=1, gt=0)
    """Retries per reflection; the reward of a reflection is the share of them that pass."""
    tokens: Literal["reflection", "answer-of-reflection"] = "reflection"
    """Which tokens are trained: the whole reflection, or only its answer, without the thinking before it."""
    reward_leaks: bool = True
    """Also reward reflections that contain a passing answer; if false, their reward is 0."""
    merge: bool = True
    """With `lora`, save the merged weights in `model/`; if false, save only the LoRA adapter."""
    shuffle_rewards: bool = False
    """Control: permute the rewards within the batch, so that they carry no information."""
    order: Literal["random", "posterior"] = "random"
    """Which failures come first: each once per epoch in random order, or more often those whose group is likely to have
    different rewards, judged by their groups so far. `posterior` helps where the fix rate is near 0 or 1."""
    drop_equal_groups: bool = False
    """Leave groups whose rewards are all equal out of the loss, also out of the KL term of `grpo.beta`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype of the weights in full training (no `lora`); bfloat16 halves the memory, but loses most small updates."""
    keep: Literal["last", "best"] = "last"
    """Which weights `model/` has: those of the last step, or of the step with the best second try on the validation
    split; `best` requires `evaluate.every`."""
    interpolate: float = Field(default=1.0, gt=0, le=1)
    """Share a of the update that `model/` gets: base + a (trained - base), also of the best step; 1 saves the trained
    weights. Training and the evaluations during it are not affected."""
    stop_after: int | None = Field(default=None, gt=0)
    """Stop early after this number of evaluations in a row without a better second try; it requires `evaluate.every`.
    null trains every step."""


class Evaluate(Section):
    """How base and trained model are compared."""

    split: Split = "test"
    """Dataset split to attempt."""
    limit: int | None = Field(default=500, gt=0)
    """Maximum number of problems; null takes all of them."""
    order: Literal["random", "head"] = "random"
    """Which problems `limit` selects: a random sample, the same for every `seed` and model, or the first ones."""
    samples: int = Field(default=1, gt=0)
    """Attempts per problem; above 1, intervals and tests are clustered by problem."""
    controls: bool = True
    """Also retry without a reflection, with a generic one, with one of another problem, with a neutral text of the
    same length, and by plain resampling; each costs one retry per failure."""
    resamples: int = Field(default=1, gt=0)
    """Fresh attempts at each failure, for the control `resample` when it is sampled; resampling at equal tokens needs
    several, in general 2 to 4; 4 with the built-in model of a task."""
    decoding: Literal["sampled", "greedy", "both"] = "sampled"
    """Decode with the parameters under `sampling`, greedily, or with `both`, which adds greedy first and second tries;
    `both` with the built-in model of a task."""
    cross: bool = False
    """Also combine reflections of one model with retries of the other, for base and trained model."""
    also: tuple[OtherTask, ...] = ()
    """Other tasks on which both models are evaluated too: NAME, NAME,OPTION=VALUE, or `task` and `task_options`."""
    every: int | None = Field(default=None, gt=0)
    """Training steps between two evaluations during training, on the validation split; null turns them off."""
    every_limit: int | None = Field(default=100, gt=0)
    """Maximum number of validation problems of an evaluation during training; null takes all of them."""

    @field_validator("decoding")
    @classmethod
    def _one_greedy_sample(cls, value: str, info: ValidationInfo) -> str:
        if value == "greedy" and info.data.get("samples", 1) > 1:
            raise ValueError("greedy answers to a prompt are all equal: set evaluate.samples=1")
        return value


class Limits(Section):
    """Limits on the verifier; when it exceeds one, the verdict is an error and the worker process is replaced."""

    seconds: float = Field(default=5.0, gt=0)
    """Maximum time per answer, in seconds."""
    memory_mb: int = Field(default=1024, ge=64)
    """Maximum memory per answer in MB, in addition to that of the task's code; enforced on Linux only."""
    characters: int = Field(default=200_000, gt=0)
    """Maximum length of an answer in characters; a longer one fails and is not verified."""
    workers: int | None = Field(default=None, gt=0)
    """Worker processes per training process; null divides the CPU cores among them, with a maximum of 8."""
    max_errors: float = Field(default=0.05, ge=0, le=1)
    """Stop the run if the verifier fails with an error on a larger share of the answers."""
    max_group_errors: float = Field(default=0.25, ge=0, le=1)
    """Leave a group out of the loss if the verifier fails with an error on a larger share of it; 1 turns this off."""

    def alone(self) -> Limits:
        """Return the same limits with a single worker process."""
        return self.model_copy(update={"workers": 1})
