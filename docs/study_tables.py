"""The tables of docs/study.md. `python docs/study_tables.py NAME FOLDER ...` records the pooled figures of runs.

FOLDER is that of a sweep, or of `r3 run --seeds`. docs/study/NAME.json gets what `r3 compare --json` prints of them,
without paths. docs/generate.py writes the tables from it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tables import table

STUDY = Path(__file__).resolve().parent / "study"
RUNS = STUDY.parent / "runs"
MEASURES = {
    "first": "first try",
    "greedy-first": "first try, greedy",
    "second": "second try",
    "greedy-second": "second try, greedy",
    "fix": "fix rate",
    "none": "no reflection",
    "generic": "generic sentence",
    "shuffled": "another's reflection",
    "placebo": "neutral text",
    "resample": "plain resampling",
    "leaks": "reflections that hold a solution",
    "by_trained": "retries on its reflections by the base / by itself",
}
"""The measures of the tables, with their names."""
SIDES = ("base", "trained", "difference")
_ANCHORED = "-anchored"
"""How the names of the settings with an anchor end; they are also compared with each other."""
_FIRST = ("reflection", "default", f"reflection{_ANCHORED}")
"""The settings of a sweep that the others are compared with: the first of these that there is."""
_DEFAULTS = {
    "anchor": "0.0",
    "shuffle_rewards": "false",
    "reward_leaks": "true",
    "grpo.learning_rate": "0.0002",
    "grpo.max_steps": "80",
}
"""Settings of training that a label leaves out."""


def record(folders: Sequence[str]) -> dict[str, Any]:
    """Return the pooled figures of the runs in some folders, as shares of 1."""
    runs = [run for folder in folders for run in _runs(Path(folder))]
    found = _compared(runs)
    recorded = {
        "task": found["task"],
        "split": found["split"],
        "problems": found["problems"],
        "groups": [_group(group) for group in found["groups"]],
        "contrasts": found["contrasts"],
        "not_comparable": found["not_comparable"],
    }
    if anchored := [run for run in runs if run.parent.name.endswith(_ANCHORED)]:
        among = _compared(anchored)
        groups = [{"name": group["name"], "settings": group["settings"]} for group in among["groups"]]
        recorded["anchored"] = {"groups": groups, "contrasts": among["contrasts"]}
    return recorded


def _compared(runs: Sequence[Path]) -> dict[str, Any]:
    command = [sys.executable, "-m", "r3core", "compare", "--json", *map(str, runs)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def _runs(folder: Path) -> list[Path]:
    """Return the finished runs in the folder of a sweep, those of `_FIRST` in front, or in that of several seeds."""
    runs = [path.parent for pattern in ("seed-*", "*/seed-*") for path in folder.glob(f"{pattern}/result.json")]
    return sorted(runs, key=lambda run: (*(run.parent.name != one for one in _FIRST), run.parent.name, run.name))


def _group(group: Mapping[str, Any]) -> dict[str, Any]:
    tokens = [run["tokens"] for run in group["runs"]]
    spent = [one["training"] + (one.get("charged") or 0) for one in tokens]
    rows = {row["measure"]: row for row in group["rows"]}
    shown = {measure: rows[measure] for measure in MEASURES if measure in rows}
    recorded = {
        "name": group["name"],
        "settings": group["settings"],
        "seeds": [run["seed"] for run in group["runs"]],
        "tokens": round(sum(spent) / len(spent)),
        "rows": {measure: {side: row[side] for side in SIDES} for measure, row in shown.items()},
    }
    if len(tokens) < 3:  # pooled intervals of two seeds span everything
        recorded["by_seed"] = {
            measure: [{side: _short(one[side]) for side in SIDES} for one in row["seeds"]]
            for measure, row in shown.items()
        }
    return recorded


def _short(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if value is None else {key: value[key] for key in ("mean", "low", "high", "p")}


def outcomes(name: str) -> str:
    """Return a row for each setting: both tries, sampled and greedy, with what training changed."""
    study = _read(name)
    shown = ("first", "greedy-first", "second", "greedy-second")
    rows = [("base model", "", *(_share(study["groups"][0]["rows"][measure]["base"]) for measure in shown))]
    for group in study["groups"]:
        cells = [
            f"{_share(group['rows'][one]['trained'])}<br>{_change(group['rows'][one]['difference'])}" for one in shown
        ]
        rows.append((f"`{_label(group)}`", f"{group['tokens']:,}", *cells))
    notes = [f"\n{_labelled(note, study['groups'])}." for note in study["not_comparable"]]
    return "\n".join([table(("setting", "tokens", *(MEASURES[one] for one in shown)), rows), *notes])


def reflections(name: str) -> str:
    """Return, for each setting, what its reflections and plain resampling are worth."""
    groups = _read(name)["groups"]
    base = {measure: row["base"] for measure, row in groups[0]["rows"].items()}
    leaks = _share(base["leaks"]) if "leaks" in base else ""
    rows = [("base model", _share(base["fix"]), _share(base["resample"]), _share(base["fix"]), "", leaks)]
    for group in groups:
        found = group["rows"]
        cross = found["by_trained"]
        rows.append(
            (
                f"`{_label(group)}`",
                *(_share(found[measure]["trained"]) for measure in ("fix", "resample")),
                _share(cross["base"]),
                _share(cross["trained"]),
                _share(found["leaks"]["trained"]) if "leaks" in found else "",
            )
        )
    heads = ("setting", "fix rate", "plain resampling", "base retries on its reflections", "it retries on them")
    heads += (MEASURES["leaks"],)
    return table(heads, rows)


def seeds(name: str) -> str:
    """Return the rates of base and trained model for each seed of the first setting, and their change."""
    [group, *_] = _read(name)["groups"]
    rows = []
    for measure, of in group["by_seed"].items():
        for seed, one in zip(group["seeds"], of, strict=True):
            shares = [_share(one[side]) if one[side] else "" for side in ("base", "trained")]
            rows.append(
                (MEASURES[measure], str(seed), *shares, _change(one["difference"]) if one["difference"] else "")
            )
    return table(("measure", "seed", "base", "trained", "points"), rows)


def contrasts(name: str) -> str:
    """Return the difference of every setting to the first one, with Holm's correction."""
    return _contrasts(_read(name))


