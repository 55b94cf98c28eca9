"""Fetch with img2dataset 1.47 in place of our own fetcher: same list, row ids and columns, its Downloader per row group.

Held: scheme, port, host and address of every listed URL, and the addresses its name has just before; a listed URL
that said no is not asked again (one that a redirect led to may be); every image is checked by `stages.pixels` before
OpenCV sees it; each row comes back once, or the shard fails.
NOT held, because urllib does the fetching: redirects go anywhere, private addresses and ftp included; a name may
change its address between our look-up and its own (DNS rebinding); a body is read whole before `max_bytes` is
looked at; `timeout_s` counts from the last byte, so a slow drip has no end; proxies of the environment are
used; no limit per host; no blocklist (`fetching.blocklist:DropBlocked` can follow); retries are immediate, and for every
failure. Use `fetching.images` where this matters.
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
from vlpipe.stages.common.pixels import MAX_FRAMES, MAX_PIXELS
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED
from vlpipe.stages.fetching.columns import FETCHED
from vlpipe.stages.fetching.earlier_opt_outs import ALONE, Recall, recalling
from vlpipe.stages.fetching.img2dataset_download import Options, download, loaded, missing
from vlpipe.stages.fetching.precheck import allowed
from vlpipe.stages.images.image_rows import ImageRows
from vlpipe.stages.lists.list import Pair, count_at_most, listed, read_pairs
from vlpipe.stages.tars.samples import ORIGINAL
from vlpipe.stages.web.opted_out import OptedOut
from vlpipe.stages.web.politeness import HostGate

_SEEN = {f.name for f in IMAGE_FIELDS}  # `ImageRows` fills these
NO_DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")  # img2dataset's default

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class Img2datasetFetch(SourceStage):
    """`fetching.images:FetchImages` with img2dataset as its engine. list, url, text, columns, text_source, serve,
    source: as there, and row ids are equal.

    image_size: None keeps the bytes as they came. A number resizes as `resize_mode` says and encodes again
    (quality: 0 to 100; of png its compression, 0 to 9); the pixels go in upright, 8 bits, RGB; columns ORIGINAL are
    added. http_status and final_url are null: img2dataset does not tell.
    Codes: those of `fetching.images`, img2dataset_error (a text that is not known, in the detail).
    """

    NAME: ClassVar[str] = "ingest.img2dataset_engine:Img2datasetFetch"
    OBSERVES_WORLD: ClassVar[bool] = True
    MAX_REJECT_RATE: ClassVar[float] = 0.9
    SHARD_ROWS: ClassVar[int] = 2_000  # the first one is there after half a minute
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset(
        {"concurrency", "timeout_s", "retries", "user_agent_token"}
    )

    list: ListFile
    url: str = "url"
    text: str = "text"
    columns: tuple[str, ...] | None = None
    text_source: Literal["web", "human"] = "web"
    serve: dict[str, File] = field(default_factory=dict)
    source: str = "web"
    concurrency: Count = 64  # threads
    timeout_s: Annotated[float, Field(gt=0)] = 10.0  # img2dataset's default
    retries: Annotated[int, Field(ge=0)] = 0
    max_bytes: Count = 20_000_000
    max_pixels: Count = MAX_PIXELS
    max_frames: Count = MAX_FRAMES
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
            next(self._pairs(), None)  # raises what is wrong with the file or its columns
        problems = [] if (problem := missing()) is None else [problem]
        if self.encode_format == "png" and self.encode_quality > 9:
            problems.append(f"encode_quality of png is its compression, 0 to 9; got {self.encode_quality}")
        return problems

    def max_rows(self) -> int:
        return count_at_most(self.list.path)

    def rows(self) -> Iterator[pa.Table]:
        yield from listed(self._pairs(), source=self.source, text_source=self.text_source)

    def _pairs(self) -> Iterator[Pair]:
        return read_pairs(self.list.path, url=self.url, text=self.text, columns=self.columns)

    @contextmanager
    def open(self) -> Iterator[Work]:
        options = Options(**{f.name: getattr(self, f.name) for f in fields(Options)})
        with ExitStack() as stack:
            # One port for each host: what asks names 127.0.0.1, not the host.
            ports = {
                host.lower(): stack.enter_context(serving({LOOPBACK: folder.path}))[LOOPBACK]
                for host, folder in self.serve.items()
            }
            yield stack.enter_context(engine(options, ports, address()))

    def service(self, context: ServiceContext) -> Service:
        """What the root knows of who said no; a limit per host is not among what this engine keeps to."""
        return HostGate(ALONE, context.once(OptedOut))


def columns_out(*, resized: bool) -> pa.Schema:
    """FETCHED; with ORIGINAL before the image fields when images are resized."""
    if not resized:
        return FETCHED
    return pa.schema([*(f for f in FETCHED if f.name not in _SEEN), *ORIGINAL, *IMAGE_FIELDS])


@contextmanager
def engine(options: Options, ports: Mapping[str, int], gate: Address | None = None) -> Iterator[Work]:
    """The stage's function. ports: host -> port on the loopback that answers for it, the one exemption from
    the address rules. gate: where the run's `HostGate` is.
    """
    schema = columns_out(resized=options.image_size is not None)
    with loaded(), recalling(gate) as recall:
        yield lambda batch: _fetch_rows(batch, options, ports, schema, recall)


def _fetch_rows(
    batch: pa.Table, options: Options, ports: Mapping[str, int], schema: pa.Schema, recall: Recall
) -> Out:
    rows = ImageRows(batch, options.max_pixels, options.max_frames)
    urls = batch["url"].to_pylist()
    judged = allowed(urls, ports, options.concurrency)
    asked = [no or url for no, url in zip(recall.check(urls), judged, strict=True)]
    found = download({row: url for row, url in enumerate(asked) if isinstance(url, str)}, options)
    more = [name for name in schema.names if name not in {*LISTED.names, *_SEEN}]
    said_no: dict[str, str] = {}
    for row, url in enumerate(asked):
        got = url if isinstance(url, RowFault) else found[row]
        if not isinstance(got, RowFault):
            try:
                rows.add(row, got.data, **{name: got.original.get(name) for name in more})
            except Exception as error:
                rows.reject(row, row_fault(error, __name__))
        elif got.why == "opted_out":
            said_no[urls[row]] = got.detail
            rows.reject(row, RowFault("opt_out", got.detail), "filtered")
        else:
            rows.reject(row, got, "filtered" if got.why == "opt_out" else "fault")
    recall.note(said_no)
    return rows.out(schema)
