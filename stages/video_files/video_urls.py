"""Fetches the videos of a URL list with the same checks as images (`web.fetch`), and stores them in a folder or fsspec URL.

An existing file is not fetched again. Bodies are written to files as they arrive, not held in memory.
"""

from __future__ import annotations

import builtins
import mmap
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, cast
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.service import Service, ServiceContext, address
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.stage import Work
from vlpipe.pipeline.storage.store import Store
from vlpipe.stages.common.loopback import serving
from vlpipe.stages.common.row import ListIds
from vlpipe.stages.fetching.blocklist import NOTHING, Blocklist, load
from vlpipe.stages.fetching.fetch_rows import log_line
from vlpipe.stages.fetching.images import PASSING
from vlpipe.stages.lists.list import count_at_most, read_pairs
from vlpipe.stages.lists.readers import BATCH_ROWS
from vlpipe.stages.subtitles.track import Track
from vlpipe.stages.video import decode
from vlpipe.stages.video.shut_in import Look
from vlpipe.stages.video_files.probe import Prober, prober
from vlpipe.stages.video_files.text_tracks import embedded
from vlpipe.stages.video_files.video_rows import CHUNK_BYTES, ENDINGS, Row, VideoSource, exists, opened
from vlpipe.stages.web.event_loop import Asked
from vlpipe.stages.web.fetch import Answer, Fetch, fetcher
from vlpipe.stages.web.limits import Limits
from vlpipe.stages.web.opt_out_headers import DEFAULT, Signal, is_opt_out
from vlpipe.stages.web.opted_out import OptedOut
from vlpipe.stages.web.politeness import HostGate
from vlpipe.stages.web.robots import need_protego

FOUND = pa.schema([("id", pa.string()), ("url", pa.string()), ("fault", pa.string())])
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Started = Mapping[str, "Asked[Answer]"]


@dataclass(frozen=True, kw_only=True)
class Asking(Limits):
    """Limits of the fetcher, with defaults for large files (documented in `fetching.images`)."""

    connect_timeout_s: Positive = 5.0
    read_timeout_s: Positive = 30.0
    timeout_s: Positive = 1800.0
    max_bytes: Count = 2_000_000_000
    max_redirects: Annotated[int, Field(ge=0)] = 5
    concurrency: Count = 4
    per_host: Count = 2
    host_interval_s: NotNegative = 0.0
    max_wait_s: NotNegative = 60.0
    retries: Annotated[int, Field(ge=0)] = 1
    backoff_s: NotNegative = 1.0
    user_agent: str = "vlpipe/0.1 (dataset builder)"
    bot: str = ""
    opt_out: tuple[Signal, ...] = DEFAULT
    robots: Literal["ignore", "obey"] = "ignore"
    tdmrep: Literal["ignore", "obey"] = "ignore"


