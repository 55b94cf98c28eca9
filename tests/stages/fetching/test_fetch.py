"""Fetching from a server that does everything wrong: every row comes out, or is rejected with its code."""

from __future__ import annotations

import dataclasses
import hashlib
import socket
import time
from collections.abc import Sequence
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from threat_server import PLAIN, LocalImages

from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.fetching.columns import FETCHED
from vlpipe.stages.fetching.images import PASSING, FetchImages
from vlpipe.stages.images.resize import Resize
from vlpipe.stages.lists.list import Pair, listed
from vlpipe.stages.web.response import retry_after_s


def fetch(server: Any, urls: Sequence[str], **parameters: Any) -> Out:
    patience: dict[str, Any] = {
        "connect_timeout_s": 2.0,
        "read_timeout_s": 1.0,
        "timeout_s": 1.5,
        "retries": 0,
    }
    stage = LocalImages(
        ports=dict.fromkeys(("threat.test", "busy.test", "away.test"), server.port),
        **{**patience, "max_bytes": 1_000_000, **parameters},
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
    "http://busy.test/busy": "http_429",
    "http://away.test/away": "http_503",
    threat("/forbidden"): "http_403",
    threat("/login"): "http_401",
    threat("/law"): "http_451",
    threat("/no-ai"): "opt_out",
    threat("/no-tdm"): "opt_out",
    threat("/no-training"): "opt_out",
    threat("/many-bots"): "opt_out",
    threat("/moved-no-ai"): "opt_out",
    threat("/credentials-no.jpg"): "opt_out",
    threat("/scans.jpg"): "too_many_scans",
    threat("/invisible.png"): "transparent",
    threat("/drawing.svg"): "not_an_image",
    threat("/many-headers"): "bad_response",
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
    "http://[::ffff:127.0.0.1]/x.jpg": "forbidden_address",
    "http://[2002:7f00:1::]/x.jpg": "forbidden_address",
    "http://[64:ff9b::7f00:1]/x.jpg": "forbidden_address",
    "http://169.254.169.254/latest/meta-data": "forbidden_address",
    "http://me:secret@threat.test/ok.jpg": "bad_url",
    "http://threat.test:25/ok.jpg": "bad_url",
    "http://threat.test/a\x07b": "bad_url",
}
GOOD = [
    *(threat(path) for path in ("/ok.jpg", "/as-text", "/gzipped", "/moved", "/signed", "/ok.jpg?again")),
    # what a filter may drop by its size, a fetcher keeps
    *(
        threat(path)
        for path in ("/polyglot.jpg", "/pixel.gif", "/strip.png", "/not-meant", "/credentials-yes.jpg")
    ),
    threat("/long-header"),
    threat("/ok.jpg?caf\u00e9 \u00fcber"),
]


@pytest.mark.slow
def test_each_threat_has_its_code_and_no_row_is_lost(threats: Any, decoy: Any) -> None:
    good = [GOOD[n % len(GOOD)] for n in range(len(CODES))]
    urls = [url for pair in zip(CODES, good, strict=True) for url in pair]
    out = fetch(threats, urls, max_frames=10, max_wait_s=1.0, backoff_s=0.01)
    assert out.table["url"].to_pylist() == good  # in the order of the list
    by_id = {reject.id: reject.why for reject in out.rejects}
    ids = pa.concat_tables(listed((Pair(u, "a text") for u in urls), source="web", text_source="web"))
    found = {url: by_id[id_] for id_, url in zip(ids["id"].to_pylist(), urls, strict=True) if id_ in by_id}
    assert found == CODES
    assert {(reject.why, reject.kind) for reject in out.rejects if reject.kind != "fault"} == {
        ("opt_out", "filtered")
    }
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
    ("path", "times"),
    [
        ("/broken", 3),
        ("/hangs-up", 3),
        ("/away", 3),
        ("/busy", 1),
        ("/missing", 1),
        ("/gone", 1),
        ("/login", 1),
        ("/forbidden", 1),
        ("/law", 1),
        ("/no-ai", 1),
        ("/moved-no-ai", 1),
        ("/html.jpg", 1),
        ("/endless", 1),
    ],
)
def test_only_what_may_pass_is_asked_again(threats: Any, path: str, times: int) -> None:
    """/busy asks us to wait for an hour: that is for a later run."""
    fetch(threats, [threat(path)], retries=2, backoff_s=0.01)
    assert threats.asked[path] == times


def test_a_host_that_wants_a_long_rest_is_not_asked_again_in_this_run(threats: Any) -> None:
    urls = [f"http://busy.test/{name}" for name in ("busy", "ok.jpg", "ok.jpg?2")]
    out = fetch(threats, [*urls, threat("/ok.jpg")], per_host=1, retries=2)
    assert codes(out) == ["http_429", "host_busy", "host_busy"]
    assert out.table["url"].to_pylist() == [threat("/ok.jpg")]
    assert threats.hosts["busy.test"] == 1


@pytest.mark.slow
def test_a_short_rest_is_kept_by_all_urls_of_the_host(threats: Any) -> None:
    """One 429 with `Retry-After: 1`; nothing is asked of the host for that second, and then everything comes."""
    urls = [f"http://busy.test/rest/{n}" for n in range(6)]
    out = fetch(threats, urls, per_host=1, retries=1)
    assert out.table["url"].to_pylist() == urls
    assert threats.at[1] - threats.at[0] >= 1.0
    assert threats.at[-1] - threats.at[1] < 1.0


