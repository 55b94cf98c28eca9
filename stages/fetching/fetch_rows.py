"""Fetches batches of listed rows; the results are image rows, and rejects with reason codes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.engine.worker.guard import row_fault
from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import Out, joined
from vlpipe.stages.fetching.blocklist import BLOCKED, Blocklist
from vlpipe.stages.fetching.columns import MATCHES
from vlpipe.stages.fetching.refusals import Refusals
from vlpipe.stages.images.image_rows import ImageRows
from vlpipe.stages.lists.list import EXPECTED, FAULT
from vlpipe.stages.web.event_loop import Asked
from vlpipe.stages.web.fetch import Answer, Fetch
from vlpipe.stages.web.response import Page

FILTERED = frozenset({"opt_out", BLOCKED})  # excluded by a rule, not failed: `vlpipe retry` skips them
CHECK_ROWS = 64  # images that are waited for together; their requests are sent however many bytes wait
CHECK_BYTES = 1 << 22  # images sent to the decoder together, unless a single one is larger
PART_BYTES = 1 << 25  # images of a part of a batch's output

Listed = Sequence[Mapping[str, Any]]
Started = list[Asked[Answer] | RowFault]


class FetchRows:
    """The stage's function, which fetches one batch per call; its output is image rows and rejects.

    An `AheadWork`: batches passed to `ahead` are fetched in the background, so that a slow row does not delay other batches.
    A `PartsWork`: the output of a batch comes in parts. The bytes that wait have a limit (`web.bodies`).
    """

    num_ahead = 3  # batches

    def __init__(
        self,
        fetch: Fetch,
        rows_of: Callable[[pa.Table], ImageRows],
        schema: pa.Schema,
        blocklist: Blocklist,
    ) -> None:
        """schema: with the column MATCHES, rows whose content is not what the list says are kept and flagged."""
        self._fetch, self._rows_of, self._schema = fetch, rows_of, schema
        self._blocklist = blocklist
        self._flags_mismatch = MATCHES.name in schema.names
        # ids of a batch -> its rows and their futures
        self._under_way: dict[tuple[str, ...], tuple[Listed, Started]] = {}

    def ahead(self, batch: pa.Table) -> None:
        """Starts fetching a batch that a later call will receive."""
        self._under_way[_ids(batch)] = _start(_listed(batch), self._fetch)

    def __call__(self, batch: pa.Table) -> Out:
        """Returns the whole output of a batch."""
        return joined([*self.parts(batch)])

    def parts(self, batch: pa.Table) -> Iterator[Out]:
        """Fetches a batch and yields its output in parts of about PART_BYTES.

        Images are checked in order, in this thread, while later ones are still being fetched.
        """
        rows = self._rows_of(batch)
        log: list[dict[str, Any]] = []
        tally = Refusals()
        under_way = self._under_way.pop(_ids(batch), None)
        listed, started = under_way or _start(_listed(batch), self._fetch)
        try:
            for first in range(0, len(listed), CHECK_ROWS):
                together = range(first, min(first + CHECK_ROWS, len(listed)))
                self._wait([one for row in together if isinstance(one := started[row], Asked)])
                for ready in self._ready(together, listed, started, rows, log, tally):
                    rows.add_all(ready)
                    if rows.num_bytes >= PART_BYTES:
                        yield self._part(rows, log)
            last = self._part(rows, log)
            last.counts = tally.counts()
            yield last
        finally:
            for one in started:
                if isinstance(one, Asked):
                    one.cancel()

    def _part(self, rows: ImageRows, log: list[dict[str, Any]]) -> Out:
        """Returns the rows, rejects and log lines collected since the last part."""
        out = rows.out(self._schema)
        out.log, log[:] = [*log], []
        return out

    def _wait(self, asked: Sequence[Asked[Answer]]) -> None:
        """Waits until all are answered; for the last one first, so that this thread wakes up only once or twice."""
        self._fetch.want(asked)
        for one in reversed(asked):
            one.exception()

    def _ready(
        self,
        together: range,
        listed: Listed,
        started: Started,
        rows: ImageRows,
        log: list[dict[str, Any]],
        tally: Refusals,
    ) -> Iterator[list[tuple[int, bytes, dict[str, Any]]]]:
        """Yields lists of (row number, image, columns) of the rows of `together` that have an image, about CHECK_BYTES each.

        Their requests must be answered. Adds a line per request to `log`, and rejects the other rows in `rows`. Replaces
        answers in `started` by DONE, which frees them.
        """
        ready: list[tuple[int, bytes, dict[str, Any]]] = []
        num_bytes = 0
        for row in together:
            asked, started[row] = started[row], DONE
            try:
                page = self._page(listed[row], asked, log)
                tally.add(listed[row]["url"])
                body = page.body
                if page.content:
                    page.content.close()
                matches = self._is_wanted(body, listed[row].get(EXPECTED.name))
            except Exception as error:
                fault = row_fault(error, __name__)
                tally.add(listed[row]["url"], fault.why)
                rows.reject(row, fault, "filtered" if fault.why in FILTERED else "fault")
                continue
            flags = {MATCHES.name: matches} if self._flags_mismatch else {}
            ready.append((row, body, {"http_status": page.status, "final_url": page.url, **flags}))
            num_bytes += len(body)
            if num_bytes >= CHECK_BYTES:
                yield ready
                ready, num_bytes = [], 0
        yield ready

    def _is_wanted(self, body: bytes, expected: str | None) -> bool | None:
        """Returns whether the content has the hash `expected`; None without one.

        Raises RowFault if it is blocked, and, unless mismatches are flagged, if it has another hash (hash_mismatch).
        """
        blocked = self._blocklist.check_bytes(body)
        if blocked is not None:
            raise blocked
        if not expected:
            return None
        name = "md5" if len(expected) == 32 else "sha256"
        found = hashlib.new(name, body, usedforsecurity=False).hexdigest()
        if found == expected.lower() or self._flags_mismatch:
            return found == expected.lower()
        text = f"the {name} of the response is {found}, but the list says {expected.lower()}"
        raise RowFault("hash_mismatch", text)

    def _page(
        self, one: Mapping[str, Any], asked: Asked[Answer] | RowFault, log: list[dict[str, Any]]
    ) -> Page:
        if isinstance(asked, RowFault):
            raise asked
        answer = asked.result()
        log.append(log_line(one["id"], answer))
        if isinstance(answer.result, RowFault):
            raise answer.result
        return answer.result


def _ids(batch: pa.Table) -> tuple[str, ...]:
    return tuple(batch["id"].to_pylist())


def _listed(batch: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = batch.drop_columns(["texts"]).to_pylist()
    return rows


def _start(listed: Listed, fetch: Fetch) -> tuple[Listed, Started]:
    """Starts fetching; returns the rows, and for each its future, or the RowFault of an invalid row: it is not fetched."""
    refused = [_refused(one) for one in listed]
    started = iter(fetch([one["url"] for one, fault in zip(listed, refused, strict=True) if fault is None]))
    return listed, [next(started) if fault is None else fault for fault in refused]


def _refused(one: Mapping[str, Any]) -> RowFault | None:
    """Returns a RowFault (bad_line, bad_hash) if a listed row is invalid, else None."""
    if one.get(FAULT.name):
        return RowFault("bad_line", one[FAULT.name])
    expected = one.get(EXPECTED.name)
    if expected is not None and not _HEX_DIGEST.fullmatch(expected):
        return RowFault("bad_hash", f"{expected[:80]!r} is not an md5 (32) or sha256 (64 hexadecimal digits)")
    return None


DONE = RowFault("done")  # in place of an answer that was used
_HEX_DIGEST = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{64}")


def log_line(id_: str, answer: Answer) -> dict[str, Any]:
    """Returns the log entry of a row: id, time of the first attempt (UTC), seconds taken, number of attempts."""
    seconds = round(answer.seconds, 3)
    return {"id": id_, "at": _written(int(answer.at_s)), "seconds": seconds, "attempts": answer.attempts}


@lru_cache(maxsize=8)
def _written(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")