@dataclass(frozen=True, kw_only=True)
class VideoUrls(VideoSource):
    """Fetches the videos of a URL list and returns one video row each.

    list: parquet, tsv, csv or jsonl with a column of URLs. url: its name. videos: folder or fsspec URL to store them in.
    asking: timeouts, sizes, limits per host, opt-outs. serve: host name -> folder served under that name on a loopback
    port; the only exemption from the rule that only public addresses are contacted. blocklist: URLs, domains and content
    (`fetching.blocklist`); a stored file that it now matches is rejected, but not deleted.
    The cues are those of a text track in the file. Additional reject codes: those of `fetching.images:FetchImages`, except
    those of image decoding.
    """

    NAME: ClassVar[str] = "ingest.video_urls:VideoUrls"
    VERSION: ClassVar[int] = 3  # 3: opt-outs inside files
    OBSERVES_WORLD: ClassVar[bool] = True
    NOT_IN_KEY: ClassVar[frozenset[str]] = VideoSource.NOT_IN_KEY | {"videos"}
    SHARD_ROWS: ClassVar[int] = 100  # videos are large

    list: ListFile
    videos: str
    url: str = "url"
    no_cues: Literal["reject", "keep"] = "keep"
    asking: Asking = field(default_factory=Asking)
    serve: dict[str, File] = field(default_factory=dict)
    blocklist: File | None = None

    def preflight(self) -> builtins.list[str]:
        if self.list.step is None:
            next(self._urls(), None)  # raises if the file or its columns are wrong
        if self.asking.robots == "obey":
            need_protego()
        return super().preflight()

    def service(self, context: ServiceContext) -> Service:
        """Returns the gate that enforces the limits per host across all workers of a run."""
        judge = partial(is_opt_out, bot=self.asking.product, signals=self.asking.opt_out)
        return HostGate(self.asking.politeness, context.once(OptedOut), judge)

    def row_schema(self) -> pa.Schema:
        return FOUND

    def _urls(self) -> Iterator[tuple[str, str | None]]:
        for pair in read_pairs(self.list.path, url=self.url, text=self.url, reject_bad_lines=True):
            yield pair.url, pair.fault or None

    def max_rows(self) -> int:
        return count_at_most(self.list.path)

    def rows(self) -> Iterator[pa.Table]:
        ids, rest = ListIds(self.source), self._urls()
        while batch := [*islice(rest, BATCH_ROWS)]:
            urls, faults = map(list, zip(*batch, strict=True))
            yield pa.table([ids.of(urls, [""] * len(batch)), urls, faults], schema=FOUND)

    @contextmanager
    def open(self) -> Iterator[Work]:
        blocklist = load(self.blocklist) if self.blocklist else NOTHING
        limits = decode.Limits(deadline_s=self.probe_timeout_s, max_pixels=self.max_pixels)
        with ExitStack() as stack:
            folder = stack.enter_context(_folder_near(self.videos))
            ports = stack.enter_context(serving({host: file.path for host, file in self.serve.items()}))
            fetch = stack.enter_context(
                fetcher(
                    self.asking,
                    ports,
                    PASSING,
                    address(),
                    blocklist.check_url,
                    accept="video/*, */*;q=0.1",
                    folder=folder,
                )
            )
            probe = stack.enter_context(prober(limits, self.probe_memory_mb))

            def work(batch: pa.Table) -> Out:
                started = self._start(batch, fetch)
                try:
                    out = self.out(batch, partial(self._video, folder, started, probe, blocklist))
                    out.log = [log_line(id_, future.result()) for id_, future in started.items()]
                    return out
                finally:
                    for future in started.values():
                        future.cancel()

            yield work

    def _start(self, batch: pa.Table, fetch: Fetch) -> dict[str, Asked[Answer]]:
        """Starts fetching the files that are not in `videos` yet; returns row id -> future of these rows."""
        rows = [
            one for one in batch.to_pylist() if not one["fault"] and not exists(self.videos, file_name(one))
        ]
        return dict(zip([one["id"] for one in rows], fetch([one["url"] for one in rows]), strict=True))

    def video(self, one: Row, probe: Prober, counts: Counter[str]) -> dict[str, Any]:
        """Returns the columns of a row whose file is in `videos` already. Raises RowFault (no_file) if it is not."""
        return self._about(self.videos, one, probe, counts)

    def _about(self, root: str, one: Row, probe: Prober, counts: Counter[str]) -> dict[str, Any]:
        name = file_name(one)

        def read(seen: Look) -> Track:
            return self.track_of(embedded(seen.text_cues(), (), name), name)

        about = self.about(root, name, read, probe, counts, text_tracks=True)
        return {**about, "video_id": unquote(PurePosixPath(name_in(one["url"])).stem) or one["id"]}

    def _video(
        self,
        folder: str,
        started: Started,
        probe: Prober,
        blocklist: Blocklist,
        one: Row,
        counts: Counter[str],
    ) -> dict[str, Any]:
        if one["fault"]:
            raise RowFault("bad_line", one["fault"])
        if one["id"] not in started:
            self._need_allowed(one, folder, blocklist)
            return self.video(one, probe, counts)
        page = started[one["id"]].result().result
        if isinstance(page, RowFault):
            raise page
        path = os.path.join(folder, file_name(one))
        os.replace(page.file, path)  # error texts then contain its final name
        try:
            _need_allowed_file(path, blocklist)
            about = self._about(folder, one, probe, counts)
            with Store(self.videos).writing(file_name(one)) as part:
                shutil.move(path, part)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)
        return about

    def _need_allowed(self, one: Row, folder: str, blocklist: Blocklist) -> None:
        """Raises RowFault (blocked) if the blocklist, which may be newer than the stored file, has its URL or content.

        folder: for a temporary copy of the file.
        """
        if fault := blocklist.check_url(one["url"]):
            raise fault
        if blocklist.marks:
            with opened(self.videos, file_name(one)) as file, tempfile.NamedTemporaryFile(dir=folder) as copy:
                shutil.copyfileobj(file, copy, CHUNK_BYTES)
                copy.flush()
                _need_allowed_file(copy.name, blocklist)


def name_in(url: str) -> str:
    """Returns the last part of a URL's path, or "" if there is none."""
    try:
        return PurePosixPath(urlsplit(url).path).name
    except ValueError:  # not a URL
        return ""


def file_name(one: Row) -> str:
    """Returns the file name of a row: its id, plus the ending of the URL's path if it is a known one."""
    ending = PurePosixPath(name_in(one["url"])).suffix.lower()
    return str(one["id"]) + (ending if ending in ENDINGS else "")


def _need_allowed_file(path: str, blocklist: Blocklist) -> None:
    """Raises RowFault if the file has no bytes (empty) or the blocklist has its content (blocked)."""
    if not os.path.getsize(path):
        raise RowFault("empty", "the response has 0 bytes")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        fault = blocklist.check_bytes(cast(bytes, data))
    if fault is not None:
        raise fault


@contextmanager
def _folder_near(videos: str) -> Iterator[str]:
    """Yields a temporary folder for response bodies, inside the folder `videos` if that is local."""
    if "://" in videos:
        near = None
    else:
        os.makedirs(videos, exist_ok=True)
        near = videos
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=near) as folder:
        yield folder
