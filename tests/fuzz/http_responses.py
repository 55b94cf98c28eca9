"""HTTP responses: what is a page, a redirect or refused, who opts out, how long to wait. The same bytes as robots.txt."""

import asyncio
import gzip
import zlib
from types import SimpleNamespace
from typing import Any, cast

from kind import Kind, pieces
from protego import Protego

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.web.bodies import Bodies, Body
from vlpipe.stages.web.client import STATUS
from vlpipe.stages.web.headers import Headers
from vlpipe.stages.web.opt_out_headers import DEFAULT, is_opt_out
from vlpipe.stages.web.response import A_YEAR_S, Page, Response
from vlpipe.stages.web.robots import only_rules_for

MAX_BYTES = 1 << 22
LIMITS = cast(Any, SimpleNamespace(product="vlpipe", opt_out=DEFAULT))
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"
TAIL = b"Content-Length: 20\r\n\r\n0123456789abcdefghij"
ROBOTS = (
    b"# all\nUser-agent: *\nDisallow: /a*b$\nAllow: /a/\nCrawl-delay: 1\nSitemap: http://a.test/s.xml\n\n"
    b"User-agent: vlpipe\nDisallow:\n"
)
C2PA = b"\xff\xd8jumb c2pa.training-mining dentries c2pa.ai_training cuse jnotAllowed c2pa.data_mining cuse gallowed"


async def _bodies() -> Bodies:
    return Bodies(MAX_BYTES, MAX_BYTES)


BODIES = asyncio.new_event_loop().run_until_complete(_bodies())


def read(data: bytes) -> None:
    """As `client` does: a status line, headers, an empty line, then the body in pieces. Then as a robots.txt."""
    Protego.parse(only_rules_for("vlpipe", data.decode("utf-8", "replace"))).can_fetch(
        "http://a.test/a/aab?b", "vlpipe"
    )
    turn = cast(Any, SimpleNamespace(struck=False, wanted_s=0.0, opted_out=None))
    response = Response("http://a.test/?token=1", turn, LIMITS, MAX_BYTES, Body(BODIES))
    why = ""
    try:
        _answered(response, data)
    except RowFault as fault:
        why = fault.why
    finally:
        response.drop()
    assert 0 <= turn.wanted_s <= A_YEAR_S
    assert (why == "opt_out") == (turn.opted_out is not None)
    assert turn.opted_out is None or is_opt_out(turn.opted_out, "vlpipe")
    if why:
        raise RowFault(why)


def _answered(response: Response, data: bytes) -> Page | str:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    status = STATUS.match(first)
    headers = Headers()
    for line in lines:
        headers.add(line)
    if response.head(int(status[1]) if status else 200, headers):
        any(response.piece(body[start : start + 1000]) for start in range(0, len(body), 1000))
    return response.got()


KIND = Kind(
    name="responses",
    read=read,
    seeds=(
        *(
            HEAD + TAIL,
            HEAD + b"X-Robots-Tag: otherbot: noai, vlpipe: noindex\r\nTDM-Reservation: 0\r\n" + TAIL,
            ROBOTS,
            HEAD + b"\r\n" + C2PA,
        ),
        *(
            b"HTTP/1.1 302 Found\r\nLocation: /caf\xe9\r\n\r\n",
            b"HTTP/1.1 503 No\r\nRetry-After: Mon, 01 Jan 2029 00:00:00 GMT\r\n\r\n",
        ),
        HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"0123456789" * 9, mtime=0) * 2,
        HEAD + b"Content-Encoding: deflate\r\n\r\n" + zlib.compress(b"0123456789" * 9),
        b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-19/20\r\nContent-Usage: search=y, train-ai=y;x=1\r\n"
        + TAIL,
    ),
    pieces=pieces(
        "X-Robots-Tag: noai\r\n¦vlpipe: ¦noai, ¦unavailable_after: ¦TDM-Reservation: 1\r\n¦train-ai=n, ¦"
        "a=b;¦Location: /x\r\n¦Content-Encoding: ¦gzip, ¦br, ¦identity, ¦Content-Range: bytes 0-9/10\r\n¦"
        "Content-Length: 10\r\n¦Retry-After: 1\r\n¦Retry-After: Mon, 01 Jan 99999 00:00:00 +9999\r\n¦"
        "\r\n¦\n¦: ¦:¦,¦; ¦a¦*¦a*¦$¦/¦%41¦c2pa.¦c2pa.ai_training¦use¦notAllowed¦.training-mining¦"
        "User-agent: a\n¦User-agent: *\n¦Disallow: /a\n¦Disallow: /*a\n¦"
        "\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00¦\x1f\x8b¦"
        "\x00\x00\x00\xff\xff¦Mon, ¦Jan "
    ),
    frames=(
        *(
            (b"", b""),
            (HEAD, TAIL),
            (HEAD + b"X-Robots-Tag: ", b"\r\n" + TAIL),
            (HEAD + b"Content-Usage: ", b"\r\n" + TAIL),
            (HEAD + b"\r\n", b""),
        ),
        *(
            (b"HTTP/1.1 503 No\r\nRetry-After: ", b"\r\n\r\n"),
            (b"HTTP/1.1 302 No\r\nLocation: ", b"\r\n\r\n"),
            (HEAD + b"Content-Encoding: ", b"\r\n\r\n"),
        ),
        *(
            (HEAD + b"\r\n.training-mining", b""),
            (b"User-agent: *\nDisallow: /", b"\n"),
            (b"User-agent: *\n", b""),
            (b"User-agent: ", b"\nDisallow: /\n"),
        ),
        *(
            (HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"abc", mtime=0), b""),
            (b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-", b"/10\r\n\r\n"),
        ),
    ),
)
