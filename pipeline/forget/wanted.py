"""The list of what to forget: ids, URLs, domains, or sha256 of the content."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from vlpipe.pipeline.engine.records.forgotten import canonical_url
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.forget.entries import need_domain, need_hex, need_url, read_entries
from vlpipe.pipeline.forget.urls import Urls, host_of_canonical
from vlpipe.pipeline.parquet.text_sets import Digests, TextSet, TextSetMaker

KINDS = ("id", "url", "domain", "sha256")


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgetList:
    """What to forget: ids as given, URLs in the form of `canonical_url`, domains and sha256 in lower case.

    `urls.opted_out`, hashes of URLs, selects rows to forget but does not forget the URLs themselves: later lists may
    contain them, and they are not fetched.
    """

    id: TextSet = field(default_factory=lambda: TextSet("id"))
    sha256: TextSet = field(default_factory=lambda: TextSet("sha256"))
    urls: Urls = field(default_factory=Urls)

    def of_kind(self, kind: str) -> TextSet:
        """Returns the entries of one of KINDS."""
        return {"id": self.id, "sha256": self.sha256, "url": self.urls.urls, "domain": self.urls.domains}[
            kind
        ]

    def with_opted_out(self, hashes: Digests) -> ForgetList:
        """Returns the list with `urls.opted_out` replaced."""
        return replace(self, urls=replace(self.urls, opted_out=hashes))

    @property
    def listed(self) -> ForgetList:
        """The list without opted-out URLs."""
        return self.with_opted_out(Urls().opted_out)


def read_wanted(path: str) -> ForgetList:
    """Returns the entries of a list: a txt with `id:...`, `url:...`, `domain:...` or `sha256:...` per line, or a csv or
    Parquet file with columns of these names. Raises VlpipeError with the line or row of a bad entry, or if the list
    is empty."""
    makers = {kind: TextSetMaker(kind) for kind in (*KINDS, "host")}
    for where, kind, value in read_entries(path, KINDS):
        value = _checked(where, kind, value)
        makers[kind].add(value)
        if kind == "url":
            makers["host"].add(host_of_canonical(value))
    sets = {kind: maker.made() for kind, maker in makers.items()}
    if not any(map(len, sets.values())):
        raise VlpipeError(f"{path} is empty: there is nothing to forget")
    urls = Urls(urls=sets["url"], hosts=sets["host"], domains=sets["domain"])
    return ForgetList(id=sets["id"], sha256=sets["sha256"], urls=urls)


def _checked(where: str, kind: str, value: str) -> str:
    if kind == "url":
        return canonical_url(need_url(value, where))
    if kind == "domain":
        return need_domain(value, where)
    return need_hex(value, 64, where) if kind == "sha256" else value
