"""A headless Chromium for tests, and waiting in its pages.

Chromium is on the PATH, or named by the environment variable CHROMIUM. Without Chromium, the tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextmanager
def started_browser() -> Iterator[Browser]:
    """A running Chromium. While it runs, Playwright's event loop runs in this thread."""
    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    found = next(filter(None, map(shutil.which, filter(None, names))), None)
    if found is None:
        pytest.skip("no Chromium on the PATH (the environment variable CHROMIUM may name one)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=OPTIONS)
        yield started
        started.close()


def wait_until(page: Page, condition: str, seconds: float) -> None:
    """Ask the page until the condition holds. Playwright's own waiting runs `eval`, which the page forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(f"Boolean({condition})"):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)
