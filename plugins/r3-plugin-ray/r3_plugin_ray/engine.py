"""The `ray` engine: mining and evaluation on a Ray cluster, with another engine in each of its actors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from r3core import hookimpl
from r3core.engine import Engine, EngineOptions
from r3core.errors import ConfigError
from r3core.plugins.engines import find_engine

if TYPE_CHECKING:
    from r3core.config import Config
    from r3core.executor import Executor
    from r3core.generation.generator import Generator
    from r3core.protocol import Protocol
    from r3core.runs import Run


class RayOptions(EngineOptions):
    """The cluster, and the resources and the engine of each of its actors."""

    engine: str = "transformers"
    """The engine of each actor."""
    engine_options: dict[str, Any] = {}
    """The options of that engine."""
    address: str | None = None
    """The cluster, as HOST:PORT; null takes the one that this machine belongs to, or starts one on this machine."""
    actors: int | None = Field(default=None, gt=0)
    """Number of actors; null takes the number that fits the cluster. Those that do not fit wait for nodes to join."""
    cpus: float = Field(default=2, gt=0)
    """CPU cores per actor; its verifier has one worker on each, unless `judge.workers` is set."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs per actor; null takes one where the cluster has GPUs."""
    patience: float = Field(default=60, ge=0)
    """Seconds to wait for a lost node to return, before the remaining ones share its batches."""


class RayEngine(Engine):
    """Runs batches on a Ray cluster, whose actors generate with another engine."""

    name = "ray"
    Options = RayOptions
    places = frozenset({"address", "actors", "cpus", "gpus", "patience"})
    options: RayOptions

    def __init__(self, config: Config) -> None:
        """Validate the options, and those of the actors' engine."""
        super().__init__(config)
        name = self.options.engine
        if name == self.name:
            raise ConfigError(f"`engine_options.engine` cannot be {name!r}: it is the engine of each actor")
        workers = config.judge.workers or max(1, int(self.options.cpus))
        inner: dict[str, Any] = {"engine": name, "engine_options": self.options.engine_options}
        inner["judge"] = config.judge.model_copy(update={"workers": workers})
        self.actors_engine = find_engine(name, key="engine_options.engine")(config.model_copy(update=inner))

    @property
    def local(self) -> bool:
        """That of the actors' engine."""
        return self.actors_engine.local

    def check(self) -> None:
        """Raise ConfigError for an address of Ray's client, and for what the actors' engine refuses."""
        address = self.options.address
        if address is not None and "://" in address:
            raise ConfigError(
                f"`engine_options.address` cannot be {address!r}: it should be HOST:PORT",
                "run r3 on a machine of the cluster, or submit the command there with `ray job submit`",
            )
        self.actors_engine.check()

    def open(self, model: str, *, run: Run | None = None) -> Generator:
        """Return a generator of the actors' engine in this process, as each actor has one."""
        return self.actors_engine.open(model, run=run)

    def executor(self, protocol: Protocol) -> Executor:
        """Return what runs batches on the cluster."""
        from r3_plugin_ray.executor import RayExecutor

        return RayExecutor(protocol.task, self.options, self.actors_engine.config)


@hookimpl
def r3_engines() -> list[type[Engine]]:
    """Return the engine of this plugin."""
    return [RayEngine]
