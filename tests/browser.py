"""A page as headless Chromium shows it, for tests of reports."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

WINDOWS = ((360, "light"), (800, "dark"), (1280, "light"))
"""A phone, half a screen and a screen, and the colour scheme that its user prefers."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen at one width.

    Attributes:
        window, scheme: see `WINDOWS`.
        width: of the page, in pixels.
        complaints: of the console and of scripts, and what axe finds wrong for screen readers and in contrast.
        requests: addresses that were asked, but for the page's own.
        headings: of the second level, in order.
        colours: of the text, the ground, and the text of figures.
        printed: the page as a PDF.
        print_back: the ground, and print_config_height that of the config in pixels, when it is printed.
    """

    window: int
    scheme: str
    width: int
    complaints: list[str]
    requests: list[str]
    headings: list[str]
    colours: dict[str, str]
    printed: bytes
    print_back: str
    print_config_height: float


def chromium() -> str:
    """The program, or the test fails and says how to get it."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.fail("this test needs Chromium: apt-get install -y --no-install-recommends chromium")


def looked_at(
    path: Path, folder: Path, windows: Sequence[tuple[int, str]] = WINDOWS, *, axe: bool = True
) -> list[Look]:
    """The page at `path`, in each window; its pictures are left in `folder`.

    Args:
        axe: whether to check its accessibility.
    """
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        for window, scheme in windows:
            page = browser.new_page(viewport={"width": window, "height": 900}, color_scheme=scheme)
            found.append(_look(page, path, window, scheme, axe))
            page.screenshot(path=folder / f"{path.stem}-{window}.png", full_page=True)
        browser.close()
    return found


def _look(page: Page, path: Path, window: int, scheme: str, axe: bool) -> Look:
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    for wrong in Axe().run(page).response["violations"] if axe else ():
        complaints.append(f"{wrong['id']}: {wrong['nodes'][0]['html'][:200]} {wrong['nodes'][0].get('failureSummary')}")
    colours = {
        "text": _style(page, "body", "color"),
        "back": _style(page, "body", "backgroundColor"),
        "figure": _style(page, "svg text", "fill"),
    }
    width = page.evaluate("document.documentElement.scrollWidth")
    headings = [text.strip() for text in page.locator("h2").all_text_contents()]
    page.emulate_media(media="print")
    height = page.evaluate("document.querySelector('details pre').getBoundingClientRect().height")
    return Look(
        window=window,
        scheme=scheme,
        width=width,
        complaints=complaints,
        requests=[url for url in requests if url != path.as_uri() and not url.startswith("data:")],
        headings=headings,
        colours=colours,
        printed=page.pdf(format="A4"),
        print_back=_style(page, "body", "backgroundColor"),
        print_config_height=height,
    )


def _style(page: Page, selector: str, name: str) -> str:
    return page.evaluate(f"getComputedStyle(document.querySelector({selector!r})).{name}")
