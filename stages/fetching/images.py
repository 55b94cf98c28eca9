"""Fetches the images of a list of url + alt-text; every row becomes an image row, or a reject with a reason code."""

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
from vlpipe.stages.common.pixels import MAX_FRAMES, MAX_PIXELS, Damaged
from vlpipe.stages.common.row import LISTED
from vlpipe.stages.fetching.blocklist import NOTHING, load
from vlpipe.stages.fetching.columns import FETCHED, MATCHES
from vlpipe.stages.images.blocks import Blocks
from vlpipe.stages.images.check import Rules
from vlpipe.stages.images.decoder import lent
from vlpipe.stages.images.image_rows import ImageRows
from vlpipe.stages.images.resize import Resize
from vlpipe.stages.lists.list import EXPECTED, FAULT, Pair, count_at_most, listed, read_pairs
from vlpipe.stages.lists.text_limit import TextLimit
from vlpipe.stages.tars.samples import ORIGINAL
from vlpipe.stages.web.opt_out_headers import DEFAULT, Signal, is_opt_out
from vlpipe.stages.web.opted_out import OptedOut
from vlpipe.stages.web.url import unescaped

if TYPE_CHECKING:
    from vlpipe.stages.fetching.img2dataset import Img2datasetFetch
    from vlpipe.stages.web.limits import Limits

# Temporary failures: `vlpipe retry STEP --why CODE` retries them in a later run, and all but host_busy are also retried
# at once (`retries`). Other codes are not retried: permanent errors, opt-outs and wrong content do not change.
PASSING = frozenset(
    {"timeout", "connect", "dns", "disconnected", "host_busy", "http_408", "http_425", "http_429"}
    | {f"http_{status}" for status in range(500, 600)}
)

