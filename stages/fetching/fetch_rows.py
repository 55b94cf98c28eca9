"""Fetches batches of listed rows; the results are image rows, and rejects with reason codes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.engine.worker.guard import row_fault
from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import Out
from vlpipe.stages.fetching.blocklist import BLOCKED, Blocklist
from vlpipe.stages.images.image_rows import ImageRows
from vlpipe.stages.lists.list import EXPECTED, FAULT
from vlpipe.stages.web.fetch import Answer, Fetch
from vlpipe.stages.web.response import Page

FILTERED = frozenset({"opt_out", BLOCKED})  # excluded by a rule, not failed: `vlpipe retry` skips them
CHECK_ROWS = 64  # images sent to the decoder together

Started = list[Future[Answer] | RowFault]


class FetchRows:
    """The stage's function (an `AheadWork`), which fetches one batch per call and returns image rows and rejects.

    Batches passed to `ahead` are fetched in the background, so that a slow row does not delay other batches.
    """

    num_ahead = 3  # batches; their bytes are held in memory

    def __init__(
        self,
        fetch: Fetch,
        rows_of: Callable[[pa.Table], ImageRows],
        schema: pa.Schema,
        blocklist: Blocklist,
    ) -> None:
        self._fetch, self._rows_of, self._schema = fetch, rows_of, schema
        self._blocklist = blocklist
        self._under_way: dict[tuple[str, ...], Started] = {}  # ids of a batch -> its futures

    def ahead(self, batch: pa.Table) -> None:
        """Starts fetching a batch that a later call will receive."""
        self._under_way[_ids(batch)] = _start(_listed(batch), self._fetch)

    def __call__(self, batch: pa.Table) -> Out:
        """Fetches a batch. Images are checked in order, in this thread, while later ones are still being fetched."""
        listed, rows = _listed(batch), self._rows_of(batch)
        log: list[dict[str, Any]] = []
        started = self._under_way.pop(_ids(batch), None) or _start(listed, self._fetch)
        try:
            for first in range(0, len(listed), CHECK_ROWS):
                together = slice(first, first + CHECK_ROWS)
                _wait(started[together])
                self._check(first, listed[together], started[together], rows, log)
        finally:
            for future in started:
                if not isinstance(future, RowFault):
                    future.cancel()
        out = rows.out(self._schema)
        out.log = log
        return out

    def _check(
        self,
        first: int,
        listed: Sequence[Mapping[str, Any]],
        started: Started,
        rows: ImageRows,
        log: list[dict[str, Any]],
    ) -> None:
        """Adds the results of `listed` to `rows` and `log`; the first is row number `first` of the batch."""
        ready: list[tuple[int, bytes, dict[str, Any]]] = []
        for row, (one, future) in enumerate(zip(listed, started, strict=True), first):
            try:
                page = self._page(one, future, log)
            except Exception as error:
                fault = row_fault(error, __name__)
                rows.reject(row, fault, "filtered" if fault.why in FILTERED else "fault")
            else:
                ready.append((row, page.body, {"http_status": page.status, "final_url": page.url}))
        rows.add_all(ready)

    def _page(
        self, one: Mapping[str, Any], future: Future[Answer] | RowFault, log: list[dict[str, Any]]
    ) -> Page:
        if isinstance(future, RowFault):
            raise future
        answer = future.result()
        log.append(log_line(one["id"], answer))
        return _need_page(answer.result, one.get(EXPECTED.name), self._blocklist)


def _ids(batch: pa.Table) -> tuple[str, ...]:
    return tuple(batch["id"].to_pylist())


def _listed(batch: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = batch.drop_columns(["texts"]).to_pylist()
    return rows


def _wait(started: Started) -> None:
    """Waits for all futures, last first, so that this thread wakes up once or twice instead of for each."""
    for future in reversed(started):
        if not isinstance(future, RowFault):
            future.exception()


def _start(listed: Sequence[Mapping[str, Any]], fetch: Fetch) -> Started:
    """Starts fetching; returns one future per row, or the RowFault of an invalid row, whose URL is not fetched."""
    refused = [_refused(one) for one in listed]
    started = iter(fetch([one["url"] for one, fault in zip(listed, refused, strict=True) if fault is None]))
    return [next(started) if fault is None else fault for fault in refused]


def _refused(one: Mapping[str, Any]) -> RowFault | None:
    """Returns a RowFault (bad_line, bad_hash) if a listed row is invalid, else None."""
    if one.get(FAULT.name):
        return RowFault("bad_line", one[FAULT.name])
    expected = one.get(EXPECTED.name)
    if expected is not None and not _HEX_DIGEST.fullmatch(expected):
        return RowFault("bad_hash", f"{expected[:80]!r} is not an md5 (32) or sha256 (64 hexadecimal digits)")
    return None


_HEX_DIGEST = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{64}")


def _need_page(result: Page | RowFault, expected: str | None, blocklist: Blocklist) -> Page:
    """Returns the fetched page. Raises RowFault: that of a failed fetch, blocked, hash_mismatch."""
    if isinstance(result, RowFault):
        raise result
    blocked = blocklist.check_bytes(result.body)
    if blocked is not None:
        raise blocked
    if expected:
        name = "md5" if len(expected) == 32 else "sha256"
        found = hashlib.new(name, result.body, usedforsecurity=False).hexdigest()
        if found != expected.lower():
            raise RowFault("hash_mismatch", f"{name} is {found}, but the list says {expected.lower()}")
    return result


def log_line(id_: str, answer: Answer) -> dict[str, Any]:
    """Returns the log entry of a row: id, time of the first attempt (UTC), seconds taken, number of attempts."""
    at = datetime.fromtimestamp(answer.at_s, UTC).isoformat(timespec="seconds")
    return {"id": id_, "at": at, "seconds": round(answer.seconds, 3), "attempts": answer.attempts}
