"""The output of `r3 compare`: tables for the terminal, CSV rows and LaTeX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from r3core.compare.comparison import PRIMARY, Comparison, Contrast, Group, Line
from r3core.compare.evaluated import CROSS, GREEDY_TRIES, Tokens
from r3core.compare.pooled import Pooled
from r3core.console import visible
from r3core.episode import CONTROLS
from r3core.evaluation.tables import CONTROLS_TEXT

if TYPE_CHECKING:
    from rich.console import Console

HEADINGS = ("", "base", "trained", "trained - base")
_TRIES = {"first": "first try", "second": "second try", "fix": "fix rate"}
LABELS: dict[str, str] = {
    **_TRIES,
    **{measure: f"  {_TRIES[sampled]}, greedy" for measure, sampled in GREEDY_TRIES.items()},
    **{arm: f"  {CONTROLS_TEXT[arm]}" for arm in CONTROLS},
    "leaks": "reflections with the answer",
    **{measure: f"retries on reflections by {by}" for measure, by in CROSS.items()},
}
CSV_COLUMNS = (
    *("group", "settings", "against", "measure", "model", "seed", "estimate", "low", "high", "p", "p_holm"),
    *("seeds", "problems"),
)
_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"},
    **{"|": r"\textbar{}", '"': r"\textquotedbl{}"},
}


def print_comparison(comparison: Comparison, to: TextIO) -> None:
    """Print a table for each group, the comparison of the groups, the tokens of each run, and notes."""
    from rich.console import Console

    console = Console(file=to, highlight=False, markup=False, width=None if to.isatty() else 120)
    for group in comparison.groups:
        print_lines(console, _title(group, comparison), HEADINGS, _lines(group))
    if comparison.contrasts:
        body = [_contrast(one) for one in comparison.contrasts]
        print_lines(console, "trained models compared: difference in points", _CONTRAST_HEADINGS, body)
    print_lines(console, "generated tokens", ("run", "seed", *Tokens.model_fields), _tokens(comparison))
    for reason in comparison.not_comparable:
        console.print(f"not comparable: {reason}")
    for note in notes(comparison):
        console.print(f"- {note}")
    runs = " ".join(visible(member.run) for group in comparison.groups for member in group.runs)
    console.print(f"as a page, with curves and conversations: r3 view {runs}")


def notes(comparison: Comparison) -> list[str]:
    """Return how the intervals and tests are computed, and what limits them."""
    counts = sorted({len(group.runs) for group in comparison.groups})
    found = [
        f"{comparison.split} split, {comparison.problems:,} problems; second try = the attempt or the retry passes; "
        "fix rate = share of failed attempts whose retry passes, each model on its own failures"
        + (", in the last rows both on the base's" if _has_cross(comparison) else "")
    ]
    if counts[-1] > 1:
        found.append(
            "means over training seeds; the 95% intervals count problems and seeds (two-way random effects, Cochran's "
            "t); rows of one seed count the problems only, and so does base, whose seeds are samples of one model"
        )
    if counts[0] == 1:
        found.append("one training: its interval counts the problems only, not what another seed would change")
    if 1 in counts and counts[-1] > 1:
        found.append("in comparisons, a single training is assumed to vary with its seed as the repeated one does")
    if 2 in counts:
        found.append("two seeds determine the variance between seeds poorly, so these intervals are wide: train more")
    found += _shared_failures(comparison)
    if untrained := [group.name for group in comparison.groups if not group.trained]:
        found.append(f"{', '.join(untrained)}: no trained model; the base model is compared")
    if comparison.contrasts:
        found.append(_test(comparison))
    return found + _power(comparison)


def _has_cross(comparison: Comparison) -> bool:
    return any(row.measure in CROSS for group in comparison.groups for row in group.rows)


def _shared_failures(comparison: Comparison) -> Iterator[str]:
    """Yield a note for each group whose seeds have not mined for themselves."""
    for group in comparison.groups:
        if group.failures and group.trained and len(group.runs) > 1:
            name = f"{group.name}: " if len(comparison.groups) > 1 else ""
            yield (
                f"{name}all seeds train on the failures in {visible(group.failures)}: the intervals do not count what "
                "other failures would change, and the tokens of that mining are counted for each run"
            )


def rows_of_csv(comparison: Comparison) -> list[Sequence[object]]:
    """Return the headings and every rate and difference as a row; rates and differences are shares of 1."""
    rows: list[Sequence[object]] = [CSV_COLUMNS]
    for group in comparison.groups:
        for row in group.rows:
            lines: list[tuple[str, Line]] = [("all", row)]
            if len(group.runs) > 1:
                lines += [(str(one.seed), line) for one, line in zip(group.runs, row.seeds, strict=True)]
            for seed, line in lines:
                for model in ("base", "trained", "difference"):
                    if (value := getattr(line, model)) is not None:
                        place = (group.name, visible(group.label), "", row.measure, model, seed)
                        rows.append((*place, *_numbers(value, None)))
    labels = {group.name: visible(group.label) for group in comparison.groups}
    for one in comparison.contrasts:
        place = (one.group, labels[one.group], one.against, one.measure, "contrast", "all")
        rows.append((*place, *_numbers(one.difference, one.p_adjusted)))
    return rows


def latex_of(comparison: Comparison) -> str:
    r"""Return the tables in LaTeX, for \input; they require the package booktabs. Special characters are escaped."""
    body = [" & ".join(map(escaped, HEADINGS)) + r" \\"]
    for group in comparison.groups:
        title = escaped(f"{group.name}: {group.label} ({_seeds(group)})")
        body += [r"\midrule", rf"\multicolumn{{4}}{{l}}{{{title}}} \\"]
        body += [" & ".join(map(_cell, line)) + r" \\" for line in _lines(group)]
    tables = ["% made by r3 compare; requires \\usepackage{booktabs}", *_tabular("lrrr", body)]
    if comparison.contrasts:
        compared = [" & ".join(map(escaped, _CONTRAST_HEADINGS)) + r" \\", r"\midrule"]
        compared += [" & ".join(map(_cell, _contrast(one))) + r" \\" for one in comparison.contrasts]
        tables += ["", *_tabular("llrrr", compared)]
    return "\n".join([*tables, *(f"% not comparable: {visible(why)}" for why in comparison.not_comparable)]) + "\n"


def escaped(text: str) -> str:
    """Return a text for LaTeX: special characters as commands, unprintable ones escaped."""
    return "".join(_SPECIAL.get(character, character) for character in visible(text))


_CONTRAST_HEADINGS = ("compared", "measure", "difference", "p", "p (Holm)")


def print_lines(console: Console, title: str, headings: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    """Print a table with a title."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")  # Text: brackets in a name are not markup
    for heading in headings:
        table.add_column(heading)
    for line in body:
        table.add_row(*map(Text, line))
    console.print(table)


