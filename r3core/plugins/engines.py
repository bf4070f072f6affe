"""The installed engines by name: those of r3core and those of plugins, all found through the hook `r3_engines`."""

from __future__ import annotations

import inspect
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from r3core.engine import Engine, EngineOptions
from r3core.errors import ConfigError, TaskError, did_you_mean
from r3core.plugins.discovery import GROUP, Broken, broken_plugin, returned_by

if TYPE_CHECKING:
    from r3core.config import Config

_CORE = EntryPoint(name="r3core", value="r3core.generation.builtin", group=GROUP)
"""The plugin with the engines of r3core itself: found like any other, and there without an installed distribution."""


def engines() -> tuple[dict[str, type[Engine]], list[Broken]]:
    """Return the usable engines by name, and the plugins whose engines are not usable.

    A plugin that fails stops no other. Those of r3core come first, and no plugin can replace an engine of an earlier
    one.
    """
    found: dict[str, type[Engine]] = {}
    broken: list[Broken] = []
    for entry in [_CORE, *entry_points(group=GROUP)]:
        try:
            for engine in _engines_of(entry):
                if found.setdefault(engine.name, engine) is not engine:
                    other = f"{found[engine.name].__module__}:{found[engine.name].__qualname__}"
                    raise TaskError(f"its engine `{engine.name}` has the same name as {other}")
        except TaskError as error:
            broken.append(broken_plugin(entry, error))
    return found, broken


def find_engine(name: str, *, key: str = "engine") -> type[Engine]:
    """Return the engine class of a name, the value of a configuration key; ConfigError when it cannot be used."""
    for engine in _engines_of(_CORE):  # without a look at all installed distributions
        if engine.name == name:
            return engine
    found, broken = engines()
    if name in found:
        return found[name]
    for one in broken:
        if name in (one.name, one.distribution.removeprefix("r3-plugin-")):
            raise ConfigError(f"the engine `{name}` of {one.distribution} {one.version} is broken: {one.reason}")
    hints = did_you_mean(name, list(found)) or (f"pip install r3-plugin-{name}",)
    raise ConfigError(f"`{key}` cannot be {name!r}: installed are {', '.join(sorted(found))}", *hints)


def engine_of(config: Config) -> Engine:
    """Return the engine of a configuration; ConfigError when it or one of its options is not valid."""
    return find_engine(config.engine)(config)


def checked_engine(config: Config) -> Engine:
    """Return the engine of a configuration after every check that is possible before any work starts."""
    engine = engine_of(config)
    engine.check()
    return engine


def _engines_of(entry: EntryPoint) -> list[type[Engine]]:
    found = returned_by(entry, "r3_engines")
    for value in found:
        if fault := _fault_of(value):
            raise TaskError(f"its hook `r3_engines` returned something that is not an engine: {fault}")
    return found


def _fault_of(value: Any) -> str | None:
    """Return why a value is not a usable engine class, None when it is one."""
    if not isinstance(value, type) or not issubclass(value, Engine):
        return f"{value!r} is not a subclass of `r3core.Engine`"
    if not isinstance(getattr(value, "name", None), str):
        return f"`{value.__qualname__}` has no class attribute `name`"
    if inspect.isabstract(value):
        return f"`{value.__qualname__}` does not define {', '.join(f'`{name}`' for name in value.__abstractmethods__)}"
    if not (isinstance(value.Options, type) and issubclass(value.Options, EngineOptions)):
        return f"`{value.__qualname__}.Options` is not a subclass of `r3core.engine.EngineOptions`"
    if unknown := set(value.places) - value.Options.model_fields.keys():
        return f"`{value.__qualname__}.places` names no options: {', '.join(sorted(unknown))}"
    return None
