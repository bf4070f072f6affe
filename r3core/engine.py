"""What the author of an engine reads: an `Engine` has a name, options of its own, and opens generators.

A plugin lists its engine classes in the hook `r3_engines`; the engines of r3core itself come through the same hook.
Outside an engine's own module nothing depends on its name: what the rest of r3 has to know is an attribute here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict, ValidationError

from r3core.errors import ConfigError, did_you_mean
from r3core.task import Frozen

if TYPE_CHECKING:
    from r3core.config import Config
    from r3core.executor import Executor
    from r3core.generation.generator import Generator
    from r3core.protocol import Protocol
    from r3core.runs import Run


class EngineOptions(Frozen):
    """The `engine_options` of an engine; the string under a field is its description in the reference."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Engine(ABC):
    """What generates a run's text; `engine` names it, `engine_options` are its options.

    An instance belongs to one configuration. Making one validates the options and starts nothing; the model is loaded
    by `open`:

        class Echo(Engine):
            name = "echo"

            def open(self, model, *, run=None):
                return ScriptedGenerator(lambda conversation, index: conversation.messages[-1]["content"])

        @r3core.hookimpl
        def r3_engines():
            return [Echo]
    """

    name: ClassVar[str]
    Options: ClassVar[type[EngineOptions]] = EngineOptions
    """The options of the engine; by default there are none."""
    places: ClassVar[frozenset[str]] = frozenset()
    """Options that decide where the engine works and not what it generates: a run may be resumed with other values."""
    training: ClassVar[Mapping[str, Any]] = {}
    """Options of TRL's GRPOConfig that follow from the choice of this engine; those under `grpo` come first."""
    in_process: ClassVar[bool] = False
    """Whether its generators are `TransformersGenerator`s, whose model is in the memory of this process."""

    def __init__(self, config: Config) -> None:
        """Validate the options of a configuration; ConfigError for one that is unknown or not allowed."""
        self.config = config
        self.options: Any = self.parse(config.engine_options)

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> EngineOptions:
        """Return validated options; ConfigError names the first that is unknown or not allowed."""
        try:
            return cls.Options.model_validate(dict(options))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = sorted(cls.Options.model_fields)
            has = f"its options: {', '.join(known)}" if known else "it has no options"
            raise ConfigError(f"the engine `{cls.name}` has no option `{name}`; {has}", *did_you_mean(name, known))
        reason = first["msg"].removeprefix("Value error, ").replace("Input should", "it should")
        raise ConfigError(f"`engine_options.{name}` cannot be {first['input']!r}: {reason}")

    @property
    def local(self) -> bool:
        """Whether the model's files are read on this machine, so that it can be trained and has its tokenizer here.

        A model that is not local is behind a server, which has its chat template, and must be named by `model`.
        """
        return True

    def check(self) -> None:  # noqa: B027  an engine need not check more than its options' values
        """Raise ConfigError for what the options' types do not show; also called by `--dry-run`, before any work."""

    @abstractmethod
    def open(self, model: str, *, run: Run | None = None) -> Generator:
        """Return a generator for a local folder, a Hub model or a server's model; UsageError when it cannot be loaded.

        `run` is where an engine may store what it would otherwise pay for again when the run is resumed.
        """

    def executor(self, protocol: Protocol) -> Executor | None:
        """Return what runs batches on other machines; by default None, and they are run in this process."""
        return None
