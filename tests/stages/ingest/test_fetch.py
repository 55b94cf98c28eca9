"""Fetching from a server that does everything wrong: every row comes out, or is rejected with its code."""

from __future__ import annotations

import dataclasses
import hashlib
import socket
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.stage import ListFile
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.ingest.images import FETCHED, PASSING, FetchImages
from vlpipe.stages.ingest.list import Pair, listed


@dataclass(frozen=True, kw_only=True)
class LocalImages(FetchImages):
    """As the real stage, but these hosts are at ports that listen already."""

    list: ListFile = field(default_factory=ListFile)
    ports: dict[str, int]

    def loopback(self) -> AbstractContextManager[Mapping[str, int]]:
        return nullcontext(self.ports)


def fetch(server: Any, urls: Sequence[str], **parameters: Any) -> Out:
    patience: dict[str, Any] = {
        "connect_timeout_s": 2.0,
        "read_timeout_s": 1.0,
        "timeout_s": 1.5,
        "retries": 0,
    }
    stage = LocalImages(
        ports={"threat.test": server.port}, **{**patience, "max_bytes": 1_000_000, **parameters}
    )
    rows = pa.concat_tables(listed((Pair(url, "a text") for url in urls), source="web", text_source="web"))
    return run_map(stage, rows)


def threat(path: str) -> str:
    return f"http://threat.test{path}"


def codes(out: Out) -> list[str]:
    return [reject.why for reject in out.rejects]


CODES = {
    threat("/missing"): "http_404",
    threat("/gone"): "http_410",
    threat("/teapot"): "http_418",
    threat("/broken"): "http_500",
    threat("/busy"): "http_429",
    threat("/partial"): "http_206",
    threat("/nowhere"): "http_302",
    threat("/loop"): "too_many_redirects",
    threat("/to-file"): "bad_url",
    threat("/to-ftp"): "bad_url",
    threat("/to-user"): "bad_url",
    threat("/to-metadata"): "forbidden_address",
    threat("/to-decoy"): "forbidden_address",
    threat("/drip"): "timeout",
    threat("/silent"): "timeout",
    threat("/stalled"): "timeout",
    threat("/endless"): "too_large",
    threat("/claims-much"): "too_large",
    threat("/gzip-bomb"): "too_large",
    threat("/gzip-cut"): "disconnected",
    threat("/brotli"): "bad_response",
    threat("/garbage"): "bad_response",
    threat("/hangs-up"): "disconnected",
    threat("/empty"): "empty",
    threat("/html.jpg"): "not_an_image",
    threat("/truncated.jpg"): "truncated",
    threat("/bomb.png"): "too_many_pixels",
    threat("/animation.gif"): "too_many_frames",
    "https://threat.test/ok.jpg": "tls",
    "http://no-such-name.invalid/x.jpg": "dns",
    "": "no_url",
    "None": "bad_url",
    "file:///etc/passwd": "bad_url",
    "data:image/png;base64,AAAA": "bad_url",
    "http://10.0.0.1/x.jpg": "forbidden_address",
    "http://[fd00:ec2::254]/x.jpg": "forbidden_address",
}
GOOD = [threat(path) for path in ("/ok.jpg", "/as-text", "/gzipped", "/moved", "/signed", "/ok.jpg?again")]


def test_each_threat_has_its_code_and_no_row_is_lost(threats: Any, decoy: Any) -> None:
    urls = [url for pair in zip(CODES, GOOD * 6, strict=True) for url in pair]
    out = fetch(threats, urls, max_frames=10)
    assert out.table["url"].to_pylist() == GOOD * 6  # in the order of the list
    by_id = {reject.id: reject.why for reject in out.rejects}
    ids = pa.concat_tables(listed((Pair(u, "a text") for u in urls), source="web", text_source="web"))
    found = {url: by_id[id_] for id_, url in zip(ids["id"].to_pylist(), urls, strict=True) if id_ in by_id}
    assert found == CODES
    assert {reject.kind for reject in out.rejects} == {"fault"}
    assert threats.sent < 20_000_000  # of the endless body
    assert not decoy.asked


