"""The options of an OpenAI-compatible server: its URL, how requests are sent, and the key that no file may contain."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import Field

from r3core.engine import EngineOptions
from r3core.errors import ConfigError

if TYPE_CHECKING:
    from r3core.config import Config

OPENAI = "https://api.openai.com/v1"
KEY = "OPENAI_API_KEY"
"""The environment variable with the key."""
_URL = "OPENAI_BASE_URL"
_SECRET = re.compile(r"(api|access|secret).?(key|token)|authorization|password|secret|^key$|^token$", re.IGNORECASE)
_EFFORT = "reasoning_effort"
_OWNED = (
    *("model", "messages", "tools", "n", "stream", "seed", "logprobs"),
    *("temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens"),
)  # what r3 sets in every request


class ServerOptions(EngineOptions):
    """The `engine_options` of the engine."""

    base_url: str | None = None
    """URL of the server, up to the path before `/chat/completions`; null takes OPENAI_BASE_URL, or OpenAI itself."""
    concurrency: int = Field(default=64, gt=0, le=1000)
    """Maximum number of open requests."""
    timeout: float = Field(default=600, gt=0, allow_inf_nan=False)
    """Seconds without a byte of the response after which a request is retried."""
    max_retries: int = Field(default=8, ge=0)
    """Maximum number of retries of a request after 429, 5xx, a timeout, a lost connection or a malformed response."""
    extra_body: dict[str, Any] = {}
    """Further fields of every request, for options of the server that OpenAI's API does not have."""

    @property
    def address(self) -> str:
        """The URL that requests go to; ConfigError when it is not valid, or would write a secret into the run."""
        name, url = "engine_options.base_url", self.base_url
        if url is None:
            name, url = _URL, os.environ.get(_URL) or OPENAI
        try:
            parts = urlsplit(url)
            complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            complete = False
        if "@" in url or "?" in url or "#" in url:
            raise ConfigError(
                f"`{name}` is refused: it contains a user, a password, a query or a fragment",
                f"put the key into the environment variable {KEY}",
            )
        if not complete:
            raise ConfigError(f"`{name}` cannot be {url!r}: it should be a URL", "for example http://localhost:8000/v1")
        return url.rstrip("/")

    @property
    def is_openai(self) -> bool:
        """Whether it is OpenAI's own server."""
        return urlsplit(self.address).hostname == urlsplit(OPENAI).hostname

    def key(self) -> str:
        """Return the key; a placeholder where none is set, except for OpenAI, where that is a ConfigError."""
        key = os.environ.get(KEY, "").strip()
        if not key and self.is_openai:
            raise ConfigError(
                f"requests go to {self.address}, and the environment variable {KEY} is not set",
                "set it, or name another server: --set engine_options.base_url=http://localhost:8000/v1",
            )
        return key or "no-key"


def check_template(config: Config, server: ServerOptions) -> None:
    """Raise ConfigError for options of the chat template that a server does not take."""
    if config.chat_template is not None:
        raise ConfigError(
            f"engine `{config.engine}`: the chat template is the server's, so `chat_template` has no effect",
            "start the server with another template (vLLM: --chat-template FILE)",
        )
    if config.template and "chat_template_kwargs" in server.extra_body:
        raise ConfigError(
            "`template` and `engine_options.extra_body.chat_template_kwargs` are both set", "leave out the latter"
        )
    if server.is_openai and (others := sorted(config.template.keys() - {_EFFORT})):
        raise ConfigError(
            f"`template.{others[0]}` is refused: requests go to {server.address}, which takes template.{_EFFORT} alone",
            "name another server: --set engine_options.base_url=http://localhost:8000/v1",
        )


def refuse_secrets(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for an option that looks like a key, or that r3 sets in every request.

    It comes before all other checks, whose errors show the value of an option.
    """
    extra = options.get("extra_body")
    body: dict[Any, Any] = extra if isinstance(extra, dict) else {}
    for prefix, names in (("engine_options.", options), ("engine_options.extra_body.", body)):
        for name in map(str, names):
            if _SECRET.search(name):
                raise ConfigError(
                    f"`{prefix}{name}` is refused: it would be written into the run directory",
                    f"set the environment variable {KEY} instead",
                )
    for name in body:
        if name in _OWNED:
            raise ConfigError(
                f"`engine_options.extra_body.{name}` is refused: r3 sets it in every request",
                "sampling parameters are set under `sampling`, the model with --model",
            )
