"""A server that speaks OpenAI's protocol: where it is, how it is asked, and the key that no file may hold."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, ValidationError

from r3core.config import Config, Section, explained
from r3core.errors import ConfigError

OPENAI = "https://api.openai.com/v1"
KEY = "OPENAI_API_KEY"
"""The environment variable with the key."""
_URL = "OPENAI_BASE_URL"
_SECRET = re.compile(r"(api|access|secret).?(key|token)|authorization|password|secret|^key$|^token$", re.IGNORECASE)
_OURS = (
    *("model", "messages", "tools", "n", "stream", "seed", "logprobs"),
    *("temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens"),
)


class Server(Section):
    """The engine_options of `engine: openai`."""

    base_url: str | None = None
    """Where the server is, with the path before `/chat/completions`; null takes OPENAI_BASE_URL, or OpenAI itself."""
    concurrency: int = Field(default=64, gt=0, le=1000)
    """At most so many requests are open at once."""
    timeout: float = Field(default=600, gt=0, allow_inf_nan=False)
    """Seconds without a byte of the answer after which a request is made again."""
    max_retries: int = Field(default=8, ge=0)
    """How often a request is made again after 429, 5xx, a time-out, a lost connection or a garbled answer."""
    extra_body: dict[str, Any] = {}
    """Sent with every request, for what the server knows beyond OpenAI's protocol."""

    @property
    def address(self) -> str:
        """The URL that requests go to; ConfigError when it is none, or would bring a secret into the run directory."""
        name, url = "engine_options.base_url", self.base_url
        if url is None:
            name, url = _URL, os.environ.get(_URL) or OPENAI
        try:
            parts = urlsplit(url)
            whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            whole = False
        if "@" in url or "?" in url or "#" in url:
            raise ConfigError(
                f"`{name}` is refused: a user, a password, a query or a fragment is in it",
                f"a key belongs into the environment variable {KEY}, and nowhere else",
            )
        if not whole:
            raise ConfigError(f"`{name}` cannot be {url!r}: it should be a URL", "for example http://localhost:8000/v1")
        return url.rstrip("/")

    @property
    def is_openai(self) -> bool:
        """Whether it is OpenAI's own."""
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


def server_of(config: Config) -> Server:
    """Return the server that a configuration names; ConfigError for an option that is not allowed, or holds a key."""
    options = config.engine_options
    extra = options.get("extra_body")
    body: dict[Any, Any] = extra if isinstance(extra, dict) else {}
    for prefix, names in (("engine_options.", options), ("engine_options.extra_body.", body)):
        for name in map(str, names):
            if _SECRET.search(name):
                raise ConfigError(
                    f"`{prefix}{name}` is refused: it would be written into the run directory",
                    f"set the environment variable {KEY} instead",
                )
    try:
        server = Server.model_validate(options)
    except ValidationError as error:
        raise explained(error, Server, prefix="engine_options.") from None
    for name in body:
        if name in _OURS:
            raise ConfigError(
                f"`engine_options.extra_body.{name}` is refused: r3 sets it itself, for every request",
                "how tokens are drawn is set under `sampling`, the model with --model",
            )
    _ = server.address  # raises
    return server
