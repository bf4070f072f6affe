from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from r3core import Example, Split, Task
from r3core.check import certificate
from r3core.check.certificate import (
    Certificate,
    Counterexample,
    Finding,
    cache_certificate,
    cached_certificate,
    print_certificate,
    state_of,
)
from r3core.sections import Limits
from r3core.stats import wilson

LIMITS = Limits()


class Toy(Task):
    """A task whose class and options are changed by the tests."""

    name = "toy"

    size: int = 1
    file: Path | None = None

    def load(self, split: Split) -> Iterator[Example]:
        return iter(())

    def verify(self, example: Example, response: str) -> bool:
        return False


def finding(**values: Any) -> Finding:
    given: dict[str, Any] = {"group": "probes", "name": "empty", "held": wilson(4, 4), "status": "ok"}
    return Finding(**(given | values))


BROKEN = finding(name="negated", status="broken", held=wilson(1, 4))
WAIVED = finding(name="near number", status="waived", held=wilson(0, 4), why="near is enough")


def certified(task: Task, *findings: Finding) -> Certificate:
    broken = any(one.status == "broken" for one in findings)
    return Certificate(
        task=task.name,
        task_options=task.options(),
        task_version=task.version,
        state=state_of(task, LIMITS),
        verifier_hash="0",
        fixtures_hash=None,
        outcome="fail" if broken else "pass",
        findings=list(findings),
        not_checked=["fixtures: the task has none"],
        data={},
        limits={},
        seed=0,
        seconds=1.5,
        environment={},
    )


