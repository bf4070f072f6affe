"""Write files that a kill cannot leave half written, and name contents by their hash."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace a file's content in one step, and create its folder if it is missing.

    Readers, and whoever comes after a kill or a power failure, find the old content or the new one. A kill may leave
    `.NAME.PID.partial` beside the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps apart processes that write the same file at once, such as a cached certificate.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # before the rename, which may reach the disk earlier than the content
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def cut_off_torn_row(path: Path) -> None:
    """Truncate a file of rows after its last newline: what follows was not written completely."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            file.truncate(end)
            os.fsync(file.fileno())


def digest(content: str | bytes, *, length: int = 64) -> str:
    """Return the first `length` hexadecimal digits of a content's SHA-256; text is hashed as UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:length]
