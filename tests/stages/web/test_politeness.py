"""The limits of a host hold for all workers together: two processes, one of which is killed, and the gate alone."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.inspect.opted_out import hash_of_url, read_hashes
from vlpipe.pipeline.parquet.text_sets import to_hex
from vlpipe.pipeline.service import Address
from vlpipe.pipeline.services.server import Services
from vlpipe.pipeline.storage.store import Store
from vlpipe.stages.web.opted_out import OptedOut
from vlpipe.stages.web.politeness import HostBusy, HostGate, Politeness, Turns, _hash, join
from vlpipe.stages.web.url import sendable

WORKER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from threat_server import LocalImages
import pyarrow as pa
from vlpipe.pipeline.service import Address, at
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.lists.list import Pair, listed
where, ports, urls, more = json.loads(sys.argv[2])
stage = LocalImages(ports=ports, retries=0, **more)
rows = pa.concat_tables(listed((Pair(u, "") for u in urls), source="web", text_source="web"))
with at(Address(*where)):
    out = run_map(stage, rows)
print(json.dumps([out.table.num_rows, [r.why for r in out.rejects]]))
"""


def rules(**more: Any) -> Politeness:
    values = {"per_host": 2, "host_interval_s": 0.0, "max_wait_s": 1.0, "backoff_s": 0.05, "lease_s": 60.0}
    return Politeness(**{**values, **more})


@pytest.fixture
def services() -> Iterator[Services]:
    one = Services()
    yield one
    one.close()


def worker(where: Address | None, port: int, urls: list[str], **more: Any) -> subprocess.Popen[str]:
    assert where is not None
    at = [where.host, where.port, where.step, where.secret]
    task = json.dumps([at, {"threat.test": port}, urls, more])
    command = [sys.executable, "-c", WORKER, str(Path(__file__).parents[1]), task]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def urls(name: str, num: int) -> list[str]:
    return [f"http://threat.test/{name}/{n}" for n in range(num)]


@pytest.mark.slow
def test_two_workers_share_a_hosts_places(services: Services, threats: Any) -> None:
    where = services.address("images", lambda _: HostGate(rules(per_host=3)))
    both = [worker(where, threats.port, urls("slow", 40), per_host=3) for _ in range(2)]
    said = [json.loads(one.communicate(timeout=60)[0]) for one in both]
    assert said == [[40, []], [40, []]]
    assert threats.most_here == 3


@pytest.mark.slow
def test_two_workers_share_a_hosts_rate(services: Services, threats: Any) -> None:
    where = services.address("images", lambda _: HostGate(rules(per_host=8, host_interval_s=0.05)))
    both = [worker(where, threats.port, [f"{url}?{k}" for url in urls("ok.jpg", 20)]) for k in range(2)]
    assert [one.wait(60) for one in both] == [0, 0]
    assert len(threats.at) == 40
    assert max(threats.at) - min(threats.at) >= 1.6  # 39 * 0.05, were no thread ever late


@pytest.mark.slow
def test_a_url_that_opted_out_is_asked_by_no_other_worker(services: Services, threats: Any) -> None:
    where = services.address("images", lambda _: HostGate(rules()))
    no = ["http://threat.test/no-ai"]
    for _ in range(2):
        one = worker(where, threats.port, [*no, "http://threat.test/ok.jpg"])
        assert json.loads(one.communicate(timeout=60)[0]) == [1, ["opt_out"]]
    assert (threats.asked["/no-ai"], threats.asked["/ok.jpg"]) == (1, 2)


