"""A headless Chromium on the machine, driven through chromedriver by the WebDriver protocol: no package needed.

Source: W3C WebDriver, https://www.w3.org/TR/webdriver2/. Only what the tests of the report use.
"""

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"End": "\ue010", "Home": "\ue011", "ArrowLeft": "\ue012", "ArrowRight": "\ue014", "PageUp": "\ue00e"}
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


def chromium() -> str | None:
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


class Browser:
    def __init__(self, address: str) -> None:
        self.address = address

    def __call__(self, method: str, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if method == "POST" else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["value"]

    def open(self, page: Path) -> None:
        self("POST", "/url", url=page.resolve().as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        return self("POST", "/execute/sync", script=script, args=list(arguments))

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self("POST", "/goog/cdp/execute", cmd=name, params=parameters)

    def find(self, selector: str) -> str:
        return str(self("POST", "/element", using="css selector", value=selector)[ELEMENT])

    def press(self, selector: str, *keys: str) -> None:
        text = "".join(KEYS[key] for key in keys)
        self("POST", f"/element/{self.find(selector)}/value", text=text)

    def drag(self, selector: str, right: int, kind: str = "mouse") -> None:
        """Press on the middle of an element, move to the right by so many px, let go."""
        origin = {ELEMENT: self.find(selector)}
        steps = [
            {"type": "pointerMove", "duration": 0, "origin": origin, "x": 0, "y": 0},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerMove", "duration": 50, "origin": "pointer", "x": right, "y": 0},
            {"type": "pointerUp", "button": 0},
        ]
        action = {"type": "pointer", "id": kind, "parameters": {"pointerType": kind}, "actions": steps}
        self("POST", "/actions", actions=[action])


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A fresh browser with its own profile folder, ended with the body."""
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert driver.stdout is not None
        port = next(found[1] for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))
        start = Browser(f"http://127.0.0.1:{port}")
        options = {"binary": chromium(), "args": [*ARGUMENTS, f"--user-data-dir={profile}"]}
        opened = start("POST", "/session", capabilities={"alwaysMatch": {"goog:chromeOptions": options}})
        browser = Browser(f"{start.address}/session/{opened['sessionId']}")
        try:
            yield browser
        finally:
            browser("DELETE", "")
    finally:
        driver.terminate()
        driver.wait(timeout=20)
        if driver.stdout is not None:
            driver.stdout.close()
