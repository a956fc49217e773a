"""A real browser, driven over its debugging pipe; tests skip where there is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Browser:
    """A headless Chromium, spoken to over its debugging pipe: descriptors 3 and 4, messages end in a zero byte."""

    def __init__(self, write: int, read: int) -> None:
        self.write, self.read = write, os.fdopen(read, "rb")
        self.number, self.session, self.events = 0, None, []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def receive(self) -> dict[str, Any]:
        text = b""
        while not text.endswith(b"\0"):
            letter = self.read.read(1)
            assert letter, "the browser ended"
            text += letter
        return json.loads(text[:-1])

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression on the page; promises are awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed, so the page can't be seen in a browser")
    to_browser, from_browser = os.pipe(), os.pipe()
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --mute-audio --remote-debugging-pipe"
    words = [program, *flags.split(), f"--user-data-dir={profile}"]
    shell = f'exec "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'
    process = subprocess.Popen(
        ["bash", "-c", shell, "chromium", *words], pass_fds=(to_browser[0], from_browser[1]),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(to_browser[0])
    os.close(from_browser[1])
    browser = Browser(to_browser[1], from_browser[0])
    try:
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        browser.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        yield browser
    finally:
        browser.session = None
        browser.call("Browser.close")
        process.wait(timeout=20)
        os.close(to_browser[1])
        browser.read.close()


def complaints(browser: Browser) -> list[dict[str, Any]]:
    """Exceptions, errors and warnings of the page so far."""
    return [
        event for event in browser.events
        if event.get("method") == "Runtime.exceptionThrown"
        or (event.get("method") == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "warning"))
        or (event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] in ("error", "warning"))
    ]  # fmt: skip