@pytest.mark.slow
def test_a_url_that_opted_out_is_asked_in_no_later_run(tmp_path: Path, threats: Any) -> None:
    no = "http://threat.test/no-ai"
    for n in range(2):
        run = Services()
        where = run.address("images", lambda run: HostGate(rules(), run.once(OptedOut)), Store(str(tmp_path)))
        both = [worker(where, threats.port, [no, f"http://threat.test/ok.jpg?{n}"]) for _ in range(2 - n)]
        for one in both:
            assert json.loads(one.communicate(timeout=60)[0]) == [1, ["opt_out"]]
        asked, threats.asked = dict(threats.asked), type(threats.asked)()
        assert asked == ({"/no-ai": asked["/no-ai"], "/ok.jpg": 2} if n == 0 else {"/ok.jpg": 1})
        run.close()
    assert to_hex(read_hashes(Store(str(tmp_path)))).to_pylist() == [hash_of_url(no)]


@pytest.mark.slow
def test_what_a_killed_worker_held_is_free_at_once(services: Services, threats: Any) -> None:
    """It held both places of the host for 5 s; the other worker has long been done by then."""
    where = services.address("images", lambda _: HostGate(rules()))
    doomed = worker(where, threats.port, urls("silent", 2), read_timeout_s=30.0)
    until = time.monotonic() + 30
    while sum(threats.asked.values()) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    other = worker(where, threats.port, urls("ok.jpg", 10))
    time.sleep(0.5)
    assert other.poll() is None
    doomed.kill()
    doomed.communicate()
    assert json.loads(other.communicate(timeout=60)[0]) == [0, ["http_404"] * 10]


@pytest.mark.slow
def test_without_the_driver_a_worker_fails_and_does_not_hang(services: Services, threats: Any) -> None:
    where = services.address("images", lambda _: HostGate(rules()))
    one = worker(where, threats.port, urls("slow", 400))
    while not threats.asked:
        time.sleep(0.01)
    services.close()
    one.communicate(timeout=30)
    assert one.returncode == 1


def run(limits: Politeness, talk: Any) -> Any:
    async def whole() -> Any:
        return await asyncio.wait_for(talk(await join(None, limits)), 20)

    return asyncio.run(whole())


async def hold(turns: Turns, host: str, seconds: float, log: list[tuple[str, float]]) -> None:
    async with turns.turn(host):
        log.append((host, time.monotonic()))
        await asyncio.sleep(seconds)


def test_hosts_do_not_wait_for_each_other() -> None:
    log: list[tuple[str, float]] = []

    async def talk(turns: Turns) -> None:
        await asyncio.gather(*(hold(turns, host, 0.2, log) for host in "aaaab"))

    run(rules(per_host=1), talk)
    assert [host for host, _ in log] == ["a", "b", "a", "a", "a"]


def test_a_turn_that_is_given_up_is_free_again() -> None:
    log: list[tuple[str, float]] = []

    async def talk(turns: Turns) -> list[Any]:
        held = asyncio.ensure_future(hold(turns, "a", 60, log))
        waiting = asyncio.ensure_future(hold(turns, "a", 60, log))
        await asyncio.sleep(0.05)
        for task in (waiting, held):
            task.cancel()
        ended = await asyncio.gather(waiting, held, return_exceptions=True)
        await hold(turns, "a", 0, log)
        return ended

    ended = run(rules(per_host=1), talk)
    assert [type(one) for one in ended] == [asyncio.CancelledError] * 2
    assert [host for host, _ in log] == ["a", "a"]  # the first, and after both were given up the last


def test_a_lease_that_is_never_given_back_runs_out() -> None:
    async def talk(turns: Turns) -> float:
        asyncio.ensure_future(hold(turns, "a", 60, []))  # noqa: RUF006
        await asyncio.sleep(0.01)
        began = time.monotonic()
        await hold(turns, "a", 0, [])
        return time.monotonic() - began

    assert 0.2 < run(rules(per_host=1, lease_s=0.3), talk) < 5


