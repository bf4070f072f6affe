"""Serve the page of runs to this machine alone, rebuilt while they are in progress."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import NamedTuple

from r3core.errors import R3Error, UsageError, one_line
from r3core.files import digest
from r3core.recorded import Status, status_of
from r3core.runs import RunRecord

ADDRESS = "127.0.0.1"
POLL = 2.0
"""Seconds between two looks at the files of the runs."""
AT_MOST_EVERY = 10.0
"""Seconds between the end of one rebuild and the start of the next; a page that takes long is rebuilt less often."""
_FOLDERS = (".", "stages", "failures")
"""Where the files of a run are that its page shows; not those of its models and checkpoints."""
# The port is that of the browser's side, another one behind a tunnel.
_OWN_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]+)?")
_VERSION = re.compile(rb'<body[^>]* data-version="([^"]*)"')
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Built(NamedTuple):
    """A page as it is served."""

    content: bytes
    version: str
    """An open page asks for it, and reloads when it is another one."""


class LivePage:
    """The page of runs, rebuilt when their files have changed; `build(live=...)` writes it and returns its path."""

    def __init__(self, runs: Sequence[Path], build: Callable[..., Path]) -> None:
        self.runs = [RunRecord(run) for run in runs]
        self._build = build
        self._state: object = None
        self._not_before = 0.0
        self.built = Built(b"", "")
        """Replaced as one value, as requests read it in other threads."""

    def refresh(self, now: float | None = None) -> bool:
        """Rebuild the page if the runs' files have changed, and return whether it was; `now` is in seconds."""
        started = monotonic() if now is None else now
        if started < self._not_before:
            return False
        # read before the page is built: what changes meanwhile must cause another rebuild
        statuses = [status_of(run) for run in self.runs]
        state = [(status, sorted(_files(run.path))) for status, run in zip(statuses, self.runs, strict=True)]
        if state == self._state:
            return False
        took = monotonic()
        content = self._build(live=any(map(may_change, statuses))).read_bytes()
        took = monotonic() - took
        named = _VERSION.search(content)  # of a page that reloads itself
        self.built = Built(content, named[1].decode() if named else digest(content, length=12))
        self._state = state
        self._not_before = started + took + max(AT_MOST_EVERY, 3 * took)
        return True


def may_change(status: Status) -> bool:
    """Return whether a run is in progress: a living process has it, and a stage is unfinished or there is no result."""
    return status.in_progress and (status.stage is not None or not status.evaluated)


class PageServer(ThreadingHTTPServer):
    """A server of one page on the loopback address: `/` is the page, `/version` its version.

    Raises:
        UsageError: the port cannot be used.
    """

    def __init__(self, page: LivePage, *, port: int = 0) -> None:
        self.page = page
        try:
            super().__init__((ADDRESS, port), _Request)
        except OSError as error:
            raise UsageError(
                f"port {port} of {ADDRESS} cannot be used: {error.strerror}",
                "use another --port; without it, a free one is chosen",
            ) from None

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return int(self.server_address[1])

    def serve(self, stopped: Event) -> None:
        """Serve the page, and keep it up to date, until the event is set."""
        thread = Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        error = ""
        try:
            while not stopped.wait(POLL):
                error = _refreshed(self.page, reported=error)
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


class _Request(BaseHTTPRequestHandler):
    server: PageServer
    server_version, sys_version = "r3", ""
    timeout = 30  # seconds, for a client that sends or reads nothing

    def do_GET(self) -> None:
        page = self.server.page.built
        if not _OWN_HOST.fullmatch(", ".join(self.headers.get_all("Host") or [])):
            # A name that an attacker's server resolves to 127.0.0.1 would let its pages read this one.
            self._send(HTTPStatus.FORBIDDEN, f"open http://{ADDRESS}:{self.server.port}/".encode())
        elif self.path == "/":
            self._send(HTTPStatus.OK, page.content, "text/html")
        elif self.path == "/version":
            self._send(HTTPStatus.OK, page.version.encode())
        else:
            self._send(HTTPStatus.NOT_FOUND, b"there is only / and /version")

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD are allowed")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse

    def _send(self, status: HTTPStatus, content: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():  # of every response, those that the library itself sends too
            self.send_header(name, value)
        super().end_headers()

    def handle(self) -> None:
        with suppress(ConnectionError):  # the browser has left
            super().handle()

    def log_message(self, *arguments: object) -> None:
        """Print nothing: an open page asks for the version every few seconds."""


def _refreshed(page: LivePage, *, reported: str) -> str:
    """Rebuild the page if needed, and return what prevents it; that is printed when it was not `reported` before."""
    try:
        page.refresh()
    except (R3Error, OSError) as error:
        if (message := one_line(error, first=True)) != reported:
            print(f"warning: the page is not up to date: {message}", file=sys.stderr)
        return message
    return ""


def _files(run: Path) -> Iterator[tuple[str, int, int]]:
    """Yield the files of a run that its page shows, with their times and sizes."""
    for folder in _FOLDERS:
        try:
            entries = list(os.scandir(run / folder))
        except OSError:
            continue
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.endswith((".json", ".jsonl")):
                continue
            try:
                found = entry.stat()
            except OSError:  # it was replaced at this moment
                continue
            yield f"{folder}/{entry.name}", found.st_mtime_ns, found.st_size
