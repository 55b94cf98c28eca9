"""robots.txt and tdmrep.json of an origin: asked for once, through the same guards, and obeyed."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from threat_server import LocalImages, noise

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.fetching.images import FetchImages
from vlpipe.stages.lists.list import Pair, listed
from vlpipe.stages.web.robots import reserved_paths, split_origin


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "private").mkdir()
    (tmp_path / ".well-known").mkdir()
    for name in ("a.jpg", "b.jpg", "private/a.jpg", "private/open.jpg"):
        (tmp_path / name).write_bytes(noise())
    return tmp_path


def fetch(folder: Path, *names: str, **parameters: Any) -> Out:
    stage = FetchImages(list=ListFile(), serve={"site.test": File(path=str(folder))}, **parameters)
    pairs = (Pair(f"http://site.test/{name}", "text") for name in names)
    return run_map(stage, pa.concat_tables(listed(pairs, source="web", text_source="web")))


def names(out: Out) -> list[str]:
    return [url.removeprefix("http://site.test/") for url in out.table["url"].to_pylist()]


ALL = ("a.jpg", "private/a.jpg", "private/open.jpg?sig=secret", "b.jpg")


def test_robots_txt_is_an_option(folder: Path) -> None:
    (folder / "robots.txt").write_text("User-agent: *\nDisallow: /private/\nAllow: /private/open\n")
    assert names(fetch(folder, *ALL)) == list(ALL)
    out = fetch(folder, *ALL, robots="obey")
    assert names(out) == ["a.jpg", "private/open.jpg?sig=secret", "b.jpg"]
    assert [(reject.kind, reject.why, reject.detail) for reject in out.rejects] == [
        ("filtered", "opt_out", "http://site.test/robots.txt disallows /private/a.jpg for vlpipe")
    ]


def test_the_group_of_our_own_name_decides(folder: Path) -> None:
    (folder / "robots.txt").write_text(
        "User-agent: *\nDisallow: /\n\nUser-agent: VLPipe\nDisallow: /b\n\nUser-agent: picker\nAllow: /\n"
    )
    assert names(fetch(folder, "a.jpg", "b.jpg", robots="obey")) == ["a.jpg"]
    assert names(fetch(folder, "a.jpg", "b.jpg", robots="obey", bot="picker")) == ["a.jpg", "b.jpg"]
    assert names(fetch(folder, "a.jpg", "b.jpg", robots="obey", user_agent="other/2 (x)")) == []


def test_without_a_robots_txt_nothing_is_forbidden(folder: Path) -> None:
    assert names(fetch(folder, *ALL, robots="obey", tdmrep="obey")) == list(ALL)


def test_an_origin_whose_rules_cannot_be_read_is_left_alone() -> None:
    """RFC 9309, 2.3.1.4: unreachable means complete disallow."""
    stage = FetchImages(list=ListFile(), robots="obey", retries=2)
    pairs = (Pair(f"http://no-such-name.invalid/{n}", "") for n in range(3))
    out = run_map(stage, pa.concat_tables(listed(pairs, source="web", text_source="web")))
    assert Counter(reject.why for reject in out.rejects) == {"robots_unreadable": 3}
    assert "robots.txt cannot be read (dns), so no URL of this origin may be fetched" in out.rejects[0].detail


def test_tdmrep(folder: Path) -> None:
    (folder / ".well-known/tdmrep.json").write_text(
        '[{"location": "/private/open*.jpg$", "tdm-reservation": 0}, {"location": "/private/", "tdm-reservation": 1}]'
    )
    assert names(fetch(folder, *ALL)) == list(ALL)
    out = fetch(folder, "a.jpg", "private/a.jpg", "private/open.jpg", tdmrep="obey")
    assert names(out) == ["a.jpg", "private/open.jpg"]
    assert [(reject.why, reject.detail) for reject in out.rejects] == [
        ("opt_out", "http://site.test/.well-known/tdmrep.json reserves /private/a.jpg")
    ]


def test_the_files_are_asked_for_once(threats: Any) -> None:
    stage = LocalImages(ports={"threat.test": threats.port}, robots="obey", tdmrep="obey")
    pairs = (Pair(f"http://threat.test/moved?{n}", "") for n in range(20))
    out = run_map(stage, pa.concat_tables(listed(pairs, source="web", text_source="web")))
    assert out.table.num_rows == 20
    assert threats.asked == {"/moved": 20, "/ok.jpg": 20, "/robots.txt": 1, "/.well-known/tdmrep.json": 1}


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b'["x", {"location": 3}]', b"\xff\xfe"])
def test_a_tdmrep_that_says_nothing(body: bytes) -> None:
    assert reserved_paths(body) == []


def test_split_origin() -> None:
    assert split_origin("https://a.test:8080/x/y?z") == ("https://a.test:8080", "/x/y?z")
    assert split_origin("http://a.test/") == ("http://a.test", "/")


def test_without_protego_the_pip_line_is_said_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "protego", None)
    (tmp_path / "list.csv").write_text("url,text\n")
    stage = FetchImages(list=ListFile(path=str(tmp_path / "list.csv")), robots="obey")
    with pytest.raises(VlpipeError, match=r"`robots: obey` needs protego: pip install 'vlpipe\[web\]'$"):
        stage.preflight()
