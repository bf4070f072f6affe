"""Put what was collected of one or several runs into the template of the page."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from r3core import __version__, explain
from r3core.episode import Episode
from r3core.errors import UsageError
from r3core.evaluation.tables import CONTROLS_TEXT, HEADINGS, arm_differences, other_tasks, rows
from r3core.evaluation.validation import describe_facts
from r3core.files import atomic_write, digest
from r3core.page import charts, collect, sample, sentences
from r3core.page.collect import Collected
from r3core.page.sample import shown
from r3core.recorded import CHANGES
from r3core.report import notes
from r3core.task import Verdict

PAGE = "report.html"
"""The page's file in a run directory."""
PAIRS = 6
"""Problems whose reflections are shown beside each other, before and after training."""
_HERE = Path(__file__).parent


def write_page(runs: Sequence[Path], to: Path, *, live: bool = False) -> Path:
    """Write the page of one or several runs to a file, and return its path; reads the runs without a lock.

    With `live`, for a run in progress, the page asks the server that it comes from whether it was made anew.

    Raises:
        UsageError: a folder is not a run directory, or the file cannot be written.
        ConfigError: this version of r3 cannot read a run's configuration.
    """
    now = version(runs) if live else None  # before the runs are read: what changes meanwhile is another version
    collected = [collect.collect(folder, name=name) for folder, name in zip(runs, collect.names_of(runs), strict=True)]
    try:
        atomic_write(to, render(collected, version=now))
    except OSError as error:
        raise UsageError(f"the page cannot be written to `{to}`: {error.strerror}") from None
    return to


def render(runs: Sequence[Collected], *, version: str | None = None) -> str:
    """Return the HTML of the page of one or several runs; with a `version`, it asks its server for a newer one."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    figures = charts.charts(runs)
    scripts = [_charting_library(), (_HERE / "page.js").read_text(encoding="utf-8")]
    data, attempted = _data(runs, figures)
    content = {
        "title": sentences.title(runs),
        "style": Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        "scripts": [Markup(script) for script in scripts],
        "policy": _policy(scripts, live=version is not None),
        "version": version,
        "runs": [_run(run) for run in runs],
        "tables": [_table(run) for run in runs if run.result is not None],
        "charts": _sections(figures),
        "sampled": sentences.sampled(runs, data, attempted),
        "folders": ", ".join(shown(str(run.record.path)) for run in runs),
        "version_of_r3": __version__,
        "data": data,
        "controls": sentences.controls(runs[0]),
        "arms": [(run.name, table) for run in runs if run.result and (table := arm_differences(run.result))],
        "lengths": sentences.lengths(runs[0]),
        "pairs": _pairs(data) if len(runs) == 1 else [],
    }
    return environment.get_template("page.html").render(content, sections=_links(content))


def version(folders: Sequence[Path]) -> str:
    """Return a short text that changes when a run has advanced."""
    files = [
        file for folder in folders for kind in ("*.json", "*.jsonl", "stages/*.json") for file in folder.glob(kind)
    ]
    return digest(repr(sorted((str(file), file.stat().st_size) for file in files)), length=12)


def _data(runs: Sequence[Collected], figures: Sequence[charts.Chart]) -> tuple[dict[str, Any], int]:
    """Return what the page's script reads, charts and episodes, and how many problems were attempted."""
    columns = [
        {"run": place, "model": model, "label": f"{run.name}: {model}" if len(runs) > 1 else model}
        for place, run in enumerate(runs)
        for model in ("base", "trained")
    ]
    each = sample.MAX_BYTES // len(runs)
    groups = [
        {"run": place, "key": _key(place, group), **group, **_feedback_of(run, group)}
        for place, run in enumerate(runs)
        for group in sample.within(run.groups, each)
    ]
    problems, attempted = _problems(runs)
    data = {
        "charts": {chart.name: chart.spec for chart in figures},
        "arms": CONTROLS_TEXT,
        "runs": [_conversation(run) for run in runs],
        "columns": columns,
        "problems": sample.within(problems, sample.MAX_BYTES),
        "groups": groups,
    }
    return data, attempted


def _key(place: int, group: dict[str, Any]) -> str:
    """Return the name of a training group in links; with its number where its step has several on the same failure."""
    number = f".{group['number']}" if "number" in group else ""
    return f"{place}:step {group['step']}{number}:{group['id']}"


def _problems(runs: Sequence[Collected]) -> tuple[list[dict[str, Any]], int]:
    """Return a sample of the problems that the runs attempted, with the turns of every model, and their number."""
    counts = [(run, name, counted) for run in runs for name, counted in collect.files_of(run)] or [
        (run, "mine", sample.count(run.record, "mine")) for run in runs
    ]
    kinds = {key: kind for run in reversed(runs) for key, kind in run.changes.items()}
    attempted = {key for _, _, counted in counts for key in counted.outcomes}
    keys = sample.chosen(attempted, kinds)
    found = [
        (run, 2 * runs.index(run) + (name == "evaluate-trained"), sample.episodes(run.record, name, set(keys)))
        for run, name, _ in counts
    ]
    problems = []
    for key in keys:
        sides = [(run, column, episodes[key]) for run, column, episodes in found if key in episodes]
        if not sides:
            continue
        entry = sample.problem(sides[0][0].task, sides[0][2].example, key[1])
        entry["key"] = entry["id"] + (f"~{key[1]}" if key[1] else "")
        entry["sides"] = [
            {"column": column, **_side(run, episode), **sentences.feedback(run, episode.attempt.verdict)}
            for run, column, episode in sides
        ]
        if changed := [run.changes[key] for run in runs if key in run.changes]:
            entry["changes"] = list(dict.fromkeys(changed))
        problems.append(entry)
    return problems, len(attempted)


