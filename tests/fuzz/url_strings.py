"""URLs of lists and redirects. What is sent is ASCII, and stays the same when it is checked again."""

import contextlib
import re

from kind import Kind, pieces

from vlpipe.pipeline.engine.records.forgotten import canonical_url, domains_of
from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.fetching.blocklist import spellings
from vlpipe.stages.web.robots import split_origin
from vlpipe.stages.web.url import redirected, sendable, target_of, unescaped, without_secrets

ODD = "\u3002\u200b\u00ad\u0130\uff0e\u0301\u1e9e\u0660\u2126\u05d0\U0001f600"  # dots, digits and letters that names fold
SENT = re.compile(r"https?://[\x21-\x7e]+")


def read(data: bytes) -> None:
    url = data.decode("utf-8", "surrogateescape")
    without_secrets(unescaped(url))
    for look in (canonical_url, spellings, lambda it: list(domains_of(it))):
        with contextlib.suppress(RowFault):
            look(url)
    with contextlib.suppress(RowFault):
        checked(redirected("http://a.test/b/c?d", url))
    checked(sendable(url))


def checked(sent: str) -> None:
    assert SENT.fullmatch(sent), sent
    assert sendable(sent) == sent
    target = target_of(sent)
    assert target.host, sent
    assert 0 <= target.port < 65536, sent
    assert "".join(split_origin(sent)) == sent


KIND = Kind(
    name="urls",
    read=read,
    seeds=(
        *(
            b"http://a.test/b/c.jpg?w=1&h=2#d",
            b"https://user:pw@a.test:8443/",
            "http://b\u00fccher.test/caf\u00e9 1.jpg".encode(),
        ),
        *(
            b"http://[2001:db8::1]:8080/x",
            b"http://192.0.2.1/a%20b",
            b"HTTP://A.TEST/?X-Amz-Signature=1&amp;y=&#x41;",
            b"//a.test/x",
        ),
        *(
            b"../x/./y?z",
            b"data:image/png;base64,AA==",
            b"http://xn--bcher-kva.test./a|b~c[1]",
            b"\thttp://a.test\r\n",
        ),
    ),
    pieces=pieces(
        "http://¦https:¦//¦/¦\\¦:¦@¦?¦#¦&¦&amp;¦&#¦&#49;¦;¦=¦%¦%2f¦%00¦.¦..¦./¦../¦[¦]¦[::1]¦%25¦a¦1¦"
        "0x7f¦127.1¦:80¦:0080¦xn--¦-¦_¦*¦\xff¦token=1&¦a.¦a-"
    )
    + tuple(one.encode() for one in ODD),
    frames=(
        *(
            (b"http://a.test/", b""),
            (b"http://", b".test/"),
            (b"http://a.test/?", b""),
            (b"http://a.test:", b"/"),
            (b"http://[", b"]/"),
            (b"", b""),
        ),
        *(
            (b"http://", b"@a.test/"),
            (b"//", b"/x"),
            (b"http://xn--", b".test/"),
            (b"http://\xc3\xa9", b".test/"),
        ),
    ),
)
