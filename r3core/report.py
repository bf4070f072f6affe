"""The report: one table for the terminal and the model card, and what a reader should know beside it."""

from __future__ import annotations

import json
from typing import Any, TextIO

from r3core.check.certificate import Certificate
from r3core.config import Config
from r3core.console import visible
from r3core.evaluate import Result, Scores, truncated
from r3core.forecast import Forecast, group_size
from r3core.rescore import Rescored, Verifier
from r3core.runs import RunRecord
from r3core.stats import Difference, Rate, Share
from r3core.training.launch import world_of
from r3core.truncation import PLURAL

HEADINGS = ("", "base", "trained", "trained - base")
_LONGEST_SHOWN = 100  # characters of what a model wrote
_CONTROLS = {
    "none": "retry, no reflection",
    "generic": "retry, generic sentence",
    "shuffled": "retry, another's reflection",
    "resample": "plain resampling",
}


def rows(result: Result) -> list[tuple[str, ...]]:
    """Return the table's rows as text: a label, base, trained, and the paired difference where there is one."""
    sides = [side for side in (result.base, result.trained) if side]
    paired = result.paired
    table = [
        ("first try", *(_rate(side.first) for side in sides), _difference(paired.first) if paired else ""),
        ("second try", *(_rate(side.second) for side in sides), _difference(paired.second) if paired else ""),
        ("fix rate", *(_rate(side.fix) for side in sides), ""),
        *((f"  {_CONTROLS[arm]}", *(_rate(s.controls[arm]) for s in sides), "") for arm in result.base.controls),
        ("  reflection without the answer", *(_rate(side.fix_without_leak) for side in sides), ""),
        ("reflections with the answer", *(_rate(side.leaks) for side in sides), ""),
    ]
    for by, cells in (result.cross or {}).items():
        table.append((f"retries on reflections by {by}", _rate(cells["base"]), _rate(cells["trained"]), ""))
    return [row if len(row) == len(HEADINGS) else (*row[:2], "", row[2]) for row in table]


def error_categories(result: Result) -> list[tuple[str, ...]]:
    """Return a table of the number of failed answers per error category, headings first.

    Empty for a task without error categories.
    """
    sides = _sides(result)
    counts = {f"first try, {name}": side.first_error_categories for name, side in sides.items()}
    counts |= {f"retry, {name}": side.second_error_categories for name, side in sides.items()}
    kinds = sorted({kind for column in counts.values() for kind in column}, key=lambda k: -_total(counts, k))
    lines = [(visible(kind), *(str(column.get(kind, 0)) for column in counts.values())) for kind in kinds]
    return [("error category", *counts), *lines] if lines else []


def _total(counts: dict[str, dict[str, int]], kind: str) -> int:
    return sum(column.get(kind, 0) for column in counts.values())


def notes(result: Result, config: Config) -> list[str]:
    """Return what has to be said beside the table."""
    test = "exact McNemar test" if config.evaluate.samples == 1 else "permutation test and bootstrap"
    said = [
        f"{_problems(result, config)}; {result.base.first.total} attempts, {config.evaluate.samples} per problem, "
        f"seed {config.seed}; Wilson intervals; {test} over the same problems",
        "second try = solved by the attempt or the retry; fix rate = retries right, of the first attempts that failed; "
        "each model on its own failures" + (", in the last rows both on the base's" if result.cross else ""),
    ]
    said.append(
        "cut off at the token limit: "
        + "; ".join(f"{name}: {_cut_off(side)}" for name, side in _sides(result).items())
        + "; an answer that was cut off and did not pass counts as wrong here"
    )
    if config.uncertified:
        said.append("the verifier did not have to pass `r3 check` (--uncertified)")
    for name, side in _sides(result).items():
        if side.errors:
            said.append(f"{name}: the verifier could not judge {side.errors} answers; they count in no rate")
        if side.overlong:
            said.append(f"{name}: {side.overlong} turns do not fit the model's context; they count in no rate")
    return said


