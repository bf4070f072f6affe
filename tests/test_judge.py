import ctypes
import math
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from r3core import Example, RunError, Split, Task, TaskError, Verdict, get_task
from r3core.sections import Limits
from r3core.task import Limit
from r3core.verification.judge import Judge, judge, verifier_hash
from r3core.verification.pool import portable

pytestmark = [pytest.mark.slow, pytest.mark.processes]

LIMITS = Limits(seconds=2, memory_mb=256, workers=2)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class ExitsWhenShown(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)


class ExitsInRepr:
    def __repr__(self) -> str:
        raise SystemExit(1)


LEFT_ALLOCATED: list[bytearray] = []


def raise_(error: BaseException) -> object:
    raise error


def recurse() -> object:
    return recurse()


def print_much() -> object:
    while True:
        print("x" * 100_000)


def alarm() -> object:
    """Set a time limit of its own, as some verifiers do, which replaces the worker's."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.alarm(1000)
    return True


def fork() -> object:
    """Return in two processes."""
    os.fork()
    return True


def use_a_child_process() -> object:
    child = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    child.join()
    return child.exitcode == 0


def leave_behind() -> object:
    """Return while a thread and a program are still running."""
    threading.Thread(target=time.sleep, args=(1000,)).start()
    return Verdict.failed(str(subprocess.Popen(["sleep", "1000"]).pid))


def use_a_program() -> object:
    return subprocess.run(["sleep", "1000"])


BEHAVIOURS: dict[str, Callable[[], object]] = {
    "right": lambda: Verdict.passed(),
    "wrong": lambda: Verdict.failed("too small", kind="size"),
    "true": lambda: True,
    "false": lambda: False,
    "unsure": lambda: Verdict.error("no table for this problem"),
    "divide": lambda: raise_(ZeroDivisionError("division by zero")),
    "exit": lambda: raise_(SystemExit(3)),
    "interrupt": lambda: raise_(KeyboardInterrupt()),
    "deep": recurse,
    "long": lambda: raise_(ValueError("x" * 1000)),
    "unprintable": lambda: raise_(Unprintable()),
    "print": print_much,
    "print quietly": lambda: bool(print("x" * 900_000)),
    "alarm": alarm,
    "loop": lambda: time.sleep(1000),
    "regex": lambda: re.match(r"(a+)+b", "a" * 100),
    "power": lambda: 10 ** (10**10) > 0,
    "factorial": lambda: math.factorial(10**7) > 0,
    "memory": lambda: len([0] * 10**9) > 0,
    "raise memory": lambda: raise_(MemoryError()),
    "segfault": lambda: ctypes.string_at(0),
    "recurse": lambda: sys.setrecursionlimit(10**9) or recurse(),
    "quit": lambda: os._exit(3),
    "quit quietly": lambda: os._exit(0),
    "text": lambda: "pass",
    "nothing": lambda: None,
    "number": lambda: 1,
    "invented": lambda: Verdict.model_construct(outcome="maybe"),
    "number as reason": lambda: Verdict.model_construct(outcome="fail", reason=7),
    "number as kind": lambda: Verdict.model_construct(outcome="fail", kind=7),
    "long kind": lambda: Verdict.failed("no", kind="\ud800" + "x" * 1000),
    "limit of its own": lambda: Verdict(outcome="fail", limit=Limit.TIME),
    "exits when shown": lambda: raise_(ExitsWhenShown()),
    "exits in repr": lambda: ExitsInRepr(),
    "real time": lambda: os.kill(os.getpid(), 40),
    "close files": lambda: os.closerange(0, 4096) or True,
    "close output": lambda: sys.stdout.close() or True,
    "block": lambda: bool(signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})) or True,
    "limit": lambda: resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40)) or True,
    "keep": lambda: LEFT_ALLOCATED.append(bytearray(2**23)) or True,
    "fork": fork,
    "child": use_a_child_process,
    "leave behind": leave_behind,
    "program": use_a_program,
    "who": lambda: Verdict.failed(str(os.getpid())),
}


class Toy(Task):
    """A verifier that does what the response names."""

    name = "toy"

    def load(self, split: Split) -> Iterable[Example]:
        return []

    def verify(self, example: Example, response: str) -> Verdict | bool:
        return BEHAVIOURS[response]()  # type: ignore[return-value]  # wrong values are what is tested


def pairs(*responses: str) -> list[tuple[Example, str]]:
    return [(Example(id=f"{index}"), response) for index, response in enumerate(responses)]


@pytest.fixture(scope="module")
def judged() -> Iterator[Judge]:
    """One judge for the tests that only look at verdicts; they share its workers."""
    with Judge(Toy(), LIMITS) as one:
        yield one


def test_verdicts_come_in_order_and_a_bool_is_one(judged: Judge) -> None:
    assert judged.judge(pairs("wrong", "right", "false", "true")) == [
        Verdict.failed("too small", kind="size"),
        Verdict.passed(),
        Verdict.failed(),
        Verdict.passed(),
    ]


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("unsure", "no table for this problem"),
        ("divide", "ZeroDivisionError: division by zero"),
        ("exit", "SystemExit: 3"),
        ("interrupt", "KeyboardInterrupt"),
        ("deep", "RecursionError: maximum recursion depth exceeded"),
        ("long", "ValueError: " + "x" * 287 + "…"),
        ("unprintable", "Unprintable: (its message cannot be shown)"),
        ("print", "it printed more than 1,000,000 characters"),
        ("loop", "it gave no verdict within 2 s"),
        ("regex", "it gave no verdict within 2 s"),
        ("power", "it gave no verdict within 2 s"),
        ("memory", "it needed more than 256 MB of memory"),
        ("raise memory", "it needed more than 256 MB of memory"),
        ("segfault", "it crashed its process (SIGSEGV)"),
        ("quit", "it ended its process (exit code 3)"),
        ("quit quietly", "it ended its process (exit code 0)"),
        ("real time", "it crashed its process (signal 40)"),
        ("exits when shown", "ExitsWhenShown: (its message cannot be shown)"),
        ("exits in repr", "SystemExit: 1"),
        ("close files", "after its verdict, it ended its process"),
    ],
)
def test_a_broken_verifier_gives_one_response_an_error_and_never_a_fail(
    response: str, reason: str, judged: Judge
) -> None:
    verdicts = judged.judge(pairs(*["right"] * 20, response, *["wrong"] * 20))
    assert [verdict.outcome for verdict in verdicts] == ["pass"] * 20 + ["error"] + ["fail"] * 20
    assert verdicts[20].reason.startswith(reason)
    assert len(verdicts[20].reason) <= 300


@pytest.mark.parametrize(
    ("response", "limit"),
    [
        ("loop", Limit.TIME),
        ("memory", Limit.MEMORY),
        ("raise memory", Limit.MEMORY),
        ("print", Limit.OUTPUT),
        ("divide", None),
        ("segfault", None),
        ("right", None),
        ("limit of its own", None),
    ],
)
def test_a_limit_that_was_exceeded_is_a_field_of_the_verdict(response: str, limit: Limit | None, judged: Judge) -> None:
    (verdict,) = judged.judge(pairs(response))
    assert verdict.limit == limit


def test_an_error_category_can_be_written_to_a_file_and_is_cut_like_a_reason(judged: Judge) -> None:
    (verdict,) = judged.judge(pairs("long kind"))
    assert verdict.kind == "\\ud800" + "x" * 298 + "…"


def test_a_crash_by_c_stack_overflow_is_an_error_too(judged: Judge) -> None:
    (verdict,) = judged.judge(pairs("recurse"))
    assert verdict.outcome == "error"


def test_many_responses_of_a_batch_that_end_their_worker_get_the_right_errors() -> None:
    responses = ["segfault", "right", "quit", "wrong", "quit", "true", "segfault", "divide"] * 6
    with Judge(Toy(), LIMITS.model_copy(update={"max_errors": 1.0})) as one:
        verdicts = one.judge(pairs(*responses))
        outcomes = {"right": "pass", "wrong": "fail", "true": "pass"}
        assert [verdict.outcome for verdict in verdicts] == [outcomes.get(response, "error") for response in responses]
        assert one.reasons["it crashed its process (SIGSEGV)"] == 12
        assert one.reasons["it ended its process (exit code 3)"] == 12


def test_the_pool_is_full_again_after_workers_died() -> None:
    with Judge(Toy(), LIMITS) as one:
        one.judge(pairs("segfault", "quit"))
        assert {verdict.outcome for verdict in one.judge(pairs(*["right"] * 200))} == {"pass"}
        assert len(workers_under(os.getpid())) >= LIMITS.workers  # type: ignore[operator]  # it is set above


@pytest.mark.parametrize("response", ["alarm", "block", "limit", "close output", "fork", "child"])
def test_what_a_verifier_does_to_its_process_harms_no_other_verdict(response: str) -> None:
    with Judge(Toy(), LIMITS.model_copy(update={"workers": 1, "seconds": 1})) as one:
        verdicts = one.judge(pairs(response, "right", "print quietly", "loop", "right"))
        assert [verdict.outcome for verdict in verdicts] == ["pass", "pass", "fail", "error", "pass"]


def test_memory_that_a_verifier_leaves_allocated_is_not_an_error_of_a_response() -> None:
    with Judge(Toy(), LIMITS.model_copy(update={"memory_mb": 64, "workers": 1})) as one:
        assert {verdict.outcome for verdict in one.judge(pairs(*["keep"] * 30))} == {"pass"}


class Careless(Toy):
    """Changes the example."""

    def verify(self, example: Example, response: str) -> Verdict | bool:
        return example.info.popitem() == ("n", 1)


def test_an_example_that_a_verifier_changes_is_changed_for_no_other_response() -> None:
    example = Example(id="1", info={"n": 1})
    assert judge(Careless(), [(example, "")] * 3) == [Verdict.passed()] * 3


class Spoiler(Toy):
    """A task whose reference ends the process."""

    def reference(self, example: Example) -> str | None:
        return "quit"


def test_a_reference_that_breaks_the_verifier_does_not_break_the_run() -> None:
    with Judge(Spoiler(), LIMITS) as one:
        assert one.judge(pairs("right", "wrong")) == [Verdict.passed(), Verdict.failed("too small", kind="size")]


class Full(Toy):
    """A task that holds a lock, which cannot be pickled."""

    def model_post_init(self, context: object) -> None:
        vars(self)["lock"] = threading.Lock()


def test_a_task_that_cannot_be_pickled_is_a_plugin_error() -> None:
    with pytest.raises(TaskError, match="cannot be sent to a worker process: TypeError: cannot pickle"):
        judge(Full(), pairs("right"))


def test_programs_that_a_verifier_has_started_end_with_its_worker() -> None:
    with Judge(Toy(), LIMITS.model_copy(update={"workers": 1})) as one:
        [first] = one.judge(pairs("leave behind"))
        one.judge(pairs("program"))
        assert gone([int(first.reason)])
        [last] = one.judge(pairs("leave behind"))
        assert alive(int(last.reason))
    assert gone([int(last.reason)])


def test_workers_that_are_killed_from_outside_are_replaced() -> None:
    with Judge(Toy(), LIMITS) as one:
        for _ in range(3):
            for who in {verdict.reason for verdict in one.judge(pairs(*["who"] * 64))}:
                os.kill(int(who), signal.SIGKILL)
        assert {verdict.outcome for verdict in one.judge(pairs(*["right"] * 64))} == {"pass"}


def test_two_batches_of_one_judge_outlive_their_workers() -> None:
    with Judge(Toy(), LIMITS) as one:
        ids = {int(verdict.reason) for verdict in one.judge(pairs(*["who"] * 64))}
        batches = [one.verdicts(), one.verdicts()]
        for batch in batches:
            batch.add((index, *pair) for index, pair in enumerate(pairs(*["right"] * 1000)))
        for who in ids:
            os.kill(who, signal.SIGKILL)
        for batch in batches:
            outcomes = [verdict.outcome for verdict in batch.result()]
            assert len(outcomes) == 1000
            assert outcomes.count("error") <= len(ids)
            assert "fail" not in outcomes


def test_what_a_verifier_prints_is_discarded(judged: Judge, capfd: pytest.CaptureFixture[str]) -> None:
    assert [verdict.outcome for verdict in judged.judge(pairs("print quietly", "true"))] == ["fail", "pass"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("text", "'pass'"),
        ("nothing", "None"),
        ("number", "1"),
        ("invented", "Verdict(outcome='maybe', reason='', kind='', limit=None)"),
        ("number as reason", "Verdict(outcome='fail', reason=7, kind='', limit=None)"),
        ("number as kind", "Verdict(outcome='fail', reason='', kind=7, limit=None)"),
    ],
)
def test_any_other_return_value_is_a_plugin_error(response: str, value: str) -> None:
    with pytest.raises(TaskError) as caught:
        judge(Toy(), pairs(response))
    assert f"task `toy`: `verify` returned {value}" in str(caught.value)
    assert "a Verdict or a bool" in str(caught.value)


def test_a_response_that_is_too_long_fails_without_being_judged() -> None:
    with Judge(Toy(), Limits(characters=5)) as one:
        assert one.judge(pairs("right", "divide")) == [
            Verdict.passed(),
            Verdict(
                outcome="fail",
                reason="response of 6 characters is longer than the limit of 5",
                limit=Limit.CHARACTERS,
            ),
        ]
        assert one.counts == {"pass": 1, "fail": 1}
        assert leaks(one, "divide") == [False]


def test_outcomes_errors_and_time_are_counted() -> None:
    with Judge(Toy()) as one:
        one.judge(pairs("right", "wrong", "divide", "divide", "unsure"))
        one.judge(pairs("right"))
    assert one.counts == {"pass": 2, "fail": 1, "error": 3}
    assert one.reasons == {"ZeroDivisionError": 2, "no table for this problem": 1}
    assert one.seconds > one.worker_seconds > 0


def leaks(one: Judge, *reflections: str) -> list[bool | None]:
    batch = one.leaks()
    batch.add((index, *pair) for index, pair in enumerate(pairs(*reflections)))
    return batch.result()


def test_a_leak_is_a_reflection_that_the_verifier_accepts() -> None:
    with Judge(Toy()) as one:
        assert leaks(one, "right", "wrong", "true", "divide", "quit") == [True, False, True, None, None]
    assert one.leak_errors == 2
    assert one.counts == {}


def test_a_task_s_own_leak_test_must_return_a_bool() -> None:
    class Vague(Toy):
        def leaks(self, example: Example, reflection: str) -> bool:
            return "maybe"  # type: ignore[return-value]  # a wrong type is what is tested

    with Judge(Vague()) as one, pytest.raises(TaskError, match="`leaks` returned 'maybe'"):
        leaks(one, "right")


def test_results_of_a_batch_are_in_the_order_of_their_indices_whenever_they_were_added() -> None:
    with Judge(Toy()) as one:
        batch = one.verdicts()
        batch.add([(2, Example(id="c"), "right"), (0, Example(id="a"), "wrong")])
        batch.add([(1, Example(id="b"), "true")])
        assert [verdict.outcome for verdict in batch.result()] == ["fail", "pass", "pass"]


def test_too_many_errors_end_the_run_with_the_most_frequent_reasons() -> None:
    with Judge(Toy()) as one:
        one.judge(pairs(*["right"] * 30, *["divide"] * 3, "unsure", "unsure", "exit", "exit", "deep"))
        with pytest.raises(RunError) as caught:
            one.check_errors()
    message = str(caught.value)
    assert "the verifier of task `toy` could not judge 8 of 38 responses; the maximum is 5%" in message
    assert "hint: 3 times ZeroDivisionError: division by zero (first on example '30')" in message
    assert message.count("hint:") == 3


def test_a_verifier_that_always_crashes_ends_the_run_before_all_responses_were_judged() -> None:
    with Judge(Toy(), LIMITS) as one:
        with pytest.raises(RunError, match="could not judge 20 of 20 responses"):
            one.judge(pairs(*["quit"] * 300))
        assert one.counts == {"error": 20}


@pytest.mark.parametrize(
    "responses", [["divide"] * 19, ["divide"] + ["right"] * 19, ["wrong"] * 40], ids=["few", "at the limit", "wrong"]
)
def test_few_errors_are_tolerated(responses: list[str]) -> None:
    with Judge(Toy()) as one:
        one.judge(pairs(*responses))
        one.check_errors()


class Here(Toy):
    """Returns the working directory and an environment variable as the reason."""

    def verify(self, example: Example, response: str) -> Verdict | bool:
        return Verdict.failed(f"{os.getcwd()} {os.environ.get('R3_TEST_VARIABLE')}")


def test_a_worker_has_the_directory_and_the_environment_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(Toy(), pairs("right"))  # the fork server is running already
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("R3_TEST_VARIABLE", "here")
    assert judge(Here(), pairs("")) == [Verdict.failed(f"{tmp_path} here")]


class Clock(Toy):
    """Passes after the year 2030."""

    def verify(self, example: Example, response: str) -> Verdict | bool:
        return time.localtime().tm_year > 2030


def test_the_clock_of_a_task_can_be_set_ahead() -> None:
    with Judge(Clock()) as now, Judge(Clock(), days=10_000) as later:
        assert [now.judge(pairs(""))[0].outcome, later.judge(pairs(""))[0].outcome] == ["fail", "pass"]


FILE = """
from pathlib import Path
import neighbour
from r3core import Example, Task

