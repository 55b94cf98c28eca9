"""One odd row does not make a worker ask everybody else again."""

from __future__ import annotations

import errno
import json
import os
from typing import Any

import pyarrow as pa
import pytest
from threat_server import LocalImages

from vlpipe.pipeline.engine.worker.guard import Faults, run_guarded
from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.fetching.images import PASSING
from vlpipe.stages.fetching.precheck import address_fault
from vlpipe.stages.lists.list import Pair, listed
from vlpipe.stages.web.fetch import fetcher
from vlpipe.stages.web.response import retry_after_s
from vlpipe.stages.web.robots import tdm_rules
from vlpipe.stages.web.url import sendable

NUM_GOOD = 255


def stage_at(server: Any, **more: Any) -> LocalImages:
    hosts = [f"h{n}.test" for n in range(32)]
    return LocalImages(ports=dict.fromkeys(hosts, server.port), retries=0, timeout_s=20.0, **more)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("http://h5.test/missing", "http_404"),
        ("http://a../x.jpg", "bad_url"),
        ("http://127.0.0.1.../x.jpg", "bad_url"),
        ("http://h5.test/to-dots", "bad_url"),
        ("http://h5.test/odd-rest-year", "http_503"),
        ("http://h5.test/odd-rest-zone", "http_429"),
    ],
)
def test_of_256_urls_with_one_odd_one_each_is_asked_once(threats: Any, bad: str, why: str) -> None:
    urls = [f"http://h{n % 32}.test/slow/{n}" for n in range(NUM_GOOD)]
    urls.insert(100, bad)
    rows = pa.concat_tables(listed((Pair(url, "t") for url in urls), source="web", text_source="web"))
    with stage_at(threats).open() as work:
        outs = list(run_guarded(work, rows.combine_chunks(), Faults(1000)))
    assert [reject.why for out in outs for reject in out.rejects] == [why]
    assert sum(out.table.num_rows for out in outs) == NUM_GOOD
    asked = {path: times for path, times in threats.asked.items() if path.startswith("/slow/")}
    assert (len(asked), set(asked.values())) == (NUM_GOOD, {1})


def crawl(server: Any, urls: list[str], error: Exception) -> list[Any]:
    """Fetch them; of those with `odd` in them something unexpected is raised."""

    def refuse(url: str) -> RowFault | None:
        if "odd" in url:
            raise error
        return None

    stage = stage_at(server)
    with fetcher(stage._limits(), stage.ports, PASSING, refuse=refuse) as fetch:
        return [future.exception() or future.result().result for future in fetch(urls)]


def test_an_exception_that_nobody_thought_of_is_its_rows_fault(threats: Any) -> None:
    first, second = crawl(
        threats, ["http://h1.test/ok.jpg", "http://h1.test/odd.jpg"], ZeroDivisionError("by zero")
    )
    assert first.status == 200
    assert isinstance(second, RowFault)
    assert second.why == "error_ZeroDivisionError"
    assert second.detail.startswith("by zero (")


def test_a_fault_of_the_machine_is_not(threats: Any) -> None:
    full = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    first, second = crawl(threats, ["http://h1.test/ok.jpg", "http://h1.test/odd.jpg"], full)
    assert first.status == 200
    assert second is full


@pytest.mark.parametrize("host", ["a..", "a...", ".a", "a..b", "..", "127.0.0.1..", "A..", "münchen..de"])
def test_a_host_with_empty_labels(host: str) -> None:
    with pytest.raises(RowFault, match="bad_url"):
        sendable(f"http://{host}/x.jpg")


def test_a_host_with_its_last_dot() -> None:
    assert sendable("http://a.test./x.jpg") == "http://a.test./x.jpg"


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".test"])
def test_a_name_that_the_look_up_does_not_take(host: str) -> None:
    fault = address_fault(host)
    assert fault is not None
    assert fault.why == "dns"


@pytest.mark.parametrize(
    "header",
    [
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 01 Jan 2035 00:00:00 +99999999999999999999",
        "Mon, 01 Jan 2035 00:00:00 -9999",
        "Mon, 01 Jan 0001 00:00:00 +2359",
        "Fri, 31 Dec 9999 23:59:59 -2359",
        "Mon, 32 Jan 2035 99:99:99 GMT",
        "9" * 5000,
        "²",
        "\x00",
    ],
)
def test_no_header_is_too_odd(header: str) -> None:
    assert 0 <= retry_after_s(header) <= 365 * 86400


def test_rules_nested_without_end_reserve_nothing() -> None:
    assert tdm_rules(b"[" * 200_000) == []
    assert tdm_rules(json.dumps([{"location": "/a", "tdm-reservation": 1}]).encode())
