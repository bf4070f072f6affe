"""The diagnoses of rewards: truncated turns, missing rewards, groups without a signal, unread tokens, leaks."""

from __future__ import annotations

from collections.abc import Callable

from r3core.evaluation.result import truncated
from r3core.explain import measures
from r3core.explain.figures import Group
from r3core.explain.findings import Seen, diagnosis, raised, rate_figures, share_text
from r3core.explain.rules import RULES, Diagnosis
from r3core.forecast import group_size
from r3core.objective import PLURAL, Turn
from r3core.stats import Rate, wilson
from r3core.truncation import limit_of

_FEW_DIFFERENT = 0.25  # reflections of a group, of all of it
_SAMPLES = 8  # per problem, to tell easy ones from hard ones
_RETRIES = 4
_MOST = 2 / 3  # of the groups that are not mixed


def attempts_truncated(seen: Seen) -> Diagnosis | None:
    cut = seen.figures.attempts_truncated
    if cut is None or cut.low <= RULES["attempts-truncated"].limit:
        return None
    return _truncated(seen, "attempt", cut, where="mining")


def reflections_truncated(seen: Seen) -> Diagnosis | None:
    return _most_truncated(seen, "reflection", lambda g: g.truncated, lambda g: g.reflections)


def retries_truncated(seen: Seen) -> Diagnosis | None:
    return _most_truncated(seen, "retry", lambda g: g.retries_truncated, lambda g: g.retries)


def _most_truncated(
    seen: Seen, turn: Turn, part: Callable[[Group], int], of: Callable[[Group], int]
) -> Diagnosis | None:
    """Return the finding for training, the trained model, the base model or the forecast: the one with most cut off.

    Turns that a failed training has made long are not cut off for a low limit: they are left out.
    """
    figures = seen.figures
    sides = {"base": figures.base}
    shares = {}
    if not measures.grows_without_reward(figures, part, of):
        sides["trained"] = figures.trained
        shares["training"] = measures.share(figures.groups, part, of)
    shares |= {f"the {name} model's evaluation": truncated(side.scores)[turn] for name, side in sides.items() if side}
    if figures.forecast and not figures.groups:
        shares["the forecast"] = getattr(figures.forecast, f"{PLURAL[turn]}_truncated")
    known = {where: rate for where, rate in shares.items() if rate.total}
    if not known:
        return None
    where = max(known, key=lambda name: known[name].low)
    rule = RULES[f"{PLURAL[turn]}-truncated"]
    return _truncated(seen, turn, known[where], where=where) if known[where].low > rule.limit else None


def _truncated(seen: Seen, turn: Turn, cut: Rate, *, where: str) -> Diagnosis:
    training = where in ("training", "the forecast")
    limit = limit_of(seen.config, turn, training=training)
    thinking = sum(group.cut_in_thought for group in seen.figures.groups) if turn == "reflection" and training else 0
    still = f"; {thinking:,} of them were still thinking" if thinking else ""
    return diagnosis(
        f"{PLURAL[turn]}-truncated",
        f"{share_text(cut)} {PLURAL[turn]} in {where} were cut off at {limit}{still}",
        raised(limit),
        rate_figures(cut),
    )


def rewards_unjudged(seen: Seen) -> Diagnosis | None:
    groups = seen.figures.groups
    missing = measures.share(groups, lambda g: g.reflections - g.judged, lambda g: g.reflections)
    if missing.low <= RULES["rewards-unjudged"].limit:
        return None
    errors, cut = sum(group.errors for group in groups), sum(group.retries_truncated for group in groups)
    if cut > errors:
        return None  # they are reported as truncated
    if errors:
        advice = "mend `verify`, so that it returns a verdict for every text; `r3 check` finds such texts"
    else:
        advice = "train.reward_leaks=true, or mend `leaks`: without its verdict a reflection has no reward"
    return diagnosis(
        "rewards-unjudged",
        f"{share_text(missing)} reflections in training have no reward; the verifier failed on {errors:,} of "
        f"{sum(group.retries for group in groups):,} retries",
        advice,
        rate_figures(missing) | {"errors": errors},
    )


def groups_without_signal(seen: Seen) -> Diagnosis | None:
    groups = [group for group in seen.figures.groups if group.judged]
    if not groups:
        return _forecast_without_signal(seen)
    ends = measures.first_and_last(seen.figures)
    early = [group for group in groups if ends is None or group.step <= ends[0][1]]
    right = measures.share(early, _all_right, lambda _: 1)
    mixed = measures.share(early, lambda g: g.levels > 1, lambda _: 1)
    if mixed.high < RULES["groups-all-right"].limit and right.rate > 0.5:
        return _all_alike(seen, "groups-all-right", right, mixed)
    mixed = measures.share(groups, lambda g: g.levels > 1, lambda _: 1)
    wrong = measures.share(groups, lambda g: g.levels == 1 and not g.reward, lambda _: 1)
    if mixed.high >= RULES["groups-all-wrong"].limit or measures.rises(seen.figures):
        return None  # where it has learned, few mixed groups may be left
    different = measures.share(groups, lambda g: g.distinct, lambda g: g.reflections)
    if different.high < _FEW_DIFFERENT:
        return _identical(seen, different, mixed)
    return _all_alike(seen, "groups-all-wrong", wrong, mixed) if wrong.rate > 0.5 else None


def _all_right(group: Group) -> int:
    return int(group.levels == 1 and group.reward == group.judged)


