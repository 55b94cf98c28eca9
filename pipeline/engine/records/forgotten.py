"""`<root>/forgotten.parquet`: hashes of forgotten rows. Every step that lists rows in this root excludes them.

Only hashes are stored: whoever has the file can test whether a known row is in it, but cannot read which rows are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args
from urllib.parse import SplitResult, quote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.parquet import text_sets
from vlpipe.pipeline.parquet.text_sets import BLOCK, DIGEST, Digests, Mask, from_hex, is_among, to_hex
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.storage.store import Store

REL = "forgotten.parquet"
SCHEMA = pa.schema([("kind", pa.string()), ("hash", pa.string())])
WHY = "forgotten"
Kind = Literal["id", "url", "domain"]
KINDS = get_args(Kind)
AUTHORITY = re.compile(r"[^/?#]*//([^/?#]*)")
MAX_AUTHORITY_CHARS = 500  # a host has at most 253
DEFAULT_PORTS = {"http": 80, "https": 443}
# Characters kept as they are in a path or query; others are percent-encoded. `%` is kept: it starts an existing escape.
KEPT = "%/:?@!$&'()*+,;=-._~[]|"


def hashed(kind: Kind, value: str) -> str:
    """Returns the sha256 over kind and value, as 64 hexadecimal digits."""
    return text_sets.hashed(kind, value).hex()


def canonical_url(url: str) -> str:
    """Returns one spelling per address: no scheme, user, default port or fragment; percent-encoded ASCII; lower-case host.

    `HTTP://me@Example.ORG:80/a b#top` becomes `example.org/a%20b`. A URL that cannot be parsed is returned stripped but
    otherwise unchanged.
    """
    url = url.strip()
    try:
        parts = split_url(url)
        port = parts.port
    except ValueError:  # malformed: no client could request it either
        return url
    if not parts.hostname:
        return url
    shown = f":{port}" if port not in (None, DEFAULT_PORTS.get(parts.scheme)) else ""
    path, query = (quote(part, KEPT, errors="surrogatepass") for part in (parts.path or "/", parts.query))
    return f"{ascii_host(parts.hostname)}{shown}{path}" + (f"?{query}" if query else "")


def split_url(url: str) -> SplitResult:
    """Returns `urlsplit(url)`, whose time is quadratic in the length of the host.

    Raises ValueError if the URL is malformed or its host has more than MAX_AUTHORITY_CHARS characters.
    """
    host = AUTHORITY.match(url)
    if host and len(host[1]) > MAX_AUTHORITY_CHARS:
        raise ValueError(f"the host has {len(host[1])} characters, the limit is {MAX_AUTHORITY_CHARS}")
    return urlsplit(url)


def ascii_host(host: str) -> str:
    """Returns the host in ASCII (punycode), without a trailing dot. A host that cannot be encoded is returned unchanged."""
    if host.isascii():
        return host.rstrip(".")
    import idna

    try:
        return idna.encode(host, uts46=True).decode("ascii").rstrip(".")
    except UnicodeError:
        return host


def domains_of(url: str) -> Iterator[str]:
    """Yields the host of a URL and its parent domains: a.b.org, b.org, org."""
    try:
        host = ascii_host(split_url(url.strip()).hostname or "")
    except ValueError:
        return
    labels = host.split(".")
    yield from (".".join(labels[at:]) for at in range(len(labels)) if host)


@dataclass(frozen=True)
class Forgotten:
    """Hashes of forgotten ids, URLs and domains. hashes: kind -> sorted sha256 digests, 32 bytes each."""

    hashes: Mapping[str, Digests] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(len(found) for found in self.hashes.values())

    def has(self, kind: Kind, value: str) -> bool:
        return bool(self._known(kind, [value])[0])

    def has_row(self, id_: str, url: str | None) -> bool:
        """Returns True if the row's id, its URL or a domain of its URL was forgotten."""
        return bool(self._rows([id_], [url])[0])

    def split(self, rows: pa.Table) -> tuple[pa.Table, list[Reject]]:
        """Returns (rows that are not forgotten, one reject per forgotten row, which has the hash of its id as id)."""
        ids = rows["id"].to_pylist()
        urls = rows["url"].to_pylist() if "url" in rows.schema.names else [None] * len(ids)
        is_forgotten = self._rows(ids, urls)
        if not is_forgotten.any():
            return rows, []
        rejects = [Reject(hashed("id", ids[n]), "filtered", WHY) for n in np.flatnonzero(is_forgotten)]
        return rows.filter(pa.array(~is_forgotten)), rejects

    def _rows(self, ids: list[str], urls: list[str | None]) -> Mask:
        is_forgotten = self._known("id", ids)
        if len(self.hashes.get("url", ())):
            is_forgotten |= self._known("url", [canonical_url(url) if url else None for url in urls])
        if len(self.hashes.get("domain", ())):
            several = [list(domains_of(url)) if url else [] for url in urls]
            names = list({name for listed in several for name in listed})
            hit = {name for name, one in zip(names, self._known("domain", names), strict=True) if one}
            is_forgotten |= np.array([not hit.isdisjoint(listed) for listed in several], np.bool_)
        return is_forgotten

    def _known(self, kind: Kind, values: Iterable[str | None]) -> Mask:
        found = [b"" if value is None else text_sets.hashed(kind, value) for value in values]
        known = self.hashes.get(kind)
        return np.zeros(len(found), np.bool_) if known is None else is_among(known, found)


