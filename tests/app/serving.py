"""A running server and a browser for the tests of the page."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage"
)
PATIENCE = 60.0  # seconds; a loaded machine takes its time


class Server:
    """`wetok app` in a process of its own."""

    def __init__(self, *arguments: object, folder: Path) -> None:
        self.folder = folder / "tmp"
        self.folder.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wetok", "app", "--port", "0", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={
                **os.environ,
                "PYTHONUNBUFFERED": "1",
                "OMP_NUM_THREADS": "1",
                "TMPDIR": str(self.folder),
                "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            },
        )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 3 * PATIENCE)
        line = self.process.stdout.readline() if ready else "nothing was said"
        found = re.fullmatch(r"wetok: (http://127\.0\.0\.1:(\d+))  \(Ctrl-C ends it\)\n", line)
        if found is None:
            self.process.kill()
            raise AssertionError(line + str(self.process.communicate()[1]))
        self.url, self.port = found[1], int(found[2])

    def end(self, number: int) -> tuple[int, str, str]:
        """Sends a signal; the exit code, and what was said after the first line."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@contextmanager
def chromium(profile: Path, downloads: Path) -> Iterator[Any]:
    """A session of headless Chromium; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.add_experimental_option(
        "prefs", {"download.default_directory": str(downloads), "download.prompt_for_download": 0}
    )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    behaviour = {"behavior": "allow", "downloadPath": str(downloads)}
    session.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    try:
        yield session
    finally:
        session.quit()


class Visit:
    """A visitor's look at the page, in words of what is on it."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser, self.url = browser, url

    def open(self, width: int = 1200, dark: bool = False) -> None:
        """The page anew, until the first sample has been through the model."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        features = {"features": [scheme, still]}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
        self.browser.get(self.url)
        self.until(lambda: "PSNR" in self.text("#facts") and self.idle())

    def until(self, done: Callable[[], Any], patience: float = PATIENCE) -> Any:
        """What `done` gives, once it is something."""
        end = time.monotonic() + patience
        while True:
            try:
                found = done()
            except Exception as error:  # parts come and go while the page is drawn
                found, last = None, error
            else:
                last = None
            if found:
                return found
            if time.monotonic() > end:
                raise AssertionError(f"never came to be; {last}; {self.text('body')[-600:]}")
            time.sleep(0.1)

    def all(self, selector: str) -> list[Any]:
        return list(self.browser.find_elements("css selector", selector))

    def text(self, selector: str) -> str:
        script = "return document.querySelector(arguments[0])?.innerText ?? ''"
        return str(self.browser.execute_script(script, selector))

    def idle(self) -> bool:
        """Whether nothing is being computed for this visitor."""
        script = (
            "return [...document.querySelectorAll('[data-testid=status-tracker]')].every(e => "
            "e.classList.contains('hide') || e.offsetParent === null || !e.innerText.trim())"
        )
        return bool(self.browser.execute_script(script))

    def click(self, element: Any) -> None:
        """As a finger would, wherever it has been scrolled to."""
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        self.browser.execute_script("arguments[0].click()", element)

    def tab(self, name: str) -> None:
        """A tab, also from the menu of those that have no room."""
        for _ in range(2):
            for button in self.all("#tabs button"):
                if button.text.strip() == name and button.is_displayed():
                    self.click(button)
                    self.until(
                        lambda: self.browser.execute_script(
                            "return [...document.querySelectorAll('#tabs button[role=tab]')].some("
                            "e => e.innerText.trim() === arguments[0] && e.ariaSelected === 'true')"
                            " || [...document.querySelectorAll('[role=tabpanel]')].some(e => "
                            "e.offsetParent && e.id)",
                            name,
                        )
                    )
                    return
            self.click(self.all("#tabs .overflow-menu > button")[0])
            time.sleep(0.2)
        raise AssertionError(f"no tab {name!r} to be seen")

    def choose(self, selector: str, words: str) -> None:
        """One of several round buttons."""
        (label,) = self.until(
            lambda: [one for one in self.all(f"{selector} label") if words in one.text]
        )
        self.click(label.find_element("css selector", "input"))

    def give(self, selector: str, path: Path) -> None:
        """A file, to the part of the page there."""
        script = (
            "const part = document.querySelector(arguments[0]);"
            "return part.querySelector('input[type=file]') ?? "
            "part.parentElement.querySelector(':scope > input[type=file]')"
        )
        self.until(lambda: self.browser.execute_script(script, selector)).send_keys(str(path))

    def toast(self) -> str:
        """What the page complains of, once; it is then put away."""
        # Its words fade in.
        text = str(
            self.until(lambda: "\n".join(one.text for one in self.all(".toast-body")).strip("×\n"))
        )
        for button in self.all(".toast-body button"):
            self.click(button)
        self.until(lambda: not self.all(".toast-body"))
        return text

    def pictures(self, selector: str) -> list[str]:
        """Addresses of the pictures there."""
        script = "return [...document.querySelectorAll(arguments[0] + ' img')].map(e => e.src)"
        return [str(one) for one in self.browser.execute_script(script, selector)]

    def log(self) -> tuple[list[str], list[str]]:
        """What went wrong by the browser's console, and the addresses asked for, since last."""
        wrong = [
            one["message"]
            for one in self.browser.get_log("browser")
            if one["level"] == "SEVERE" or "Content Security" in one["message"]
        ]
        events = [json.loads(e["message"])["message"] for e in self.browser.get_log("performance")]
        asked = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return wrong, asked