@pytest.mark.parametrize(
    "url",
    [
        "http://a.test/",
        "https://a.test/x?y=1&amp;z",
        "http://a.test:80/x",
        "https://a.test:8443/x",
        "http://a.test./x",
        "http://[2001:db8::1]/x",
        "http://[2001:db8::1]:8080/x",
        "http://A.Test/caf\u00e9 %20|x?\u00fc#part",
        "HTTP://b\u00fccher.test?q",
        "http://a.test/x?",
        "http://a.test//x/../y;z=1",
    ],
)
def test_a_url_as_it_is_sent_has_the_hash_of_the_one_that_is_listed(url: str) -> None:
    assert _hash(sendable(url)) == hash_of_url(url)


def test_who_led_there_is_not_asked_again_either() -> None:
    async def talk(turns: Turns) -> list[str]:
        async with turns.turn("b", "http://b.test/") as turn:
            turn.opted_out, turn.led_here = "noai", "http://a.test/"
        said = []
        for url in ("http://b.test/", "http://a.test/", "http://c.test/"):
            try:
                async with turns.turn("x", url):
                    said.append("granted")
            except RowFault as fault:
                said.append(f"{fault.why}: {fault.detail}")
        return said

    assert run(rules(), talk) == ["opt_out: noai", "opt_out: noai", "granted"]


async def struck(turns: Turns, wanted_s: float = 0.0) -> None:
    async with turns.turn("a") as turn:
        turn.struck, turn.wanted_s = True, wanted_s


def test_each_strike_in_a_row_doubles_the_rest_and_a_success_ends_the_row() -> None:
    async def talk(turns: Turns) -> list[float]:
        waits = []
        for bad in (True, True, True, False, True):
            begin = time.monotonic()
            await (struck(turns) if bad else hold(turns, "a", 0, []))
            waits.append(time.monotonic() - begin)
        begin = time.monotonic()
        await hold(turns, "a", 0, [])
        return [*waits[1:], time.monotonic() - begin]

    first, second, third, none, again = run(rules(backoff_s=0.1), talk)
    assert first >= 0.05
    assert second >= 0.1
    assert 0.2 <= third < 0.5
    assert none < 0.05
    assert again >= 0.05


def test_requests_under_way_together_are_one_strike() -> None:
    async def talk(turns: Turns) -> float:
        await asyncio.gather(*(struck(turns) for _ in range(8)))
        begin = time.monotonic()
        await hold(turns, "a", 0, [])
        return time.monotonic() - begin

    assert run(rules(per_host=8, backoff_s=0.1), talk) < 0.3  # 2 ** 7 * 0.1 would be refused


def test_a_rest_that_is_too_long_is_refused_at_once() -> None:
    async def talk(turns: Turns) -> None:
        await struck(turns, wanted_s=30.0)
        for _ in range(3):
            with pytest.raises(HostBusy):
                await hold(turns, "a", 0, [])
        await hold(turns, "b", 0, [])

    run(rules(), talk)


def test_a_lost_driver_is_an_error_for_all_who_wait() -> None:
    async def talk(turns: Turns) -> list[Any]:
        await asyncio.sleep(0)
        held = asyncio.ensure_future(hold(turns, "a", 0.2, []))
        waiting = asyncio.ensure_future(hold(turns, "a", 0, []))
        await asyncio.sleep(0.05)
        turns.lost()
        late = asyncio.ensure_future(hold(turns, "a", 0, []))
        return await asyncio.gather(held, waiting, late, return_exceptions=True)

    held, waiting, late = run(rules(per_host=1), talk)
    assert held is None
    assert isinstance(waiting, VlpipeError)
    assert isinstance(late, VlpipeError)


def test_hosts_of_the_past_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlpipe.stages.web.politeness.FEW_HOSTS", 10)
    gate = HostGate(rules())

    class Nobody:
        def send(self, message: Any) -> None:
            pass

    async def talk() -> int:
        nobody = Nobody()
        for n in range(1000):
            gate.heard(nobody, [[n, f"host{n}", ""]])
            gate.heard(nobody, [n])
        return len(gate._hosts)

    assert asyncio.run(talk()) <= 21