def _problems(result: Result, config: Config) -> str:
    """Return which problems were attempted, as far as it is recorded."""
    chosen = f", {result.problems.describe(', the same for every seed')}" if result.problems else ""
    return f"{config.evaluate.split} split{chosen}"


def _cut_off(side: Scores) -> str:
    known = [(PLURAL[turn], rate.rate) for turn, rate in truncated(side).items() if rate.total]
    return ", ".join(f"{turns} {100 * rate:.1f}%" for turns, rate in known) or "not counted"


def _sides(result: Result) -> dict[str, Scores]:
    return {"base": result.base} | ({"trained": result.trained} if result.trained else {})


def print_table(result: Result, config: Config, to: TextIO) -> None:
    """Print the table and its notes."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=to, highlight=False, width=None if to.isatty() else 120)
    title = f"{config.task}, {config.model or 'built-in model'}: rates in % with 95% intervals"
    table = Table(title=Text(title), title_justify="left")  # a name is no markup
    for heading in HEADINGS:
        table.add_column(heading)
    for row in rows(result):
        table.add_row(*row)
    console.print(table)
    for note in notes(result, config):
        console.print(f"- {note}", markup=False)
    if counted := error_categories(result):
        table = Table(*counted[0], title="what goes wrong: failed answers", title_justify="left")
        for row in counted[1:]:
            table.add_row(*row)
        console.print(table)


def print_forecast(forecast: Forecast, config: Config, to: TextIO) -> None:
    """Print what training on the mined failures may bring, and which group size would do better."""
    options, group, processes = config.grpo_options(), group_size(config), world_of(config).processes
    rows = int(options.get("per_device_train_batch_size", 8)) * int(options.get("gradient_accumulation_steps", 1))
    part = max(1, rows) / max(1, int(options.get("num_iterations", 1)))  # reflections of a process in a step
    share = forecast.signal[group]
    among = f", a random sample of {forecast.failures:,}" if forecast.failures > forecast.probed else ""
    reward = "" if config.train.reward_leaks else f"; the mean reward of a reflection is {_share(forecast.reward)}"
    one = f"; each of {processes} processes generates its part" if processes > 1 else ""
    lines = [
        f"forecast from {forecast.probed:,} failures{among}: a retry after the base's reflection passes in "
        f"{_share(forecast.fix_rate)}{reward}; with num_generations {group}, {_share(share)} of the groups will hold "
        "different rewards",
        "  other group sizes: "
        + ", ".join(f"{size}: {_share(value)}" for size, value in forecast.signal.items() if size != group),
        f"  cut off at the token limit: {_share(forecast.reflections_truncated)} of the reflections, "
        f"{_share(forecast.retries_truncated)} of the retries; without a reward: {_share(forecast.unrewarded)} of the "
        "reflections",
        f"  a step generates about {forecast.tokens * part * processes:,.0f} tokens in about "
        f"{forecast.seconds * part:.1f} s{one}; the update comes on top",
    ]
    better = [size for size, value in forecast.signal.items() if size > group and value.rate > share.rate + 0.1]
    if better:
        lines.append(f"  num_generations {better[0]} would give {_share(forecast.signal[better[0]])}")
    print("\n".join(lines), file=to)


def print_rescored(rescored: Rescored, to: TextIO) -> None:
    """Print what judging a run again has shown; what a model wrote is escaped, and cannot steer the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(file=to, highlight=False, markup=False, width=None if to.isatty() else 120)
    before, now = rescored.before, rescored.now
    console.print(f"{rescored.run}: task {rescored.task}; finished: {', '.join(rescored.stages) or 'no stage yet'}")
    console.print(f"then: {_named(before)}; now: {'the same' if before == now else _named(now)}")
    table = Table("file", "what", "judged", "changed", "then -> now")
    for tally in rescored.tallies:
        ways = ", ".join(f"{way}: {count:,}" for way, count in tally.changed.items())
        table.add_row(tally.file, tally.kind, f"{tally.judged:,}", f"{sum(tally.changed.values()):,}", ways)
    console.print(table)
    for one in rescored.evaluated:
        tries = ((name, getattr(one.before, name), getattr(one.now, name)) for name in ("first", "second"))
        rates = "; ".join(f"{name} try {_rate(then).strip()} -> {_rate(today).strip()}" for name, then, today in tries)
        console.print(f"{one.file}: {rates}")
        if one.unretried:
            console.print(f"  {one.unretried:,} attempts fail now that were not retried; they are in no second try")
    for tally in rescored.tallies:
        for example in tally.examples:
            why = f"; now: {visible(example.reason)}" if example.reason else ""
            what = f"{tally.file}, {tally.kind}, {example.before} -> {example.now}, example {visible(example.id)}"
            console.print(f"{what}: {visible(example.text, longest=_LONGEST_SHOWN)}{why}")
    console.print(f"{rescored.changed:,} of {rescored.judged:,} verdicts have changed")


