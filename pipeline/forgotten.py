"""`<root>/forgotten.parquet`: hashes of what was forgotten. Whatever lists rows in this root obeys it.

Only hashes are kept: who holds the file can ask whether a row they know is in it, and cannot read what is.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.shard import Reject, ShardWriter, open_parquet
from vlpipe.pipeline.store import Store, sha256_file

REL = "forgotten.parquet"
SCHEMA = pa.schema([("kind", pa.string()), ("hash", pa.string())])
WHY = "forgotten"
Kind = Literal["id", "url", "domain"]
DEFAULT_PORTS = {"http": 80, "https": 443}
# What may stand in a path or query as it is; the rest is percent-encoded. `%` stays: it is encoded already.
KEPT = "%/:?@!$&'()*+,;=-._~[]|"


def hashed(kind: Kind, value: str) -> str:
    """sha256 over the kind and the value, so that a hash of a plain id is not in the file."""
    return hashlib.sha256(f"vlpipe {kind} {value}".encode("utf-8", "surrogatepass")).hexdigest()


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
    """Hashes by kind."""

    hashes: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(self.hashes.values())

    def has(self, kind: Kind, value: str) -> bool:
        known = self.hashes.get(kind, frozenset())
        return bool(known) and hashed(kind, value) in known

    def has_row(self, id_: str, url: str | None) -> bool:
        if self.has("id", id_) or not url:
            return self.has("id", id_)
        return self.has("url", canonical_url(url)) or any(self.has("domain", n) for n in domains_of(url))

    def split(self, rows: pa.Table) -> tuple[pa.Table, list[Reject]]:
        """The rows that may stay, and a reject for each other one, which names it by its hash only."""
        ids = rows["id"].to_pylist()
        urls = rows["url"].to_pylist() if "url" in rows.schema.names else [None] * len(ids)
        gone = [self.has_row(id_, url) for id_, url in zip(ids, urls, strict=True)]
        if not any(gone):
            return rows, []
        rejects = [
            Reject(hashed("id", id_), "filtered", WHY) for id_, out in zip(ids, gone, strict=True) if out
        ]
        return rows.filter(pa.array([not out for out in gone])), rejects


def read_forgotten(store: Store) -> Forgotten:
    if not store.exists(REL):
        return Forgotten()
    with open_parquet(store, REL) as file:
        rows = file.read().to_pylist()
    kinds = {row["kind"] for row in rows}
    return Forgotten({kind: frozenset(r["hash"] for r in rows if r["kind"] == kind) for kind in kinds})


def add_forgotten(store: Store, **values: Iterable[str]) -> None:
    """Add ids, URLs (canonical) and domains, given by kind; sorted, so the same set gives the same bytes."""
    known = {(kind, h) for kind, hashes in read_forgotten(store).hashes.items() for h in hashes}
    known |= {(kind, hashed(kind, v)) for kind, found in values.items() for v in found}  # type: ignore[arg-type]
    rows = [{"kind": kind, "hash": h} for kind, h in sorted(known)]
    with store.writing(REL) as part:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), part, compression="zstd", write_page_checksum=True)


def digest_of(rows: pa.Table, schema: pa.Schema) -> str:
    """The digest these rows would have as a shard; the file is written and thrown away."""
    with tempfile.TemporaryDirectory(prefix="vlpipe-") as folder:
        path = Path(folder) / "shard.parquet"
        with ShardWriter(str(path), schema) as writer:
            writer.write(rows)
        return sha256_file(path)