def _side(run: Collected, episode: Episode) -> dict[str, Any]:
    """Return the turns of one model at one problem, with the sentence before each further round where it differs."""
    side = sample.side(episode)
    for before, entry in zip(episode.answers[1:], side.get("rounds", []), strict=False):
        entry |= sentences.feedback(run, before.verdict)
    return side


def _pairs(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the reflections of both models on the first problems of the sample at which both failed at first."""
    both = [entry for entry in data["problems"] if sum("reflection" in side for side in entry["sides"]) == 2]
    random = sorted(both, key=lambda entry: digest(f"pair:{entry['key']}"))  # not in the order of the changes
    return [{"key": entry["key"], "id": entry["id"], "sides": entry["sides"]} for entry in random[:PAIRS]]


def _feedback_of(run: Collected, group: dict[str, Any]) -> dict[str, str]:
    """Return the same for the failure of a training group."""
    attempt = group.get("attempt")
    return sentences.feedback(run, Verdict.failed(attempt.get("reason", ""))) if attempt else {}


def _conversation(run: Collected) -> dict[str, str]:
    """Return the sentences of r3 between the turns, and which tokens of a reflection are trained."""
    wording = sentences.wording(run)
    return {
        "name": run.name,
        "failed": shown(wording.failed),
        "reflect": shown(wording.reflect),
        "retry": shown(wording.retry),
        "tokens": run.config.train.tokens,
    }


def _run(run: Collected) -> dict[str, Any]:
    """Return what the page's template shows of one run, beside its result and its charts."""
    certificate = run.certificate
    return {
        "name": run.name,
        "claim": shown(sentences.claim(run)),
        "method": shown(sentences.method(run)),
        "state": shown(sentences.state(run)),
        "findings": explain.diagnose(run.record, run.config),
        "forecast": collect.compared_with_forecast(run),
        "probed": run.forecast.probed if run.forecast else 0,
        "certificate": certificate
        and {
            "summary": certificate.summary(),
            "hash": certificate.verifier_hash,
            "seed": certificate.seed,
            "findings": [one.model_copy(update={"why": shown(one.why)}) for one in certificate.findings],
            "excused": [one for one in certificate.findings if one.status in ("waived", "refused")],
            "not_checked": [shown(reason) for reason in certificate.not_checked],
        },
        "without": sentences.without(run),
        "changed": collect.settings(run),
        "settings": collect.all_settings(run),
        "sessions": [_session(row) for row in run.sessions],
    }


def _session(row: dict[str, Any]) -> dict[str, str]:
    libraries = {"python": row.get("python"), **row.get("libraries", {}), **row.get("plugins", {})}
    return {
        "time": str(row.get("time", "unknown time")),
        "command": shown(shlex.join(map(str, row.get("command", [])))),
        "machine": f"{row.get('platform', 'an unknown machine')}, {row.get('processors', '?')} processors",
        "versions": ", ".join(f"{name} {version}" for name, version in libraries.items() if version),
    }


def _table(run: Collected) -> dict[str, Any]:
    assert run.result is not None
    counts = Counter(run.changes.values())
    return {
        "name": run.name,
        "head": HEADINGS,
        "rows": rows(run.result),
        "others": other_tasks(run.result),
        "notes": [*notes(run.result, run.config), *describe_facts(run.record.done("train"))],
        "changes": [(kind, counts[kind]) for kind in CHANGES if counts[kind]],
        "attempted": len(run.base.outcomes),
    }


_SECTIONS = (
    ("controls", "Controls", ("rates", "cross"), False),
    ("categories", "Error categories", ("error-categories-",), False),
    ("validation", "Evaluation during training", ("validation",), False),
    ("training", "Training", ("curve-",), True),
    ("costs", "Time and tokens", ("seconds", "tokens"), False),
)


def _sections(figures: Sequence[charts.Chart]) -> list[dict[str, Any]]:
    sections = [
        {
            "id": name,
            "title": title,
            "small": small,
            "by_tokens": small and any(charts.TOKENS in chart.columns for chart in figures),
            "before": "",
            "charts": [chart for chart in figures if any(chart.name.startswith(one) for one in which)],
        }
        for name, title, which, small in _SECTIONS
    ]
    return [section for section in sections if section["charts"]]


def _links(content: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the sections of the page, for its navigation."""
    links = [("result", "Result")] if content["tables"] else []
    links += [(section["id"], section["title"]) for section in content["charts"]]
    links += [("forecast", "Forecast")] if any(run["forecast"] for run in content["runs"]) else []
    links += [("reflections", "Reflections")] if content["pairs"] else []
    links.append(("episodes", "Episodes"))
    links += [("certificate", "Verifier")] if any(run["certificate"] for run in content["runs"]) else []
    return [*links, ("settings", "Settings")]


@cache
def _charting_library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, which sets `vegaEmbed`."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")


def _policy(scripts: Sequence[str], *, live: bool) -> str:
    """Return the page's Content-Security-Policy: its own scripts, by their hashes, its own styles, and nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    server = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; connect-src {server}; "
        "base-uri 'none'; form-action 'none'"
    )