def anchored(name: str) -> str:
    """Return the same among the settings with an anchor."""
    return _contrasts(_read(name)["anchored"])


def _contrasts(study: Mapping[str, Any]) -> str:
    labels = {group["name"]: _label(group) for group in study["groups"]}
    rows = [
        (
            f"`{labels[one['group']]}` - `{labels[one['against']]}`",
            MEASURES[one["measure"]],
            _change({**one["difference"], "p": None}),
            _p(one["difference"]["p"]),
            _p(one["p_adjusted"]),
        )
        for one in study["contrasts"]
        if one["measure"] in MEASURES
    ]
    return table(("compared", "measure", "points", "p", "p (Holm)"), rows)


def equal_tokens() -> str:
    """Return, for the recorded runs of each task, the fix rate and that of resampling with as many tokens."""
    rows = []
    for path in sorted(RUNS.glob("*-*.json"), key=lambda path: (not path.name.startswith("countdown"), path.name)):
        task, _, seed = path.stem.partition("-")
        result = json.loads(path.read_text(encoding="utf-8"))["result"]
        for side in ("base", "trained"):
            fix, equal = result[side]["fix"], result[side]["equal_tokens"]
            shares = [_share({**one, "mean": one["rate"]}) for one in (fix, equal["fix"])]
            change = equal["difference"]
            points = _change({**change, "mean": change["difference"], "p": change["p_holm"]})
            rows.append((task, seed, side, *shares, f"{equal['attempts']:.2f}", points))
    heads = ("task", "seed", "model", "fix rate", "resampling", "attempts", "points, p by Holm")
    return table(heads, rows)


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((STUDY / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _label(group: Mapping[str, Any]) -> str:
    """Return what a setting changes, for example `objective=retry, anchor=1.0`."""
    changed = {key.removeprefix("train."): value for key, value in group["settings"].items()}
    changed = {"objective": "reflection"} | changed
    shown = [f"{key}={value}" for key, value in changed.items() if value not in ("default", _DEFAULTS.get(key))]
    return ", ".join(shown)


def _labelled(note: str, groups: Sequence[Mapping[str, Any]]) -> str:
    """Return a note of `r3 compare` with the labels of the groups in place of their letters."""
    labels = {group["name"]: f"`{_label(group)}`" for group in groups}
    return re.sub(r"\b([A-Z])(?= (?:generated )?[0-9])", lambda found: labels[found[1]], note)


def _share(value: Mapping[str, Any]) -> str:
    return f"{100 * value['mean']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def _change(value: Mapping[str, Any]) -> str:
    points = f"{100 * value['mean']:+.1f} [{100 * value['low']:+.1f}, {100 * value['high']:+.1f}]"
    return points if value["p"] is None else f"{points}, p {_p(value['p'])}"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


BLOCKS = {"study equal tokens": equal_tokens} | {
    f"study {name} {part.__name__}": partial(part, name)
    for name in sorted(path.stem for path in STUDY.glob("*.json"))
    for part in (outcomes, contrasts, anchored, reflections, seeds)
}
"""The generated blocks of docs/study.md, by their names."""


if __name__ == "__main__":
    name, *folders = sys.argv[1:]
    (STUDY / f"{name}.json").write_text(json.dumps(record(folders), indent=1) + "\n", encoding="utf-8")
