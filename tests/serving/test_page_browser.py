"""The server's page in a real browser: adapters are found while a user writes, and answers stream in.

It needs Chromium (`browsers`). With PAGE_SCREENSHOTS=docs/serving the documentation's pictures are made
anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from browsers import wait_until as wait_until_in
from local_server import LocalServer
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.long
LIMIT = 20  # seconds; a quiet machine takes a twentieth
INPUT = "please answer this question: what does Karin wear?"
ANSWERED = "document.querySelectorAll('.answer').length && !document.querySelector('.answer.running')"


@pytest.fixture
def page(browser: Browser, server: LocalServer) -> Iterator[Page]:
    """The open page. The page may have no error, and may ask no other server."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    opened = context.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    opened.on(
        "request", lambda asked: None if asked.url.startswith((server.url, "data:")) else problems.append(asked.url)
    )
    opened.goto(server.url)
    wait_until(opened, "document.querySelectorAll('#methods input').length > 5")
    yield opened
    context.close()
    assert not [problem for problem in problems if not problem.startswith("Failed to load resource")]


wait_until = partial(wait_until_in, seconds=LIMIT)


def found(page: Page) -> list[str]:
    names: list[str] = page.evaluate("[...document.querySelectorAll('#found .name')].map((name) => name.textContent)")
    return names


def test_adapters_answers_and_masks(page: Page, server: LocalServer) -> None:
    page.fill("#text", INPUT)
    wait_until(page, "document.querySelectorAll('#found .adapter').length === 10")
    best = found(page)[0]
    page.keyboard.press("Control+Enter")
    wait_until(page, ANSWERED)
    cards = page.evaluate("[...document.querySelectorAll('.answer')].map((card) => card.dataset.method)")
    assert cards == ["base", "selection", "fusion", "mixture"]
    fields = {"messages": [{"role": "user", "content": INPUT}]}
    answer = server.post("/v1/chat/completions", model="mixture", **fields).json()["choices"][0]["message"]["content"]
    assert page.text_content("[data-method=mixture] .text") == answer
    screenshot(page, "light")
    page.keyboard.press("Escape")
    page.keyboard.press("1")  # mask the best
    wait_until(page, f"document.querySelector('#masked s')?.textContent === {best!r}")
    wait_until(page, f"document.querySelector('#found .name')?.textContent !== {best!r}")
    address = page.url
    page.goto("about:blank")
    page.goto(address)  # the address keeps everything
    wait_until(page, "document.querySelectorAll('#found .adapter').length === 10")
    assert best not in found(page) and page.input_value("#text") == INPUT
    page.keyboard.press("Escape")
    page.click("#theme")
    page.click("#go")
    wait_until(page, ANSWERED)
    assert best not in (page.text_content("#answers") or "")
    screenshot(page, "dark")


def test_texts_are_never_markup_and_the_page_fits_a_narrow_screen(page: Page) -> None:
    hostile = "<img src=x onerror=alert(1)><b>bold</b> \u202e"
    page.set_viewport_size({"width": 360, "height": 800})
    page.fill("#text", hostile)
    page.check("[value=arrow]")
    page.click("#go")
    wait_until(page, ANSWERED)
    assert page.evaluate("document.querySelectorAll('main img, main b').length") == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert "Arrow weighs 19 adapters" in (page.text_content("[data-method=arrow]") or "")
    screenshot(page, "narrow")


def test_an_example_and_an_error_are_shown(page: Page) -> None:
    page.keyboard.press("Escape")
    page.keyboard.press("e")
    wait_until(page, "document.getElementById('text').value && document.querySelector('#found .adapter')")
    page.fill("#k", "30")
    page.click("#go")
    wait_until(page, "document.querySelector('.error')")
    assert "30" in (page.text_content("[data-method=mixture] .error") or "")


def screenshot(page: Page, name: str) -> None:
    folder = os.environ.get("PAGE_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)
