"""Fetch the images of a list of url + alt-text; every row comes out as an image row or as a typed reject."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.service import Service, ServiceContext, address
from vlpipe.pipeline.stage import SourceStage, Work
from vlpipe.stages.common.loopback import serving
from vlpipe.stages.common.pixels import MAX_FRAMES, MAX_PIXELS
from vlpipe.stages.common.row import LISTED
from vlpipe.stages.fetching.blocklist import NOTHING, load
from vlpipe.stages.fetching.columns import FETCHED
from vlpipe.stages.images.check import Rules
from vlpipe.stages.images.decoder import decoding
from vlpipe.stages.images.image_rows import ImageRows
from vlpipe.stages.images.resize import Resize
from vlpipe.stages.lists.list import EXPECTED, FAULT, Pair, count_at_most, listed, read_pairs
from vlpipe.stages.tars.samples import ORIGINAL
from vlpipe.stages.web.opt_out_headers import DEFAULT, Signal, is_no
from vlpipe.stages.web.opted_out import OptedOut

if TYPE_CHECKING:
    from vlpipe.stages.fetching.img2dataset import Img2datasetFetch
    from vlpipe.stages.web.limits import Limits

# What may pass: in a later run by `vlpipe retry STEP --why CODE`; all but host_busy are also tried again at once
# (`retries`). No other code is: what a server says for good, an opt-out or wrong bytes do not change by asking.
PASSING = frozenset(
    {"timeout", "connect", "dns", "disconnected", "host_busy", "http_408", "http_425", "http_429"}
    | {f"http_{status}" for status in range(500, 600)}
)

# Parameters that only our own fetcher keeps to.
OURS_ALONE = (
    "blocklist",
    "hash",
    "encoding",
    "bad_lines",
    "host_interval_s",
    "bot",
    "opt_out",
    "robots",
    "tdmrep",
)

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class Fetching(SourceStage):
    """What all stages that fetch have in common; they differ in what they list.

    serve: host name -> folder that answers for it on a loopback port while the stage runs; the one exemption
    from the rule that only public addresses are asked. max_pixels, max_frames: checked before decoding.
    blocklist: URLs and domains that are not asked for, content that is not decoded (`fetching.blocklist`: reject
    `blocked`, kind filtered). Another list is another step; `fetching.blocklist:DropBlocked` needs no new fetch.
    per_host, host_interval_s (from start to start), max_wait_s (the longest rest of a host that is waited for): they
    hold for all workers of a run together. opt_out: signals in headers and files that count (`web.opt_out_headers`); robots,
    tdmrep: obey also robots.txt (needs the extra `web`) and tdmrep.json of each origin; bot: our name in such rules, else
    the first word of `user_agent`. resize: store smaller images; without it no byte is changed.
    """

    NAME: ClassVar[str] = "ingest.images:Fetching"
    # 2: opt-outs, transparent images, JPEGs of too many scans; 3: another filter for `resize`
    VERSION: ClassVar[int] = 3
    OBSERVES_WORLD: ClassVar[bool] = True
    # Link rot: of published lists, 33 to 94 % of the images are still there.
    MAX_REJECT_RATE: ClassVar[float] = 0.9
    SHARD_ROWS: ClassVar[int] = 2_000  # the first one is there after half a minute
    # Whom we ask and how patiently; a row that was fetched is what it is.
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset(
        {"concurrency", "per_host", "host_interval_s", "max_wait_s", "retries", "backoff_s", "user_agent"}
        | {"connect_timeout_s", "read_timeout_s", "timeout_s", "decode_timeout_s"}
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
    concurrency: Count = 64  # of one worker
    per_host: Count = 8
    host_interval_s: NotNegative = 0.0
    max_wait_s: NotNegative = 60.0
    retries: Annotated[int, Field(ge=0)] = 1
    backoff_s: NotNegative = 1.0  # doubles with each attempt, times a random number
    user_agent: str = "vlpipe/0.1 (dataset builder)"
    bot: str = ""
    opt_out: tuple[Signal, ...] = DEFAULT
    robots: Literal["ignore", "obey"] = "ignore"
    tdmrep: Literal["ignore", "obey"] = "ignore"
    resize: Resize | None = None
    decode_timeout_s: Positive = 20.0  # one image, in a process of its own
    decode_memory_mb: Count = 1024  # of that process, beyond what it needs anyway

    def row_schema(self) -> pa.Schema:
        return LISTED

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return FETCHED if self.resize is None else pa.schema([*FETCHED, *ORIGINAL])

    def preflight(self) -> builtins.list[str]:
        if self.robots == "obey":
            from vlpipe.stages.web.robots import need_protego

            need_protego()
        return []

    def service(self, context: ServiceContext) -> Service:
        """The gate that keeps all workers of a run polite together."""
        from vlpipe.stages.web.politeness import HostGate

        limits = self._limits()
        return HostGate(
            limits.politeness,
            context.once(OptedOut),
            partial(is_no, bot=limits.product, signals=self.opt_out),
        )

    def _limits(self) -> Limits:
        from vlpipe.stages.web.limits import Limits

        # Parameters of the stage and of the fetcher have the same names.
        return Limits(**{f.name: getattr(self, f.name) for f in fields(Limits)})

    def loopback(self) -> AbstractContextManager[Mapping[str, int]]:
        """Host -> port on 127.0.0.1, for as long as it is entered."""
        return serving({host: folder.path for host, folder in self.serve.items()})

    @contextmanager
    def open(self) -> Iterator[Work]:
        from vlpipe.stages.fetching.fetch_rows import FetchRows
        from vlpipe.stages.web.fetch import fetcher

        rules = Rules(max_pixels=self.max_pixels, max_frames=self.max_frames, resize=self.resize)
        schema = self.schema(self.row_schema())
        blocklist = load(self.blocklist) if self.blocklist else NOTHING
        with (
            self.loopback() as ports,
            fetcher(self._limits(), ports, PASSING, address(), blocklist.check_url) as fetch,
            decoding(rules, self.decode_timeout_s, self.decode_memory_mb) as decoder,
        ):
            yield FetchRows(
                fetch,
                lambda batch: ImageRows(batch, self.max_pixels, self.max_frames, decoder.check_all),
                schema,
                blocklist,
            )


@dataclass(frozen=True, kw_only=True)
class FetchImages(Fetching):
    """list: parquet, tsv, csv or jsonl, or a folder of them; url, text: its columns; columns: their names,
    for a tsv or csv without a header line (CC3M: `columns: [text, url]`). hash: its column of expected digests, md5 or
    sha256 in hexadecimal: other bytes are rejected before they are decoded. encoding: of the list; bad_lines: a line
    that cannot be read stops the step, or is a reject. engine: img2dataset fetches with that library (extra
    `img2dataset`); `fetching.img2dataset` says which guards then hold, and the plan refuses what it cannot do.

    Columns out: FETCHED; with `resize` also the digest and size of what came. Codes: PASSING, http_<status>, no_url,
    bad_url, bad_line, bad_hash, forbidden_address, tls, bad_response, too_many_redirects, too_large, opt_out (kind
    filtered, the detail is what the server said), robots_unreadable, hash_mismatch, decode_timeout, decode_memory,
    killed_decoder, and those of `stages.pixels`: empty, not_an_image, truncated, broken, too_many_pixels,
    too_many_frames, too_many_scans, transparent; with `resize` unsupported_pixels.
    """

    list: ListFile
    url: str = "url"
    text: str = "text"
    hash: str | None = None
    columns: tuple[str, ...] | None = None
    encoding: str = "utf-8"
    bad_lines: Literal["stop", "reject"] = "stop"
    text_source: Literal["web", "human"] = "web"
    engine: Literal["vlpipe", "img2dataset"] = "vlpipe"

    NAME: ClassVar[str] = "ingest.images:FetchImages"

    def preflight(self) -> builtins.list[str]:
        if self.list.step is None:
            next(self._pairs(), None)  # raises what is wrong with the file or its columns
        if self.engine == "img2dataset":
            return [*self._not_held(), *self._img2dataset().preflight()]
        return super().preflight()

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return super().schema(inp) if self.engine == "vlpipe" else self._img2dataset().schema(inp)

    @contextmanager
    def open(self) -> Iterator[Work]:
        with super().open() if self.engine == "vlpipe" else self._img2dataset().open() as work:
            yield work

    def _not_held(self) -> builtins.list[str]:
        """Parameters that were set and that img2dataset has no way to keep to."""
        default = {f.name: f.default for f in fields(self)}
        asked = [name for name in OURS_ALONE if getattr(self, name) != default[name]]
        if self.resize is not None and not self.resize.only_if_bigger:
            asked.append("resize.only_if_bigger: false")
        return [
            f"engine: img2dataset cannot keep to `{name}`; leave it out, or let engine: vlpipe fetch"
            for name in asked
        ]

    def _img2dataset(self) -> Img2datasetFetch:
        from vlpipe.stages.fetching.img2dataset import Img2datasetFetch

        names = {f.name for f in fields(Img2datasetFetch)} & {f.name for f in fields(self)}
        same = {name: getattr(self, name) for name in names - {"timeout_s"}}
        resize: dict[str, Any] = {}
        if self.resize is not None:
            resize = {"image_size": self.resize.size, "resize_mode": self.resize.mode}
            resize |= {"encode_format": self.resize.format, "encode_quality": self.resize.quality}
        return Img2datasetFetch(**same, **resize, timeout_s=self.read_timeout_s)

    def row_schema(self) -> pa.Schema:
        return pa.schema([*LISTED, *self._more()])

    def max_rows(self) -> int:
        return count_at_most(self.list.path)

    def rows(self) -> Iterator[pa.Table]:
        yield from listed(self._pairs(), source=self.source, text_source=self.text_source, more=self._more())

    def _more(self) -> builtins.list[pa.Field]:
        """Columns of the list's rows that only `open` reads."""
        return [EXPECTED] * (self.hash is not None) + [FAULT] * (self.bad_lines == "reject")

    def _pairs(self) -> Iterator[Pair]:
        return read_pairs(
            self.list.path,
            url=self.url,
            text=self.text,
            columns=self.columns,
            expected=self.hash,
            encoding=self.encoding,
            reject_bad_lines=self.bad_lines == "reject",
        )