def _all_alike(seen: Seen, name: str, alike: Rate, mixed: Rate) -> Diagnosis:
    size = group_size(seen.config)
    what = "all right: the failures are too easy" if name == "groups-all-right" else "all wrong: they are too hard"
    return diagnosis(
        name,
        f"{share_text(mixed)} groups of {size} have different rewards, and {alike.rate:.1%} are {what}",
        _other_failures(seen, name),
        rate_figures(mixed) | {"alike": alike.rate},
    )


def _other_failures(seen: Seen, name: str) -> str:
    """Return the settings with which the groups differ more, without those that are set already."""
    mine, harder, easier = seen.config.mine, name != "groups-all-wrong", name != "groups-all-right"
    low = 0.1 if easier else min(mine.min_pass_rate, 0.25)
    high = (0.75 if easier else 0.25) if harder else max(mine.max_pass_rate, 0.1)
    change = [f"mine.samples={_SAMPLES}"] if mine.samples < _SAMPLES else []
    if mine.min_pass_rate < low or (not easier and mine.min_pass_rate > low):
        change.append(f"mine.min_pass_rate={low:g}")
    if mine.max_pass_rate > high or (not harder and mine.max_pass_rate < high):
        change.append(f"mine.max_pass_rate={high:g}")
    kind = "other" if harder and easier else "harder" if harder else "easier"
    mined = f"mine {kind} failures: {' '.join(change)}, or {kind}" if change else kind
    advice = [f"{mined} options of the task"]
    if easier:
        advice.insert(0, f"grpo.num_generations={2 * group_size(seen.config)}")
        if seen.config.train.retries < _RETRIES:
            advice.append(f"train.retries={_RETRIES} makes finer rewards")
    return "; ".join(advice)


def _identical(seen: Seen, different: Rate, mixed: Rate) -> Diagnosis:
    temperature = seen.config.grpo_options()["temperature"]
    return diagnosis(
        "reflections-identical",
        f"only {different.rate:.1%} of {different.total:,} reflections differ from the others of their group, so "
        f"{share_text(mixed)} groups have different rewards",
        f"grpo.temperature=1.0 (it is {temperature:g})" if temperature < 1 else "grpo.top_p=1.0 grpo.top_k=0",
        rate_figures(mixed) | {"distinct": different.rate},
    )


def _forecast_without_signal(seen: Seen) -> Diagnosis | None:
    """Return the same finding of the forecast, for a run that has not been trained."""
    forecast, size = seen.figures.forecast, group_size(seen.config)
    mixed = forecast.signal.get(size) if forecast else None
    if forecast is None or mixed is None or mixed.high >= RULES["groups-all-wrong"].limit:
        return None
    share = wilson(round(mixed.rate * forecast.probed), forecast.probed).model_copy(update=mixed.model_dump())
    # Of each share only limits are known: the mixed groups have a part of the reward, from nothing to all of theirs.
    reward, alike = forecast.reward, max(1 - mixed.rate, 1e-9)
    if (reward.low - mixed.rate) / alike > _MOST:
        name, meaning = "groups-all-right", "most of the others are all right: the failures are too easy"
    elif (1 - reward.high - mixed.rate) / alike > _MOST:
        name, meaning = "groups-all-wrong", "most of the others are all wrong: the failures are too hard"
    else:
        name, meaning = "groups-all-alike", "of the others, some are all right and some are all wrong"
    mean = f"{reward.rate:.2f} [{reward.low:.2f}, {reward.high:.2f}]"
    return diagnosis(
        name,
        f"{share_text(share)} groups of {size} are expected to have different rewards; the mean reward of the "
        f"forecast is {mean}, so {meaning}",
        _other_failures(seen, name),
        rate_figures(share) | {"reward": reward.rate},
    )


def tokens_unread(seen: Seen) -> Diagnosis | None:
    read = measures.logged_change(seen.figures, "read_by_retry")
    if read is None or read.before.value >= RULES["trained-tokens-unread"].limit:
        return None
    return diagnosis(
        "trained-tokens-unread",
        f"the retries have read {read.before.value:.1%} of the trained tokens in steps {read.before.first} to "
        f"{read.before.last}; the rest is thinking that their prompt leaves out",
        "train.tokens=answer-of-reflection, or history=verbatim",
        {"read": read.before.value, "first": read.before.first, "last": read.before.last},
    )


def importance_ratio(seen: Seen) -> Diagnosis | None:
    known = measures.logged(seen.figures, "importance_ratio")
    steps = sum(number for _, number in known)
    if (
        not steps
        or (mean := sum(ratio * number for ratio, number in known) / steps) >= RULES["importance-ratio-low"].limit
    ):
        return None
    return diagnosis(
        "importance-ratio-low",
        f"the ratio of the trainer's to vLLM's probabilities is {mean:.3g} in the mean of {steps} steps, and the "
        "loss is multiplied by it",
        "sampling.reflection.top_p=1.0 sampling.reflection.top_k=0, or grpo.vllm_importance_sampling_correction=false",
        {"ratio": mean, "steps": steps},
    )


def leaks_rewarded(seen: Seen) -> Diagnosis | None:
    ends = measures.first_and_last(seen.figures)
    last = measures.within(seen.figures, ends[1]) if ends else seen.figures.groups
    leaks = measures.share(last, lambda g: g.rewarded_leaks, lambda g: g.rewarded)
    if leaks.low <= RULES["leaks-rewarded"].limit:
        return None
    return diagnosis(
        "leaks-rewarded",
        f"{share_text(leaks)} reflections that earned a reward in the last steps contain a passing answer, so the "
        "retry can copy it",
        "train.reward_leaks=false",
        rate_figures(leaks),
    )
