"""The browser of the page tests: a page that breaks the rules must not pass unseen."""

from __future__ import annotations

import shutil
from pathlib import Path

import browser as support
import pytest
from browser import Browser, assert_quiet

pytestmark = pytest.mark.browser


def page(folder: Path, body: str) -> Path:
    file = folder / "a page #1.html"
    head = '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>x</title>'
    file.write_text(f"{head}<body>{body}</body>")
    return file


def test_a_quiet_page_is_quiet(browser: Browser, tmp_path: Path) -> None:
    file = page(tmp_path, "<p>text</p><script>document.title = 'after'</script>")
    browser.open(file)
    assert browser.run("return document.title") == "after"
    assert_quiet(browser, file)


@pytest.mark.parametrize(
    "body",
    [
        "<script>console.log('anything')</script>",
        "<script>no_such_function()</script>",
        "<img src='https://example.org/a.png'>",
        "<script>fetch('https://example.org/').catch(() => 0)</script>",
        "<script>new WebSocket('wss://example.org/')</script>",
        "<link rel='stylesheet' href='other.css'>",
        "<iframe src='other.html'></iframe>",
        "<script>navigator.sendBeacon('http://127.0.0.1:9/')</script>",
    ],
)
def test_a_page_that_logs_or_requests_anything_is_noticed(browser: Browser, tmp_path: Path, body: str) -> None:
    (tmp_path / "other.css").touch()
    (tmp_path / "other.html").touch()
    file = page(tmp_path, body)
    browser.open(file)
    with pytest.raises(AssertionError):
        assert_quiet(browser, file)


def test_pages_can_be_opened_on_another_screen(browser: Browser, tmp_path: Path) -> None:
    browser.open(page(tmp_path, ""))
    matches = "return matchMedia(arguments[0]).matches"
    with browser.emulated(width=360, media="print", prefers_color_scheme="dark"):
        assert browser.run("return window.innerWidth") == 360
        assert browser.run(matches, "print")
        assert browser.run(matches, "(prefers-color-scheme: dark)")
    assert not browser.run(matches, "print")
    assert not browser.run(matches, "(prefers-color-scheme: dark)")


def test_without_a_browser_a_test_fails_with_a_hint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(pytest.fail.Exception, match="make browser"), support.open_browser(tmp_path):
        pass