def _title(group: Group, comparison: Comparison) -> str:
    name = f"{group.name}: " if len(comparison.groups) > 1 else ""
    return f"{name}{visible(group.label)} ({_seeds(group)}): rates in % with 95% intervals"


def _seeds(group: Group) -> str:
    seeds = ", ".join(str(member.seed) for member in group.runs)
    return f"seed {seeds}" if len(group.runs) == 1 else f"mean over seeds {seeds}"


def _lines(group: Group) -> list[tuple[str, ...]]:
    """Return the cells of a group's table: each rate, and below it that of every seed."""
    lines: list[tuple[str, ...]] = []
    for row in group.rows:
        lines.append((LABELS[row.measure], *_cells(row)))
        if len(group.runs) > 1:
            indent = " " * (len(LABELS[row.measure]) - len(LABELS[row.measure].lstrip()) + 2)
            lines += [
                (f"{indent}seed {member.seed}", *_cells(line))
                for member, line in zip(group.runs, row.seeds, strict=True)
            ]
    return lines


def _cells(line: Line) -> tuple[str, str, str]:
    return _rate(line.base), _rate(line.trained), _change(line.difference) if line.difference else ""


def _contrast(one: Contrast) -> tuple[str, ...]:
    change = _points(one.difference)
    p, adjusted = (_p(value).removeprefix("= ") for value in (one.difference.p, one.p_adjusted))
    return (f"{one.group} - {one.against}", LABELS[one.measure].strip(), change, p, adjusted)


def _tokens(comparison: Comparison) -> list[tuple[str, ...]]:
    return [
        (
            f"{group.name}: {visible(member.run)}" if len(comparison.groups) > 1 else visible(member.run),
            str(member.seed),
            *("-" if count is None else f"{count:,}" for count in dict(member.tokens).values()),
        )
        for group in comparison.groups
        for member in group.runs
    ]


def _test(comparison: Comparison) -> str:
    against = comparison.contrasts[0].against
    single = all(len(group.runs) == 1 for group in comparison.groups)
    test = "paired test over problems" if single else "test over problems and training seeds"
    first = sum(one.measure == PRIMARY for one in comparison.contrasts)
    rest = len(comparison.contrasts) - first
    counts = [str(first) if first > 1 else "", f"the other {rest}" if rest > 1 else ""]
    adjusted = f"; Holm's correction for {' and for '.join(filter(None, counts))}" if any(counts) else ""
    return (
        f"each group is compared with {against} on the same problems ({test}): second try, the primary measure, and "
        f"others{adjusted}"
    )


def _power(comparison: Comparison) -> list[str]:
    """Return what the comparisons could have found, where none of them is significant."""
    found = []
    for one in comparison.contrasts:
        if one.detectable is None:
            continue
        smallest = f"a difference of {100 * one.detectable.difference:.1f} points is found with a power of 80%"
        needed = one.detectable.problems_needed
        observed = f"{100 * one.difference.mean:+.1f} points"
        if needed is not None:
            more = f"; for the observed {observed}, {needed:,} problems are needed"
        elif one.difference.seed_share is None:
            more = ""
        else:
            kind = "training seeds" if one.difference.seed_share > 0.5 else "problems"
            more = f"; the observed one is {observed}, and most of its variance is due to the {kind}: add {kind}"
        found.append(f"not significant: {one.group} - {one.against}, {LABELS[one.measure].strip()}: {smallest}{more}")
    return found


def _numbers(value: Pooled, adjusted: float | None) -> Iterator[object]:
    yield from (value.mean, value.low, value.high, value.p, adjusted, value.seeds, value.problems)


def _tabular(columns: str, body: Sequence[str]) -> list[str]:
    return [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}"]


def _cell(text: str) -> str:
    r"""Return a cell in LaTeX: indented as in the terminal, and never starting with a bracket, which \\ would read."""
    bare = text.lstrip()
    indent = r"\quad " * ((len(text) - len(bare)) // 2) if text[:1] == " " and bare[:1].isalpha() else ""
    return indent + ("{}" if bare[:1] in ("[", "*") else "") + escaped(bare)


def _rate(value: Pooled | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value.mean:5.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def _points(value: Pooled) -> str:
    return f"{100 * value.mean:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"


def _change(value: Pooled) -> str:
    return _points(value) if value.p is None else f"{_points(value)} p {_p(value.p)}"


def _p(p: float | None) -> str:
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
