"""Columns of URLs are asked at once, and answer as reading each URL in Python does."""

import random

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.pipeline.engine.records.forgotten import canonical_url, domains_of, hashed
from vlpipe.pipeline.forget.urls import Urls, host_of_canonical, urls_of
from vlpipe.pipeline.parquet.text_sets import DIGEST, TextSet

URLS = [
    "http://a.test/x.jpg",
    "HTTPS://A.Test:443/x.jpg#top",
    "http://user:pw@a.test/x.jpg",
    "http://user@a.test:80/x.jpg",
    "http://b.a.test./y?q=1",
    "http://b.a.test:8080/y?q=1",
    "http://a.test:99999/z",
    "  http://a.test/x.jpg ",
    "http://a.te\tst/x.jpg",
    "http://a.test/two\nlines",
    "http://bücher.test/ü",
    "http://xn--bcher-kva.test/%C3%BC",
    "http://[::1]:80/v6",
    "http://[bad/v6",
    "http://a.test\\evil.test/",
    "http://evil.test/http://a.test/x.jpg",
    "http://nota.test/x.jpg",
    "http://a.test.evil.test/x.jpg",
    "http://a..test/x",
    "http://.a.test/x",
    "http://.../x",
    "http:///x",
    "ftp://a.test/x.jpg",
    "//a.test/x.jpg",
    "a.test/x.jpg",
    "photos/0001.jpg",
    "",
    "http://a.test",
    "http://a.test?x",
    "http://A_b-c~d.a.test/x",
    "http://test/",
]
DOMAINS = ["a.test", "xn--bcher-kva.test", "test", "a.test.evil.test", "localhost"]


def column() -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(URLS[:9]), pa.array([None, *URLS[9:]]).slice(1)])


@pytest.mark.parametrize("seed", range(20))
def test_the_same_rows_as_reading_each_url(seed: int) -> None:
    draw = random.Random(seed)
    wanted = {canonical_url(url) for url in draw.sample(URLS, 4) if url}
    domains = set(draw.sample(DOMAINS, draw.randrange(3)))
    said_no = {canonical_url(url) for url in draw.sample(URLS, draw.randrange(3)) if url}
    digests = np.sort(np.array([bytes.fromhex(hashed("url", url)) for url in said_no], DIGEST))
    urls = Urls(
        urls=urls_of(wanted).urls,
        hosts=urls_of(wanted).hosts,
        domains=TextSet.of("domain", domains),
        opted_out=digests,
    )
    meant = {"url": np.zeros(len(urls.urls), np.bool_), "domain": np.zeros(len(urls.domains), np.bool_)}

    def by_hand(url: str) -> bool:
        return bool(url) and (
            canonical_url(url) in wanted | said_no or not domains.isdisjoint(domains_of(url))
        )

    assert urls.mask(column(), meant).tolist() == [by_hand(url) for url in URLS]
    assert meant["url"].sum() == len(wanted & {canonical_url(url) for url in URLS if url})
    assert meant["domain"].sum() == len(domains & {name for url in URLS for name in domains_of(url)})
    assert urls.known([*URLS, "http://a.test/\ud800"]) - {"http://a.test/\ud800"} == set(
        filter(by_hand, URLS)
    )


def test_the_host_under_which_a_canonical_url_is_found() -> None:
    found = {
        host_of_canonical(canonical_url(url))
        for url in ("http://A.test:8080/x", "http://a.test.", "http://a.test:99999/")
    }
    assert found == {"a.test"}
