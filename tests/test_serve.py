"""The server of a page: whom it answers, and when it rebuilds the page."""

from __future__ import annotations

import os
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from threading import Event, Thread

import pytest
from records import episode, write_run

from r3core.errors import UsageError
from r3core.files import atomic_write
from r3core.serve import ADDRESS, LivePage, PageServer


class Builds:
    """Writes a page with a number, and counts how often."""

    def __init__(self, to: Path) -> None:
        self.to, self.live = to, list[bool]()

    def __call__(self, *, live: bool) -> Path:
        self.live.append(live)
        atomic_write(self.to, f"<p>page {len(self.live)}</p>")
        return self.to


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", mined=[episode("a", "fail")], finished=())


@pytest.fixture
def builds(tmp_path: Path) -> Builds:
    return Builds(tmp_path / "page.html")


@pytest.fixture
def page(run: Path, builds: Builds) -> LivePage:
    page = LivePage([run], builds)
    page.refresh()
    return page


@pytest.fixture
def port(page: LivePage) -> Iterator[int]:
    stopped = Event()
    with PageServer(page) as server:
        thread = Thread(target=server.serve, args=[stopped])
        thread.start()
        yield server.port
        stopped.set()
        thread.join()


def answered(port: int, path: str = "/", *, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = HTTPConnection(ADDRESS, port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read(), dict(response.headers)
    finally:
        connection.close()


def in_progress(run: Path) -> None:
    (run / ".lock.pid").write_text(str(os.getpid()))


def test_the_page_and_its_version_are_served_and_nothing_else(port: int, page: LivePage) -> None:
    assert answered(port)[:2] == (200, b"<p>page 1</p>")
    assert answered(port, "/version")[:2] == (200, page.built.version.encode())
    for path in ("/config.json", "/../run/config.json", "/?", "/version/", "/favicon.ico", "/%2e%2e/", "*"):
        assert answered(port, path)[0] == 404


def test_every_response_has_the_security_headers(port: int) -> None:
    for path in ("/", "/version", "/other"):
        headers = answered(port, path)[2]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Frame-Options"] == "DENY"
        assert "Access-Control-Allow-Origin" not in headers
        assert "Python" not in headers["Server"]


def test_a_page_of_a_server_is_html(port: int) -> None:
    assert answered(port)[2]["Content-Type"] == "text/html; charset=utf-8"
    assert answered(port, "/version")[2]["Content-Type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:9999", "127.0.0.1:8123", "[::1]:80"])
def test_hosts_of_this_machine_are_answered_also_behind_a_tunnel(port: int, host: str) -> None:
    assert answered(port, Host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil@127.0.0.1",
        "",
        "10.0.0.1",
    ],
)
def test_a_name_that_only_resolves_to_this_machine_is_refused(port: int, host: str) -> None:
    status, body, _ = answered(port, Host=host)
    assert (status, b"page" in body) == (403, False)


def test_only_get_and_head_are_allowed(port: int) -> None:
    assert answered(port, method="HEAD")[:2] == (200, b"")
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        status, _, headers = answered(port, method=method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert answered(port, method="TRACE")[0] == 501


def test_only_the_loopback_address_is_listened_on(page: LivePage) -> None:
    with PageServer(page) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_a_port_in_use_is_an_error_with_a_hint(page: LivePage) -> None:
    with PageServer(page) as server, pytest.raises(UsageError, match=f"port {server.port} .* cannot be used") as error:
        PageServer(page, port=server.port)
    assert "--port" in error.value.hints[0]


def test_the_page_is_rebuilt_only_when_a_file_of_the_run_changed(page: LivePage, builds: Builds, run: Path) -> None:
    before = page.built.version
    assert not page.refresh(1e9)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "state.json").touch()
    (run / ".mine.json.1.partial").touch()
    (run / "report.html").touch()
    assert not page.refresh(2e9)
    (run / "train.jsonl").write_text('{"step": 1}\n')
    assert page.refresh(3e9)
    assert page.built.content == b"<p>page 2</p>"
    assert page.built.version != before
    (run / "stages" / "mine.json").parent.mkdir()
    (run / "stages" / "mine.json").write_text("{}")
    assert page.refresh(4e9)


def test_the_page_is_not_rebuilt_all_the_time(run: Path, builds: Builds) -> None:
    page = LivePage([run], builds)
    assert page.refresh(100.0)
    (run / "train.jsonl").write_text('{"step": 1}\n')
    assert not page.refresh(109.0)
    assert page.refresh(111.0)


def test_the_page_is_live_while_the_run_is_in_progress(page: LivePage, builds: Builds, run: Path) -> None:
    in_progress(run)
    page.refresh(1e9)
    write_run(run, mined=[episode("a", "fail")], base=[episode("b")])
    page.refresh(2e9)
    assert builds.live == [False, True, False]


def test_a_page_that_cannot_be_rebuilt_stays_as_it_was(
    page: LivePage, builds: Builds, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from r3core.serve import _refreshed

    builds.to = run / "config.json" / "page.html"  # under a file, so that it cannot be written
    (run / "train.jsonl").touch()
    page._not_before = 0.0
    reported = _refreshed(page, reported="")
    assert reported
    assert _refreshed(page, reported=reported) == reported
    assert page.built.content == b"<p>page 1</p>"
    assert capfd.readouterr().err.count("the page is not up to date") == 1
