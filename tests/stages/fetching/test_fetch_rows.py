"""Batches of a list: a slow row is waited for alone."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import pytest
from threat_server import LocalImages

from vlpipe.pipeline.engine.worker.guard import Faults, run_guarded
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.stage import AheadWork, PartsWork
from vlpipe.stages.fetching import fetch_rows
from vlpipe.stages.lists.list import Pair, listed
from vlpipe.stages.web import fetch


@pytest.mark.slow
def test_a_slow_row_does_not_hold_up_the_batches_after_it(threats: Any) -> None:
    """Their requests are made while it is waited for, and once."""
    stage = LocalImages(ports={"threat.test": threats.port}, read_timeout_s=6.0, timeout_s=6.0, retries=0)
    slow, fast = (
        pa.concat_tables(
            listed((Pair(f"http://threat.test{url}", "") for url in urls), source="web", text_source="web")
        )
        for urls in (["/silent", "/ok.jpg"], ["/ok.jpg?2", "/missing"])
    )
    with stage.open() as work:
        assert isinstance(work, AheadWork)
        for batch in (slow, fast):
            work.ahead(batch)
        deadline = time.monotonic() + 5.5
        while threats.asked["/missing"] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        before = dict(threats.asked)
        outs = [work(slow), work(fast)]
    assert before == {"/silent": 1, "/ok.jpg": 2, "/missing": 1}
    assert dict(threats.asked) == before
    assert [[reject.why for reject in as_out(out).rejects] for out in outs] == [["timeout"], ["http_404"]]


def batch_of(urls: list[str]) -> pa.Table:
    rows = pa.concat_tables(listed((Pair(url, "t") for url in urls), source="web", text_source="web"))
    return rows.combine_chunks()


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize(("memory", "waiting"), [(0, 1), (1000, 5000), (10**9, 5000), (2000, 10**9)])
def test_with_little_room_for_bytes_no_row_is_lost_or_asked_twice(
    threats: Any, monkeypatch: pytest.MonkeyPatch, memory: int, waiting: int
) -> None:
    """Three batches ahead fill the room; those that fail, move, or come slowly are between them. Output comes in parts."""
    monkeypatch.setattr(fetch, "MEMORY_BYTES", memory)
    monkeypatch.setattr(fetch, "WAITING_BYTES", waiting)
    monkeypatch.setattr(fetch_rows, "CHECK_ROWS", 4)
    monkeypatch.setattr(fetch_rows, "PART_BYTES", 2000)
    hosts = [f"h{n}.test" for n in range(5)]
    stage = LocalImages(ports=dict.fromkeys(hosts, threats.port), retries=1, backoff_s=0.01, concurrency=6)
    paths = ["ok.jpg", "slow/x", "missing", "moved", "polyglot.jpg", "flaky", "empty"]
    urls = [f"http://h{n % 5}.test/{paths[n % len(paths)]}?{n}" for n in range(70)]
    batches = [batch_of(urls[first : first + 20]) for first in range(0, len(urls), 20)]
    with stage.open() as work:
        assert isinstance(work, PartsWork)
        for batch in batches:
            work.ahead(batch)  # type: ignore[attr-defined]
        outs = [[*run_guarded(work, batch, Faults("s", 1000), once=True)] for batch in batches]
        assert work._fetch._crawler.bodies._waiting == 0  # type: ignore[attr-defined]
    assert all(len(parts) > 2 for parts in outs)
    for batch, parts in zip(batches, outs, strict=True):
        kept = [url for part in parts for url in part.table["url"].to_pylist()]
        assert kept == [
            url for url in batch["url"].to_pylist() if "missing" not in url and "empty" not in url
        ]
        assert len(kept) + sum(len(part.rejects) for part in parts) == batch.num_rows
        lines = [line["id"] for part in parts for line in part.log]
        assert sorted(lines) == sorted(batch["id"].to_pylist())
    assert (
        sum(threats.asked.values()) == 70 + 10 + 1
    )  # each of /moved leads to /ok.jpg, one of /flaky was busy


def as_out(result: pa.Table | Out) -> Out:
    return result if isinstance(result, Out) else Out(result)
