"""Damaged JPEGs are found, and what is odd but whole is not taken for damaged."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.common import pixels
from vlpipe.stages.common.pixels import decode, verify
from vlpipe.stages.formats.jpeg import MAX_EXTRA_BYTES, plain_size

CODES = ("damaged", "truncated", "broken")
KINDS: list[dict[str, Any]] = [
    {},
    {"progressive": True},
    {"optimize": True},
    {"subsampling": 0},
    {"restart_marker_blocks": 4},
]


def photo(mode: str = "RGB", size: tuple[int, int] = (320, 240), seed: int = 0, **options: Any) -> bytes:
    """A blurred random picture: a file of some 20 KB."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1] // 4, size[0] // 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode).save(
        buffer, "JPEG", quality=90, **options
    )
    return buffer.getvalue()


def verdict(data: bytes) -> str:
    try:
        return verify(data).format
    except RowFault as one:
        return one.why


def scan_start(data: bytes) -> int:
    return data.index(b"\xff\xda") + 14


def fault(data: bytes, **options: Any) -> RowFault:
    with pytest.raises(RowFault) as caught:
        verify(data, **options)
    return caught.value


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_photo_with_its_lower_half_missing_is_damaged(mode: str, options: dict[str, Any]) -> None:
    data = photo(mode, **options)
    assert verify(data).format == "JPEG"
    half = data[: scan_start(data) + (len(data) - scan_start(data)) // 2]
    found = fault(half + b"\xff\xd9")
    assert found.why in CODES if options.get("progressive") else found.why == "damaged"
    assert fault(half).why == "truncated"
    if found.why == "damaged":
        assert "Corrupt JPEG data" in found.detail
        assert verify(half + b"\xff\xd9", damaged="keep").width == 320
        assert decode(half + b"\xff\xd9").size == (320, 240)


@pytest.mark.parametrize("options", KINDS)
def test_a_photo_with_a_part_missing_or_of_another_file_is_damaged(options: dict[str, Any]) -> None:
    data = photo(**options)
    at = scan_start(data) + 3000
    page = b"<html><body>502 Bad Gateway</body></html>" * 20
    for bad in (
        data[:at] + data[at + 1024 :],
        data[:at] + page + data[at:],
        data[:at] + page + data[at + len(page) :],
    ):
        assert fault(bad).why in CODES


def test_damage_says_which_warning_it_is() -> None:
    data = photo()
    at = scan_start(data) + 3000
    assert (
        str(fault(data[:at] + data[at + 1024 :]))
        == "damaged: Corrupt JPEG data: premature end of data segment"
    )


def test_a_lost_restart_interval_is_damage() -> None:
    data = photo(restart_marker_blocks=4)
    first, second = data.index(b"\xff\xd1"), data.index(b"\xff\xd2")
    found = fault(data[:first] + data[second:])
    assert found.why == "damaged"
    assert "found marker" in found.detail


def sos_of(data: bytes) -> int:
    return data.index(b"\xff\xda")


def with_sos_parameters(data: bytes) -> bytes:
    """Of a sequential picture they are ignored; some cameras write others than 0, 63, 0."""
    at = scan_start(data)
    assert data[at - 3 : at] == b"\x00\x3f\x00"
    return data[: at - 3] + b"\x00\x00\x00" + data[at:]


ODD: dict[str, Callable[[bytes], bytes]] = {
    "bytes between two segments": lambda d: d[: sos_of(d)] + b"\x00\x01\x02\x03\x04\x05\x06" + d[sos_of(d) :],
    "odd scan parameters": with_sos_parameters,
    "padding before the end": lambda d: d[:-2] + bytes(500) + d[-2:],
    "few bytes before the end": lambda d: d[:-2] + b"\x12\x34\x56\x78"[:MAX_EXTRA_BYTES] + d[-2:],
    "fill bytes before the end": lambda d: d[:-2] + b"\xff" * 9 + d[-2:],
    "a video behind it": lambda d: d + random.Random(0).randbytes(100_000),
    "another JFIF version": lambda d: d.replace(b"JFIF\x00\x01\x01", b"JFIF\x00\x07\x01", 1),
    "an unknown Adobe transform": lambda d: (
        d[: sos_of(d)] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x07" + d[sos_of(d) :]
    ),
    "a broken profile": lambda d: (
        d[: sos_of(d)] + b"\xff\xe2\x00\x10ICC_PROFILE\x00\x07\x02" + d[sos_of(d) :]
    ),
    "an unknown segment with an end marker in it": lambda d: (
        d[:2] + b"\xff\xea\x00\x08\xff\xd9\xff\xda\x00\x00" + d[2:]
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_what_libjpeg_warns_of_without_a_wrong_pixel_is_kept(name: str) -> None:
    data = photo()
    odd = ODD[name](data)
    assert verify(odd).width == 320
    np.testing.assert_array_equal(np.asarray(decode(odd)), np.asarray(decode(data)))


@pytest.mark.parametrize("name", sorted(set(ODD) - {"few bytes before the end", "padding before the end"}))
def test_an_odd_file_that_is_damaged_too_is_damaged(name: str) -> None:
    """libjpeg tells only its first warning, which here is about something else."""
    data = photo()
    at = scan_start(data) + 3000
    assert fault(ODD[name](data[:at] + data[at + 1024 :])).why in CODES


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", KINDS)
def test_pixels_are_those_of_pillow(mode: str, options: dict[str, Any]) -> None:
    data = photo(mode, (101, 67), **options)
    for scale in (1, 2, 4, 8):
        asked, small = (101 // scale, 67 // scale), (-(-101 // scale), -(-67 // scale))
        with Image.open(io.BytesIO(data)) as image:
            image.draft(None, asked)
            right = image.convert("RGB")
        found = decode(data, at_least=asked)
        assert found.size == right.size == small
        np.testing.assert_array_equal(np.asarray(found), np.asarray(right))


def test_genuine_photos_are_whole_and_damaged_ones_are_found(photos: list[Path]) -> None:
    rng = random.Random(0)
    found = {"cut": 0, "holed": 0}
    for path in rng.sample(photos, 100):
        data = path.read_bytes()
        assert verify(data).format == "JPEG"
        start = data.rindex(b"\xff\xda") + 14
        at = rng.randrange(start, len(data) - 1100)
        for name, bad in (("cut", data[:at] + b"\xff\xd9"), ("holed", data[:at] + data[at + 1024 :])):
            found[name] += verdict(bad) in CODES
    assert min(found.values()) >= 99


def changed(data: bytes, rng: random.Random) -> bytes:
    """The file with up to four faults, most of them in its header."""
    out, scan = bytearray(data), scan_start(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(2, scan) if rng.random() < 0.8 else rng.randrange(2, max(3, len(out)))
        kind = rng.randrange(5)
        if kind == 0:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del out[at : at + rng.choice((1, 2, 20))]
        elif kind == 2:
            out[at:at] = rng.randbytes(rng.choice((1, 2, 7)))
        elif kind == 3:  # a segment stands twice
            start = out.find(b"\xff", at)
            out[2:2] = out[start : start + 2 + int.from_bytes(out[start + 2 : start + 4], "big")]
        else:
            del out[at:]
    return bytes(out)


def test_a_plain_header_gives_what_pillow_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    turned = Image.Exif()
    turned[0x0112] = 6
    more: list[dict[str, Any]] = [{"icc_profile": profile}, {"comment": b"a photo"}, {"exif": turned}]
    whole = [photo(mode, (96, 64), **options) for options in [*KINDS, *more] for mode in ("RGB", "L", "CMYK")]
    rng = random.Random(5)
    plain = 0
    for data in [*whole, *(changed(rng.choice(whole), rng) for _ in range(1500))]:
        plain += plain_size(data) is not None
        found = result(data)
        with monkeypatch.context() as patch:
            patch.setattr("vlpipe.stages.formats.jpeg.plain_size", lambda data: None)
            assert result(data) == found
        if isinstance(found, pixels.Probe):
            decode(data)
    assert plain > 200


def result(data: bytes) -> object:
    try:
        return verify(data)
    except RowFault as one:
        return one.why, one.detail
