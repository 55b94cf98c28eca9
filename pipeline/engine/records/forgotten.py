"""`<root>/forgotten.parquet`: hashes of what was forgotten. Whatever lists rows in this root obeys it.

Only hashes are kept: who holds the file can ask whether a row they know is in it, and cannot read what is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import quote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.parquet import text_sets
from vlpipe.pipeline.parquet.text_sets import BLOCK, DIGEST, Digests, Mask, from_hex, is_among, to_hex
from vlpipe.pipeline.shard import Reject, ShardWriter
from vlpipe.pipeline.storage.store import Store, sha256_file

REL = "forgotten.parquet"
SCHEMA = pa.schema([("kind", pa.string()), ("hash", pa.string())])
WHY = "forgotten"
Kind = Literal["id", "url", "domain"]
KINDS = get_args(Kind)
DEFAULT_PORTS = {"http": 80, "https": 443}
# What may stand in a path or query as it is; the rest is percent-encoded. `%` stays: it is encoded already.
KEPT = "%/:?@!$&'()*+,;=-._~[]|"


def hashed(kind: Kind, value: str) -> str:
    """sha256 over the kind and the value, in 64 digits."""
    return text_sets.hashed(kind, value).hex()


def canonical_url(url: str) -> str:
    """One spelling for what one server takes as one address: no scheme, user, default port, fragment; ASCII, as it is
    sent; host in lower case."""
    url = url.strip()
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # no server would get it either: it stands for itself
        return url
    if not parts.hostname:
        return url
    shown = f":{port}" if port not in (None, DEFAULT_PORTS.get(parts.scheme)) else ""
    path, query = (quote(part, KEPT, errors="surrogatepass") for part in (parts.path or "/", parts.query))
    return f"{ascii_host(parts.hostname)}{shown}{path}" + (f"?{query}" if query else "")


def ascii_host(host: str) -> str:
    """A host as it is asked for, without a last dot: punycode. One that has no such form stands for itself."""
    if host.isascii():
        return host.rstrip(".")
    import idna

    try:
        return idna.encode(host, uts46=True).decode("ascii").rstrip(".")
    except UnicodeError:
        return host


def domains_of(url: str) -> Iterator[str]:
    """The host of a URL and the domains it is in: a.b.org, b.org, org."""
    try:
        host = ascii_host(urlsplit(url.strip()).hostname or "")
    except ValueError:
        return
    labels = host.split(".")
    yield from (".".join(labels[at:]) for at in range(len(labels)) if host)


@dataclass(frozen=True)
class Forgotten:
    """Sorted hashes by kind, 32 bytes each."""

    hashes: Mapping[str, Digests] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(len(found) for found in self.hashes.values())

    def has(self, kind: Kind, value: str) -> bool:
        return bool(self._known(kind, [value])[0])

    def has_row(self, id_: str, url: str | None) -> bool:
        return bool(self._rows([id_], [url])[0])

    def split(self, rows: pa.Table) -> tuple[pa.Table, list[Reject]]:
        """The rows that may stay, and a reject for each other one, which names it by its hash only."""
        ids = rows["id"].to_pylist()
        urls = rows["url"].to_pylist() if "url" in rows.schema.names else [None] * len(ids)
        gone = self._rows(ids, urls)
        if not gone.any():
            return rows, []
        rejects = [Reject(hashed("id", ids[n]), "filtered", WHY) for n in np.flatnonzero(gone)]
        return rows.filter(pa.array(~gone)), rejects

    def _rows(self, ids: list[str], urls: list[str | None]) -> Mask:
        gone = self._known("id", ids)
        if len(self.hashes.get("url", ())):
            gone |= self._known("url", [canonical_url(url) if url else None for url in urls])
        if len(self.hashes.get("domain", ())):
            several = [list(domains_of(url)) if url else [] for url in urls]
            names = list({name for listed in several for name in listed})
            hit = {name for name, one in zip(names, self._known("domain", names), strict=True) if one}
            gone |= np.array([not hit.isdisjoint(listed) for listed in several], np.bool_)
        return gone

    def _known(self, kind: Kind, values: Iterable[str | None]) -> Mask:
        found = [b"" if value is None else text_sets.hashed(kind, value) for value in values]
        known = self.hashes.get(kind)
        return np.zeros(len(found), np.bool_) if known is None else is_among(known, found)


def read_forgotten(store: Store) -> Forgotten:
    """VlpipeError where the file is there and cannot be read: nothing may be listed as if nothing were forgotten."""
    if not store.exists(REL):
        return Forgotten()
    parts: dict[str, list[Digests]] = {}
    try:
        with store.open(REL) as handle, pq.ParquetFile(handle, page_checksum_verification=True) as file:
            if file.schema_arrow.remove_metadata() != SCHEMA:
                raise ValueError(f"it has the columns {', '.join(file.schema_arrow.names)}")
            for batch in file.iter_batches(BLOCK):
                rows = pa.Table.from_batches([batch])
                for kind in rows["kind"].unique().to_pylist():
                    of_kind = rows.filter(pc.equal(rows["kind"], kind) if kind else pc.is_null(rows["kind"]))
                    if kind not in KINDS:
                        raise ValueError(f"it has the kind {kind!r}")
                    parts.setdefault(kind, []).append(from_hex(of_kind["hash"]))
    except (pa.ArrowException, ValueError, OSError) as error:
        raise VlpipeError(
            f"{store.path(REL)} cannot be read ({error}): it says what was forgotten, and without it that would be "
            "listed again. Put a copy of it back; if there is none, remove it and `vlpipe forget` the same list again"
        ) from error
    return Forgotten({kind: np.unique(np.concatenate(found)) for kind, found in sorted(parts.items())})


def add_forgotten(store: Store, **hashes: Digests) -> None:
    """Add hashes of ids, URLs (canonical) and domains, given by kind; sorted, so the same set gives the same bytes."""
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


def digest_of(rows: pa.Table, schema: pa.Schema) -> str:
    """The digest these rows would have as a shard; the file is written and thrown away."""
    with tempfile.TemporaryDirectory(prefix="vlpipe-") as folder:
        path = Path(folder) / "shard.parquet"
        with ShardWriter(str(path), schema) as writer:
            writer.write(rows)
        return sha256_file(path)
