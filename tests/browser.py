"""Headless Chromium, for the tests of pages."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
EDGES = "[...document.querySelectorAll('main *')].map(element => element.getBoundingClientRect().right)"


def start(profile: Path) -> Any:
    """A browser with an empty profile; the test is skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="driving a browser needs selenium")
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (chromium and driver):
        pytest.skip("no browser here: the pages need chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def text_of(browser: Any, selector: str, seconds: float = 30.0) -> str:
    """What the first element that matches says, once it says something."""
    deadline = time.monotonic() + seconds
    while not any(found := [element.text for element in browser.find_elements("css selector", selector)]):
        assert time.monotonic() < deadline, f"no {selector} on the page: {browser.page_source[:2000]}"
        time.sleep(0.05)
    return found[0]


def requests_of(browser: Any) -> list[dict[str, Any]]:
    """What the page has asked for since this was last asked."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [event["params"]["request"] for event in events if event["method"] == "Network.requestWillBeSent"]


def fits(browser: Any) -> bool:
    """Whether nothing on the page is wider than the window."""
    return bool(browser.execute_script(f"return Math.max(...{EDGES}) <= window.innerWidth"))
