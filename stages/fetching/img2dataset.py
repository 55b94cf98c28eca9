"""Fetches with img2dataset 1.47 instead of our own fetcher: same list, row ids and columns; one Downloader call per batch.

Checked: scheme, port and host of every listed URL, and the addresses its name has just before the fetch; a listed URL
that opted out is not requested again (the target of a redirect may be); every image is checked by `common.pixels` before
OpenCV decodes it; img2dataset returns each row exactly once, or the shard fails.
NOT checked, because urllib fetches: redirects may go anywhere, including private addresses and ftp; a name may change
its address between our lookup and urllib's (DNS rebinding); a body is read whole before `max_bytes` is checked;
`timeout_s` restarts with each byte, so a slow response may take forever; proxies of the environment are used; no
limit per host; no blocklist (`fetching.blocklist:DropBlocked` can follow); every failure is retried immediately.
Use `fetching.images` where this matters.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from typing import Annotated, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.engine.worker.guard import row_fault
from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.service import Address, Service, ServiceContext, address
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.stage import SourceStage, Work
from vlpipe.stages.common.loopback import LOOPBACK, serving
from vlpipe.stages.common.pixels import MAX_FRAMES, MAX_PIXELS, Damaged
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED
from vlpipe.stages.fetching.columns import FETCHED
from vlpipe.stages.fetching.earlier_opt_outs import ALONE, Recall, recalling
from vlpipe.stages.fetching.img2dataset_download import Options, download, loaded, missing
from vlpipe.stages.fetching.precheck import allowed
from vlpipe.stages.images.image_rows import ImageRows
from vlpipe.stages.lists.list import Pair, count_at_most, listed, read_pairs
from vlpipe.stages.lists.text_limit import TextLimit
from vlpipe.stages.tars.samples import ORIGINAL
from vlpipe.stages.web.opted_out import OptedOut
from vlpipe.stages.web.politeness import HostGate

_SEEN = {f.name for f in IMAGE_FIELDS}  # filled by `ImageRows`
NO_DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")  # img2dataset's default

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class Img2datasetFetch(SourceStage):
    """`fetching.images:FetchImages` with img2dataset as its engine. list, url, text, columns, text_limit, text_source,
    serve and source are the same, and so are the row ids.

    image_size: None stores the bytes unchanged. A number resizes upright 8-bit RGB pixels by `resize_mode`, encodes
    them (encode_quality: 0 to 100; for png the compression, 0 to 9), and adds the columns ORIGINAL.
    http_status and final_url are null: img2dataset does not report them.
    Codes: those of `fetching.images`, and img2dataset_error (an unknown message, in the detail).
    """

    NAME: ClassVar[str] = "ingest.img2dataset_engine:Img2datasetFetch"
    VERSION: ClassVar[int] = 2  # 2: rejects damaged JPEGs, accepts ICO, names formats
    OBSERVES_WORLD: ClassVar[bool] = True
    MAX_REJECT_RATE: ClassVar[float] = 0.9
    SHARD_ROWS: ClassVar[int] = 2_000  # the first shard is done after half a minute
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset(
        {"concurrency", "timeout_s", "retries", "user_agent_token"}
    )

    list: ListFile
    url: str = "url"
    text: str = "text"
    columns: tuple[str, ...] | None = None
    text_limit: TextLimit = field(default_factory=TextLimit)
    text_source: Literal["web", "human"] = "web"
    serve: dict[str, File] = field(default_factory=dict)
    source: str = "web"
    concurrency: Count = 64  # threads
    timeout_s: Annotated[float, Field(gt=0)] = 10.0  # img2dataset's default
    retries: Annotated[int, Field(ge=0)] = 0
    max_bytes: Count = 20_000_000
    max_pixels: Count = MAX_PIXELS
    max_frames: Count = MAX_FRAMES
    damaged: Damaged = "reject"
    image_size: Count | None = None
    resize_mode: Literal["keep_ratio", "center_crop", "border", "keep_ratio_largest"] = "keep_ratio_largest"
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    encode_quality: Annotated[int, Field(ge=0, le=100)] = 95
    user_agent_token: str | None = None
    disallowed_header_directives: tuple[str, ...] = NO_DIRECTIVES

    def row_schema(self) -> pa.Schema:
        return LISTED

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return columns_out(resized=self.image_size is not None)

    def preflight(self) -> builtins.list[str]:
        if self.list.step is None:
            next(self._pairs(), None)  # raises if the file or its columns are wrong
        problems = [] if (problem := missing()) is None else [problem]
        if self.encode_format == "png" and self.encode_quality > 9:
            problems.append(
                f"encode_quality must be from 0 to 9 for png (its compression level), got {self.encode_quality}"
            )
        return problems

    def max_rows(self) -> int:
        return count_at_most(self.list.path)

    def rows(self) -> Iterator[pa.Table]:
        yield from listed(
            self._pairs(), source=self.source, text_source=self.text_source, limit=self.text_limit
        )

    def _pairs(self) -> Iterator[Pair]:
        return read_pairs(self.list.path, url=self.url, text=self.text, columns=self.columns)

    @contextmanager
    def open(self) -> Iterator[Work]:
        options = Options(**{f.name: getattr(self, f.name) for f in fields(Options)})
        with ExitStack() as stack:
            # One port per host: the Host header of a request is 127.0.0.1.
            ports = {
                host.lower(): stack.enter_context(serving({LOOPBACK: folder.path}))[LOOPBACK]
                for host, folder in self.serve.items()
            }
            yield stack.enter_context(engine(options, ports, address()))

    def service(self, context: ServiceContext) -> Service:
        """Returns a gate that only looks up and records opt-outs; this engine has no limits per host."""
        return HostGate(ALONE, context.once(OptedOut))


def columns_out(*, resized: bool) -> pa.Schema:
    """Returns FETCHED, with ORIGINAL before the image fields if images are resized."""
    if not resized:
        return FETCHED
    return pa.schema([*(f for f in FETCHED if f.name not in _SEEN), *ORIGINAL, *IMAGE_FIELDS])


@contextmanager
def engine(options: Options, ports: Mapping[str, int], gate: Address | None = None) -> Iterator[Work]:
    """Yields the stage's function.

    ports: host -> loopback port that serves it, the only exemption from the address rules. gate: address of the run's
    `HostGate`, in which opt-outs are looked up and recorded; None: an own one.
    """
    schema = columns_out(resized=options.image_size is not None)
    with loaded(), recalling(gate) as recall:
        yield lambda batch: _fetch_rows(batch, options, ports, schema, recall)


def _fetch_rows(
    batch: pa.Table, options: Options, ports: Mapping[str, int], schema: pa.Schema, recall: Recall
) -> Out:
    rows = ImageRows(batch, options.rules)
    urls = batch["url"].to_pylist()
    judged = allowed(urls, ports, options.concurrency)
    asked = [no or url for no, url in zip(recall.check(urls), judged, strict=True)]
    found = download({row: url for row, url in enumerate(asked) if isinstance(url, str)}, options)
    more = [name for name in schema.names if name not in {*LISTED.names, *_SEEN}]
    opted_out: dict[str, str] = {}  # URL -> evidence
    for row, url in enumerate(asked):
        got = url if isinstance(url, RowFault) else found[row]
        if not isinstance(got, RowFault):
            try:
                rows.add(row, got.data, **{name: got.original.get(name) for name in more})
            except Exception as error:
                rows.reject(row, row_fault(error, __name__))
        elif got.why == "opted_out":
            opted_out[urls[row]] = got.detail
            rows.reject(row, RowFault("opt_out", got.detail), "filtered")
        else:
            rows.reject(row, got, "filtered" if got.why == "opt_out" else "fault")
    recall.note(opted_out)
    return rows.out(schema)
