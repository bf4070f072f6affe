"""The plugin of r3core itself: the engines that need no other distribution than what r3core may install."""

from __future__ import annotations

from r3core.engine import Engine
from r3core.generation.transformers import TransformersEngine
from r3core.generation.vllm import VllmEngine
from r3core.hookspecs import hookimpl


@hookimpl
def r3_engines() -> list[type[Engine]]:
    """Return the engines of r3core."""
    return [TransformersEngine, VllmEngine]
