"""URLs to forget, given as canonical URLs, domains, or hashes of opted-out URLs, and matched against whole columns.

Parsing a URL in Python takes 5 us, and most URLs of a column have a host that is not to be forgotten. So one regular
expression extracts all hosts, and a URL is parsed only if its host is to be forgotten or the expression found none. With
hashes of opted-out URLs every URL is parsed, because a hash does not show the host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.engine.records.forgotten import canonical_url, domains_of
from vlpipe.pipeline.parquet.text_sets import DIGEST, Digests, Mask, TextSet, encoded, hashed, is_among

# URLs from which this expression extracts the host correctly. All others need a URL parser.
PLAIN = r"^[Hh][Tt][Tt][Pp][Ss]?://(?P<host>[A-Za-z0-9._~-]+)(?::[0-9]*)?(?:[/?#].*)?$"
NEXT_DOMAIN = r"^[^.]*(?:\.|$)"  # removed to get from a.b.org to b.org


def _no_domains() -> TextSet:
    return TextSet("domain")


@dataclass(frozen=True, eq=False, kw_only=True)
class Urls:
    """The URLs to forget.

    urls: canonical URLs; hosts: their hosts by `host_of_canonical`; domains: all URLs of these domains and their
    subdomains; opted_out: sorted sha256 of canonical URLs.
    """

    urls: TextSet = field(default_factory=lambda: TextSet("url"))
    hosts: TextSet = field(default_factory=lambda: TextSet("host"))
    domains: TextSet = field(default_factory=_no_domains)
    opted_out: Digests = field(default_factory=lambda: np.empty(0, DIGEST))

    def __bool__(self) -> bool:
        return bool(len(self.urls) or len(self.domains) or len(self.opted_out))

    def with_urls(self, more: Urls) -> Urls:
        """Returns these with the urls and hosts of `more` added."""
        return Urls(
            urls=self.urls | more.urls,
            hosts=self.hosts | more.hosts,
            domains=self.domains,
            opted_out=self.opted_out,
        )

    def mask(self, column: pa.ChunkedArray, found: dict[str, Mask] | None = None) -> Mask:
        """Returns which URLs of a column match, (num_rows,) bool.

        found: "url" or "domain" -> mask over the entries of that set; entries that match a URL of the column become True.
        """
        hit = np.zeros(len(column), np.bool_)
        if not self or not len(column):
            return hit
        column = column.cast(pa.string())
        is_valid = np.asarray(column.is_valid())
        names, rows_of = _hosts(column)
        plain = rows_of < len(names)
        hit |= np.append(self._in_domains(names, found), False)[rows_of]
        odd = np.flatnonzero(is_valid & ~plain)
        hit[odd] |= self._odd_domains(column.take(pa.array(odd)).to_pylist(), found)
        asked = ~plain | bool(len(self.opted_out)) | np.append(self.hosts.mask(names), False)[rows_of]
        rows = np.flatnonzero(asked & is_valid)
        hit[rows] |= self._of_urls(column.take(pa.array(rows)).to_pylist(), found)
        return hit

    def _in_domains(self, names: pa.Array, found: dict[str, Mask] | None) -> Mask:
        """Returns which hosts are in one of `domains`, (num_hosts,) bool: tests the host, then each parent domain."""
        hit = np.zeros(len(names), np.bool_)
        rows = np.arange(len(names))
        while len(rows) and len(self.domains):
            places = self.domains.find(names)
            hit[rows[places >= 0]] = True
            _note(found, "domain", places)
            left = pc.match_substring(names, ".")
            rows, names = rows[np.asarray(left)], names.filter(left)
            names = pc.replace_substring_regex(names, NEXT_DOMAIN, "", max_replacements=1)
        return hit

    def _odd_domains(self, urls: list[str], found: dict[str, Mask] | None) -> Mask:
        return _any_known(self.domains, [list(domains_of(url)) for url in urls], "domain", found)

    def _of_urls(self, urls: list[str], found: dict[str, Mask] | None) -> Mask:
        canonical = [canonical_url(url) if url else "" for url in urls]
        hit = _any_known(self.urls, [[one] if one else [] for one in canonical], "url", found)
        if len(self.opted_out):
            hit |= is_among(self.opted_out, [hashed("url", one) if one else b"" for one in canonical])
        return hit

    def known(self, urls: list[str]) -> set[str]:
        """Returns those of `urls` that match. They may contain lone surrogates, which Arrow columns cannot hold."""
        if not self or not urls:
            return set()
        plain = [url for url in urls if _is_utf8(url)]
        hit = {
            plain[row] for row in np.flatnonzero(self.mask(pa.chunked_array([pa.array(plain, pa.string())])))
        }
        odd = [url for url in urls if not _is_utf8(url)]
        mask = self._of_urls(odd, None) | self._odd_domains(odd, None)
        return hit | {odd[row] for row in np.flatnonzero(mask)}


def urls_of(canonical: Iterable[str]) -> Urls:
    """Returns Urls with the given canonical URLs and their hosts, and no domains."""
    listed = list(canonical)
    return Urls(
        urls=TextSet.of("url", listed), hosts=TextSet.of("host", (host_of_canonical(url) for url in listed))
    )


def host_of_canonical(url: str) -> str:
    """Returns the host by which `Urls.mask` finds a canonical URL: `example.org` for `example.org:8080/a`.

    `canonical_url` leaves a URL that cannot be parsed as it is, with its scheme; the host is then what PLAIN finds, else "".
    """
    head = url.partition("/")[0]
    if head.lower() not in ("http:", "https:"):
        return head.partition(":")[0]
    plain = re.match(PLAIN, url)
    return plain["host"].lower().rstrip(".") if plain else ""


def _hosts(column: pa.ChunkedArray) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """Returns (distinct lower-case hosts, index of each row's host); the index is len(hosts) if PLAIN does not match."""
    spelled = pc.struct_field(pc.extract_regex(column, PLAIN), "host")
    several = pa.concat_arrays([pa.array([], pa.string()), *spelled.chunks]).dictionary_encode()
    names = pc.utf8_rtrim(pc.ascii_lower(several.dictionary), characters=".")
    return names, np.asarray(pc.fill_null(several.indices, len(names)), np.int64)


def _any_known(known: TextSet, several: list[list[str]], kind: str, found: dict[str, Mask] | None) -> Mask:
    """Returns for each list whether one of its texts is in `known`, (num_lists,) bool. kind, found: as in `Urls.mask`."""
    hit = np.zeros(len(several), np.bool_)
    flat = [(row, encoded(one)) for row, listed in enumerate(several) for one in listed]
    if flat and len(known):
        places = known.find(pa.array([value for _, value in flat], pa.large_binary()))
        rows = np.array([row for row, _ in flat])
        hit[rows[places >= 0]] = True
        _note(found, kind, places)
    return hit


def _note(found: dict[str, Mask] | None, kind: str, places: Any) -> None:
    if found is not None and kind in found:
        found[kind][places[places >= 0]] = True


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