def test_columns_of_a_fetched_row(threats: Any) -> None:
    out = fetch(threats, [threat("/signed#part")])
    assert out.table.schema.equals(FETCHED)
    row = out.table.to_pylist()[0]
    body = row.pop("image")
    assert len(row.pop("id")) == 64
    assert row == {
        "url": threat("/signed#part"),  # as it was listed
        "texts": [
            {"text": "a text", "source": "web", "model": None, "score": None, "kept": None, "why": None}
        ],
        "http_status": 200,
        "final_url": threat("/ok.jpg?w=1"),
        "sha256": hashlib.sha256(body).hexdigest(),
        "format": "JPEG",
        "width": 20,
        "height": 12,
    }


def test_times_and_attempts_are_in_the_log_and_nowhere_else(threats: Any) -> None:
    urls = [threat("/flaky"), threat("/ok.jpg"), threat("/broken")]
    first, second = (fetch(threats, urls, retries=1, backoff_s=0.01) for _ in range(2))
    assert [line["attempts"] for line in first.log] == [2, 1, 2]
    assert set(first.log[0]) == {"id", "at", "seconds", "attempts"}
    assert first.table.equals(second.table)
    assert first.rejects == second.rejects


@pytest.mark.parametrize(
    ("path", "times"), [("/broken", 3), ("/hangs-up", 3), ("/missing", 1), ("/html.jpg", 1), ("/busy", 1)]
)
def test_only_what_may_pass_is_asked_again(threats: Any, path: str, times: int) -> None:
    """/busy asks us to wait for an hour: that is for a later run."""
    fetch(threats, [threat(path)], retries=2, backoff_s=0.01)
    assert threats.asked[path] == times


def test_a_redirect_loop_costs_its_budget_once(threats: Any) -> None:
    assert codes(fetch(threats, [threat("/loop")], retries=3, max_redirects=4)) == ["too_many_redirects"]
    assert threats.asked["/loop"] == 5


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]", "0.0.0.0"]
)
def test_services_of_this_machine_are_never_asked(decoy: Any, threats: Any, host: str) -> None:
    out = fetch(threats, [f"http://{host}:{decoy.port}/x.jpg"])
    assert codes(out)[0] in ("forbidden_address", "bad_url")
    assert not decoy.asked


def test_proxies_from_the_environment_are_not_used(
    decoy: Any, threats: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{decoy.port}")
    assert fetch(threats, [threat("/ok.jpg")]).table.num_rows == 1
    assert not decoy.asked


def test_a_port_where_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        out = fetch(SimpleNamespace(port=taken.getsockname()[1]), [threat("/ok.jpg")])
    assert codes(out) == ["connect"]
    assert "127.0.0.1" not in out.rejects[0].detail  # the port would differ from run to run


def test_one_host_is_asked_by_few_at_once_and_waiting_is_no_timeout(threats: Any) -> None:
    urls = [threat(f"/slow/{n}") for n in range(40)]
    out = fetch(threats, urls, per_host=1, concurrency=64, timeout_s=1.5)  # 40 * 0.05 s in the queue
    assert out.table.num_rows == 40
    assert threats.most_here == 1
    assert fetch(threats, urls, per_host=64, concurrency=5).table.num_rows == 40
    assert threats.most_here <= 5


def test_dead_rows_do_not_hold_up_the_step_for_each_other(threats: Any) -> None:
    out = fetch(threats, [threat(f"/silent/{n}") for n in range(40)], per_host=64, concurrency=64)
    assert codes(out) == ["timeout"] * 40
    assert max(line["seconds"] for line in out.log) < 5


def test_how_patiently_we_ask_is_no_part_of_the_identity() -> None:
    names = {f.name for f in dataclasses.fields(FetchImages)}
    assert names >= FetchImages.NOT_IN_KEY
    assert not FetchImages.NOT_IN_KEY & {"serve", "list", "max_bytes", "max_pixels", "max_frames"}
    assert {"timeout", "dns", "http_429", "http_503"} <= PASSING
    assert not PASSING & {"http_404", "bad_url", "forbidden_address", "truncated"}