def shares_of_a_step(run: RunRecord) -> dict[str, float]:
    """Return the share of its time that a training step spends in generation, in verification and in training."""
    spent: dict[str, float] = {}
    for row in run.rows("train"):
        for part in ("generation", "verification", "training"):
            spent[part] = spent.get(part, 0.0) + (row.get(f"seconds/{part}") or 0.0)
    whole = sum(spent.values())
    return {part: seconds / whole for part, seconds in spent.items()} if whole else {}


def as_json(result: Result, run: RunRecord | None) -> dict[str, Any]:
    """Return what `--json` prints; without a run, nothing is known of seconds."""
    times = {"seconds": run.seconds(), "shares_of_a_step": shares_of_a_step(run)} if run else {}
    return result.model_dump(mode="json") | times


def model_card(result: Result, config: Config, certificate: Certificate | None) -> str:
    """Return the README.md of a trained model: what it is, how it was made, who judged it, and the table."""
    table = [HEADINGS, ("---",) * len(HEADINGS), *rows(result)]
    settings = json.dumps(config.record(), indent=2, ensure_ascii=False)
    return "\n".join(
        [
            "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [r3core, grpo, reflection]\n---",
            f"\n# {config.model or 'The built-in model'}, trained to reflect on {config.task}\n",
            "Only the tokens of its reflections were rewarded (GRPO; the method of arXiv 2505.24726).\n",
            *("| " + " | ".join(cell.strip() for cell in row) + " |" for row in table),
            "",
            *(f"- {note}" for note in notes(result, config)),
            *_error_categories_card(result),
            *(["\n## Verifier\n", *_certified(certificate)] if certificate else []),
            f"\n## Settings\n\n```json\n{settings}\n```\n",
        ]
    )


def _error_categories_card(result: Result) -> list[str]:
    if not (counted := error_categories(result)):
        return []
    lines = [counted[0], ("---",) * len(counted[0]), *counted[1:]]
    return ["\n## What goes wrong\n\nFailed answers.\n", *("| " + " | ".join(line) + " |" for line in lines)]


def _certified(certificate: Certificate) -> list[str]:
    waived = [f"- waived: {one.name} ({one.why})" for one in certificate.findings if one.status == "waived"]
    return [
        f"`r3 check`, {certificate.summary()}. Verifier {certificate.verifier_hash}, seed {certificate.seed}; "
        "`certificate.json` has every count with its interval.\n",
        *waived,
        *(f"- not checked: {said}" for said in certificate.not_checked),
    ]


def _rate(rate: Rate) -> str:
    return f"{100 * rate.rate:5.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]" if rate.total else "-"


def _named(verifier: Verifier) -> str:
    return f"verifier version {verifier.version} ({verifier.hash})" if verifier.hash else "an unknown verifier"


def _difference(difference: Difference) -> str:
    p = "p < 0.001" if difference.p < 0.001 else f"p = {difference.p:.3f}"
    return f"{100 * difference.difference:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}] {p}"


def _share(share: Share | Rate) -> str:
    """Return a share with its 95% interval."""
    return f"{100 * share.rate:.1f}% [{100 * share.low:.1f}, {100 * share.high:.1f}]"
