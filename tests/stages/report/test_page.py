from __future__ import annotations

import base64
import hashlib
import io
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vlpipe.pipeline.storage.printable import without_secrets
from vlpipe.pipeline.testing import dataset
from vlpipe.stages.common.row import LOSSES, RESULTS
from vlpipe.stages.report import gallery
from vlpipe.stages.report.charts import _bucketed, _smooth
from vlpipe.stages.report.gallery import NUM_DROPPED, NUM_KEPT, evenly, thumbnail
from vlpipe.stages.report.html import esc, seconds, share, stranger
from vlpipe.stages.report.page import RunView, StepView, render
from vlpipe.stages.report.svg import BOTTOM, HEIGHT, TOP, Scale, axes, ticks
from vlpipe.stages.report.texts import judged_texts


class Seen(HTMLParser):
    """What a browser would make of the page: elements with their attributes, text per element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        self.text.setdefault(self._open, []).append(data)

    def of_class(self, tag: str, name: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and name in (a.get("class") or "").split()]


def test_a_hostile_caption_stays_a_caption(run: RunView) -> None:
    page = render(run)
    seen = Seen(page)
    scripts = "".join(seen.text["script"])
    assert [tag for tag, _ in seen.tags].count("script") == 1
    assert "alert" not in scripts
    assert not [name for _, attrs in seen.tags for name in attrs if name.startswith("on")]
    assert "&lt;script&gt;alert(&#x27;caption&#x27;)" in page
    assert "&lt;script&gt;alert(&#x27;step&#x27;)&lt;/script&gt;" in page
    assert "\u202e" not in page


def test_the_page_loads_nothing_and_may_run_its_own_script_only(run: RunView) -> None:
    seen = Seen(render(run))
    links = [
        a.get(name)
        for _, a in seen.tags
        for name in ("src", "href", "srcset", "data", "action")
        if a.get(name)
    ]
    assert all(str(link).startswith(("data:image/", "#")) for link in links)
    assert not re.search(r"url\(|@import", "".join(seen.text["style"]))
    policy = next(a["content"] for t, a in seen.tags if t == "meta" and a.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(seen.text["script"][0].encode()).digest()).decode()
    assert (
        policy
        == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


def test_secrets_in_urls_do_not_reach_the_page(run: RunView) -> None:
    page = render(run)
    assert "secret" not in page
    assert "hidden</" not in page
    assert "sig=" not in page
    assert "token=" not in page
    assert "http://photos.test/000000.jpg" in page


def test_the_same_run_gives_the_same_page(run: RunView) -> None:
    assert render(run) == render(run)


def test_the_gallery_shows_kept_and_dropped_rows_of_every_reason(run: RunView) -> None:
    page = render(run)
    cards = re.findall(r'<article class="card (kept|dropped)">(.*?)</article>', page, re.DOTALL)
    fates = Counter(fate for fate, _ in cards)
    assert fates == {"kept": NUM_KEPT, "dropped": NUM_DROPPED}
    why = Counter(
        re.search(r'class="reason \w+">(\w+)', body)[1] for fate, body in cards if fate == "dropped"
    )
    assert why == {"near_duplicate": NUM_DROPPED // 2, "no_text_kept": NUM_DROPPED // 2}
    assert all(body.count("<img") + body.count("nopicture") == 1 for _, body in cards)
    struck = [body for fate, body in cards if fate == "kept" and '<s class="said">' in body]
    assert struck
    assert all("not_matched" in body for body in struck)


def test_thumbnails_are_made_anew_and_what_cannot_be_decoded_says_so() -> None:
    assert thumbnail(b"<html>") == '<div class="nopicture">not_an_image</div>'
    buffer = io.BytesIO()
    Image.new("RGB", (2000, 1000), "red").save(buffer, "JPEG", comment=b"from a stranger")
    shown = _shown(buffer.getvalue())
    assert (shown.format, shown.size) == ("JPEG", (320, 160))
    assert "comment" not in shown.info
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "BMP")
    assert (_shown(buffer.getvalue()).format, _shown(buffer.getvalue()).size) == ("PNG", (32, 32))


def _shown(data: bytes) -> Image.Image:
    encoded = re.search(r"base64,([^\"]+)\"", thumbnail(data))
    assert encoded is not None
    return Image.open(io.BytesIO(base64.b64decode(encoded[1])))


def test_the_funnel_counts(run: RunView) -> None:
    page = render(run)
    fetch = page[page.index("<b>fetch</b>") : page.index("<b>twins</b>")]
    widths = [float(w) for w in re.findall(r'<i class="\w+" style="width:([\d.]+)%"', fetch)]
    assert widths == pytest.approx([100 * 42 / 49, 100 * 7 / 49], abs=0.01)
    assert "http_404 <b>5</b> <small>10.2 %</small>" in fetch
    assert "truncated <b>2</b> <small>4.1 %</small>" in fetch
    pretrain = page[page.index("<b>pretrain</b>") : page.index("<b>filter</b>")]
    assert "writes 1,200 rows of its own" in pretrain
    assert '<i class="kept"' not in pretrain


def test_histograms_hold_every_score(run: RunView) -> None:
    texts = judged_texts(run)
    assert texts is not None
    assert texts.step == "filter", "after it rows are dropped with their texts"
    page = render(run)
    drawn = Counter[str]()
    for num, fate in re.findall(r"<title>[\d.]+ to [\d.]+: (\d+) (kept|dropped|not judged)</title>", page):
        drawn[fate] += int(num)
    assert drawn["kept"] == sum(int((s.kept == 1).sum()) for s in texts.scores)
    assert drawn["dropped"] == sum(int((s.kept == 0).sum()) for s in texts.scores)
    assert drawn.total() == texts.num_scored == 2 * texts.num_rows


def test_losses_have_a_panel_per_name_and_a_line_per_step(run: RunView) -> None:
    page = render(run)
    losses = page[page.index('<section id="losses">') :]
    assert re.findall(r"<figcaption><b>(\w+)</b>", losses) == ["itc", "itm", "lm"]
    assert losses.count(">retrain, smoothed") == losses.count(">pretrain, smoothed") == 3
    assert losses.count("1 not a number") == 6
    assert "nan" not in losses


def test_results_are_metrics_by_step(run: RunView) -> None:
    page = render(run)
    results = page[page.index('<section id="results">') : page.index('<section id="losses">')]
    assert re.findall(r"<th[^>]*>(\w*)</th>", results) == ["", "before", "after"]
    row = results[results.index("<b>tr@1</b>") :]
    assert re.findall(r">([\d.]+)<i", row)[:2] == ["0.100", "0.300"]
    assert "/wrong_attribute</td>" in results


def test_what_matters_stands_first(run: RunView) -> None:
    """What the run was for, what came out in a sentence and three figures, alarms, then the sections."""
    page = render(replace(run, steps=[replace(run.steps[0], alarms=("it is <odd>",)), *run.steps[1:]]))
    seen = Seen(page)
    header = page[page.index("<header>") : page.index("</header>")]
    (tiles,) = re.findall(r'<div class="tiles">(.*?)</div></div>', header)
    assert tiles.count("<b>") == 3
    order = [
        header.index(one)
        for one in ("Noisy web pairs in", 'class="outcome"', "tiles", "it is &lt;odd&gt;", "<nav>")
    ]
    assert order == sorted(order)
    assert [a["id"] for t, a in seen.tags if t == "section"] == [
        "funnel", "gallery", "results", "losses", "texts-and-scores",
    ]  # fmt: skip
    said = re.search(r'class="outcome">(.*?)</p>', page)
    assert said is not None
    texts = judged_texts(run)
    assert texts is not None
    kept = sum(one[2] for one in texts.sources)
    assert said[1] == (
        f"9 of 10 steps are done, 1 failed; after.tr@1 is 0.3, before.tr@1 0.1; of 49 listed rows, "
        f"{run.steps[5].rows_out} are in matched; {100 * kept / texts.num_scored:.0f} % of {texts.num_scored} judged "
        "texts were kept."
    )


def test_the_criteria_of_a_workflow_are_its_figures(run: RunView) -> None:
    named = [("after.cider", "above", "before.cider"), ("none.x", "above", 0.5), ("after.tr@5", "above", 0.1)]
    page = render(replace(run, criteria=named))
    assert "after.cider is 0.6, before.cider 0.4;" in page
    bare = [step for step in run.steps if step.name in ("before", "after")]
    page = render(replace(run, steps=bare, criteria=named))
    assert "2 of 2 steps are done; after.cider is 0.6, before.cider 0.4; after.tr@5 is 0.4." in page
    trained = [step for step in run.steps if step.name == "retrain"]
    assert re.search(
        r"1 of 1 steps are done; itc of retrain after 399 steps is [\d.]+\.",
        render(replace(run, steps=trained)),
    )


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    waiting = StepView(name="fetch", use="a:B", status="waiting")
    page = render(RunView(title="t", description="d", steps=[waiting]))
    assert "0 of 1" in page
    assert "waiting" in page
    assert 'id="gallery"' not in page
    assert "0 of 0" in render(RunView(title="t", description="", steps=[]))


@pytest.mark.parametrize("schema", [LOSSES, RESULTS])
def test_steps_without_rows(tmp_path: Path, schema: pa.Schema) -> None:
    data = dataset(tmp_path, schema.empty_table())
    step = StepView(name="s", use="a:B", status="done", dataset=data)
    assert 'id="losses"' not in render(RunView(title="t", description="", steps=[step]))


def test_losses_that_are_no_number_at_all(tmp_path: Path) -> None:
    rows = [{"step": k, "name": "lm", "value": float("inf")} for k in range(3)]
    data = dataset(tmp_path, pa.Table.from_pylist(rows, LOSSES))
    step = StepView(name="s", use="a:B", status="done", dataset=data)
    page = render(RunView(title="t", description="", steps=[step]))
    assert "3 not a number" in page


def test_a_constant_loss_has_an_axis(tmp_path: Path) -> None:
    rows = [{"step": k, "name": "lm", "value": 0.0} for k in range(3)]
    data = dataset(tmp_path, pa.Table.from_pylist(rows, LOSSES))
    page = render(
        RunView(title="t", description="", steps=[StepView(name="s", use="a:B", status="done", dataset=data)])
    )
    assert "nan" not in page[page.index('id="losses"') :]


def test_rejects_without_their_picture_are_left_out(run: RunView) -> None:
    lonely = [replace(step, dataset=None) for step in run.steps]
    assert 'id="gallery"' not in render(replace(run, steps=lonely))


def test_dropped_rows_are_no_more_than_there_is_room_for(
    run: RunView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "NUM_DROPPED", 3)
    cards = gallery.dropped_cards(run)
    assert sorted(card.dropped[1].why for card in cards if card.dropped) == [
        "near_duplicate", "near_duplicate", "no_text_kept"
    ]  # fmt: skip


def test_ticks_are_round_numbers_within() -> None:
    assert ticks(0, 1, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0, 399, 5) == [0, 100, 200, 300]
    assert ticks(-0.3, 0.3, 4) == pytest.approx([-0.2, 0, 0.2])
    assert ticks(5, 5) == [5]


def test_grid_lines_and_their_labels_are_where_the_values_are() -> None:
    scale = Scale(0, 50, 0, 1)
    drawn = axes(scale)
    lines = [float(y) for y in re.findall(r'class="grid" [^>]*y1="([0-9.]+)"', drawn)]
    assert lines == pytest.approx([scale.y(y) for y in (0, 0.5, 1)], abs=0.1)
    assert lines[0] - lines[-1] == HEIGHT - TOP - BOTTOM  # 0 at the bottom, 1 at the top
    labels = re.findall(r'class="tick end" x="\d+" y="([0-9.]+)">([0-9.]+)<', drawn)
    assert [(float(y) - 3.5, float(text)) for y, text in labels] == [
        (pytest.approx(y, abs=0.1), value) for y, value in zip(lines, (0, 0.5, 1), strict=True)
    ]
    below = re.findall(r'class="tick mid" x="([0-9.]+)" y="\d+">([0-9]+)<', drawn)
    assert [(float(x), float(text)) for x, text in below] == [
        (pytest.approx(scale.x(value), abs=0.1), value) for value in (0, 10, 20, 30, 40, 50)
    ]


def test_smoothing_keeps_a_line_and_buckets_keep_the_mean() -> None:
    y = np.linspace(0, 1, 100)
    assert _smooth(y)[5:-5] == pytest.approx(y[5:-5])
    noise = np.random.default_rng(0).normal(size=4800)
    x, means = _bucketed(np.arange(4800.0), noise)
    assert len(x) == 240
    assert means.mean() == pytest.approx(noise.mean())


def test_evenly() -> None:
    assert evenly(list(range(10)), 4) == [0, 3, 6, 9]
    assert evenly([1, 2], 5) == [1, 2]
    assert evenly([], 3) == []


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("https://user:pass@h.test:8080/a/b.jpg?sig=x#frag", "https://h.test:8080/a/b.jpg"),
        ("GET s3://key:secret@bucket/x failed", "GET s3://bucket/x failed"),
        ("http://[::1]:80/x?y", "http://[::1]:80/x"),
        ("http://h.test:port/x?token=1", "http://..."),
        ("no url: a@b.c?d=e", "no url: a@b.c?d=e"),
    ],
)
def test_without_secrets(text: str, want: str) -> None:
    assert without_secrets(text) == want


def test_small_texts() -> None:
    assert (
        stranger("duplicate of " + "ab" * 32 + ", similarity 0.9")
        == "duplicate of ababababab, similarity 0.9"
    )
    assert stranger("x" * 50, 10) == "x" * 10 + "..."
    assert esc("a\u00a0b \u0645\u200c\u0631 \x00\u2066") == "a\u00a0b \u0645\u200c\u0631 \ufffd\ufffd"
    assert [seconds(s) for s in (None, 0.04, 61, 3725)] == ["", "0.0 s", "1 min 01 s", "1 h 02 min"]
    assert [share(*p) for p in ((0, 5), (1, 3), (1, 100_000), (99_999, 100_000), (5, 5))] == [
        "0 %",
        "33.3 %",
        "&lt; 0.1 %",
        "99.9 %",
        "100.0 %",
    ]


def test_what_limits_a_step_that_runs_a_model(run: RunView) -> None:
    """Steps and shards that measured no model are left out; without any there is no section."""
    assert "What limits" not in render(run)
    named = [
        ("captions", {"rows": 400, "seconds": 10.0, "computing": 8.0, "waiting": 1.5}),
        ("scores", {"rows": 400, "seconds": 10.0, "computing": 2.0, "waiting": 7.0}),
    ]
    steps = [StepView(name=n, use="a:B", status="done", rows_in=900, spent=spent) for n, spent in named]
    page = render(replace(run, steps=[*run.steps, *steps]))
    section = page[page.index('<section id="what-limits">') :]
    lines = [re.findall(r"<td[^>]*>([^<]*)</td>", line) for line in section.split("<tr>")[2:]]
    assert lines[0] == ["captions", "40", "50", "80.0 %", "15.0 %", "5.0 %", "computing"]
    assert lines[1] == ["scores", "40", "200", "20.0 %", "70.0 %", "10.0 %", "its input"]
