"""Threads that wait: asleep by default, and as the user sets it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from r3core.threads import OF_THE_USER, let_threads_sleep


def test_waiting_threads_sleep_by_default() -> None:
    environ = {"OMP_NUM_THREADS": "3"}
    let_threads_sleep(environ)
    assert environ == {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize("name", OF_THE_USER)
def test_a_setting_of_the_user_stands(name: str) -> None:
    environ = {name: "1"}
    let_threads_sleep(environ)
    assert environ == {name: "1"}


@pytest.mark.processes
@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_a_command_sets_it_before_torch_is_imported(given: dict[str, str], policy: str) -> None:
    """A copy of OpenMP that torch loads reads it then, and prints what it has read."""
    program = (
        "import sys; sys.argv = ['r3', '--version']\n"
        "from r3core.cli.main import main\n"
        "assert 'torch' not in sys.modules\n"
        "try: main()\n"
        "except SystemExit: import torch\n"
    )
    clean = {name: value for name, value in os.environ.items() if name not in OF_THE_USER}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=clean | {"OMP_DISPLAY_ENV": "TRUE"} | given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"OMP_WAIT_POLICY = '{policy}'" in ended.stderr