def printed(*findings: Finding) -> str:
    to = io.StringIO()
    print_certificate(certified(Toy(), *findings), to)
    return to.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("R3_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "certificates"


@pytest.mark.parametrize("changed", ["version", "name", "waived", "refuses", "fixtures"])
def test_the_state_follows_the_class(changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fixtures.jsonl").write_text("{}", encoding="utf-8")
    rules = {"waived": {"empty": "so"}, "refuses": {"bold": "so"}}
    values = {"version": "2", "name": "other", "fixtures": tmp_path / "fixtures.jsonl", **rules}
    before = state_of(Toy(), LIMITS)
    monkeypatch.setattr(Toy, changed, values[changed])
    assert state_of(Toy(), LIMITS) != before


def test_the_state_follows_the_verifiers_source(monkeypatch: pytest.MonkeyPatch) -> None:
    before = state_of(Toy(), LIMITS)
    assert state_of(Toy(), LIMITS) == before
    monkeypatch.setattr(certificate, "verifier_hash", lambda task: "another")
    assert state_of(Toy(), LIMITS) != before


def test_the_state_follows_options_and_the_files_that_they_name(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("{}", encoding="utf-8")
    states = [
        state_of(Toy(), LIMITS),
        state_of(Toy(size=2), LIMITS),
        state_of(Toy(file=tmp_path / "data.jsonl"), LIMITS),
    ]
    (tmp_path / "data.jsonl").write_text("[]", encoding="utf-8")
    states.append(state_of(Toy(file=tmp_path / "data.jsonl"), LIMITS))
    assert len(set(states)) == 4


def test_the_state_follows_the_limits_of_a_verdict_and_no_others() -> None:
    before = state_of(Toy(), LIMITS)
    assert state_of(Toy(), Limits(seconds=1)) != before
    assert state_of(Toy(), Limits(workers=1, max_errors=1)) == before


@pytest.mark.parametrize("findings", [[], [BROKEN, WAIVED]])
def test_a_cached_certificate_is_found_again(findings: list[Finding], cache: Path) -> None:
    issued = certified(Toy(), *findings)
    assert cached_certificate(Toy(), LIMITS) is None
    assert cache_certificate(Toy(), issued) == cache / f"toy-{issued.state}.json"
    assert cached_certificate(Toy(), LIMITS) == issued
    assert [path.name for path in cache.iterdir()] == [f"toy-{issued.state}.json"]


def test_a_certificate_of_another_state_is_not_found() -> None:
    cache_certificate(Toy(), certified(Toy()))
    assert cached_certificate(Toy(size=2), LIMITS) is None
    assert cached_certificate(Toy(), Limits(seconds=1)) is None


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "\x00"])
def test_a_damaged_file_is_ignored(content: str) -> None:
    path = cache_certificate(Toy(), certified(Toy()))
    assert path is not None
    path.write_text(content, encoding="utf-8")
    assert cached_certificate(Toy(), LIMITS) is None


def test_a_file_under_the_wrong_name_is_ignored() -> None:
    path = cache_certificate(Toy(), certified(Toy()))
    assert path is not None
    path.rename(path.with_name(f"toy-{state_of(Toy(size=2), LIMITS)}.json"))
    assert cached_certificate(Toy(size=2), LIMITS) is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    assert cache_certificate(Toy(), certified(Toy())) is None


def test_the_summary_is_one_line() -> None:
    assert certified(Toy(), finding()).summary() == "pass: 1 checks, 4 tries, all hold"
    assert certified(Toy(), finding(), WAIVED).summary() == "pass: 2 checks, 8 tries, all hold, 1 waived"
    refused, noted = (WAIVED.model_copy(update={"status": status}) for status in ("refused", "noted"))
    counted = "pass: 3 checks, 12 tries, all hold, 1 waived, 1 refused, 1 noted"
    assert certified(Toy(), refused, WAIVED, noted).summary() == counted
    assert certified(Toy(), WAIVED, BROKEN).summary() == "fail: 2 checks, 8 tries, does not hold: `negated`"


def test_the_table_shows_counts_intervals_and_what_was_not_checked() -> None:
    text = printed(finding(), BROKEN, WAIVED)
    assert "4 of 4" in text
    assert "4.6 to 69.9%" in text
    assert "- near number (waived): near is enough" in text
    assert "- negated does not hold:" in text
    assert "- not checked: fixtures: the task has none" in text
    assert text.endswith("fail: 3 checks, 12 tries, does not hold: `negated` in 2 s\n")


def test_refused_formats_are_listed_together_each_with_a_response() -> None:
    one, other, unseen = (Counterexample(example="n1", response=text, verdict="fail") for text in ("a", "b", "unseen"))
    noted = {"group": "formats", "status": "noted", "why": "accept it", "held": wilson(0, 2)}
    bold, boxed = finding(name="bold", **noted), finding(name="boxed", **noted)
    text = printed(
        bold.model_copy(update={"counterexamples": [one, unseen]}),
        boxed.model_copy(update={"counterexamples": [other]}),
    )
    assert "- bold, boxed (noted): accept it\n    n1: 'a' -> fail\n    n1: 'b' -> fail\n" in text
    assert "unseen" not in text


@pytest.mark.parametrize("bad", ["\x1b[2J", "\x07", "\r", "\u202e", "[bold]x[/]", "[/]"])
def test_model_text_cannot_steer_the_terminal(bad: str) -> None:
    one = Counterexample(example=f"n{bad}", response=f"r{bad}", verdict=f"pass: {bad}")
    text = printed(BROKEN.model_copy(update={"counterexamples": [one]}))
    spelled = bad if bad.isprintable() else bad.encode("unicode_escape").decode()
    assert text.count(spelled) == 3
    assert bad.isprintable() or bad not in text


def test_a_long_response_is_cut() -> None:
    one = Counterexample(example="n1", response="y" * 2_000, verdict="pass")
    text = "".join(printed(BROKEN.model_copy(update={"counterexamples": [one]})).split())
    assert f"{'y' * 160}'...(shortened)" in text


def test_counterexamples_of_what_holds_are_not_shown() -> None:
    one = Counterexample(example="n1", response="hello", verdict="pass")
    assert "hello" not in printed(WAIVED.model_copy(update={"counterexamples": [one]}))
