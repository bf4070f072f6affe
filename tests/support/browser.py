"""A headless Chromium without a network, which records the console and the requests of the pages that it opens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.support.wait import WebDriverWait

_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # containers run as root, whose sandbox Chromium refuses
    "--disable-dev-shm-usage",  # the shared memory of containers is small
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no host can be found, whatever a page requests
    "--disable-background-networking",
    "--disable-component-update",
    "--force-prefers-reduced-motion",
)
_WITHOUT_REQUEST = ("data", "blob", "about")
"""Schemes of addresses that a browser loads without opening a file or a connection."""
PATIENCE = 20.0
"""Seconds in which a page must do what a test waits for; a page that works takes much less."""


class Browser:
    """An open browser: what tests do on a page, and what the page did."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, page: Path | str) -> None:
        """Open a file or an address, with an empty record of console and requests."""
        self.driver.get("about:blank")  # so that the same page with another fragment is loaded again
        self.console()
        self.requests()
        self.driver.get(page.resolve().as_uri() if isinstance(page, Path) else page)

    def console(self) -> list[str]:
        """Return the lines of the console since the last call, with their level."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Return the addresses that pages have requested since the last call, also those that were refused."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        addresses = [one["request"]["url"] for one in sent]
        opened = [event["params"]["url"] for event in events if event["method"] == "Network.webSocketCreated"]
        return [one for one in addresses + opened if urlsplit(one).scheme not in _WITHOUT_REQUEST]

    def run(self, script: str, *arguments: Any) -> Any:
        """Return the result of a JavaScript function body."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, *arguments: Any) -> Any:
        """Return the first result of a JavaScript function body that is true."""
        return WebDriverWait(self.driver, PATIENCE, 0.05).until(lambda _: self.run(script, *arguments), script)

    def command(self, name: str, **arguments: Any) -> Any:
        """Run a command of the Chrome DevTools Protocol."""
        return self.driver.execute_cdp_cmd(name, arguments)

    @contextmanager
    def emulated(self, *, width: int = 1280, height: int = 900, media: str = "", **features: str) -> Iterator[None]:
        """Give pages another width, another medium or other features for the block.

        A feature is a media feature in Python's spelling, such as `prefers_color_scheme="dark"`.
        """
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        self.command("Emulation.setEmulatedMedia", media=media, features=named)
        try:
            yield
        finally:
            self.command("Emulation.setEmulatedMedia", media="", features=[])
            self.command("Emulation.clearDeviceMetricsOverride")


def assert_quiet(browser: Browser, page: Path | str) -> None:
    """Check that a page wrote nothing to the console, and requested nothing but itself."""
    assert browser.console() == []
    own = urlsplit(page.resolve().as_uri() if isinstance(page, Path) else page)
    requested = [urlsplit(one) for one in browser.requests()]
    assert requested, "the page itself must have been requested"
    others = [one.geturl() for one in requested if (one.netloc, unquote(one.path)) != (own.netloc, unquote(own.path))]
    assert others == []


@contextmanager
def open_browser(downloads: Path) -> Iterator[Browser]:
    """Start a headless Chromium for the block; pages save their files into `downloads`."""
    chromium = _found("chromium", "chromium-browser", "google-chrome")
    options = ChromeOptions()
    options.binary_location = chromium
    for argument in _ARGUMENTS:
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # both paths are given, so Selenium does not look for a browser to download
    driver = Chrome(options=options, service=ChromeService(executable_path=_found("chromedriver")))
    try:
        driver.set_page_load_timeout(6 * PATIENCE)
        driver.set_script_timeout(PATIENCE)
        yield Browser(driver)
    finally:
        driver.quit()


def _found(*names: str) -> str:
    """Return the path of the first of these programs that is installed; the test fails when none is."""
    path = next((path for name in names if (path := shutil.which(name))), None)
    if path is None:
        pytest.fail(
            f"this test needs {' or '.join(names)}: run `make browser`, or leave the tests of pages out with "
            '`pytest -m "not browser"`',
            pytrace=False,
        )
    return path
