from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from r3core.files import atomic_write, digest


def test_a_write_makes_the_folder_and_replaces_the_content(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file"
    atomic_write(file, "é")
    assert file.read_bytes() == "é".encode()
    atomic_write(file, b"\xff")
    assert file.read_bytes() == b"\xff"
    assert list(file.parent.iterdir()) == [file]


def test_a_reader_that_has_opened_the_old_file_reads_it_whole(tmp_path: Path) -> None:
    file = tmp_path / "file"
    atomic_write(file, "old" * 10_000)
    with file.open() as opened:
        atomic_write(file, "new")
        assert opened.read() == "old" * 10_000
    assert file.read_text() == "new"


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    atomic_write(file, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(file, "\udcff")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_content_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, bool]] = []
    fsync = os.fsync

    def recording(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_size, (tmp_path / "file").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording)
    atomic_write(tmp_path / "file", "12345")
    assert synced == [(5, False)]


def test_a_digest_is_the_start_of_the_sha_256() -> None:
    assert digest("é") == digest("é".encode()) == hashlib.sha256("é".encode()).hexdigest()
    assert digest("é", length=8) == digest("é")[:8]
