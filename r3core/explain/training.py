"""The diagnoses of the course of a training: its learning rate, its length, what moved."""

from __future__ import annotations

from math import isfinite

from r3core.explain import measures
from r3core.explain.findings import Seen, diagnosis, points, setting, share_text
from r3core.explain.rules import PEAK_DEVIATIONS, RULES, Diagnosis
from r3core.stats import wilson

_STILL_ENTROPY = 0.10  # relative change
_STILL_LENGTH = 0.20
_STILL_KL = 1e-3
_SHORTEST = 2  # tokens


def rewards_shuffled(seen: Seen) -> Diagnosis | None:
    if not seen.config.train.shuffle_rewards or not seen.figures.groups:
        return None
    return diagnosis(
        "rewards-shuffled",
        "the rewards of each batch were permuted, so they carry no information",
        "train.shuffle_rewards=false",
        {},
    )


def weights_unchanged(seen: Seen) -> Diagnosis | None:
    changed = seen.figures.weights_changed
    if changed is None or changed >= RULES["weights-unchanged"].limit:
        return None
    rate = float(seen.config.grpo_options().get("learning_rate", 1e-6))
    smaller = "" if rate == 0 else ": updates were smaller than the dtype can hold"
    dtype = "" if rate == 0 else "; dtype=float32 saves smaller updates, train.dtype=float32 trains with them"
    return diagnosis(
        "weights-unchanged",
        f"{changed:.2%} of the weights in `model/` differ from the base model's, at learning rate {rate:g}{smaller}",
        f"a higher grpo.learning_rate{dtype}",
        {"weights_changed": changed},
    )


def not_finite(seen: Seen) -> Diagnosis | None:
    broken = [step.step for step in seen.figures.steps if not step.finite]
    if not broken:
        return None
    return diagnosis(
        "not-finite",
        f"loss or gradient of {len(broken)} of {len(seen.figures.steps)} logged rows are NaN or infinite, "
        f"first at step {broken[0]}",
        setting(seen.config, "learning_rate", factor=0.1) + ", or grpo.max_grad_norm=0.1",
        {"rows": len(broken), "of": len(seen.figures.steps), "first": broken[0]},
    )


def reward_falls(seen: Seen) -> Diagnosis | None:
    over_time = measures.rewards_over_time(seen.figures)
    if len(over_time) < 2:
        return None
    *before, end = over_time
    peak = max(before, key=lambda mean: mean.value)
    fall = measures.change(peak, end)
    error = (peak.error**2 + end.error**2) ** 0.5
    if -fall.difference <= max(RULES["learning-rate-high"].limit, PEAK_DEVIATIONS * error):
        return None
    return diagnosis(
        "learning-rate-high",
        f"the mean reward (0 where no retry was judged) falls from {peak.value:.2f} in {_steps(peak)} "
        f"to {end.value:.2f} in {_steps(end)} "
        f"({_change(fall)}; {end.samples:,} reflections)",
        setting(seen.config, "learning_rate", factor=0.1),
        {"peak": peak.value, "end": end.value, "difference": fall.difference, "low": fall.low, "high": fall.high},
    )


def validation_falls(seen: Seen) -> Diagnosis | None:
    *before, (end, last) = seen.figures.validation or [(0, wilson(0, 0))]
    if not before:
        return None
    step, peak = max(before, key=lambda row: row[1].rate)
    if peak.low <= last.high or peak.rate - last.rate <= RULES["validation-falls"].limit:
        return None
    return diagnosis(
        "validation-falls",
        f"second tries on the validation split fall from {share_text(peak)} problems at step {step} to "
        f"{share_text(last)} at step {end}",
        f"grpo.max_steps={step}, or " + setting(seen.config, "learning_rate", factor=0.5),
        {"peak": peak.rate, "end": last.rate, "step": step},
    )


def learning_rate_low(seen: Seen) -> Diagnosis | None:
    change = _flat(seen)
    if change is None or _moved(seen):
        return None
    total = sum(rate * steps for rate, steps in measures.logged(seen.figures, "learning_rate"))
    return diagnosis(
        "learning-rate-low",
        f"neither reward ({_change(change)}; {change.after.samples:,} reflections) nor policy has moved in "
        f"{measures.steps_made(seen.figures)} steps, whose learning rates add up to {total:.2g}{_stillness(seen)}",
        setting(seen.config, "learning_rate", factor=10),
        {"difference": change.difference, "low": change.low, "high": change.high, "learning_rates": total},
    )


