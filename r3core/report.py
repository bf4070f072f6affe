"""The report: the result table for the terminal and the model card, its notes, the forecast and rescored verdicts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TextIO

from r3core.check.certificate import Certificate
from r3core.config import Config
from r3core.console import visible
from r3core.evaluation.decoding import is_greedy
from r3core.evaluation.result import Result, Scores, truncated
from r3core.evaluation.tables import (
    HEADINGS,
    arm_differences,
    error_categories,
    format_p,
    format_rate,
    notes_on_controls,
    other_tasks,
    rows,
    sides_of,
)
from r3core.forecast import Forecast, group_size
from r3core.objective import PLURAL
from r3core.rescore import Rescored, Verifier
from r3core.runs import RunRecord
from r3core.stats import Rate, Share
from r3core.training.launch import world_of

_MAX_SHOWN = 100  # characters of a model's text in one line


def claim(result: Result, config: Config) -> str:
    """Return the result in one sentence, with its interval, its p-value and the number of problems."""
    scope = f"{result.base.second.total:,} problems of the {config.evaluate.split} split, seed {config.seed}"
    if result.trained is None or result.paired is None:
        return f"The model solves {_percent(result.base.second)} in two tries ({scope}); nothing was trained."
    change = result.paired.second
    before, after = _percent(result.base.second), _percent(result.trained.second)
    if change.low > 0:
        found = f"Training the reflections raised the share of problems solved in two tries from {before} to {after}"
    elif change.high < 0:
        found = f"Training the reflections lowered the share of problems solved in two tries from {before} to {after}"
    else:
        found = f"No effect of training is visible: {before} of the problems solved in two tries before, {after} after"
    points = (
        f"{100 * change.difference:+.1f} points [{100 * change.low:+.1f}, {100 * change.high:+.1f}], {format_p(change)}"
    )
    return f"{found}: {points} (95% interval; {scope})."


def notes(result: Result, config: Config) -> list[str]:
    """Return the notes under the table: data, statistics, definitions, and whatever limits the result."""
    test = (
        "exact McNemar test with Newcombe's interval"
        if config.evaluate.samples == 1
        else "permutation test and bootstrap"
    )
    lines = [
        f"{_problems(result, config)}; {result.base.first.total} attempts, {config.evaluate.samples} per problem, "
        f"seed {config.seed}; Wilson intervals; {test} over the same problems",
        "second try = the attempt or the retry passes; fix rate = share of failed attempts whose retry passes; "
        "each model on its own failures" + (", in the last rows both on the base's" if result.cross else ""),
    ]
    if result.trained is not None:
        how = "decode greedily" if is_greedy(config) else "sample with the same seeds"
        lines.append(
            "one training run: the intervals count the problems, not what another training seed would change; both "
            f"models {how}"
        )
    if result.trained is not None and (share := config.train.interpolate) < 1:
        lines.append(f"the trained model has base + {share:g} (trained - base) as its weights (train.interpolate)")
    if result.base.within:
        lines.append(
            "within k attempts: after a failed retry the conversation continues with its verdict, another reflection "
            f"and another retry, up to {config.protocol.rounds} rounds; repeated answers: equal to an earlier one of "
            "the same conversation; training rewards the first round only"
        )
    if result.base.first_at:
        lines.append(
            "pass@k: problems of which at least one of k samples passes, computed exactly from all samples of each "
            "(Chen et al. 2021); every problem has the same weight, intervals and tests are over problems"
        )
    if result.greedy is not None:
        lines.append(
            "greedy: temperature 0 in attempt, reflection and retry, one attempt per problem; the other rows are "
            "sampled, as in training"
        )
    lines.append(
        "cut off at the token limit: "
        + "; ".join(f"{name}: {_cut_off(side)}" for name, side in sides_of(result).items())
        + "; an answer that was cut off and did not pass counts as wrong here"
    )
    lines += notes_on_controls(result)
    if config.uncertified:
        lines.append("the verifier was not required to pass `r3 check` (--uncertified)")
    for name, side in sides_of(result).items():
        if side.errors:
            lines.append(f"{name}: the verifier could not judge {side.errors} answers; no rate counts them")
        if side.overlong:
            lines.append(f"{name}: {side.overlong} turns do not fit the model's context; no rate counts them")
        if side.cut_in_thought:
            lines.append(
                f"{name}: {side.cut_in_thought} turns were cut off in their thinking, before any answer; "
                "no rate counts them: raise sampling.*.max_tokens"
            )
    return lines


def _problems(result: Result, config: Config) -> str:
    """Return which problems were attempted; results of old versions do not record how they were selected."""
    chosen = f", {result.problems.describe(', the same for every seed')}" if result.problems else ""
    return f"{config.evaluate.split} split{chosen}"


def _cut_off(side: Scores) -> str:
    known = [(PLURAL[turn], rate.rate) for turn, rate in truncated(side).items() if rate.total]
    return ", ".join(f"{turns} {100 * rate:.1f}%" for turns, rate in known) or "not counted"


def further_tables(result: Result) -> dict[str, list[tuple[str, ...]]]:
    """Return the tables beside that of the result which have rows, by their titles."""
    tables = {
        "fix rate after the reflection minus that of the control, on the same failures, in points": arm_differences(
            result
        ),
        "other tasks: rates in % with 95% intervals": other_tasks(result),
        "error categories of failed answers": error_categories(result),
    }
    return {title: lines for title, lines in tables.items() if lines}


def print_table(result: Result, config: Config, to: TextIO) -> None:
    """Print the result table, its notes, and the tables of controls and error categories."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=to, highlight=False, width=None if to.isatty() else 120)
    decoding = ", greedy decoding" if is_greedy(config) else ""
    title = f"{config.task}, {config.model or 'built-in model'}{decoding}: rates in % with 95% intervals"
    table = Table(title=Text(title), title_justify="left")  # Text: brackets in a name are not markup
    for heading in HEADINGS:
        table.add_column(heading)
    for row in rows(result):
        table.add_row(*row)
    console.print(table)
    for note in notes(result, config):
        console.print(f"- {note}", markup=False)
    for heading, lines in further_tables(result).items():
        table = Table(*lines[0], title=heading, title_justify="left")
        for column in table.columns[1:]:
            column.no_wrap = console.width >= 120  # where figures fit, the label is wrapped instead
        for row in lines[1:]:
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
    answer = "a retry after the base's reflection" if config.objective.retries else "a new attempt"
    one = f"; each of {processes} processes generates its part" if processes > 1 else ""
    lines = [
        f"forecast from {forecast.probed:,} failures{among}: {answer} passes in "
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
    """Print the result of rescoring; a model's text is escaped, so that it cannot control the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(file=to, highlight=False, markup=False, width=None if to.isatty() else 120)
    before, now = rescored.before, rescored.now
    console.print(f"{rescored.source}: task {rescored.task}; finished: {', '.join(rescored.stages) or 'no stage yet'}")
    console.print(f"before: {_named(before)}; now: {'the same' if before == now else _named(now)}")
    table = Table("file", "kind", "judged", "changed", "before -> now")
    for tally in rescored.tallies:
        changes = ", ".join(f"{change}: {count:,}" for change, count in tally.changed.items())
        table.add_row(tally.file, tally.kind, f"{tally.judged:,}", f"{sum(tally.changed.values()):,}", changes)
    console.print(table)
    for one in rescored.evaluated:
        tries = ((name, getattr(one.before, name), getattr(one.now, name)) for name in ("first", "second"))
        rates = "; ".join(
            f"{name} try {format_rate(old).strip()} -> {format_rate(new).strip()}" for name, old, new in tries
        )
        console.print(f"{one.file}: {rates}")
        if one.unretried:
            console.print(f"  {one.unretried:,} attempts that fail now were not retried; no second try counts them")
    for tally in rescored.tallies:
        for example in tally.examples:
            reason = f"; now: {visible(example.reason)}" if example.reason else ""
            place = f"{tally.file}, {tally.kind}, {example.before} -> {example.now}, example {visible(example.id)}"
            console.print(f"{place}: {visible(example.text, longest=_MAX_SHOWN)}{reason}")
    console.print(f"{rescored.changed:,} of {rescored.judged:,} verdicts have changed")
    if written := rescored.written:
        console.print(f"{written.failures:,} of {written.of:,} failures still fail; they are in {written.folder}")


def shares_of_a_step(run: RunRecord) -> dict[str, float]:
    """Return the shares of training time spent in generation, verification and training, over all steps."""
    seconds: dict[str, float] = {}
    for row in run.rows("train"):
        for part in ("generation", "verification", "training"):
            seconds[part] = seconds.get(part, 0.0) + (row.get(f"seconds/{part}") or 0.0)
    total = sum(seconds.values())
    return {part: value / total for part, value in seconds.items()} if total else {}


def as_json(result: Result, run: RunRecord | None) -> dict[str, Any]:
    """Return what `--json` prints: the result and, with its run, the seconds of each stage."""
    times = {"seconds": run.seconds(), "shares_of_a_step": shares_of_a_step(run)} if run else {}
    return result.model_dump(mode="json") | times


def model_card(result: Result, config: Config, certificate: Certificate | None, *, training: Sequence[str] = ()) -> str:
    """Return the README.md of a trained model: how it was trained, the result table, the verifier and the settings.

    `training` has notes about the training stage.
    """
    table = [HEADINGS, ("---",) * len(HEADINGS), *rows(result)]
    settings = json.dumps(config.record(), indent=2, ensure_ascii=False)
    return "\n".join(
        [
            "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [r3core, grpo, reflection]\n---",
            f"\n# {config.model or 'The built-in model'}, trained to reflect on {config.task}\n",
            "Only the tokens of its reflections were rewarded (GRPO; the method of arXiv 2505.24726).\n",
            *("| " + " | ".join(cell.strip() for cell in row) + " |" for row in table),
            "",
            *(f"- {note}" for note in (*notes(result, config), *training)),
            *_further_tables_card(result),
            *(["\n## Verifier\n", *_certified(certificate)] if certificate else []),
            f"\n## Settings\n\n```json\n{settings}\n```\n",
        ]
    )


def _further_tables_card(result: Result) -> list[str]:
    lines = []
    for title, (head, *body) in further_tables(result).items():
        lines.append(f"\n## {title[0].upper()}{title[1:]}\n")
        lines += ["| " + " | ".join(line) + " |" for line in (head, ("---",) * len(head), *body)]
    return lines


def _certified(certificate: Certificate) -> list[str]:
    waived = [
        f"- {one.status}: {one.name} ({one.why})"
        for one in certificate.findings
        if one.status in ("waived", "refused") or (one.status == "noted" and one.group == "formats")
    ]
    return [
        f"`r3 check`, {certificate.summary()}. Verifier {certificate.verifier_hash}, seed {certificate.seed}; "
        "`certificate.json` has every count with its interval.\n",
        *waived,
        *(f"- not checked: {reason}" for reason in certificate.not_checked),
    ]


def _named(verifier: Verifier) -> str:
    return f"verifier version {verifier.version} ({verifier.hash})" if verifier.hash else "an unknown verifier"


def _share(share: Share | Rate) -> str:
    """Return a share with its 95% interval."""
    return f"{100 * share.rate:.1f}% [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def _percent(rate: Rate) -> str:
    return f"{100 * rate.rate:.1f}%" if rate.total else "an unknown share"
