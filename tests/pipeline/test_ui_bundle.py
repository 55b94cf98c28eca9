"""`vlpipe ui --bundle`: what is written, and in a browser that the page answers as the server does."""

from __future__ import annotations

import functools
import http.server
import io
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cli_helpers import Runs, vlpipe
from look_at import HOSTILE, PAGES, row_id
from PIL import Image
from ui_browser import Page, views
from ui_client import Client, serving

from vlpipe.pipeline.inspect.roots.lineage import OnDisk, lineage
from vlpipe.pipeline.inspect.roots.state import RootReader
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.ui.bundle.media import SIDE, Media
from vlpipe.pipeline.ui.bundle.sample import evenly
from vlpipe.pipeline.ui.bundle.write import index_page


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("bundle"), PAGES)
    runs("run", "--local", "--set", "training.better=0.5")
    runs("run", "--local")
    return runs


@pytest.fixture(scope="module")
def whole(runs: Runs) -> Path:
    """A bundle of all rows."""
    (said,) = vlpipe("ui", runs.root, "--bundle", runs.folder / "whole", "--sample", "1000")
    assert re.fullmatch(rf"{runs.folder}/whole: \d+ files, [\d.]+ kB, 60 rows; put .*", said)
    return runs.folder / "whole"


def read(bundle: Path, name: str) -> Any:
    return json.loads((bundle / "data" / name).read_text())


def step(bundle: Path, name: str) -> Any:
    (folder,) = (
        s["folder"] for s in read(bundle, "0/run.json")["steps"] if s["name"] == name and s["current"]
    )
    return read(bundle, f"0/steps/{folder}.json")


def test_a_sample_has_the_same_rows_in_all_steps_and_rejects_of_each_reason(runs: Runs) -> None:
    vlpipe("ui", runs.root, "--bundle", runs.folder / "few", "--sample", "8")
    few = runs.folder / "few"
    pictures, scored = step(few, "pictures"), step(few, "scored")
    assert (pictures["all"], scored["all"]) == (54, 51)
    ids = {item["row"]["id"] for item in pictures["rows"]}
    assert 8 <= len(ids) < 54
    assert {item["row"]["id"] for item in scored["rows"]} <= ids
    assert {item["row"]["id"] for item in scored["rejects"]} <= ids
    assert [item["at"] for item in scored["rows"]] == sorted(item["at"] for item in scored["rows"])
    assert {item["row"]["why"] for item in pictures["rejects"]} == {"truncated"}
    before = scored["rejects"][0]["before"]
    (row,) = (item["row"] for item in pictures["rows"] if item["at"] == before["at"])
    assert row["id"] == scored["rejects"][0]["row"]["id"]
    num = sum(sum(panel["num"] for panel in scored["histograms"]["texts.score"]["50"]["panels"]) for _ in "x")
    assert num == 102  # of all rows


def test_a_way_is_the_one_that_is_found_on_disk(runs: Runs, whole: Path) -> None:
    store = Store(str(runs.root))
    state = RootReader(store).state()
    places = read(whole, "0/ids.json")["ids"]
    assert set(places) == {row_id(n) for n in range(60)}
    for id_ in (row_id(0), row_id(4), row_id(9), row_id(20)):
        ways = read(whole, f"0/ways/{places[id_][2]}.json")[id_]
        found = lineage(OnDisk(store), state, id_)
        assert [(p["folder"], p["what"], p["at"]) for p in ways] == [(p.folder, p.what, p.at) for p in found]
        lines = [[line.replace("?<", "<") for line in p.lines if "+ image: <" not in line] for p in found]
        assert [p["lines"] for p in ways] == lines


def test_nothing_of_this_machine_or_of_a_query_is_in_it(runs: Runs, whole: Path) -> None:
    texts = {path: path.read_bytes() for path in whole.rglob("*") if path.suffix in (".json", ".html")}
    for path, text in texts.items():
        assert str(runs.folder).encode() not in text, path
        assert b".jpg?" not in text, path
    assert {shard["host"] for shard in step(whole, "scored")["step"]["per_shard"]} == {None}
    assert b"http://x.test/3.jpg" in texts[whole / "data/0/ids.json"]


