"""The sentences of the page: what a run found, how far it has come, how it was made, and which episodes are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from r3core import report
from r3core.config import Config
from r3core.evaluation.tables import CONTROLS_TEXT
from r3core.forecast import group_size
from r3core.objective import PLURAL
from r3core.page import sample
from r3core.page.collect import Collected, files_of
from r3core.page.sample import shown
from r3core.prompts import PLACEBO, failure
from r3core.task import Verdict, Wording


def claim(run: Collected) -> str:
    """Return what the run shows about the effect of training, in one sentence."""
    if run.result is not None and (run.record.done("train") or {}).get("weights_changed") == 0:
        return "Training changed no weight of the model, so this run shows nothing about training."
    if run.result is not None and (run.result.trained is not None or not run.steps):
        return report.claim(run.result, run.config)
    if run.steps:
        reward = [row["reward"] for row in run.steps if row.get("reward") is not None]
        change = (
            f": the mean reward was {reward[0]:.2f} at the first step and is {reward[-1]:.2f} now" if reward else ""
        )
        return f"No evaluation yet, so nothing is known about the effect{change}."
    return "No evaluation yet, so nothing is known about the effect."


def state(run: Collected) -> str:
    """Return how far the run has come, in one sentence."""
    if run.status.evaluated and run.status.stage is None:
        return f"Finished: {', '.join(run.status.finished)}. Run directory {run.record.path}."
    done = f"{', '.join(run.status.finished)} finished" if run.status.finished else "no stage is finished"
    now = {"mine": "mining", "train": "training", "evaluate": "evaluating"}.get(
        run.status.stage or "", "between stages"
    )
    if run.status.stage == "train":
        now += f", {run.steps[-1]['step'] if run.steps else 0} of {run.max_steps or '?'} steps"
    if run.status.stage == "evaluate":
        now += f", {len(run.base.outcomes) + len(run.trained.outcomes):,} episodes so far"
    if run.status.stage is None and not run.status.in_progress:
        return f"Not evaluated yet: {done}. Run directory {run.record.path}."
    how = "In progress" if run.status.in_progress else "Interrupted; the same command resumes it"
    return f"{how}: {done}; {now}. Run directory {run.record.path}."


def method(run: Collected) -> str:
    """Return how the run was made, for a reader who has nothing but the page."""
    config, options, mined = run.config, run.config.grpo_options(), run.record.done("mine") or {}
    parts = [_setup(run)]
    if "failures" in mined and "attempts" in mined:
        split = config.mine.split
        parts.append(
            f"Mining: {mined['failures']:,} failures from {mined['attempts']:,} attempts at the {split} split."
        )
    if run.steps:
        trained = run.record.done("train") or {}
        group, steps = group_size(config), trained.get("steps") or run.max_steps or run.steps[-1]["step"]
        retries = config.train.retries
        reward = (
            "1 if the retry after it passes, else 0" if retries == 1 else f"the share of {retries} retries that pass"
        )
        parts.append(
            f"Training: {_objective(run.config, reward)} "
            f"{steps:,} steps, groups of {group} {PLURAL[config.objective.first]} on one failure, "
            f"learning rate {options.get('learning_rate', 1e-6):g}, KL coefficient (beta) {options.get('beta', 0.0):g}"
            f"{_held(config)}."
        )
    if run.result is not None:
        parts.append(
            "Evaluation: each model attempts every problem; where it fails, it receives that verdict, writes a "
            "reflection and tries once more."
        )
    return " ".join(parts)


def _objective(config: Config, reward: str) -> str:
    """Return which tokens are trained, and what is rewarded."""
    objective = config.objective
    if objective.turns == ("reflection",):
        return f"GRPO on the tokens of reflections alone; the reward of a reflection is {reward}."
    return (
        f"GRPO with the objective {objective.name}: {objective.formula}; r1 and r2 are the verdicts of the two tries."
    )


def _held(config: Config) -> str:
    """Return what holds the saved model near the base, beside the KL term."""
    train = config.train
    anchor = f", anchor {train.anchor:g} (KL to the base model on mined first attempts)" if train.anchor else ""
    return anchor + (f", {train.interpolate:g} of the update saved" if train.interpolate < 1 else "")


def _setup(run: Collected) -> str:
    config = run.config
    adapter = ", LoRA adapter" if config.lora is not None else ""
    preset = f", preset {config.preset}" if config.preset else ""
    options = ", ".join(f"{key}={value}" for key, value in config.task_options.items())
    revision = f" (revision {config.revision})" if config.revision else ""
    model = f"{config.model or 'built-in'}{revision}{adapter}"
    task = f"{config.task}{f' ({options})' if options else ''}"
    return f"Task {task}; model {model}; engine {config.engine}; seed {config.seed}{preset}."


def without(run: Collected) -> str:
    """Return the name of the settings that a run has where it sets none."""
    if run.config.preset:
        return f"preset {run.config.preset}"
    return "default for the built-in model" if run.config.model is None else "default"


def wording(run: Collected) -> Wording:
    """Return the sentences of r3 in the run's prompts."""
    return run.config.wording_for(run.task) if run.task is not None else Wording()


def feedback(run: Collected, verdict: Verdict) -> dict[str, str]:
    """Return the sentence after a failed attempt, where it depends on the verdict."""
    if run.config.feedback != "reason" or verdict.outcome != "fail":
        return {}
    return {"feedback": shown(failure(wording(run), verdict, "reason"))}


def title(runs: Sequence[Collected]) -> str:
    """Return the title of the page."""
    if len(runs) > 1:
        return f"{len(runs)} runs: {', '.join(run.name for run in runs)}"
    config = runs[0].config
    return shown(f"{config.task}, {config.model or 'built-in model'}")


def lengths(run: Collected) -> str:
    """Return the mean length of each model's reflections."""
    counted = {name.removeprefix("evaluate-"): counts for name, counts in files_of(run) if counts.reflections}
    means = [f"{name} {counts.tokens['reflections'] / counts.reflections:.1f}" for name, counts in counted.items()]
    return f"Mean tokens of a reflection: {', '.join(means)}." if means else ""


def controls(run: Collected) -> list[tuple[str, str]]:
    """Return what each control puts in the reflection's place."""
    sentences = wording(run)
    explained = {
        "none": "the request to try again, right after the failure",
        "generic": f"this sentence as the reflection: {sentences.generic}",
        "shuffled": "the reflection on the next failed problem, which may name other numbers or facts",
        "placebo": f"a neutral text of as many tokens as the reflection has: {PLACEBO[:60]}...",
        "resample": "a new attempt at the problem, without the failed one in sight",
    }
    return [(CONTROLS_TEXT[arm], shown(explained[arm])) for arm in (run.result.base.controls if run.result else {})]


def sampled(runs: Sequence[Collected], data: dict[str, Any], attempted: int) -> str:
    """Return which of the episodes are in the page."""
    groups = sum(run.groups_in_all for run in runs)
    rule = (
        f" A sample is random, the same for every run; it begins with up to {sample.OF_EACH} problems of each kind of "
        f"change, and with {sample.GROUPS_PER_STEP} groups from each of up to {sample.MAX_STEPS} steps."
    )
    complete = len(data["problems"]) == attempted and len(data["groups"]) == groups
    return (
        f"In this page: {_part(len(data['problems']), attempted, 'attempts at problems')}, and "
        f"{_part(len(data['groups']), groups, 'groups of training')}." + ("" if complete else rule)
    )


def _part(here: int, total: int, what: str) -> str:
    return f"all {total:,} {what}" if here == total else f"a sample of {here:,} of {total:,} {what}"
