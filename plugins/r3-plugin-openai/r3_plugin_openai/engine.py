"""The `openai` engine: a model behind an OpenAI-compatible server, such as vLLM's or a hosted one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from r3_plugin_openai.client import OpenAIGenerator
from r3_plugin_openai.completion_cache import CompletionCache
from r3_plugin_openai.server import ServerOptions, check_template, refuse_secrets
from r3core import hookimpl
from r3core.engine import Engine, EngineOptions
from r3core.errors import ConfigError

if TYPE_CHECKING:
    from typing import Any

    from r3core.runs import Run


class OpenAIEngine(Engine):
    """Generates by requests to an OpenAI-compatible server."""

    name = "openai"
    Options = ServerOptions
    options: ServerOptions

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> EngineOptions:
        """Return validated options; ConfigError never repeats a key that was put among them."""
        refuse_secrets(options)
        return super().parse(options)

    @property
    def local(self) -> bool:
        """False: the server has the model's files and its chat template."""
        return False

    def check(self) -> None:
        """Raise ConfigError when the URL of the server is not valid, or refuses options of the template."""
        _ = self.options.address
        if self.config.history == "verbatim":
            raise ConfigError(
                "`history` cannot be verbatim with engine `openai`: a server renders earlier turns by its template",
                "choose template or answer, or an engine that loads the model here",
            )
        check_template(self.config, self.options)

    def open(self, model: str, *, run: Run | None = None) -> OpenAIGenerator:
        """Return a generator for one of the server's models; with a run, completions are cached in its directory.

        Raises:
            ConfigError: the server requires a key, and none is set.
        """
        self.check()
        self.options.key()
        cache = CompletionCache(run) if run is not None else None
        return OpenAIGenerator(model, self.options, template=self.config.template, cache=cache)


@hookimpl
def r3_engines() -> list[type[Engine]]:
    """Return the engine of this plugin."""
    return [OpenAIEngine]
