"""The page in a real browser: nothing in its console, its script runs, what is hostile does not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vlpipe.stages.report.page import RunView, render

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=2000",
    "--dump-dom",
)


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no system Chromium on PATH (Debian: apt-get install chromium)")
    return found


def load(chromium: str, folder: Path, page: str) -> tuple[str, list[str]]:
    """The page's elements after its scripts have run, and the lines of its console."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    command = [chromium, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"file://{folder / 'page.html'}"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    console = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    return done.stdout.decode(), console


@pytest.mark.slow
def test_the_console_stays_empty(chromium: str, tmp_path: Path, run: RunView) -> None:
    dom, console = load(chromium, tmp_path, render(run))
    assert console == []
    assert "<h1>blip_capfilt</h1>" in dom
    assert dom.count("<article") == 24


def test_the_buttons_work(chromium: str, tmp_path: Path, run: RunView) -> None:
    # The page's policy allows one script, so a copy without the policy does the clicking.
    page = render(run)
    start = page.index('<meta http-equiv="Content-Security-Policy"')
    page = page[:start] + page[page.index(">", start) + 1 :]
    click = (
        "<script>document.querySelector('[data-show=dropped]').click();"
        "const before = document.documentElement.dataset.theme;"
        "document.getElementById('theme').click();"
        "document.title = [before, document.documentElement.dataset.theme,"
        " document.querySelectorAll('.card:not([hidden])').length].join(' ')</script>"
    )
    dom, console = load(chromium, tmp_path, page.replace("</body>", click + "</body>"))
    assert console == []
    assert "<title> dark 8</title>" in dom


def test_what_slips_in_does_not_run_and_is_seen_by_this_test(
    chromium: str, tmp_path: Path, run: RunView
) -> None:
    bad = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
    dom, console = load(chromium, tmp_path, render(run).replace("</main>", bad + "</main>"))
    assert "<title>blip_capfilt</title>" in dom
    assert len(console) >= 2
    assert all("Content Security Policy" in line for line in console)
