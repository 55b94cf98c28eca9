"""Answers of web servers: http/srv.py has an odd one under each path; tdm/ has a pattern that took for ever."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from threat_server import LocalImages

from vlpipe.pipeline.testing import run_map
from vlpipe.stages.lists.list import Pair, listed
from vlpipe.stages.web.robots import is_reserved, split_origin, tdm_rules

Case = Callable[[str], Path]
FAULTS = {  # all other paths give the picture
    "/enc-gzipgzip": "bad_response",
    "/s202": "http_202",
    "/longlen": "disconnected",
    "/shortlen": "truncated",
    "/html.jpg": "not_an_image",
    "/empty": "empty",
    "/s204": "http_204",
    "/login": "not_an_image",
    "/account?next=%2Fx.jpg": "not_an_image",
    "/amp.jpg?w=10&amp;h=20": "http_400",
    "/chunkbad": "disconnected",
}


def test_good_pictures_are_kept_however_they_are_sent(case: Case) -> None:
    spec = importlib.util.spec_from_file_location("srv", case("http/srv.py"))
    assert spec
    assert spec.loader
    server = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(server)
    stage = LocalImages(
        ports={"pics.test": server.start()}, retries=0, timeout_s=20, read_timeout_s=10, unescape_urls=False
    )
    paths = [path.decode("latin-1") for path in server.A]
    pairs = (Pair(f"http://pics.test{path}", "t") for path in paths)
    rows = pa.concat_tables(listed(pairs, source="web", text_source="web"))
    out = run_map(stage, rows)
    names = dict(zip(rows["id"].to_pylist(), paths, strict=True))
    assert {names[one.id]: one.why for one in out.rejects} == FAULTS
    assert {names[row] for row in out.table["id"].to_pylist()} == set(paths) - set(FAULTS)
    assert b"/caf%E9.jpg" in server.log  # Latin-1 of a Location, as it was sent
    assert b"/caf%C3%A9.jpg" in server.log


def test_a_pattern_with_many_stars_takes_no_time(case: Case) -> None:
    rules = tdm_rules(case("security/tdm/tdmrep.json").read_bytes())
    url = json.loads(case("security/tdm/list.jsonl").read_text())["url"]
    begin = time.process_time()
    assert not is_reserved(rules, split_origin(url)[1])
    assert is_reserved(rules, split_origin(url)[1] + "b")
    assert time.process_time() - begin < 1
