"""The command `r3 view`: what it opens, what it serves, and what it refuses."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path

import pytest
from command import R3
from records import episode, write_run

from r3core.cli.view_command import has_desktop

_NO_DESKTOP = dict.fromkeys(("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION", "SSH_TTY"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", mined=[episode("a", "fail")], base=[episode("b")])


def started(*arguments: object, **variables: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key not in _NO_DESKTOP} | variables
    command = [sys.executable, "-m", "r3core", "view", *map(str, arguments)]
    # a shell starts background jobs with SIGINT ignored, and children inherit that; a handler is reset in the child
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.processes
@pytest.mark.parametrize("arguments", [[], ["--serve"]])
def test_without_a_desktop_the_page_is_served_until_ctrl_c(run: Path, arguments: list[str]) -> None:
    with started(run, *arguments) as process:
        assert process.stdout
        found = re.fullmatch(r"http://127\.0\.0\.1:([0-9]+)/ .*\n", process.stdout.readline())
        assert found
        assert f"-L {found[1]}:127.0.0.1:{found[1]} " in process.stdout.readline()
        connection = HTTPConnection("127.0.0.1", int(found[1]), timeout=10)
        connection.request("GET", "/")
        content = connection.getresponse().read()
        connection.close()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert content == (run / "report.html").read_bytes()


@pytest.mark.processes
def test_a_run_in_progress_is_served_and_its_directory_gets_no_page_that_reloads(run: Path) -> None:
    (run / "stages" / "evaluate.json").unlink()
    (run / ".lock.pid").write_text(str(os.getpid()))
    with started(run, DISPLAY=":0", BROWSER=sys.executable) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 0
    assert not (run / "report.html").exists()


@pytest.mark.processes
def test_on_a_desktop_the_page_of_a_finished_run_is_opened(run: Path, tmp_path: Path) -> None:
    opener = tmp_path / "opener"
    opener.write_text(f'#!/bin/sh\nprintf %s "$1" > {tmp_path / "opened"}\n')
    opener.chmod(0o755)
    with started(run, DISPLAY=":0", BROWSER=f"{opener} %s") as process:
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, f"page: {run / 'report.html'}\n", "")
    assert (tmp_path / "opened").read_text() == (run / "report.html").as_uri()


def test_the_page_of_several_runs_goes_to_the_given_file(run: Path, r3: R3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _NO_DESKTOP:
        monkeypatch.delenv(name, raising=False)
    other = write_run(run.parent / "other", base=[episode("c")])
    shown = r3("view", run, other, run, "--output", "both.html")
    assert (shown.code, shown.out, shown.err) == (0, "page: both.html\n", "")
    page = Path("both.html").read_text()
    assert "run" in page
    assert "other" in page
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("folder", ["missing", "empty", "file"])
def test_a_folder_that_is_no_run_is_an_error(r3: R3, tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    shown = r3("view", folder)
    assert shown.code == 2
    assert f"{folder}` is not a run directory" in shown.err
    assert "hint:" in shown.err


def test_a_port_out_of_range_is_an_error(r3: R3, run: Path) -> None:
    shown = r3("view", run, "--port", 70000)
    assert shown.code == 2
    assert "65535" in shown.err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no such variables")
@pytest.mark.parametrize(
    "variables",
    [{}, {"DISPLAY": ":0", "SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}, {"DISPLAY": ":0", "SSH_TTY": "/dev/pts/0"}],
)
def test_a_terminal_and_ssh_are_no_desktop(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in _NO_DESKTOP:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert not has_desktop()
