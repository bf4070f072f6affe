"""The objectives of training by name: those of r3core, and those of plugins, by the hook `r3_objectives`."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from r3core.errors import ConfigError, TaskError, did_you_mean
from r3core.objective import OBJECTIVES, Objective
from r3core.plugins.discovery import GROUP, Broken, broken_plugin, returned_by


def find_objective(name: str) -> Objective:
    """Return the objective of a name, the value of `train.objective`; ConfigError for an unknown name."""
    if name in OBJECTIVES:  # without a look at all installed distributions
        return OBJECTIVES[name]
    found, broken = objectives()
    if name in found:
        return found[name]
    faults = [f"the objectives of {one.distribution} {one.version} are broken: {one.reason}" for one in broken]
    raise ConfigError(
        f"`train.objective` cannot be {name!r}: available are {', '.join(sorted(found))}",
        *did_you_mean(name, list(found)),
        *faults,
    )


def objectives() -> tuple[dict[str, Objective], list[Broken]]:
    """Return the objectives by name, and the plugins whose objectives cannot be used; no plugin replaces another's."""
    found, broken = dict(OBJECTIVES), []
    for entry in entry_points(group=GROUP):
        try:
            for one in _objectives_of(entry):
                if found.setdefault(one.name, one) != one:
                    raise TaskError(f"its objective `{one.name}` has the name of another one")
        except TaskError as error:
            broken.append(broken_plugin(entry, error))
    return found, broken


def _objectives_of(entry: EntryPoint) -> list[Objective]:
    found = returned_by(entry, "r3_objectives")
    for value in found:
        if not isinstance(value, Objective):
            raise TaskError(f"its hook `r3_objectives` returned something that is not an objective: {value!r:.100}")
    return found
