"""Fetch the images of a list of url + alt-text; every row comes out as an image row or as a typed reject."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.stage import File, ListFile, SourceStage, Work
from vlpipe.stages.ingest.blocklist import NOTHING, Blocklist, load
from vlpipe.stages.ingest.image_rows import ImageRows
from vlpipe.stages.ingest.list import Pair, listed, read_pairs
from vlpipe.stages.ingest.serve import serving
from vlpipe.stages.pixels import MAX_FRAMES, MAX_PIXELS
from vlpipe.stages.row import IMAGE_FIELDS, LISTED

if TYPE_CHECKING:
    from vlpipe.stages.ingest.fetch import Fetch

# What may pass: tried again at once (`retries`), and in a later run by `vlpipe retry STEP --why CODE`.
PASSING = frozenset(
    {"timeout", "connect", "dns", "disconnected", "http_408", "http_425", "http_429"}
    | {f"http_{status}" for status in range(500, 600)}
)
FETCHED = pa.schema(
    [*LISTED, pa.field("http_status", pa.int32()), pa.field("final_url", pa.string()), *IMAGE_FIELDS]
)

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class Fetching(SourceStage):
    """What all stages that fetch have in common; they differ in what they list.

    serve: host name -> folder that answers for it on a loopback port while the stage runs; the one exemption
    from the rule that only public addresses are asked. max_pixels, max_frames: checked before decoding.
    blocklist: URLs and domains that are not asked for, content that is not decoded (`ingest.blocklist`: reject
    `blocked`, kind filtered). Another list is another step; `ingest.blocklist:DropBlocked` needs no new fetch.
    """

    # Link rot: of published lists, 33 to 94 % of the images are still there.
    MAX_REJECT_RATE: ClassVar[float] = 0.9
    # Whom we ask and how patiently; a row that was fetched is what it is.
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset(
        {"concurrency", "per_host", "retries", "backoff_s", "user_agent"}
        | {"connect_timeout_s", "read_timeout_s", "timeout_s"}
    )

    serve: dict[str, File] = field(default_factory=dict)
    blocklist: File | None = None
    source: str = "web"  # part of the row ids: lists with different ones share no id
    connect_timeout_s: Positive = 5.0
    read_timeout_s: Positive = 10.0  # without a byte
    timeout_s: Positive = 30.0  # one attempt, redirects and body included
    max_bytes: Count = 20_000_000
    max_pixels: Count = MAX_PIXELS
    max_frames: Count = MAX_FRAMES
    max_redirects: Annotated[int, Field(ge=0)] = 5
    concurrency: Count = 64
    per_host: Count = 8
    retries: Annotated[int, Field(ge=0)] = 1
    backoff_s: Annotated[float, Field(ge=0)] = 1.0  # doubles with each attempt
    user_agent: str = "vlpipe/0.1 (dataset builder)"

    def row_schema(self) -> pa.Schema:
        return LISTED

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return FETCHED

    def loopback(self) -> AbstractContextManager[Mapping[str, int]]:
        """Host -> port on 127.0.0.1, for as long as it is entered."""
        return serving({host: folder.path for host, folder in self.serve.items()})

    @contextmanager
    def open(self) -> Iterator[Work]:
        from vlpipe.stages.ingest.fetch import Limits, fetcher

        # Parameters of the stage and of the fetcher have the same names.
        limits = Limits(**{f.name: getattr(self, f.name) for f in fields(Limits)})
        blocklist = load(self.blocklist) if self.blocklist else NOTHING
        with self.loopback() as ports, fetcher(limits, ports, PASSING) as fetch:
            yield lambda batch: _fetch_rows(
                batch, fetch, ImageRows(batch, self.max_pixels, self.max_frames), blocklist
            )


def _fetch_rows(batch: pa.Table, fetch: Fetch, rows: ImageRows, blocklist: Blocklist) -> Out:
    """Images are checked in order, in this thread, while later ones are still on their way."""
    log: list[dict[str, Any]] = []
    blocked = [blocklist.check_url(url) for url in batch["url"].to_pylist()]
    asked = batch.filter(pa.array([fault is None for fault in blocked], pa.bool_()))
    started = fetch(asked["url"].to_pylist())
    answers = iter(started)
    try:
        for row, id_ in enumerate(batch["id"].to_pylist()):
            fault = blocked[row]
            if fault is not None:
                rows.reject(row, fault, "filtered")
                continue
            answer = next(answers).result()
            if isinstance(answer.result, RowFault):
                rows.reject(row, answer.result)
            elif fault := blocklist.check_url(answer.result.url) or blocklist.check_bytes(answer.result.body):
                rows.reject(row, fault, "filtered")
            else:
                page = answer.result
                rows.add(row, page.body, http_status=page.status, final_url=page.url)
            at = datetime.fromtimestamp(answer.at_s, UTC).isoformat(timespec="seconds")
            log.append(
                {"id": id_, "at": at, "seconds": round(answer.seconds, 3), "attempts": answer.attempts}
            )
    finally:
        for future in started:
            future.cancel()
    out = rows.out(FETCHED)
    out.log = log
    return out


@dataclass(frozen=True, kw_only=True)
class FetchImages(Fetching):
    """list: parquet, tsv, csv or jsonl, or a folder of them; url, text: its columns; columns: their names,
    for a tsv or csv without a header line (CC3M: `columns: [text, url]`).

    Columns out: FETCHED. Codes: PASSING, http_<status>, no_url, bad_url, forbidden_address, tls,
    bad_response, too_many_redirects, too_large, and those of `stages.pixels`: empty, not_an_image, truncated,
    broken, too_many_pixels, too_many_frames.
    """

    list: ListFile
    url: str = "url"
    text: str = "text"
    columns: tuple[str, ...] | None = None
    text_source: Literal["web", "human"] = "web"

    def preflight(self) -> builtins.list[str]:
        if self.list.step is None:
            next(self._pairs(), None)  # raises what is wrong with the file or its columns
        return []

    def rows(self) -> Iterator[pa.Table]:
        yield from listed(self._pairs(), source=self.source, text_source=self.text_source)

    def _pairs(self) -> Iterator[Pair]:
        return read_pairs(self.list.path, url=self.url, text=self.text, columns=self.columns)
