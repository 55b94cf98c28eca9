"""What a header says, and to whom: the forms in use, several bots and values, dates with commas."""

from __future__ import annotations

import json
import random
import re
import time

import pytest
from threat_server import credentials

from vlpipe.stages.web.headers import Headers
from vlpipe.stages.web.opt_out_headers import (
    DEFAULT,
    MAX_EVIDENCE,
    is_opt_out,
    opted_out,
    opted_out_inside,
    robots_directives,
)


def headed(pairs: list[tuple[str, str]]) -> Headers:
    headers = Headers()
    for name, value in pairs:
        headers.add(f"{name}: {value}\r\n".encode())
    return headers


@pytest.mark.parametrize(
    ("value", "directives"),
    [
        ("noai", ["noai"]),
        (" NoAI ,NOIMAGEAI", ["noai", "noimageai"]),
        ("none", ["none"]),
        ("nofollow, max-snippet: 20, max-image-preview:large, noai", ["nofollow", "noai"]),
        ("noai, unavailable_after: 25 Jun 2010 15:00:00 PST", ["noai"]),
        ("unavailable_after: Fri, 25 Jun 2010 15:00:00 PST, noai", ["25 jun 2010 15", "noai"]),
        ("unavailable_after: 25 Jun 2010, 15:00:00 PST, noai", ["15", "noai"]),
        ("unavailable_after: 2010-06-25T15:00:00Z, noai", ["noai"]),
        ("otherbot: nofollow, noai", []),
        ("otherbot: noindex, vlpipe: noai, nofollow", ["noai", "nofollow"]),
        ("VLPipe: noai, googlebot: noindex", ["noai"]),
        ("googlebot-image: noindex, *: noml", ["noml"]),
        ("vlpipe: unavailable_after: 25 Jun 2010 15:00:00 PST, noai", ["unavailable_after", "noai"]),
        ("", []),
        (",,:,", []),
        ("noaiplease", ["noaiplease"]),
    ],
)
def test_directives_meant_for_us(value: str, directives: list[str]) -> None:
    assert list(robots_directives(value, "vlpipe")) == directives


@pytest.mark.parametrize(
    ("headers", "evidence"),
    [
        ([("x-robots-tag", "all"), ("X-ROBOTS-TAG", "bot: none"), ("X-Robots-Tag", "noimageindex")], 2),
        ([("X-Robots-Tag", "otherbot: none"), ("X-Robots-Tag", "nofollow")], None),
        ([("TDM-Reservation", "1")], 0),
        ([("TDM-Reservation", "0")], None),
        ([("TDM-Policy", "https://a.test/policy")], None),
        ([("Content-Usage", "train-ai=n")], 0),
        ([("Content-Usage", "search=n, Train-GenAI = n;exp=1")], 0),
        ([("Content-Usage", "train-ai=y, search=n")], None),
        ([("Content-Type", "image/jpeg")], None),
    ],
)
def test_headers(headers: list[tuple[str, str]], evidence: int | None) -> None:
    found = opted_out(headed(headers), "vlpipe")
    said = None if evidence is None else headers[evidence]
    assert (found and found.lower()) == (said and f"{said[0]}: {said[1]}".lower())


@pytest.mark.parametrize("directive", [signal for signal in DEFAULT if "-" not in signal])
def test_each_directive_counts_only_when_asked_for(directive: str) -> None:
    headers = headed([("X-Robots-Tag", directive)])
    assert opted_out(headers, "vlpipe") == f"X-Robots-Tag: {directive}"
    assert opted_out(headers, "vlpipe", [other for other in DEFAULT if other != directive]) is None


def test_evidence_is_bounded_and_printable() -> None:
    found = opted_out(headed([("X-Robots-Tag", "noai,\x1b[31m" + "x" * 9000)]), "vlpipe")
    assert found is not None
    assert len(found) == MAX_EVIDENCE
    assert found.startswith("X-Robots-Tag: noai,\ufffd[31mxxx")


@pytest.mark.parametrize("entry", ["c2pa.ai_training", "cawg.ai_generative_training", "cawg.data_mining"])
def test_content_credentials_that_say_no(entry: str) -> None:
    label = f"{entry[:4]}.training-mining"
    assert opted_out_inside(credentials("notAllowed", entry, label)) == f"C2PA {entry}: notAllowed"
    assert opted_out_inside(credentials("notAllowed", entry, label), ["noai"]) is None
    for use in ("allowed", "constrained"):
        assert opted_out_inside(credentials(use, entry, label)) is None
    assert opted_out_inside(credentials("notAllowed", f"{entry[:4]}.ai_inference", label)) is None
    written = {"assertions": [{"label": label, "data": {"entries": {entry: {"use": "notAllowed"}}}}]}
    assert opted_out_inside(json.dumps(written, indent=4).encode()) == f"C2PA {entry}: notAllowed"


@pytest.mark.parametrize(
    ("evidence", "bot", "signals", "no"),
    [
        ("X-Robots-Tag: noai, noimageai", "vlpipe", DEFAULT, True),
        ("X-Robots-Tag: noai", "vlpipe", ("tdm-reservation",), False),
        ("X-Robots-Tag: googlebot: noai", "vlpipe", DEFAULT, False),
        ("X-Robots-Tag: googlebot: noai", "googlebot", DEFAULT, True),
        ("X-Robots-Tag: googlebot: " + "x" * 272 + "...", "vlpipe", DEFAULT, True),  # 300: it was cut
        ("TDM-Reservation: 1", "vlpipe", ("tdm-reservation",), True),
        ("TDM-Reservation: 1", "vlpipe", ("noai",), False),
        ("Content-Usage: train-ai=n", "vlpipe", ("content-usage",), True),
        ("C2PA c2pa.ai_training: notAllowed", "vlpipe", ("noai",), False),
        ("C2PA c2pa.ai_training: notAllowed", "vlpipe", DEFAULT, True),
        ("they wrote to us", "vlpipe", (), True),
    ],
)
def test_evidence_is_judged_again(evidence: str, bot: str, signals: tuple[str, ...], no: bool) -> None:
    assert is_opt_out(evidence, bot, signals) is no


def test_the_c2pa_entry_is_found_as_by_its_pattern() -> None:
    pattern = re.compile(
        rb"((?:c2pa|cawg)\.(?:ai_generative_training|ai_training|data_mining))[^.]{1,80}?use[^.]{1,80}?notAllowed"
    )
    parts = [
        b"c2pa.ai_training",
        b"cawg.data_mining",
        b"use",
        b"notAllowed",
        b".",
        b"x",
        b"y" * 35,
        b"z" * 76,
        b"us",
    ]
    draw, found = random.Random(0), 0
    for _ in range(20_000):
        data = b".training-mining" + b"".join(draw.choices(parts, k=draw.randint(3, 12)))
        wanted = pattern.search(data)
        said = opted_out_inside(data)
        assert said == (f"C2PA {wanted[1].decode()}: notAllowed" if wanted else None), data
        found += said is not None
    assert found > 100


@pytest.mark.slow
@pytest.mark.timeout(30)
@pytest.mark.parametrize("part", [b"use" * 54, b"", b"notAllowed" * 15, b"x" * 79 + b"use" + b"y" * 79])
def test_many_c2pa_entries_take_no_minutes(part: bytes) -> None:
    """20 MB of the first took 6 seconds, in which nothing else was fetched."""
    began = time.process_time()
    block = b"c2pa.data_mining" + part
    assert opted_out_inside(b".training-mining" + block * (20_000_000 // len(block))) is None
    assert time.process_time() - began < 10
