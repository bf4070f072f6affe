"""The command that opens the page of runs."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Annotated

import typer

from r3core.errors import UsageError

_MAX_PORT = 65535


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(view)


def view(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run directory; several are compared.")],
    serve: Annotated[bool, typer.Option("--serve", help="Serve the page on 127.0.0.1, until Ctrl-C.")] = False,
    port: Annotated[
        int | None, typer.Option(help="Port to serve on; default: a free one.", min=1, max=_MAX_PORT)
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the page to this file.")] = None,
) -> None:
    """Open the page of a run, or one page that compares several.

    The page is served where there is no desktop, and while a run is in progress: then it follows the run.
    """
    from r3core.page import write_page
    from r3core.recorded import open_record, status_of
    from r3core.serve import may_change

    folders = list(dict.fromkeys(run.resolve() for run in runs))
    statuses = [status_of(open_record(folder)) for folder in folders]
    changing, desktop = any(map(may_change, statuses)), has_desktop()
    serving = serve or port is not None or (output is None and (changing or not desktop))
    if not serving:
        page = write_page(folders, output or _place(folders))
        typer.echo(f"page: {page}")
        if desktop:
            _open(page)
    elif output is None and (changing or not _writable(folders)):
        # a page that reloads itself has no place in the run directory: it works only while it is served
        with TemporaryDirectory(prefix="r3-view-") as folder:
            _serve(folders, Path(folder) / "report.html", port=port)
    else:
        _serve(folders, output or _place(folders), port=port)


def _serve(runs: list[Path], to: Path, *, port: int | None) -> None:
    from r3core.page import write_page
    from r3core.serve import ADDRESS, LivePage, PageServer

    page = LivePage(runs, partial(write_page, runs, to))
    page.refresh()
    with PageServer(page, port=port or 0) as server, suppress(KeyboardInterrupt):  # the way to end it
        here = server.port
        typer.echo(f"http://{ADDRESS}:{here}/  (Ctrl-C ends it)")
        if not has_desktop():
            typer.echo(f"from another machine: ssh -N -L {here}:{ADDRESS}:{here} {_this_host()}")
            typer.echo("then open the address there")
        server.serve(Event())


def has_desktop() -> bool:
    """Return whether a browser that opens on this machine can be seen by whoever started the command."""
    import webbrowser

    if os.environ.get("SSH_CONNECTION") or os.environ.get("SSH_TTY"):
        return False
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False  # `webbrowser` would find browsers of the terminal
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def _open(page: Path) -> None:
    import webbrowser

    if not webbrowser.open(page.resolve().as_uri()):
        raise UsageError(f"no browser could open `{page}`", "open it yourself, or serve it with --serve")


def _place(runs: list[Path]) -> Path:
    """Return where the page of finished runs belongs: into the run directory of one, into the cache for several."""
    from r3core.check.certificate import cache_folder
    from r3core.files import digest

    if len(runs) == 1:
        return runs[0] / "report.html"
    return cache_folder() / "pages" / f"{digest(repr(runs), length=12)}.html"


def _writable(runs: list[Path]) -> bool:
    return len(runs) > 1 or os.access(runs[0], os.W_OK)


def _this_host() -> str:
    import getpass
    import socket

    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a user id without a name, as in some containers
        return socket.gethostname()
