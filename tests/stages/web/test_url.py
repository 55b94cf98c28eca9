"""URLs as lists have them: what is sent, what is refused, what is written down."""

from __future__ import annotations

import pytest

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.web.url import redirected, sendable, unescaped, without_secrets


@pytest.mark.parametrize(
    ("listed", "sent"),
    [
        ("http://A.test", "http://a.test/"),
        ("  https://a.test/x.jpg\r\n", "https://a.test/x.jpg"),
        ("http://a.test/a b.jpg?q=c d#top", "http://a.test/a%20b.jpg?q=c%20d"),
        ("http://a.test/%2F%41?x=%zz", "http://a.test/%2F%41?x=%zz"),  # what is encoded stays as it is
        ("http://a.test/caf\u00e9?n=\u00fc", "http://a.test/caf%C3%A9?n=%C3%BC"),
        ("http://b\u00fccher.test/", "http://xn--bcher-kva.test/"),
        ("http://my_shop.test:8080/x", "http://my_shop.test:8080/x"),
        ("http://[2606:4700:0::1111]/x", "http://[2606:4700::1111]/x"),
        ("http://a.test/x|y{z}\\w", "http://a.test/x|y%7Bz%7D%5Cw"),
    ],
)
def test_sent(listed: str, sent: str) -> None:
    assert sendable(listed) == sent
    assert sendable(sent) == sent


@pytest.mark.parametrize(
    ("listed", "fault"),
    [
        ("", "no_url: the URL is empty"),
        (" \n", "no_url: the URL is empty"),
        ("UNLIKELY", "bad_url: the URL has the scheme ''; only http and https are fetched"),
        ("//a.test/x", "bad_url: the URL has the scheme ''; only http and https are fetched"),
        ("file:///etc/passwd", "bad_url: the URL has the scheme 'file'; only http and https are fetched"),
        (
            "javascript:alert(1)",
            "bad_url: the URL has the scheme 'javascript'; only http and https are fetched",
        ),
        ("http://me:pw@a.test/", "bad_url: the URL has a user name or a backslash before the host"),
        ("http://a.test\\@b.test/", "bad_url: the URL has a user name or a backslash before the host"),
        ("http://a.test/\r\nHost: b.test", "bad_url: the URL has control characters"),
        ("http://a.test/\ud83d", "bad_url: the URL has lone surrogates, which cannot be encoded"),
        ("http://a.test:25/", "bad_url: port 25 is reserved for other services"),
        ("http://a.test:99999/", "bad_url: Port out of range 0-65535"),
        ("http:///x", "bad_url: '' is not a host name"),
        ("http://a..test/", "bad_url: 'a..test' is not a host name"),
        (f"http://{'a' * 64}.test/", f"bad_url: {'a' * 64 + '.test'!r} is not a host name"),
        ("http://127.1/", "bad_url: '127.1' is an IP address in a nonstandard notation"),
        ("http://2130706433/", "bad_url: '2130706433' is an IP address in a nonstandard notation"),
        ("http://0177.0.0.1/", "bad_url: '0177.0.0.1' is an IP address in a nonstandard notation"),
        (
            "http://[fe80::1%25eth0]/",
            "bad_url: 'fe80::1%25eth0' is not an IPv6 address: zone ids are not allowed",
        ),
        ("http://a.test/" + "x" * 9000, "bad_url: the URL has 9014 characters, the limit is 8000"),
    ],
)
def test_refused(listed: str, fault: str) -> None:
    with pytest.raises(RowFault) as caught:
        sendable(listed)
    assert str(caught.value) == fault


def test_a_redirect_is_relative_to_where_it_came_from() -> None:
    assert redirected("https://a.test/b/c?d", "../e f") == "https://a.test/e%20f"
    assert redirected("https://a.test/b", "//c.test/d") == "https://c.test/d"
    with pytest.raises(RowFault, match="bad_url: the URL has the scheme 'file'"):
        redirected("http://a.test/", "file:///etc/passwd")


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("http://me:pw@a.test/x", "http://a.test/x"),
        ("http://a.test/x?w=1&h=2", "http://a.test/x?w=1&h=2"),
        ("http://a.test/x?X-Amz-Signature=1&w=1&AWSAccessKeyId=2&Expires=3", "http://a.test/x?w=1"),
        ("http://a.test/x?token=abc#frag", "http://a.test/x"),
        ("http://a.test/@me?sig=1", "http://a.test/@me"),
        ("not a url", "not a url"),
    ],
)
def test_written_down_without_secrets(url: str, kept: str) -> None:
    assert without_secrets(url) == kept


@pytest.mark.parametrize(
    ("listed", "url"),
    [
        ("http://a.test/x?w=10&amp;h=20", "http://a.test/x?w=10&h=20"),
        ("http://a.test/x?w=10&#38;h=2&#x26;k=1", "http://a.test/x?w=10&h=2&k=1"),
        ("http://a.test/x?a&copy=2&lt=3&amp", "http://a.test/x?a&copy=2&lt=3&amp"),
        ("http://a.test/x?a&amp;amp;b", "http://a.test/x?a&amp;b"),
        (
            "http://a.test/x?&nosuch;&" + "#" * 50 + ";&#99999999;",
            "http://a.test/x?&nosuch;&" + "#" * 50 + ";&#99999999;",
        ),
    ],
)
def test_html_entities_of_a_url(listed: str, url: str) -> None:
    assert unescaped(listed) == url
