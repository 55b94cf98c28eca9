"""The page of `vlpipe ui` in a real browser: every view, light, dark and on a phone; keys; hostile text stays text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cli_helpers import Runs
from look_at import HOSTILE, PAGES
from ui_client import Client, serving

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
pytestmark = [pytest.mark.browser, pytest.mark.slow]

LOOKS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "phone": {
        "color_scheme": "light",
        "viewport": {"width": 390, "height": 844},
        "is_mobile": True,
        "has_touch": True,
    },
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    runs = Runs(tmp_path_factory.mktemp("browser"), PAGES)
    runs("run", "--local")
    runs("run", "--local", "--set", "training.better=0.5")
    with serving(runs.root) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no system Chromium on PATH (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


class Page:
    """A page that remembers what should not happen: console output, errors, refused and foreign requests."""

    def __init__(self, browser: Any, client: Client, look: str = "light") -> None:
        self.base = client.server.url
        self.context = browser.new_context(**LOOKS[look])
        self.page = self.context.new_page()
        self.bad: list[str] = []
        self.page.on("console", lambda message: self.bad.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.bad.append(str(error)))
        self.page.on("dialog", lambda dialog: self.bad.append(f"dialog: {dialog.message}"))
        self.page.on(
            "response", lambda r: self.bad.append(f"{r.status} {r.url}") if r.status >= 400 else None
        )
        self.page.on("request", lambda r: None if r.url.startswith(self.base) else self.bad.append(r.url))

    def open(self, where: str) -> None:
        self.page.goto(self.base + where)
        self.ready()

    def ready(self) -> None:
        self.page.wait_for_selector("#main:not([aria-busy]) h1")
        self.page.wait_for_load_state("networkidle")

    def text(self, selector: str = "#main") -> str:
        return str(self.page.inner_text(selector))


@pytest.fixture
def page(browser: Any, client: Client) -> Iterator[Page]:
    made = Page(browser, client)
    yield made
    made.context.close()


def views(client: Client) -> dict[str, str]:
    scored, pictures = client.folder("scored"), client.folder("pictures")
    runs = [s["folder"] for s in client.get("run")["steps"] if s["name"] == "training"]
    return {
        "run": "#/0/run",
        "step": f"#/0/step?step={scored}",
        "rows": f"#/0/rows?step={scored}",
        "table": f"#/0/rows?step={scored}&look=table&sql=width%3E20",
        "filtered": f"#/0/rows?step={scored}&c={quote('texts.score<0.3')}&sort=-texts.score",
        "rejects": f"#/0/rejects?step={scored}",
        "faults": f"#/0/rejects?step={pictures}&c=why%3Dtruncated",
        "scores": f"#/0/scores?step={scored}&at=0.6",
        "duplicates": "#/0/duplicates",
        "losses": "#/0/losses",
        "results": "#/0/results",
        "compare": f"#/0/compare?step={runs[0]}&with={runs[1]}&rows=1",
        "row": f"#/0/row?step={pictures}&at=3",
        "find": "#/0/find?text=nobody",
    }


@pytest.mark.parametrize("look", [*LOOKS])
def test_every_view_draws_without_a_word_in_the_console(browser: Any, client: Client, look: str) -> None:
    page = Page(browser, client, look)
    for name, where in views(client).items():
        page.open(where)
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not page.page.evaluate(wide), f"{name} is wider than the window"
        assert "cannot be shown" not in page.text(), name
        assert page.bad == [], name
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
    page.page.wait_for_selector(".chip")
    assert page.text(".chip").startswith("texts.text~script")
    press("Escape")
    press("?")
    page.page.wait_for_selector("dialog[open]")
    press("Escape")
    dark = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    press("t")
    assert page.page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    assert page.bad == []


def test_without_the_token_the_page_does_not_load(client: Client, browser: Any) -> None:
    page = Page(browser, client)
    page.page.goto(f"http://127.0.0.1:{client.server.port}/")
    assert "token is missing or wrong" in page.text("body")
    page.context.close()


def test_another_page_cannot_read_it(client: Client, browser: Any, tmp_path: Path) -> None:
    page = Page(browser, client)
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