def read_forgotten(store: Store) -> Forgotten:
    """Returns the root's forgotten hashes; empty if there is no file. Raises VlpipeError if it is damaged."""
    if not store.exists(REL):
        return Forgotten()
    parts: dict[str, list[Digests]] = {}
    try:
        with store.open(REL) as handle, pq.ParquetFile(handle, page_checksum_verification=True) as file:
            if file.schema_arrow.remove_metadata() != SCHEMA:
                raise ValueError(
                    f"its columns are {', '.join(file.schema_arrow.names)}, not {', '.join(SCHEMA.names)}"
                )
            for batch in file.iter_batches(BLOCK):
                rows = pa.Table.from_batches([batch])
                for kind in rows["kind"].unique().to_pylist():
                    of_kind = rows.filter(pc.equal(rows["kind"], kind) if kind else pc.is_null(rows["kind"]))
                    if kind not in KINDS:
                        raise ValueError(
                            f"column kind has the value {kind!r}; wanted one of {', '.join(KINDS)}"
                        )
                    parts.setdefault(kind, []).append(from_hex(of_kind["hash"]))
    except (pa.ArrowException, ValueError, OSError) as error:
        raise VlpipeError(
            f"{store.path(REL)} cannot be read ({error}): it records what was forgotten, and without it those rows would "
            "be listed again. Restore a copy of it; if there is none, remove it and `vlpipe forget` the same list again"
        ) from error
    return Forgotten({kind: np.unique(np.concatenate(found)) for kind, found in sorted(parts.items())})


def add_forgotten(store: Store, **hashes: Digests) -> None:
    """Adds hashes of ids, canonical URLs and domains, by kind. Stored sorted, so that the same set gives the same bytes."""
    known = dict(read_forgotten(store).hashes)
    for kind, found in hashes.items():
        known[kind] = np.unique(np.concatenate([known.get(kind, np.empty(0, DIGEST)), found]))
    parts = [
        pa.table([pa.array([kind] * len(f), pa.string()), to_hex(f)], schema=SCHEMA)
        for kind, f in sorted(known.items())
    ]
    with store.writing(REL) as part:
        whole = pa.concat_tables([SCHEMA.empty_table(), *parts]).combine_chunks()
        pq.write_table(whole, part, compression="zstd", write_page_checksum=True)
