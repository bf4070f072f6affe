"""The published numbers agree with the code: the cheap and deterministic part of a recorded run is repeated."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import generate
import published
import pytest
from record import digest_of_weights, record

from r3core import get_task
from r3core.config import resolve
from r3core.pipeline import Pipeline

RECORDED = sorted(path.stem for path in published.RUNS.glob("*.json"))
RATES_WITHIN = 0.01  # processors differ in rounding, which can change a sampled token
MINED_WITHIN = 0.02
REWARDS_WITHIN = 0.05


def recorded(name: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((published.RUNS / f"{name}.json").read_text(encoding="utf-8"))
    return facts


def stale(name: str) -> str:
    return (
        f"the published numbers of {name} are not those of this code: run `{generate.RECORDS[name]} --output-dir RUN`, "
        f"`python docs/record.py RUN {name}` and `make docs`"
    )


def rates(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Yield every rate of a result, with its place."""
    if isinstance(value, dict) and "rate" in value:
        yield place, value["rate"]
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from rates(inner, f"{place}.{key}".strip("."))


def different(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the differences between a record and a rerun of its first part, one line each."""
    lines = []
    old, new = dict(rates(before["result"]["base"])), dict(rates(now["result"]["base"]))
    for place in sorted(old.keys() | new.keys()):
        if place not in old or place not in new or abs(old[place] - new[place]) > RATES_WITHIN:
            lines.append(f"base, {place}: {old.get(place)} was recorded, now it is {new.get(place)}")
    if before["problems"] != now["problems"]:
        lines.append("other problems are evaluated")
    mined, mined_now = before["mined"]["failures"], now["mined"]["failures"]
    if abs(mined - mined_now) > MINED_WITHIN * mined:
        lines.append(f"{mined} failures were mined, now {mined_now}")
    steps = zip(before["first_rewards"], now["first_rewards"], strict=True)
    lines += [f"a reward of {old:.3f}, now {new:.3f}" for old, new in steps if abs(old - new) > REWARDS_WITHIN]
    return lines


def resolved(name: str, *overrides: str, **flags: Any) -> Any:
    """Return the resolved configuration of a record's command."""
    words = shlex.split(generate.RECORDS[name])
    settings = [value for option, value in pairwise(words) if option == "--set"]
    task = get_task(recorded(name)["config"]["task"])
    seed = int(words[words.index("--seed") + 1])
    return resolve(task, overrides=[*settings, *overrides], flags={"seed": seed} | flags)


@pytest.fixture(scope="module")
def rerun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Mine, evaluate the base and train on two generations as countdown-0 did, and return the record of it."""
    folder = tmp_path_factory.mktemp("runs") / "countdown-0"
    config = resolved("countdown-0", "grpo.max_steps=4", "mine.probe=0", output_dir=folder)
    with Pipeline.open(get_task("countdown"), config) as stages:
        stages.mine()
        stages.compare(None)
        stages.train()
    return record(folder)


def test_the_table_of_the_readme_has_a_record() -> None:
    assert "countdown-0" in RECORDED
    assert set(RECORDED) <= set(generate.RECORDS), "a record that no page uses"


@pytest.mark.parametrize("name", RECORDED)
def test_a_record_can_be_read(name: str) -> None:
    try:
        published.read(name)
    except published.MissingRecord as error:
        pytest.fail(f"{error}; {stale(name)}")


@pytest.mark.parametrize("name", RECORDED)
def test_a_published_run_has_the_present_model_verifier_and_configuration(name: str) -> None:
    facts = recorded(name)
    task = get_task(facts["config"]["task"], **facts["config"]["task_options"])
    assert facts["model_sha256"] == digest_of_weights(task), stale(name)
    assert facts["verifier"]["version"] == task.version, stale(name)
    assert published.read(name).config.record() == resolved(name).record(), stale(name)


@pytest.mark.parametrize("name", RECORDED)
def test_a_record_contains_no_absolute_path(name: str) -> None:
    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                yield from texts(inner)
        elif isinstance(value, str):
            yield value

    assert [text for text in texts(recorded(name)) if Path(text).is_absolute()] == []


@pytest.mark.slow
def test_a_rerun_reproduces_the_published_table(rerun: dict[str, Any]) -> None:
    assert different(recorded("countdown-0"), rerun) == [], stale("countdown-0")


@pytest.mark.slow
def test_an_outdated_record_is_detected(rerun: dict[str, Any]) -> None:
    def changed(*place: str | int, by: Any) -> dict[str, Any]:
        facts = copy.deepcopy(rerun)
        inner: Any = facts
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = by if isinstance(by, str) else inner[place[-1]] + by
        return facts

    assert different(rerun, rerun) == []
    assert different(changed("result", "base", "second", "rate", by=0.005), rerun) == []
    for place, by in [
        (("result", "base", "first", "rate"), 0.02),
        (("result", "base", "controls", "shuffled", "rate"), -0.02),
        (("problems", "sha256"), "another"),
        (("mined", "failures"), 20),
        (("first_rewards", 1), 0.1),
    ]:
        assert len(different(changed(*place, by=by), rerun)) == 1
    without = copy.deepcopy(rerun)
    del without["result"]["base"]["controls"]["none"]
    assert different(without, rerun) != []


@pytest.fixture
def three_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with invented records of three seeds, whose second tries rise by 30, 31 and 35 points."""
    monkeypatch.setattr(published, "RUNS", tmp_path)
    for seed, rise in enumerate((0.30, 0.31, 0.35)):
        facts = json.loads((generate.ROOT / "docs/runs/countdown-0.json").read_text(encoding="utf-8"))
        facts["config"]["seed"] = seed
        facts["result"]["paired"]["second"]["difference"] = rise
        facts["result"]["trained"]["fix"]["rate"] = 0.70 - rise / 10
        (tmp_path / f"countdown-{seed}.json").write_text(json.dumps(facts), encoding="utf-8")
    return tmp_path


def test_the_seeds_have_a_mean_with_its_interval(three_seeds: Path) -> None:
    # mean 32, standard deviation 7 ** 0.5; 4.303 x 7 ** 0.5 / 3 ** 0.5 = 6.57
    text = published.BLOCKS["countdown seeds"]()
    assert "second try +32.0 [+25.4, +38.6]" in text
    assert [line.split(" |")[0] for line in text.splitlines() if line.startswith("|")][2:] == ["| 0", "| 1", "| 2"]
    assert "the trained model fixes 66.5 to 67.0% of its failures" in published.BLOCKS["countdown controls"]()


@pytest.mark.parametrize("name", sorted(name for name in published.BLOCKS if name.startswith("countdown")))
def test_a_block_is_generated_when_its_records_exist(name: str, three_seeds: Path) -> None:
    marked = f"<!-- generated: {name} -->\nby hand\n<!-- /generated -->"
    assert "by hand" not in generate._filled(marked)
    assert "| 0 |" in generate._filled(marked) or "first try, base" in generate._filled(marked)


def test_missing_records_are_listed_with_their_command(three_seeds: Path) -> None:
    (three_seeds / "countdown-2.json").unlink()
    facts = json.loads((three_seeds / "countdown-1.json").read_text(encoding="utf-8"))
    facts["config"]["gone"] = 1
    (three_seeds / "countdown-1.json").write_text(json.dumps(facts), encoding="utf-8")
    lines = "\n".join(generate.missing())
    assert "countdown-2: countdown-2.json does not exist; made by `r3 run --task countdown --seed 2`" in lines
    assert "countdown-1: countdown-1.json is of another version: gone: Extra inputs are not permitted" in lines
    assert "countdown-0:" not in lines
    marked = "<!-- generated: countdown seeds -->\nby hand\n<!-- /generated -->"
    assert generate._filled(marked) == marked
