"""robots.txt and tdmrep.json of an origin: asked for once, through the same guards, and obeyed."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
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
from vlpipe.stages.web.robots import (
    MAX_RULES_BYTES,
    Origins,
    is_reserved,
    only_rules_for,
    split_origin,
    tdm_rules,
)


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


@pytest.mark.slow
def test_robots_txt_is_an_option(folder: Path) -> None:
    (folder / "robots.txt").write_text("User-agent: *\nDisallow: /private/\nAllow: /private/open\n")
    assert names(fetch(folder, *ALL)) == list(ALL)
    out = fetch(folder, *ALL, robots="obey")
    assert names(out) == ["a.jpg", "private/open.jpg?sig=secret", "b.jpg"]
    assert [(reject.kind, reject.why, reject.detail) for reject in out.rejects] == [
        ("filtered", "opt_out", "http://site.test/robots.txt disallows /private/a.jpg for vlpipe")
    ]


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert tdm_rules(body) == []


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


RULES = "User-agent: *\r\nDisallow: /private/\r\n"


@pytest.mark.parametrize(
    "body",
    [
        RULES.encode("utf-8-sig"),
        RULES.encode("utf-16"),
        b"\xfe\xff" + RULES.encode("utf-16-be"),
        b"# first part\n\n" + RULES.encode("utf-8-sig"),  # two files, joined
        RULES.replace("\r\n", "\r").encode("utf-8-sig"),
        b"\xef\xbb\xbf" + RULES.upper().replace("/PRIVATE", "/private").encode(),
    ],
)
def test_a_byte_order_mark_does_not_hide_the_rules(folder: Path, body: bytes) -> None:
    (folder / "robots.txt").write_bytes(body)
    assert names(fetch(folder, *ALL, robots="obey")) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_tdmrep_in_any_unicode_encoding(folder: Path, encoding: str) -> None:
    said = [{"location": "/private/", "tdm-reservation": 1}]
    (folder / ".well-known/tdmrep.json").write_bytes(json.dumps(said).encode(encoding))
    assert names(fetch(folder, *ALL, tdmrep="obey")) == ["a.jpg", "b.jpg"]


def rules(*pairs: tuple[str, object]) -> bytes:
    return json.dumps([{"location": where, "tdm-reservation": what} for where, what in pairs]).encode()


@pytest.mark.parametrize(
    ("location", "reserved", "free"),
    [
        ("/a", ["/a", "/ab", "/a/b"], ["/b", "/", "//a"]),
        ("a", ["/a", "/ab"], ["/b"]),
        ("/", ["/", "/x"], []),
        ("", ["/", "/x"], []),
        ("*", ["/", "/x"], []),
        ("$", ["/"], ["/x"]),
        ("/a$", ["/a"], ["/ab", "/a/"]),
        ("/*.jpg", ["/x.jpg", "/x.jpg?y", "/.jpg"], ["/xjpg"]),
        ("/*.jpg$", ["/x.jpg", "/x.jpg.jpg"], ["/x.jpg?y"]),
        ("/a*b*a$", ["/aba", "/abba", "/a?b=1&b=a"], ["/ab", "/a", "/abab"]),
        ("/aa*aa$", ["/aaaa", "/aaXaa"], ["/aaa", "/aa"]),
        ("/a**b", ["/ab", "/axb"], ["/a"]),
        ("/a.b", ["/a.b"], ["/axb"]),
        ("/caf\u00e9/", ["/caf%C3%A9/x", "/caf%c3%a9/x"], ["/cafe/x"]),
        ("/caf%c3%a9/", ["/caf%C3%A9/x"], ["/cafe/x"]),
        ("/\ud800", [], ["/x"]),
    ],
)
def test_which_paths_a_location_means(location: str, reserved: list[str], free: list[str]) -> None:
    found = tdm_rules(rules((location, 1)))
    assert [path for path in (*reserved, *free) if is_reserved(found, path)] == reserved


def test_the_first_rule_that_matches_decides() -> None:
    found = tdm_rules(rules(("/a/b", 0), ("/a/", 1), ("/a/c", 0), ("/", "1"), ("/", 0)))
    assert [is_reserved(found, path) for path in ("/a/b", "/a/c", "/a/", "/x")] == [False, True, True, True]


def as_before(location: str) -> re.Pattern[str]:
    text, end = (location[:-1], "$") if location.endswith("$") else (location, "")
    return re.compile("/?" + ".*".join(re.escape(part) for part in text.lstrip("/").split("*")) + end)


def test_patterns_are_those_of_the_regex() -> None:
    """All patterns of up to 4 of `/a*$` against all paths of up to 3 of `/ab`."""

    def words(letters: str, most: int) -> list[str]:
        found = [""]
        for _ in range(most):
            found += [word + letter for word in found for letter in letters]
        return sorted({*found})

    paths = ["/" + word for word in words("/ab", 3)]
    for location in words("/a*$", 4):
        (rule,) = tdm_rules(rules((location, 1)))
        pattern = as_before(location)
        assert [is_reserved([rule], p) for p in paths] == [bool(pattern.match(p)) for p in paths], location


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "body",
    [
        rules(("*a*a*a*a*a*a*a*a*a*a*a*ab", 1)),
        rules(("*a" * 4000 + "b", 1), ("/*a*a*a*a*b*a*a*a*a*$", 1)),
        rules(*((f"/x{n}/*/{n}", n % 2) for n in range(9_000))),
        b"[" * 200_000,
        b'[{"location": "/", "tdm-reservation": ' + b"1" * 5000 + b"}]",
    ],
    ids=["stars", "many stars", "many rules", "deep", "big number"],
)
def test_no_tdmrep_takes_long(folder: Path, body: bytes) -> None:
    (folder / ("a" * 200)).write_bytes(noise())
    (folder / ".well-known/tdmrep.json").write_bytes(body)
    began = time.monotonic()
    assert names(fetch(folder, "a" * 200, "b.jpg", tdmrep="obey")) == ["a" * 200, "b.jpg"]
    assert time.monotonic() - began < 20


def test_a_tdmrep_too_large_to_be_read_reserves_all(folder: Path) -> None:
    body = rules(*(("/nothing", 0) for _ in range(MAX_RULES_BYTES // 40)))
    assert len(body) > MAX_RULES_BYTES
    (folder / ".well-known/tdmrep.json").write_bytes(body)
    assert [reject.why for reject in fetch(folder, "a.jpg", tdmrep="obey").rejects] == ["opt_out"]


def test_of_a_large_robots_txt_the_first_part_is_obeyed(folder: Path) -> None:
    body = RULES + "# a comment\n" * (2 * MAX_RULES_BYTES // 12) + "Disallow: /\n"
    (folder / "robots.txt").write_text(body)
    assert names(fetch(folder, *ALL, robots="obey")) == ["a.jpg", "b.jpg"]


MANY = MAX_RULES_BYTES // 50


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "agents",
    [
        [f"User-agent: bot{n}" for n in range(MANY)],
        [f"user  agent bot{n}" for n in range(MANY)],
        [f"USERAGENT: *bot{n}* # {n}" for n in range(MANY)],
    ],
)
def test_a_group_of_many_bots_with_many_rules(folder: Path, agents: list[str]) -> None:
    """Rules kept once per name would be a hundred million."""
    listed = [f"Disallow: /x{n}" for n in range(MANY)]
    text = "\n".join([*agents, "User-agent: *", "Disallow: /private/", *listed])
    (folder / "robots.txt").write_text(text)
    began = time.monotonic()
    assert names(fetch(folder, *ALL, robots="obey")) == ["a.jpg", "b.jpg"]
    assert time.monotonic() - began < 60


def test_names_of_other_bots_are_left_out_and_ours_are_kept() -> None:
    text = "User-agent: other\nDisallow: /\nuser-agent: VLpipe # us\nUser-Agent: *\nUser-agent: pipe\nDisallow: /b"
    assert only_rules_for("vlpipe", text).replace("\x00", "-") == text.replace("other", "-")


def test_rules_that_are_kept_have_a_limit_in_bytes() -> None:
    asked: Counter[str] = Counter()

    async def read(url: str) -> tuple[int, bytes]:
        asked[url] += 1
        return 200, b"User-agent: *\nDisallow: /private\n" + b"#" * 300_000

    async def go() -> int:
        origins = Origins(read, "vlpipe", robots=True, tdmrep=False)
        for _ in range(2):
            for n in range(100):
                await origins.check(f"http://h{n}.test/x")
        origins.close()
        return len(origins._rules)

    assert asyncio.run(go()) < 60
    assert sum(asked.values()) == 200