# Parameters that only engine: vlpipe supports.
OURS_ALONE = (
    "blocklist",
    "hash",
    "on_hash_mismatch",
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
    """Base class of all stages that fetch images; subclasses define `rows`, the URLs and texts to fetch.

    serve: host name -> folder served under that name on a loopback port while the stage runs; the only exemption
    from the rule that only public addresses are contacted. max_pixels, max_frames: checked before decoding.
    damaged: whether JPEGs with pixels missing or wrong are rejected, or kept if a decoder gets to their end.
    blocklist: URLs and domains not to request, content not to decode (`fetching.blocklist`: reject `blocked`, kind
    filtered). Changing it changes the step's key, so images are fetched again; `fetching.blocklist:DropBlocked` avoids it.
    per_host (max concurrent requests), host_interval_s (between request starts) and max_wait_s (longest pause of a host
    to wait for) apply to all workers of a run together. opt_out: the signals in headers and files to respect
    (`web.opt_out_headers`). robots, tdmrep: also obey robots.txt (needs the extra `web`) and tdmrep.json of each origin.
    bot: the name to match in such rules, by default the product name in `user_agent`. resize: store smaller images;
    without it the bytes are stored unchanged.
    """

    NAME: ClassVar[str] = "ingest.images:Fetching"
    # 2: rejects opt-outs, transparent images, JPEGs with too many scans; 3: `resize` uses another resampling filter;
    # 4: reads odd Content-Encodings, status 203, a complete 206 and a Location that is not UTF-8; rejects damaged JPEGs,
    # accepts ICO, names formats
    VERSION: ClassVar[int] = 4
    OBSERVES_WORLD: ClassVar[bool] = True
    # Link rot: 33 to 94 % of the images of published lists are still available.
    MAX_REJECT_RATE: ClassVar[float] = 0.9
    SHARD_ROWS: ClassVar[int] = 2_000  # the first shard is done after half a minute
    # These affect how a row is fetched, not its content.
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset(
        {"concurrency", "per_host", "host_interval_s", "max_wait_s", "retries", "backoff_s", "user_agent"}
        | {"connect_timeout_s", "read_timeout_s", "timeout_s", "decode_timeout_s"}
    )

    serve: dict[str, File] = field(default_factory=dict)
    blocklist: File | None = None
    source: str = "web"  # part of the row ids: lists with different sources share no id
    connect_timeout_s: Positive = 5.0
    read_timeout_s: Positive = 10.0  # max time without a byte
    timeout_s: Positive = 30.0  # one attempt, including redirects and body
    max_bytes: Count = 20_000_000
    max_pixels: Count = MAX_PIXELS
    max_frames: Count = MAX_FRAMES
    damaged: Damaged = "reject"
    max_redirects: Annotated[int, Field(ge=0)] = 5
    concurrency: Count = 64  # per worker
    per_host: Count = 8
    host_interval_s: NotNegative = 0.0
    max_wait_s: NotNegative = 60.0
    retries: Annotated[int, Field(ge=0)] = 1
    backoff_s: NotNegative = 1.0  # doubles with each attempt, times a random factor of 0.5 to 1.5
    user_agent: str = "vlpipe/0.1 (dataset builder)"
    bot: str = ""
    opt_out: tuple[Signal, ...] = DEFAULT
    robots: Literal["ignore", "obey"] = "ignore"
    tdmrep: Literal["ignore", "obey"] = "ignore"
    resize: Resize | None = None
    decode_timeout_s: Positive = 20.0  # per image, in a separate process
    decode_memory_mb: Count = 1024  # of that process, on top of its baseline

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
        """Returns the gate that enforces the limits per host across all workers of a run."""
        from vlpipe.stages.web.politeness import HostGate

        limits = self._limits()
        return HostGate(
            limits.politeness,
            context.once(OptedOut),
            partial(is_opt_out, bot=limits.product, signals=self.opt_out),
        )

    def _limits(self) -> Limits:
        from vlpipe.stages.web.limits import Limits

        # The parameters of the stage and the fields of Limits have the same names.
        return Limits(**{f.name: getattr(self, f.name) for f in fields(Limits)})

    def loopback(self) -> AbstractContextManager[Mapping[str, int]]:
        """Context manager that serves the folders of `serve`; yields host -> port on 127.0.0.1."""
        return serving({host: folder.path for host, folder in self.serve.items()})

    @contextmanager
    def open(self) -> Iterator[Work]:
        from vlpipe.stages.fetching.fetch_rows import FetchRows
        from vlpipe.stages.web.fetch import fetcher

        rules = Rules(
            max_pixels=self.max_pixels,
            max_frames=self.max_frames,
            damaged=self.damaged,
            resize=self.resize,
        )
        schema = self.schema(self.row_schema())
        blocklist, blocks = load(self.blocklist) if self.blocklist else NOTHING, Blocks()
        with (
            self.loopback() as ports,
            fetcher(self._limits(), ports, PASSING, address(), blocklist.check_url) as fetch,
            lent(rules, self.decode_timeout_s, self.decode_memory_mb) as decoder,
        ):
            yield FetchRows(
                fetch,
                lambda batch: ImageRows(batch, rules, decoder.check_all, blocks),
                schema,
                blocklist,
            )


@dataclass(frozen=True, kw_only=True)
class FetchImages(Fetching):
    """Fetches the images of a list of url + text.

    list: parquet, tsv, csv, jsonl or json (an array of objects), or a folder of them. url, text: names of its columns,
    without regard to case if only one is meant; `text` may hold a list of texts per URL. columns: all column names, for a
    tsv or csv without a header line (CC3M: `columns: [text, url]`). hash: column of expected digests, md5 or sha256 in
    hexadecimal; other bytes are rejected before decoding. on_hash_mismatch: `flag` keeps such rows and adds the column
    `hash_matches` (bool; null without a digest), for filters to judge them anew. text_limit: the maximum length of a
    text. encoding: text encoding of the list; a byte-order mark is obeyed. bad_lines: whether an unreadable line stops
    the step or is rejected. unescape_urls: decode HTML entities in URLs, such as `?w=10&amp;h=20` in lists made from web
    pages; the column `url` has the result. engine: `img2dataset` fetches with that library (extra `img2dataset`);
    `fetching.img2dataset` lists the checks that still apply, and `preflight` refuses parameters it does not support.

    Columns out: FETCHED; with `resize` also the digest and size of the original. Codes: PASSING, http_<status>, no_url,
    bad_url, bad_line, bad_hash, forbidden_address, tls, bad_response, too_many_redirects, too_large, blocked (filtered),
    opt_out (filtered; the detail is the evidence), robots_unreadable, hash_mismatch, decode_timeout, decode_memory,
    killed_decoder, and those of `common.pixels`: empty, not_an_image, unsupported_format, truncated, broken, damaged,
    too_many_pixels, too_many_frames, too_many_scans, transparent, unsupported_pixels.
    """

    list: ListFile
    url: str = "url"
    text: str = "text"
    hash: str | None = None
    on_hash_mismatch: Literal["reject", "flag"] = "reject"
    columns: tuple[str, ...] | None = None
    encoding: str = "utf-8"
    bad_lines: Literal["stop", "reject"] = "stop"
    text_limit: TextLimit = field(default_factory=TextLimit)
    unescape_urls: bool = False
    text_source: Literal["web", "human"] = "web"
    engine: Literal["vlpipe", "img2dataset"] = "vlpipe"

    NAME: ClassVar[str] = "ingest.images:FetchImages"
    ADDED: ClassVar[frozenset[str]] = frozenset({"on_hash_mismatch"})
    VERSION: ClassVar[int] = Fetching.VERSION + 1  # NaN is no text, a text has a maximum length

    def preflight(self) -> builtins.list[str]:
        if self.on_hash_mismatch == "flag" and self.hash is None:
            return ["on_hash_mismatch: flag needs `hash`, the column of expected digests"]
        if self.list.step is None:
            next(self._pairs(), None)  # raises if the file or its columns are wrong
        if self.engine == "img2dataset":
            return [*self._not_held(), *self._img2dataset().preflight()]
        return super().preflight()

    def schema(self, inp: pa.Schema) -> pa.Schema:
        if self.engine == "img2dataset":
            return self._img2dataset().schema(inp)
        return super().schema(inp).append(MATCHES) if self.on_hash_mismatch == "flag" else super().schema(inp)

    @contextmanager
    def open(self) -> Iterator[Work]:
        with super().open() if self.engine == "vlpipe" else self._img2dataset().open() as work:
            yield work

    def _not_held(self) -> builtins.list[str]:
        """Returns an error text for each parameter that is set but not supported by img2dataset."""
        default = {f.name: f.default for f in fields(self)}
        asked = [name for name in OURS_ALONE if getattr(self, name) != default[name]]
        if self.resize is not None and not self.resize.only_if_bigger:
            asked.append("resize.only_if_bigger: false")
        return [
            f"engine: img2dataset does not support `{name}`; leave it out, or use engine: vlpipe"
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
        yield from listed(
            self._pairs(),
            source=self.source,
            text_source=self.text_source,
            more=self._more(),
            limit=self.text_limit,
        )

    def _more(self) -> builtins.list[pa.Field]:
        """Returns the optional columns EXPECTED and FAULT of the listed rows, which are not part of the output."""
        return [EXPECTED] * (self.hash is not None) + [FAULT] * (self.bad_lines == "reject")

    def _pairs(self) -> Iterator[Pair]:
        pairs = read_pairs(
            self.list.path,
            url=self.url,
            text=self.text,
            columns=self.columns,
            expected=self.hash,
            encoding=self.encoding,
            reject_bad_lines=self.bad_lines == "reject",
        )
        if self.unescape_urls:
            return (pair._replace(url=unescaped(pair.url)) for pair in pairs)
        return pairs