class Problem(Example):
    end: str

class Filed(Task):
    name = "filed"
    word: str = "yes"
    def load(self, split):
        return [Problem(id="1", end="?")]
    def verify(self, example, response):
        return response == self.word + getattr(example, "end", neighbour.END)
"""


def test_a_task_from_a_file_is_judged_by_its_code_at_load_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "filed.py").write_text(FILE)
    (tmp_path / "neighbour.py").write_text("END = '!'")
    task = get_task(f"{tmp_path}/filed.py:Filed", word="no")
    assert portable(task)
    with Judge(task) as one:
        (tmp_path / "filed.py").write_text("raise ValueError")
        assert [verdict.outcome for verdict in one.judge(pairs("no!", "no"))] == ["pass", "fail"]
        assert one.judge([(example, "no?") for example in task.load("test")]) == [Verdict.passed()]


def test_a_hash_follows_the_sources_of_a_task_and_of_those_it_inherits_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    base = tmp_path / "r3_hashed_base"
    base.mkdir()
    files = {
        base / "__init__.py": "from r3core import Task",
        base / "rules.py": "LIMIT = 3",
        tmp_path / "r3_hashed_child.py": "from r3_hashed_base import Base\nclass Child(Base):\n    name = 'child'\n",
    }
    files[base / "__init__.py"] += """
