"""What is to be forgotten, as a person writes it: ids, URLs, domains, or sha256 of the content."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vlpipe.pipeline.entries import need_domain, need_hex, need_url, read_entries
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.forgotten import canonical_url, domains_of
from vlpipe.pipeline.opted_out import hash_of_url

KINDS = ("id", "url", "domain", "sha256")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """ids as they are, URLs as `canonical_url` spells them, domains and sha256 in lower case.

    opted_out: hashes of URLs, of which rows are meant but not URLs: a later list may have them, and they are not asked.
    """

    id: frozenset[str]
    url: frozenset[str]
    domain: frozenset[str]
    sha256: frozenset[str]
    opted_out: frozenset[str] = frozenset()

    def matches(self, url: str | None) -> Iterator[tuple[str, str]]:
        """(kind, value) of each entry that means this URL."""
        if url and canonical_url(url) in self.url:
            yield "url", canonical_url(url)
        if url and self.domain:
            yield from (("domain", name) for name in domains_of(url) if name in self.domain)
        if url and self.opted_out and hash_of_url(url) in self.opted_out:
            yield "opted_out", ""

    def has_url(self, url: str | None) -> bool:
        return next(self.matches(url), None) is not None


def nothing() -> Wanted:
    return Wanted(**{kind: frozenset() for kind in KINDS})


def read_wanted(path: str) -> Wanted:
    """The list in a txt (`id:...`, `url:...`, `domain:...`, `sha256:...`, one a line), or in a csv or Parquet file with
    columns of these names. VlpipeError says in which line what is wrong."""
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for where, kind, value in read_entries(path, KINDS):
        found[kind].add(_checked(where, kind, value))
    if not any(found.values()):
        raise VlpipeError(f"{path} is empty: there is nothing to forget")
    return Wanted(**{kind: frozenset(values) for kind, values in found.items()})


def _checked(where: str, kind: str, value: str) -> str:
    if kind == "url":
        return canonical_url(need_url(value, where))
    if kind == "domain":
        return need_domain(value, where)
    return need_hex(value, 64, where) if kind == "sha256" else value
