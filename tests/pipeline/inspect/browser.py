"""A headless Chromium for tests of pages; what a page asks for and complains of is kept.

Screenshots go to the folder that PLAIT_SCREENSHOTS names, else to pytest's temporary folder.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = (
    "no Chromium here; install one, as with `apt-get install chromium`, or name one's path in "
    "PLAIT_BROWSER"
)
NO_NETWORK = ("file:", "data:", "about:")
CONTROLS = {"button", "link", "checkbox", "combobox", "slider", "textbox", "tab"}
NAMED = CONTROLS | {"image", "img", "region", "group", "Audio"}
LOOKS = Path(__file__).with_name("looks.js").read_text(encoding="utf-8")


def find_browser() -> str:
    """The path of a Chromium; without one the test is skipped, and fails in CI."""
    found = os.environ.get("PLAIT_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
        (pytest.fail if in_ci else pytest.skip)(MISSING)
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; it starts in about a second, so a module shares one."""
    path = find_browser()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@dataclass(kw_only=True)
class Visit:
    """A page in the browser, what it has asked for, and what it has complained of."""

    page: Page
    requests: list[str] = field(default_factory=list)
    """Addresses, without those of data in the page itself."""
    complaints: list[str] = field(default_factory=list)
    """The console's messages, errors of scripts, dialogs and windows that were opened."""


@contextmanager
def visit(
    browser: Browser,
    file: Path,
    *,
    width: int = 1280,
    scheme: str = "light",
    policy: bool = True,
    scripts: bool = True,
) -> Iterator[Visit]:
    """Open a file and, when done with it, assert that it fetched and complained of nothing.

    Without `policy`, the page's content security policy is not enforced.
    """
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if scheme == "dark" else "light",
        bypass_csp=not policy,
        java_script_enabled=scripts,
    )
    context.set_default_timeout(60_000)
    try:
        seen = _watched(context)
        seen.page.goto(file.as_uri())
        yield seen
        seen.page.wait_for_timeout(50)
        assert seen.requests == [file.as_uri()], f"requests: {seen.requests}"
        assert not seen.complaints, f"complaints: {seen.complaints}"
    finally:
        context.close()


def _watched(context: BrowserContext) -> Visit:
    """A new page whose every request and complaint is kept; nothing leaves this machine."""
    context.route(lambda url: not url.startswith(NO_NETWORK), lambda route: route.abort())
    page = context.new_page()
    seen = Visit(page=page)

    def keep(url: str) -> None:
        if not url.startswith(("data:", "about:")):
            seen.requests.append(url)

    context.on("request", lambda request: keep(request.url))
    context.on("page", lambda other: seen.complaints.append(f"opened {other.url}"))
    page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.complaints.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (seen.complaints.append("dialog"), dialog.dismiss()))
    return seen


def table_of(page: Page, *header: str) -> list[list[str]]:
    """The cells of the one table whose header has these words, header first."""
    tables = page.evaluate(
        """() => [...document.querySelectorAll("table")].map(table =>
             [...table.rows].map(row => [...row.cells].map(cell => cell.innerText.trim())))"""
    )
    found = [table for table in tables if set(header) <= set(table[0])]
    assert len(found) == 1, f"{len(found)} tables have the columns {header}"
    return found[0]


def assert_readable(page: Page) -> None:
    """Words stand out from their ground as WCAG 2.2 AA asks, and nothing is wider than the page."""
    for looks in ("faint(4.5)", "outside()"):
        found = page.evaluate(f"{LOOKS}.{looks}")
        assert not found, f"{looks}: {found}"
    root = "document.documentElement"
    wider = page.evaluate(f"{root}.scrollWidth - {root}.clientWidth")
    assert wider == 0, f"the page is {wider} pixels wider than its window"


def assert_named(page: Page) -> None:
    """Everything that can be used or looked at has a name in the accessibility tree."""
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")
    nodes = [node for node in tree["nodes"] if not node["ignored"]]
    assert len(nodes) > 10
    roles = [node["role"]["value"] for node in nodes]
    nameless = [
        node
        for node, role in zip(nodes, roles, strict=True)
        if (role in NAMED or (_focusable(node) and role != "RootWebArea"))
        and not node.get("name", {}).get("value")
    ]
    assert not nameless, f"without a name: {nameless}"


def _focusable(node: dict) -> bool:
    return any(p["name"] == "focusable" and p["value"]["value"] for p in node["properties"])