@pytest.mark.slow
def test_the_time_between_two_starts_at_a_host(threats: Any) -> None:
    out = fetch(threats, [threat(f"/ok.jpg?{n}") for n in range(11)], host_interval_s=0.1)
    assert out.table.num_rows == 11
    assert threats.at[-1] - threats.at[0] >= 0.7  # 1.0, were no thread ever late


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("120", 120, 120),
        (" 7 ", 7, 7),
        ("9" * 400, 365 * 86400, 365 * 86400),
        ("-5", 0, 0),
        ("1.5", 0, 0),
        ("\u0661", 0, 0),
        ("soon", 0, 0),
        ("", 0, 0),
    ],
)
def test_retry_after(header: str, least: float, most: float) -> None:
    assert least <= retry_after_s(header) <= most


def test_retry_after_a_date() -> None:
    now = time.time()
    assert 80 < retry_after_s(formatdate(now + 90, usegmt=True)) < 91
    assert retry_after_s(formatdate(now - 90, usegmt=True)) == 0


def test_who_said_no_is_not_asked_again_and_what_they_said_is_kept(threats: Any) -> None:
    urls = [threat("/no-ai"), threat("/no-ai"), threat("/moved-no-ai"), threat("/many-bots")]
    out = fetch(threats, urls, per_host=1, retries=3)
    assert [(reject.kind, reject.why, reject.detail) for reject in out.rejects] == [
        ("filtered", "opt_out", "X-Robots-Tag: noai, noimageai"),
        ("filtered", "opt_out", "X-Robots-Tag: noai, noimageai"),
        ("filtered", "opt_out", "X-Robots-Tag: noai"),
        ("filtered", "opt_out", "X-Robots-Tag: unavailable_after: Wed, 25 Jun 2031, NoImageAI"),
    ]
    assert threats.asked == {"/no-ai": 1, "/moved-no-ai": 1, "/many-bots": 1}  # not where the redirect led


@pytest.mark.slow
def test_which_signals_count_is_a_parameter(threats: Any) -> None:
    urls = [threat("/no-ai"), threat("/no-tdm")]
    assert fetch(threats, urls, opt_out=("tdm-reservation",)).table["url"].to_pylist() == urls[:1]
    assert fetch(threats, urls, opt_out=()).table["url"].to_pylist() == urls


def test_a_name_that_changes_its_address(threats: Any, decoy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the first answer is public, later ones are the loopback. Nobody here is ever asked."""
    answers: list[str] = []
    real = socket.getaddrinfo

    def rebinding(host: str, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in ("rebind.test", "both.test"):
            return real(host, port, *args, **kwargs)
        answers.append("192.88.98.1" if not answers else "127.0.0.1")
        addresses = answers[-1:] if host == "rebind.test" else ["192.88.98.1", "127.0.0.1"]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    url = f"http://rebind.test:{decoy.port}/x.jpg"
    out = fetch(threats, [url], connect_timeout_s=0.2, retries=2, backoff_s=0.01)
    assert codes(out)[0] in ("timeout", "connect", "forbidden_address")
    assert codes(fetch(threats, [url, f"http://both.test:{decoy.port}/"])) == ["forbidden_address"] * 2
    assert not decoy.asked


def test_a_name_that_does_not_exist_is_looked_up_once(threats: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lookups: list[str] = []

    def nowhere(host: str, *args: Any, **kwargs: Any) -> Any:
        lookups.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    out = fetch(threats, [f"http://gone.test/{n}" for n in range(20)], per_host=1, retries=1, backoff_s=0.001)
    assert codes(out) == ["dns"] * 20
    assert lookups == ["gone.test"]


@pytest.mark.slow
def test_bytes_change_only_where_it_is_asked_for(threats: Any) -> None:
    same, smaller = (
        fetch(threats, [threat("/polyglot.jpg")], **more)
        for more in ({}, {"resize": Resize(size=6, format="png")})
    )
    body = PLAIN["/polyglot.jpg"][2]
    assert same.table["image"][0].as_py() == body
    row = smaller.table.to_pylist()[0]
    assert row["image"].startswith(b"\x89PNG")
    assert b"script" not in row["image"]
    assert (row["format"], row["width"], row["height"]) == ("PNG", 10, 6)
    assert row["sha256"] == hashlib.sha256(row["image"]).hexdigest()
    original = (row["original_sha256"], row["original_width"], row["original_height"])
    assert original == (hashlib.sha256(body).hexdigest(), 20, 12)


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


@pytest.mark.slow
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
    assert not PASSING & {
        "http_404",
        "http_410",
        "http_401",
        "http_403",
        "http_451",
        "opt_out",
        "hash_mismatch",
    }
    assert not PASSING & {"bad_url", "forbidden_address", "truncated", "not_an_image", "too_large"}


def test_a_host_that_refuses_everything_is_counted(threats: Any) -> None:
    """All 60 refused; none, if one of them was answered otherwise, or they are few."""
    refused = [threat(f"/forbidden?{n}") for n in range(60)]
    assert fetch(threats, refused).counts == {"refused_all:threat.test": 60}
    assert fetch(threats, [*refused, threat("/gone")]).counts == {}
    assert fetch(threats, refused[:40]).counts == {}
