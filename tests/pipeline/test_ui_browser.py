"""The page of `vlpipe ui` in a real browser: every view, light, dark and on a phone; keys; hostile text stays text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import Runs
from look_at import HOSTILE, PAGES
from ui_browser import LOOKS, Page, views
from ui_client import Client, serving

pytestmark = [pytest.mark.browser, pytest.mark.slow]
SHOTS = os.environ.get("VLPIPE_SHOTS", "")  # a folder for pictures of all views, to be looked at


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    runs = Runs(tmp_path_factory.mktemp("browser"), PAGES)
    runs("run", "--local")
    runs("run", "--local", "--set", "training.better=0.5")
    with serving(runs.root) as found:
        yield found


@pytest.fixture
def page(browser: Any, client: Client) -> Iterator[Page]:
    made = Page(browser, client.server.url)
    yield made
    made.context.close()


@pytest.mark.parametrize("look", [*LOOKS])
def test_every_view_draws_without_a_word_in_the_console(browser: Any, client: Client, look: str) -> None:
    page = Page(browser, client.server.url, look)
    for name, where in views(client).items():
        page.open(where)
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not page.page.evaluate(wide), f"{name} is wider than the window"
        assert "cannot be shown" not in page.text(), name
        assert page.bad == [], name
        if SHOTS:
            page.page.screenshot(path=f"{SHOTS}/{look}_{name}.png", full_page=True)
    page.context.close()


def test_hostile_text_is_seen_as_text_everywhere(client: Client, page: Page) -> None:
    for name, where in views(client).items():
        page.open(where)
        assert (
            page.page.evaluate(
                "document.querySelectorAll('#main script, #main iframe, #main [onerror]').length"
            )
            == 0
        )
        assert "owned" not in page.page.title(), name
        shown = page.page.evaluate("document.body.textContent")
        assert not set(shown) & {"\x1b", "\u202e", "\u2066", "\u200b"}, name
    page.open(f"#/0/rows?step={client.folder('pictures')}")
    shown = page.text()
    for text in (HOSTILE[0], HOSTILE[1], HOSTILE[4], "U+202E", "U+001B"):
        assert text in shown
    assert page.page.locator("a[href^='javascript']").count() == 0
    assert page.bad == []


def test_a_bar_filters_and_the_back_button_returns(client: Client, page: Page) -> None:
    page.open(f"#/0/scores?step={client.folder('scored')}")
    before = page.page.url
    page.page.locator("a.barlink").first.click()
    page.page.wait_for_selector("a.card")
    assert "texts.score%3E%3D" in page.page.url
    cards = page.page.locator("a.card").count()
    assert f"{cards} of 51 rows" in page.text(".pager >> nth=0")
    page.page.go_back()
    page.page.wait_for_selector("a.barlink")
    assert page.page.url.split("?")[0] == before.split("?")[0]
    assert page.bad == []


def test_a_moved_threshold_says_at_once_which_rows_go(client: Client, page: Page) -> None:
    page.open(f"#/0/scores?step={client.folder('scored')}")
    assert page.page.input_value("#slider") == "0.3"
    page.page.fill("#threshold", "0.7")
    page.page.press("#threshold", "Enter")
    page.page.wait_for_selector("#which")
    found = client.get("moved", step=client.folder("scored"), column="texts.score", at=0.7, **{"from": 0.3})
    assert page.text("#which") == f"{found['moved']} rows"
    assert f"{found['rows_below']} of 51 rows go" in page.text(".big")
    assert "at=0.7" in page.page.url
    page.page.click("#which")
    page.page.wait_for_selector("a.card")
    assert f"{found['moved']} of 51 rows" in page.text(".pager >> nth=0")


def test_the_keyboard_reaches_everything(client: Client, page: Page) -> None:
    page.open("#/0/run")
    press = page.page.keyboard.press
    press("2")
    page.page.wait_for_selector("a.card")
    press("j")
    press("j")
    press("Enter")
    page.page.wait_for_selector(".way")
    assert "Row 1 of" in page.text("h1")
    press("ArrowRight")
    page.page.wait_for_selector("h1:has-text('Row 2 of')")
    press("u")
    page.page.wait_for_selector("a.card")
    press("/")
    page.page.keyboard.type("script")
    press("Enter")
    page.page.wait_for_selector(".chip[title=remove]")
    assert page.text(".chip[title=remove]").startswith("texts.text~script")
    press("Escape")
    press("?")
    page.page.wait_for_selector("dialog[open]")
    press("Escape")
    dark = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    press("t")
    assert page.page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    assert page.bad == []


HEADS = {
    "1": "looked_at", "2": "Rows of", "3": "Rejects of", "4": "Scores of", "5": "Duplicates", "6": "Losses", "7": "Results",
    "8": "Compare",
}  # fmt: skip


@pytest.mark.parametrize("how", ["keys", "clicks"])
def test_every_view_is_reached_by_keys_alone_and_by_clicks_alone(
    client: Client, page: Page, how: str
) -> None:
    """From the first page on, no address is typed. By keys, the focus is seen wherever it is."""
    page.page.goto(page.base)
    page.ready()
    press = page.page.keyboard.press
    for key, head in HEADS.items():
        press(key) if how == "keys" else page.page.click(f"#top nav a:nth-child({key})")
        page.page.wait_for_selector(f"#main:not([aria-busy]) h1:has-text('{head if key != '1' else 'root'}')")
        assert page.page.locator("#top nav a[aria-current=page]").inner_text() == page.page.inner_text(
            f"#top nav a:nth-child({key})"
        )
        if how == "keys":
            for _ in range(12):  # through the head of the page, into what it shows
                press("Tab")
            seen = "getComputedStyle(document.activeElement).outlineStyle + document.activeElement.tagName"
            assert page.page.evaluate(seen).startswith(("solid", "auto")), head
    press("1") if how == "keys" else page.page.click("#top a.home")
    page.page.wait_for_selector("svg.graph a.node")
    if how == "keys":
        press("j")
        press("j")
        press("Enter")
    else:
        page.page.click(f"a.node[id^='n-{client.folder('pictures')}']")
    page.page.wait_for_selector("dl.columns")  # a step
    if how == "keys":
        while page.page.evaluate("document.activeElement.textContent") != "54 rows":
            press("Tab")
        press("Enter")
    else:
        page.page.click("a.button:has-text('54 rows')")
    page.page.wait_for_selector("a.card")
    if how == "keys":
        press("j")
        press("Enter")
    else:
        page.page.click("a.card >> nth=0")
    page.page.wait_for_selector(".way li")  # a row, and its way
    if how == "keys":
        press("/")
        page.page.keyboard.type("nobody")
        press("Enter")
    else:
        page.page.fill("#find", "nobody")
        page.page.press("#find", "Enter")
    page.page.wait_for_selector("h1:has-text('No row found')")
    assert page.bad == []


def test_without_the_token_the_page_does_not_load(client: Client, browser: Any) -> None:
    page = Page(browser, client.server.url)
    page.page.goto(f"http://127.0.0.1:{client.server.port}/")
    assert "token is missing or wrong" in page.text("body")
    page.context.close()


def test_another_page_cannot_read_it(client: Client, browser: Any, tmp_path: Path) -> None:
    page = Page(browser, client.server.url)
    (tmp_path / "evil.html").write_text("<p>evil</p>")
    page.page.goto(f"file://{tmp_path / 'evil.html'}")
    code = f"fetch({client.server.url + 'api/0/run'!r}).then(r => r.text()).then(t => 'read ' + t, e => 'refused')"
    assert page.page.evaluate(code) == "refused"
    framed = (
        "new Promise(done => {{ const f = document.createElement('iframe'); f.src = {!r}; "
        "f.onload = () => done(String(f.contentDocument)); document.body.append(f); }})"
    )
    assert page.page.evaluate(framed.format(client.server.url)) == "null"
    page.context.close()
