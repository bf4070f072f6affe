"""A command of r3 in the process of the test: what it is called with, and what it leaves behind."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from r3core.cli.main import main


class Said(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


R3 = Callable[..., Said]


def succeed(*arguments: object) -> None:
    """Run a command that has to succeed; for fixtures that several tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["r3", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert not stopped.value.code


def runner(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path) -> R3:
    """Return a function that runs a command in a directory, offline, with `stdin` as its standard input."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def r3(*arguments: object, stdin: bytes = b"") -> Said:
        monkeypatch.setattr(sys, "argv", ["r3", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capfd.readouterr()
        return Said(int(stopped.value.code or 0), out, err)

    return r3