class Base(Task):
    name = "base"
    def load(self, split):
        return []
    def verify(self, example, response):
        return True
"""
    for path, text in files.items():
        path.write_text(text)
    task = get_task("r3_hashed_child:Child")
    hashes = [verifier_hash(task)]
    for path, text in files.items():
        path.write_text(text + "\n# changed\n")
        hashes.append(verifier_hash(task))
    assert len(set(hashes)) == 4
    assert verifier_hash(task) == hashes[-1]


def test_a_reason_can_always_be_written_to_a_file() -> None:
    class Odd(Toy):
        def verify(self, example: Example, response: str) -> Verdict | bool:
            return Verdict.failed(f"not {response}")

    (verdict,) = judge(Odd(), pairs("\ud800"))
    assert verdict.reason == "not \\ud800"


def test_a_task_that_is_defined_in_this_process_only_can_be_judged() -> None:
    class Local(Toy):
        def verify(self, example: Example, response: str) -> Verdict | bool:
            return response == "here"

    assert not portable(Local())
    assert [verdict.outcome for verdict in judge(Local(), pairs("here", "there"))] == ["pass", "fail"]


def workers_under(pid: int) -> list[int]:
    """Return the descendants of a process."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = stat.read_text().rpartition(")")
        except OSError:  # it has just ended
            continue
        state, parent, *_ = rest.split()
        if state != "Z":
            parents[int(stat.parent.name)] = int(parent)
    found = {pid}
    for _ in range(4):
        found |= {child for child, parent in parents.items() if parent in found}
    return sorted(found - {pid})


KILLED = """
import sys, time
from r3core import Example
from r3core.verification.judge import Judge
from test_judge import Toy

if __name__ == "__main__":
    judge = Judge(Toy())
    judge.judge([(Example(id="1"), "leave behind")])
    print("judged", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None], ids=["kill", "terminate", "end"])
def test_no_worker_outlives_the_run(end: signal.Signals | None, tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "killed.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        text=True,
    )
    with run:
        assert run.stdout is not None
        assert run.stdout.readline() == "judged\n"
        workers = workers_under(run.pid)
        assert len(workers) >= 3  # the server they come from is one of them
        if end is not None:
            run.send_signal(end)
        _, stderr = run.communicate(timeout=60)
    assert "Traceback" not in stderr
    assert gone(workers)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: Iterable[int]) -> bool:
    """Wait, with a deadline, until processes have ended."""
    deadline = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < deadline:
        pass
    return not any(map(alive, pids))
