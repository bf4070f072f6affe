"""What a run ran on: versions, machine, time and command, as recorded in environment.json."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

_LIBRARIES = ("r3core", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "tokenizers", "numpy")


def environment() -> dict[str, Any]:
    """Return versions, machine and time; the libraries are not imported."""
    plugins = {point.dist.name: point.dist.version for point in metadata.entry_points(group="r3") if point.dist}
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "plugins": dict(sorted(plugins.items())),
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name))},
        "command": sys.argv,
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
