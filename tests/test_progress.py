"""What a stage prints where nobody watches, what stands behind its bar, and what a stall waits for."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from r3core.activity import ENGINE, PROCESS, WORKERS, current, waiting_for
from r3core.progress import Lines, Stage, bar_text, is_quiet, progress, quiet, watched


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Log:
    """A stage whose lines are collected; `work` lets time pass and items finish, polled each second."""

    def __init__(self, total: int, *, done: int = 0, unit: str = "problems", announced: bool = True) -> None:
        self.clock = Clock()
        self.stream = io.StringIO()
        self.stage = Stage("mine", total, done=done, unit=unit, now=self.clock)
        self.lines = Lines(self.stage, announced=announced, stream=self.stream)
        self.stage.advanced = self.lines.advanced
        self.times: list[float] = []
        """Seconds from the start at which lines were printed."""

    def work(self, seconds: int, *, count: int = 0, figure: str = "") -> None:
        for _ in range(seconds):
            self.clock.seconds += 1
            self._noting_time(self.lines.tick)
        if count:
            self._noting_time(lambda: self.stage.advance(count, figure=figure))

    def _noting_time(self, act: Callable[[], None]) -> None:
        before = len(self.printed)
        act()
        self.times += [self.clock.seconds - 1000] * (len(self.printed) - before)

    @property
    def printed(self) -> list[str]:
        return self.stream.getvalue().splitlines()


def test_a_stage_prints_its_start_its_progress_and_its_end() -> None:
    log = Log(400)
    log.lines.start()
    for _ in range(4):
        log.work(40, count=100, figure="132 failures")
    log.lines.end(complete=True)
    assert log.printed == [
        "mine: 400 problems",
        "mine: 100/400 (25%), 2.5/s, 2m 00s left, 132 failures",
        "mine: 200/400 (50%), 2.5/s, 1m 20s left, 132 failures",
        "mine: 300/400 (75%), 2.5/s, 40s left, 132 failures",
        "mine: 400/400 (100%) in 2m 40s, 2.5/s, 132 failures",
    ]


@pytest.mark.parametrize(
    ("seconds_per_item", "times"),
    [
        (0, []),  # a fast stage prints nothing between start and end
        (1, [30, 60, 90]),  # not each 10 s, which is 10%
        (10, [100, 200, 300, 400, 500, 600, 700, 800, 900]),  # each 10%, not each 30 s
    ],
)
def test_lines_are_30_seconds_and_10_percent_apart(seconds_per_item: int, times: list[float]) -> None:
    log = Log(100)
    for _ in range(100):
        log.work(seconds_per_item, count=1)
    assert log.times == times


def test_a_slow_stage_is_never_silent_for_long() -> None:
    log = Log(100)
    for _ in range(20):
        log.work(360, count=1)  # ten hours in all
    gaps = [later - earlier for earlier, later in zip([0, *log.times], log.times, strict=False)]
    assert max(gaps) <= 480
    assert len(log.times) <= 20


def test_a_stage_that_does_not_advance_reports_what_it_waits_for_at_growing_intervals() -> None:
    log = Log(500)
    log.work(20)
    with waiting_for(ENGINE, "attempts", total=128, now=log.clock) as activity:
        log.work(100)
        activity.done = 37
        log.work(1900)
    assert log.times == [60, 180, 420, 900, 1380, 1860]
    assert log.printed[:2] == [
        "mine: 0/500 (0%), nothing finished for 1m 00s, waiting for the engine (0 of 128 attempts) for 40s",
        "mine: 0/500 (0%), nothing finished for 3m 00s, waiting for the engine (37 of 128 attempts) for 2m 40s",
    ]


def test_after_progress_a_stall_is_reported_after_a_minute_again() -> None:
    log = Log(10)
    log.work(500)
    assert log.times == [60, 180, 420]
    log.work(0, count=1)
    log.work(59)
    assert log.times == [60, 180, 420, 500]
    log.work(1)
    assert log.times[-1] == 560
    assert log.printed[-1] == "mine: 1/10 (10%), 7.2/h, 1h 14m left, nothing finished for 1m 00s"


@pytest.mark.parametrize(
    ("activity", "shown"),
    [
        ((ENGINE, "loading m", 0), "the engine (loading m)"),
        ((WORKERS, "answers", 64), "the verifier workers (0 of 64 answers)"),
        ((PROCESS, "", 0), "another process"),
    ],
)
def test_an_activity_names_what_is_waited_for(activity: tuple[str, str, int], shown: str) -> None:
    with waiting_for(activity[0], activity[1], total=activity[2]) as waiting:
        assert str(waiting) == shown


def test_the_innermost_activity_is_the_current_one_and_ends_with_its_block() -> None:
    with waiting_for(ENGINE) as outer:
        with waiting_for(WORKERS) as inner:
            assert current() is inner
        assert current() is outer
        with suppress(KeyboardInterrupt), waiting_for(WORKERS):
            raise KeyboardInterrupt
        assert current() is outer
    assert current() is None


def test_work_that_cannot_be_counted_prints_only_when_it_takes_minutes() -> None:
    log = Log(0, announced=False)
    log.lines.start()
    with waiting_for(ENGINE, "loading m", now=log.clock):
        log.work(59)
        assert log.printed == []
        log.work(2)
    log.lines.end(complete=True)
    assert log.printed == ["mine: nothing finished for 1m 00s, waiting for the engine (loading m) for 1m 00s"]


def test_items_of_an_earlier_session_count_in_no_rate() -> None:
    log = Log(500, done=400)
    log.lines.start()
    log.work(50, count=50)
    log.lines.end(complete=False)
    assert log.printed == [
        "mine: 500 problems, 400 done before",
        "mine: 450/500 (90%), 1.0/s, 50s left",
        "mine: stopped at 450/500 (90%) after 50s, 1.0/s",
    ]


@pytest.mark.parametrize(
    ("count", "seconds", "rate"), [(50, 20, "2.5/s"), (1, 20, "3.0/min"), (1, 60, "1.0/min"), (1, 1800, "2.0/h")]
)
def test_a_rate_is_per_the_first_unit_in_which_it_is_at_least_1(count: int, seconds: int, rate: str) -> None:
    log = Log(100)
    log.clock.seconds += seconds
    log.stage.advance(count)
    log.lines.end(complete=True)
    assert log.printed[-1].endswith(f", {rate}")


def test_a_bar_shows_the_time_left_the_figure_and_what_a_stall_waits_for() -> None:
    clock = Clock()
    stage = Stage("train", 200, unit="steps", now=clock)
    assert bar_text(stage) == ""
    clock.seconds += 40
    stage.advance(figure="reward 0.31, mixed groups 62%")
    assert bar_text(stage) == "2h 12m left, reward 0.31, mixed groups 62%"
    clock.seconds += 59
    with waiting_for(PROCESS, now=clock):
        assert bar_text(stage) == "2h 11m left, reward 0.31, mixed groups 62%"
        clock.seconds += 1
        assert bar_text(stage).endswith("mixed groups 62%, waiting for another process for 1s")


def test_a_reader_that_closes_the_pipe_does_not_stop_the_stage() -> None:
    log = Log(10)
    log.stream.close()
    log.lines.start()
    log.lines.end(complete=True)


@pytest.fixture(params=["plain", "quiet", "other rank"])
def printing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether progress is printed: not with `--quiet`, and not by a training process other than that of rank 0."""
    if request.param == "other rank":
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
    with quiet(request.param == "quiet"):
        yield request.param == "plain"
    assert not is_quiet()


def test_a_stage_prints_to_standard_error_unless_it_is_quiet(
    printing: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("mine", 2, unit="problems") as stage, watched("load"):
        stage.advance(2, figure="1 failures")
    out, err = capsys.readouterr()
    assert out == ""
    assert ("mine: 2 problems\n" in err, "1 failures" in err) == (printing, printing)
    assert bool(err) == printing


def test_an_interrupted_stage_prints_where_it_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(KeyboardInterrupt), progress("mine", 4) as stage:
        stage.advance()
        raise KeyboardInterrupt
    assert "mine: stopped at 1/4 (25%) after 0s" in capsys.readouterr().err


def test_a_stage_of_no_items_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("cross trained", 0):
        pass
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    with progress("mine", 4, unit="problems") as stage:
        stage.advance(4, figure="3 failures")
    assert "4/4" in terminal.getvalue()
    assert "3 failures" in terminal.getvalue()
    assert "mine: " not in terminal.getvalue()