def reward_flat(seen: Seen) -> Diagnosis | None:
    change = _flat(seen)
    if change is None or not _moved(seen):
        return None
    steps = measures.steps_made(seen.figures)
    return diagnosis(
        "reward-flat",
        f"the reward stays at {change.after.value:.2f} ({_change(change)}; {change.after.samples:,} reflections) over "
        f"{steps} steps, although the policy has moved",
        f"grpo.max_steps={2 * steps}, a larger batch (grpo.gradient_accumulation_steps) or failures that a reflection "
        "can help with",
        {"difference": change.difference, "low": change.low, "high": change.high},
    )


def few_updates(seen: Seen) -> Diagnosis | None:
    steps, paired = measures.steps_made(seen.figures), seen.figures.paired
    if not seen.figures.stages.get("train") or not 0 < steps < RULES["few-updates"].limit:
        return None
    change = measures.reward_change(seen.figures)
    if measures.rises(seen.figures) or (paired and paired.second.low > 0):
        return None
    known = change is not None and isfinite(change.high)  # else there are too few failures for an interval
    rise = f"the reward changes by {_change(change)}" if change and known else "no change of the reward can be seen"
    return diagnosis(
        "few-updates",
        f"training ended after {steps} steps; {rise}",
        f"grpo.max_steps={max(60, 4 * steps)}",
        {"steps": steps},
    )


def reflection_length(seen: Seen) -> Diagnosis | None:
    ends = measures.first_and_last(seen.figures)
    if ends is None or measures.rises(seen.figures):
        return None
    change = measures.change(*(measures.length(seen.figures, window) for window in ends))
    before, after = change.before, change.after
    lower, upper = after.value - 2 * after.error, after.value + 2 * after.error
    collapsed = upper < RULES["reflections-collapsed"].limit * before.value or (
        upper < _SHORTEST and upper < before.value
    )
    if not collapsed and lower <= RULES["reflections-exploded"].limit * before.value:
        return None
    return diagnosis(
        "reflections-collapsed" if collapsed else "reflections-exploded",
        f"reflections go from {before.value:.1f} to {after.value:.1f} tokens (+-{2 * after.error:.1f}; "
        f"{after.samples:,} reflections) while the reward does not rise",
        setting(seen.config, "learning_rate", factor=0.3) + ", or grpo.beta=0.01 to stay near the base model",
        {"before": before.value, "after": after.value, "error": after.error},
    )


def _flat(seen: Seen) -> measures.Change | None:
    """Return the change of the reward if a rise is excluded, and enough steps were made for one."""
    change = measures.reward_change(seen.figures)
    flat = change is not None and change.high < RULES["reward-flat"].limit
    return change if flat and measures.steps_made(seen.figures) >= RULES["few-updates"].limit else None


def _moved(seen: Seen) -> bool:
    """Return whether the policy has changed, or may have: KL where it is logged, else entropy and length."""
    figures = seen.figures
    if (kl := measures.logged_change(figures, "kl")) is not None:
        return abs(kl.after.value) >= _STILL_KL
    entropy, ends = measures.logged_change(figures, "entropy"), measures.first_and_last(figures)
    if entropy is None or ends is None:
        return True
    length = measures.change(*(measures.length(figures, window) for window in ends))
    return any(
        max(abs(change.low), abs(change.high)) >= still * abs(change.before.value)
        for change, still in ((entropy, _STILL_ENTROPY), (length, _STILL_LENGTH))
    )


def _stillness(seen: Seen) -> str:
    kl, entropy = (measures.logged_change(seen.figures, name) for name in ("kl", "entropy"))
    if kl is not None:
        return f"; the KL divergence ends at {kl.after.value:.2g}"
    return f"; the entropy goes from {entropy.before.value:.3f} to {entropy.after.value:.3f}" if entropy else ""


def _steps(mean: measures.Mean) -> str:
    return f"step {mean.first}" if mean.first == mean.last else f"steps {mean.first} to {mean.last}"


def _change(change: measures.Change) -> str:
    return points(change.difference, change.low, change.high)
