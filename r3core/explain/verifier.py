"""The diagnoses of the verifier, from its certificate and the attempts in mining."""

from __future__ import annotations

import json
from collections.abc import Sequence

from r3core.explain.figures import Check
from r3core.explain.findings import Seen, by_count, diagnosis, rate_figures, share_text
from r3core.explain.rules import RULES, Diagnosis


def references_refused(seen: Seen) -> Diagnosis | None:
    broken = [one for one in seen.figures.checks if one.status == "broken" and _about_right_answers(one)]
    return _unsound(seen, "references-refused", broken, "right answers fail") if broken else None


def verifier_untrusted(seen: Seen) -> Diagnosis | None:
    broken = [one for one in seen.figures.checks if one.status == "broken" and not _about_right_answers(one)]
    return _unsound(seen, "verifier-untrusted", broken, "the rewards cannot be trusted") if broken else None


def _about_right_answers(check: Check) -> bool:
    return check.group == "references" or check.name == "what must pass"


def _unsound(seen: Seen, name: str, broken: Sequence[Check], meaning: str) -> Diagnosis:
    listed = by_count([f"`{one.name}` held {one.held.passed} of {one.held.total} times" for one in broken])
    return diagnosis(
        name,
        f"the verifier does not pass its certificate, so {meaning}: {listed}",
        f"mend the task's `verify`: `r3 check {json.dumps(seen.config.task)}` lists the answers",
        {"checks": len(broken), "held": broken[0].held.rate, "tries": broken[0].held.total},
    )


def formats_refused(seen: Seen) -> Diagnosis | None:
    limit = RULES["formats-refused"].limit
    refused = [one for one in seen.figures.checks if one.group == "formats"]
    used = [
        (one, one.marked)
        for one in refused
        if one.marked and one.marked.low > limit and (not one.marked_passes or one.marked_passes.high < one.marked.low)
    ]
    advice = "accept the format in the task's `verify`, or rule it out in the prompt, and mine again"
    if used:
        check, marked = max(used, key=lambda one: one[1].low)
        return diagnosis(
            "formats-refused",
            f"{share_text(marked)} failed attempts look like `{check.name}`, a format in which the verifier refuses "
            f"right answers ({check.held.total - check.held.passed} of {check.held.total} in the certificate)",
            advice,
            rate_figures(marked),
        )
    passed = seen.figures.attempts_passed
    if not refused or passed is None or passed.high >= limit / 2:
        return None
    return diagnosis(
        "formats-refused",
        f"{share_text(passed)} attempts pass, and the verifier refuses right answers in some formats: "
        + by_count([f"`{one.name}`" for one in refused]),
        advice,
        rate_figures(passed) | {"formats": len(refused)},
    )