def test_pictures_are_made_anew_and_bounded(whole: Path, tmp_path: Path) -> None:
    item = step(whole, "pictures")["rows"][0]
    with Image.open(whole / item["picture"]) as image:
        assert (image.format, image.size, item["size"]) == ("PNG", (24, 16), [24, 16])
    buffer = io.BytesIO()
    Image.new("RGB", (2000, 1000), "red").save(buffer, "JPEG", comment=b"from a stranger")
    media = Media(tmp_path)
    made = media.picture(buffer.getvalue())
    assert made is not None
    assert made.size == (2000, 1000)
    with Image.open(tmp_path / made.name) as image:
        assert image.size == (SIDE, SIDE // 2)
        assert "comment" not in image.info
    assert media.picture(buffer.getvalue()) is made
    assert media.picture(b"<svg onload=alert(1)>") is None
    assert media.picture(buffer.getvalue()[:80]) is None


def test_a_folder_with_something_in_it_stays_as_it_is(runs: Runs, whole: Path) -> None:
    said = vlpipe("ui", runs.root, "--bundle", whole, code=1)
    assert said[-1] == f"{whole} is there already; give a new or an empty folder"


def test_the_page_of_a_bundle_has_the_policy_in_itself() -> None:
    text = index_page('<html lang="en"><meta charset="utf-8"> loads from this machine only')
    assert "default-src 'none'; script-src 'self'" in text
    assert "data-bundle" in text
    assert "frame-ancestors" not in text
    assert "from this machine" not in text


def test_numbers_that_are_evenly_spaced() -> None:
    assert evenly(10, 4) == [0, 3, 6, 9]
    assert evenly(3, 9) == [0, 1, 2]
    assert evenly(0, 9) == []


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def static(whole: Path) -> Iterator[str]:
    """The address of a plain web server over the bundle."""
    handler = functools.partial(Quiet, directory=str(whole))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="module")
def client(runs: Runs) -> Iterator[Client]:
    with serving(runs.root) as found:
        yield found


CONDITIONS: list[dict[str, Any]] = [
    {},
    {"c": ["texts.score<0.3", "texts.source=web"]},
    {"c": ["texts.score>=0.3"], "sort": "-texts.score"},
    {"c": ["texts.source=web", "texts.kept=false", "texts#2.source=synth", "texts#2.kept=true"]},
    {"c": ["texts.score.max<0.5"], "sort": "texts.score.max"},
    {"c": ["texts.score=0.3"]},
    {"c": ["texts.text~SCRIPT"]},
    {"c": ["texts.why=null"]},
    {"c": ["texts.why!=null"], "start": 3, "n": 5},
    {"c": ["width>20", "width<=40"]},
    {"c": [f"id>={row_id(30)}"]},
    {"c": ["url~"], "sort": "-width"},
]


@pytest.mark.slow
@pytest.mark.browser
def test_the_browser_finds_what_the_server_finds(browser: Any, client: Client, static: str) -> None:
    page = Page(browser, static)
    page.open("#/0/run")
    ask = (
        "([view, params]) => import(new URL('static/bundle.js', location.href.split('#')[0]).href)"
        ".then((m) => m.get('0', view, params))"
    )
    scored, twins = client.folder("scored"), client.folder("twins")
    for params in CONDITIONS:
        asked = {"step": scored, **params}
        here, there = page.page.evaluate(ask, ["rows", asked]), client.get("rows", **asked)
        assert here["total"] == there["total"], params
        assert [item["at"] for item in here["rows"]] == [item["at"] for item in there["rows"]], params
    assert page.page.evaluate(ask, ["rows", {"step": scored, "c": ["texts.score<0.3"]}])["total"] > 0
    for by in ("texts.source", ""):
        asked = {"step": scored, "column": "texts.score", "by": by, "bins": 50 if by else 400}
        assert page.page.evaluate(ask, ["histogram", asked]) == client.get("histogram", **asked)
    asked = {"step": scored, "column": "texts.score", "at": 0.71, "from": 0.3}
    here, there = page.page.evaluate(ask, ["moved", asked]), client.get("moved", **asked)
    for name in ("values_below", "num_values", "rows_below", "num_rows", "moved"):
        assert here[name] == there[name], name
    here = page.page.evaluate(ask, ["duplicates", {"step": twins, "n": 5}])
    there = client.get("duplicates", step=twins, n=5)
    assert here["total"] == there["total"]
    assert here["of"] == there["total"]
    assert {p["decision"]["id"] for p in here["pairs"]} <= {row_id(n) for n in range(60)}
    assert page.page.evaluate(ask, ["find", {"text": "http://x.test/3.jpg?<script>3"}])["found"] != []
    assert page.page.evaluate(ask, ["row", {"step": scored, "id": row_id(0)}])["row"]["id"] == row_id(0)
    for name in ("losses", "results"):
        assert page.page.evaluate(ask, [name, {}]) == client.get(name)
    assert page.bad == []
    page.context.close()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("look", ["light", "phone"])
def test_every_view_of_a_bundle_draws(browser: Any, client: Client, static: str, look: str) -> None:
    page = Page(browser, static, look)
    for name, where in views(client).items():
        page.open(where.replace("&sql=width%3E20", ""))
        assert "cannot be shown" not in page.text(), name
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not page.page.evaluate(wide), f"{name} is wider than the window"
        shown = page.page.evaluate("document.body.textContent")
        assert not set(shown) & {"\x1b", "\u202e", "\u2066", "\u200b"}, name
        dangers = "document.querySelectorAll('#main script, #main iframe, #main [onerror]').length"
        assert page.page.evaluate(dangers) == 0, name
        assert page.page.title() != "owned"
        assert page.bad == [], name
    page.open(f"#/0/rows?step={client.folder('pictures')}&c={quote('texts.text~<script>')}")
    assert HOSTILE[0] in page.text()
    assert page.page.locator("a.card img").first.evaluate("(img) => img.complete && img.naturalWidth") == 24
    page.context.close()
