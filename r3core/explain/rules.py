"""The diagnoses with their thresholds and the reasons for them, the most important first."""

from __future__ import annotations

from typing import NamedTuple

from r3core.task import Frozen

MAX_FINDINGS = 4
"""Number of diagnoses that are reported, the most important ones."""
WINDOW = 1 / 3
"""Share of the steps at the beginning and at the end of a training that are compared."""
PEAK_WINDOW = 1 / 6
"""Share of the steps, and at least three, in which a peak of the reward is looked for."""
PEAK_DEVIATIONS = 3.5
"""Standard errors by which a peak must exceed the end: the largest of some ten windows exceeds it by two by chance."""
POWER = 0.8
"""Probability with which an evaluation of the proposed size finds the difference."""


class Diagnosis(Frozen):
    """Why a run did not learn, or learned something else."""

    name: str
    """One of `RULES`."""
    finding: str
    """One sentence with the figures: share, number and 95% interval."""
    advice: str
    """What to change, as `key=value` where it is a setting."""
    figures: dict[str, float]
    """The figures of the sentence, shares between 0 and 1."""


class Rule(NamedTuple):
    """When a diagnosis is made."""

    limit: float
    found: str
    """The condition; `{limit}` stands for the limit."""
    why: str
    """The reason for this limit, and its uncertainty."""


