"""Batches of a list: a slow row is waited for alone."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
from threat_server import LocalImages

from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.stage import AheadWork
from vlpipe.stages.lists.list import Pair, listed


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


def as_out(result: pa.Table | Out) -> Out:
    return result if isinstance(result, Out) else Out(result)
