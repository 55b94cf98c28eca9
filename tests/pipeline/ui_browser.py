"""A page in a real browser that remembers what should not happen, and the address of every view."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from ui_client import Client

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


class Page:
    """A page that remembers what should not happen: console output, errors, refused and foreign requests."""

    def __init__(self, browser: Any, base: str, look: str = "light") -> None:
        self.base = base
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
