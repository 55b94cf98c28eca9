"""Blocklists of URLs, content hashes and domains that must not be fetched, decoded or stored.

A reject states only the kind of the match (domain, url or content): neither the list entry nor the image is stored.
Organisations that compile such lists publish md5 or sha256 hashes of the file or of its URL. There is no content classifier.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlpipe.pipeline.engine.records.forgotten import canonical_url, domains_of
from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.forget.entries import READERS, need_domain, need_hex, need_url, read_entries
from vlpipe.pipeline.shard import Out, Reject, need
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.web.url import sendable, without_secrets

BLOCKED = "blocked"
HEX_DIGITS = {"md5": 32, "sha256": 64, "url_md5": 32, "url_sha256": 64}
KINDS = (*HEX_DIGITS, "url", "domain")
Marks = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Blocklist:
    """A loaded blocklist.

    marks: kind (md5, sha256, url_md5, url_sha256) -> the first 8 bytes of each hash, sorted. 16 M entries take 128 MB; the
    probability that an image not on the list matches an entry is 1e-12.
    """

    marks: Mapping[str, Marks]
    domains: frozenset[str]

    def check_url(self, url: str) -> RowFault | None:
        """Returns a RowFault (blocked) if the URL or its domain is blocked, else None. Call it also for redirects."""
        if self.domains and any(name in self.domains for name in domains_of(url)):
            return RowFault(BLOCKED, "domain")
        if not self.marks:
            return None
        spelled = spellings(url) if self.marks.keys() & {"url_md5", "url_sha256"} else ()
        if any(self._has("url_", one.encode("utf-8", "surrogatepass")) for one in spelled):
            return RowFault(BLOCKED, "url")
        return None

    def check_bytes(self, data: bytes) -> RowFault | None:
        """Returns a RowFault (blocked) if the content is blocked, else None. Call it before decoding."""
        return RowFault(BLOCKED, "content") if self._has("", data) else None

    def _has(self, prefix: str, data: bytes) -> bool:
        for name in ("md5", "sha256"):
            marks = self.marks.get(prefix + name)
            if marks is not None:
                mark = np.uint64(_mark(hashlib.new(name, data, usedforsecurity=False).digest()))
                at = int(np.searchsorted(marks, mark))
                if at < len(marks) and marks[at] == mark:
                    return True
        return False


NOTHING = Blocklist({}, frozenset())


def spellings(url: str) -> set[str]:
    """Returns the spellings of a URL that a list may have hashed: with http, with https, without a final `/`, as sent."""
    url = url.strip()
    bare = canonical_url(url)  # without scheme and default port
    found = {url, without_secrets(url), bare, f"http://{bare}", f"https://{bare}"}
    with suppress(RowFault):  # a URL that cannot be sent
        found.add(sendable(url))
    return found | {one.rstrip("/") for one in found}


def _mark(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")


def load(file: File) -> Blocklist:
    """Loads a list, or a folder of lists: txt with lines `sha256:...`, `md5:...`, `url_sha256:...`, `url_md5:...`,
    `url:...`, `domain:...`; csv or Parquet with columns of these names. Raises VlpipeError, with the line if one is wrong,
    or if there are no entries."""
    return _load(file.path, file.digest)


@lru_cache(maxsize=2)  # a worker process runs many shards of one step
def _load(path: str, digest: str) -> Blocklist:
    marks: dict[str, array[int]] = {}
    domains: set[str] = set()
    for where, kind, value in (entry for one in _files(path) for entry in read_entries(one, KINDS)):
        if kind == "domain":
            domains.add(need_domain(value, where))
        elif kind == "url":
            digest_ = hashlib.sha256(canonical_url(need_url(value, where)).encode()).digest()
            marks.setdefault("url_sha256", array("Q")).append(_mark(digest_))
        else:
            known = bytes.fromhex(need_hex(value, HEX_DIGITS[kind], where))
            marks.setdefault(kind, array("Q")).append(_mark(known))
    if not marks and not domains:
        raise VlpipeError(f"blocklist {path} is empty: it would block nothing")
    return Blocklist({kind: _sorted(found) for kind, found in marks.items()}, frozenset(domains))


def _sorted(marks: array[int]) -> Marks:
    return np.unique(np.frombuffer(marks, np.uint64))


def _files(path: str) -> list[Path]:
    root = Path(path)
    if not root.is_dir():
        return [root]
    return [f for f in sorted(root.iterdir()) if f.suffix.lower() in READERS and f.name[0] not in "._"]


@dataclass(frozen=True, kw_only=True)
class DropBlocked(MapStage):
    """Rejects (filtered, `blocked`) rows whose URL or image bytes match a blocklist, without fetching or decoding.

    For lists that grow, and for images not fetched by `fetching.images`. Rows stored by earlier steps remain there;
    `vlpipe forget` removes them.
    """

    NAME: ClassVar[str] = "ingest.blocklist:DropBlocked"
    READS_HEAVY: ClassVar[tuple[str, ...]] = ("image",)

    blocklist: File

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "fetching.blocklist", id=pa.string(), url=pa.string(), image=pa.binary())
        return inp

    @contextmanager
    def open(self) -> Iterator[Work]:
        blocklist = load(self.blocklist)
        yield lambda rows: _drop(rows, blocklist)


def _drop(rows: pa.Table, blocklist: Blocklist) -> Out:
    urls = [rows[n].to_pylist() for n in ("url", "final_url") if n in rows.schema.names]
    faults = [
        next((f for url in row if url and (f := blocklist.check_url(url))), None)
        or (blocklist.check_bytes(data) if data is not None else None)
        for *row, data in zip(*urls, rows["image"].to_pylist(), strict=True)
    ]
    named = zip(rows["id"].to_pylist(), faults, strict=True)
    rejects = [Reject(id_, "filtered", fault.why, fault.detail) for id_, fault in named if fault]
    return Out(rows.filter(pa.array([fault is None for fault in faults], pa.bool_())), rejects)