RULES: dict[str, Rule] = {
    "rewards-shuffled": Rule(0, "`train.shuffle_rewards` is on", "a control, in which nothing should be learned"),
    "references-refused": Rule(
        0, "the certificate has a reference, or another form of one, that fails", "only `uncertified` runs get this far"
    ),
    "verifier-untrusted": Rule(
        0, "another check of the certificate does not hold", "only `uncertified` runs get this far"
    ),
    "weights-unchanged": Rule(
        0.01,
        "less than {limit:.0%} of the saved weights differ from the base model's",
        "at a learning rate of 5e-7, 0.1% of bf16 weights change, at 1e-5 2%; of 32-bit weights over 99%",
    ),
    "not-finite": Rule(0, "the loss or the gradient of a step is NaN or infinite", "no training should have one"),
    "attempts-truncated": Rule(
        0.10,
        "more than {limit:.0%} of the attempts in mining are cut off at the token limit",
        "the warning during a run comes at 5%, of the bare share; the demonstrations have at most 0.2%",
    ),
    "reflections-truncated": Rule(
        0.10,
        "more than {limit:.0%} of the reflections are cut off, in training or in the evaluation",
        "the demonstration, which learns, has up to 6%, and under greedy decoding 12% [8, 16]",
    ),
    "retries-truncated": Rule(
        0.10,
        "more than {limit:.0%} of the retries are cut off, in training or in the evaluation",
        "a retry that is cut off earns no reward; the demonstrations have at most 0.7%",
    ),
    "rewards-unjudged": Rule(
        0.10,
        "more than {limit:.0%} of the reflections have no reward, for another reason than a truncated retry",
        "`judge.max_errors` stops a run at 5% verifier errors; above 10%, a group of 16 lacks about two rewards",
    ),
    "formats-refused": Rule(
        0.10,
        "more than {limit:.0%} of the failed attempts look like a format in which right answers are refused, and a "
        "smaller share of the others; or hardly any attempt passes and any format is refused",
        "that many failures may be right answers; the marks are searched by pattern, so it is a hint to look",
    ),
    "groups-all-wrong": Rule(
        0.30,
        "less than {limit:.0%} of the groups are mixed, and most of the others are all wrong",
        "a fix rate of 4.5%, that of the published 1.5B model, which learned, gives at most 31% mixed groups of 8",
    ),
    "groups-all-right": Rule(
        0.30,
        "less than {limit:.0%} of the groups of the first third are mixed, and most of the others are all right",
        "as above; later groups are all right where a training succeeds",
    ),
    "groups-all-alike": Rule(
        0.30,
        "less than {limit:.0%} of the groups of the forecast are mixed, and neither all right nor all wrong ones are "
        "sure to be two thirds of the others",
        "as above; a forecast records the mean reward, which bounds both shares",
    ),
    "reflections-identical": Rule(
        0.30,
        "less than {limit:.0%} of the groups are mixed, and three quarters of the reflections are repetitions",
        "as above; in the demonstration, 14 of 16 reflections of a group are different",
    ),
    "trained-tokens-unread": Rule(
        0.50,
        "the retries read less than {limit:.0%} of the trained tokens",
        "most of what is then rewarded cannot have helped; 100% without thinking",
    ),
    "importance-ratio-low": Rule(
        0.50,
        "vLLM's importance ratio, which multiplies the loss, is below {limit:g} in the mean",
        "it is close to 1 where engine and trainer agree; 0.12 after 34 tokens with top_p=0.9 (computed)",
    ),
    "learning-rate-high": Rule(
        0.10,
        "the mean reward (0 where no retry was judged) ends more than {limit:.0%} below its peak",
        "standard errors in the demonstration: 5 points for a step, 1.5 to 2.6 for a sixth of the steps; it is made of "
        "0.4% of 2,000 simulated trainings with a constant chance",
    ),
    "validation-falls": Rule(
        0.05,
        "second tries on the validation split end below their peak by more than {limit:.0%}, with intervals apart",
        "the peak is the largest of several, so the intervals have to be apart as well",
    ),
    "learning-rate-low": Rule(
        0.10,
        "the reward rises by less than {limit:.0%}, and neither entropy (10%), length (20%) nor KL (0.001) has moved",
        "in the demonstration the reward rises by 32 points, entropy falls by 40%, and length grows by 70%",
    ),
    "retry-ignores-reflection": Rule(
        0.10,
        "the retry passes no more often than without a reflection, with another problem's and with a neutral text, and "
        "a difference of {limit:.0%} is excluded",
        "with three seeds, reflections of the demonstration's base model add 14 to 18 points, of apigen's -2 to 13",
    ),
    "few-updates": Rule(
        20,
        "training ended after less than {limit:g} steps, and neither reward nor second try has risen",
        "in the demonstration as it was first the gain after 17 of 60 updates is a fifth of that after all",
    ),
    "leaks-rewarded": Rule(
        0.50,
        "more than {limit:.0%} of the rewarded reflections of the last third contain a passing answer",
        "in the demonstration 23%, and its fix rate without leaks still rises by 40 points",
    ),
    "reflections-collapsed": Rule(
        1 / 3,
        "reflections end below {limit:.0%} of their first length, or below 2 tokens, and the reward does not rise",
        "reflections of the published models get shorter as they learn, so length alone is no fault",
    ),
    "reflections-exploded": Rule(
        3.0,
        "reflections end above {limit:g} times their first length, and the reward does not rise",
        "in the demonstration they grow by 70% as they learn",
    ),
    "reward-flat": Rule(
        0.10,
        "the reward rises by less than {limit:.0%} although the policy has moved, and nothing above explains it",
        "as for learning-rate-low",
    ),
    "first-try-lost": Rule(
        0.03,
        "the first try falls by more than {limit:.0%}, and the interval excludes 0",
        "three seeds of the demonstration change by -0.2 to +0.8 points, of apigen by -2.4 to -0.2",
    ),
    "greedy-first-try-lost": Rule(
        0.03,
        "the greedy first try falls by more than {limit:.0%}, and the interval excludes 0",
        "without its anchor, three seeds of the demonstration lose 4 to 22 points; four constants on the operators' "
        "logits explained an earlier case",
    ),
    "gain-at-first-try": Rule(
        0.75,
        "more than {limit:.0%} of a significant gain is at the first try, and the fix rate does not rise",
        "in the demonstration 0 to 11%; no answer token is rewarded, so such a gain is a side effect, such as a form",
    ),
    "gain-not-held-out": Rule(
        0.50,
        "the fix rate on held-out problems rises by less than {limit:.0%} of the gain in training, also at the limits "
        "of the intervals, and that gain exceeds 10 points",
        "in the demonstration the fix rate rises more than the mean reward (43 against 32 points)",
    ),
    "evaluation-too-small": Rule(
        0.10,
        "the second try does not change significantly, but a gain of {limit:.0%} is not excluded",
        "the published mean gains are 9 and 16 points; with 500 problems the interval is about +-5 wide",
    ),
}
"""Every diagnosis. A share is above a limit when its whole 95% interval is, so that few samples give no false alarm."""
FOLLOWS = {
    name: "learning-rate-high"
    for name in ("validation-falls", "reflections-collapsed", "reflections-exploded", "first-try-lost")
}
"""Diagnosis -> the one that explains it, and whose advice holds for both."""
CONSEQUENCES = ("learning-rate-low", "few-updates", "reward-flat")
"""Diagnoses that are made only where none of those above them explains the run."""
