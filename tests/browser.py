"""A headless Chromium for tests and tools, through Selenium; offline, with a profile of its own."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)


def missing() -> str | None:
    """Why there is no browser here, or None."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return f"{program} is not installed; apt-get install chromium chromium-driver"
    return None if importlib.util.find_spec("selenium") else "selenium is not installed; pip install 'edgekit[test]'"


def start(profile: Path) -> Any:
    """A Chromium that logs its console and its requests; `profile` is a new folder. Call `quit` on it."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_page_load_timeout(300)  # of a machine that does other things too
    return driver


def show(driver: Any, page: Path, width: int = 1280, dark: bool = False, height: int = 900) -> None:
    """Open a report and wait until all that is seen at first is drawn."""
    look(driver, width, dark, height)
    driver.get(page.as_uri())
    wait(driver, "return document.documentElement.dataset.drawnMs")


def look(driver: Any, width: int, dark: bool, height: int = 900) -> None:
    """The width of the window, and whether the reader wishes dark pages."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def wait(driver: Any, script: str, seconds: float = 120) -> Any:
    """What the script returns, once that is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, seconds, 0.05).until(lambda found: found.execute_script(script))


def requests(driver: Any, page: Path) -> list[str]:
    """The addresses that a page asked for since the last call, its own among them."""
    messages = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    asked = [item["params"] for item in messages if item["method"] == "Network.requestWillBeSent"]
    return [item["request"]["url"] for item in asked if item["documentURL"] == page.as_uri()]
