"""Every file is named as what it is; half a file is `truncated`; icons are read as browsers show them."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.common.pixels import decode, verify
from vlpipe.stages.formats.signatures import (
    ENDINGS,
    FORMATS,
    ends_early,
    format_of,
    other_content,
    other_format,
)


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (48, 32), **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def fault(data: bytes, **options: int) -> RowFault:
    with pytest.raises(RowFault) as caught:
        verify(data, **options)
    return caught.value


@pytest.mark.parametrize("kind", FORMATS)
def test_an_accepted_format_is_known_by_its_first_bytes(kind: str) -> None:
    data = encoded(kind)
    assert format_of(data) == kind
    assert not ends_early(data)
    assert other_format(data) is None
    assert kind in ENDINGS
    assert all(ends_early(data[:end]) for end in range(17, len(data) - 4, 29))


@pytest.mark.parametrize("kind", FORMATS)
def test_half_a_file_is_truncated_and_a_spoiled_header_is_broken(kind: str) -> None:
    data = encoded(kind)
    assert fault(data[: len(data) // 2]).why == "truncated"
    head = data[:12] if kind != "AVIF" else data[:16]
    spoiled = head + b"\xa5" * (len(data) - len(head) - 64) + data[-64:]
    assert fault(spoiled).why in ("broken", "truncated", "too_many_pixels", "unsupported_format")


@pytest.mark.parametrize(
    ("kind", "mode", "name"),
    [
        ("JPEG2000", "RGB", "JPEG 2000"),
        ("PPM", "RGB", "PNM"),
        ("PPM", "1", "PNM"),
        ("TGA", "RGB", "TGA"),
        ("PCX", "RGB", "PCX"),
        ("DDS", "RGB", "DDS"),
        ("SGI", "RGB", "SGI"),
        ("XBM", "1", "XBM"),
        ("IM", "RGB", "IM"),
        ("ICNS", "RGB", "Mac icon (ICNS)"),
        ("MSP", "1", "MSP"),
    ],
)
def test_a_whole_image_of_another_format_is_named(kind: str, mode: str, name: str) -> None:
    found = fault(encoded(kind, mode))
    assert found.why == "unsupported_format"
    assert found.detail == f"the file is {name}; accepted are {', '.join(FORMATS)}"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIC"),
        (b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00mif1heic", "HEIC"),
        (b"\xff\x0a\xfa\x1f\x01\x02\x03\x04", "JPEG XL"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n\x00\x00", "JPEG XL"),
        (b"II\xbc\x01\x20\x00\x00\x00", "JPEG XR"),
        (b"8BPS\x00\x01" + bytes(20), "Photoshop (PSD)"),
        (b"\x00\x00\x02\x00\x01\x00 \x00", "cursor (CUR)"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"qoif\x00\x00\x00\x01", "QOI"),
    ],
)
def test_formats_that_pillow_cannot_write_are_named(data: bytes, name: str) -> None:
    assert str(fault(data)) == f"unsupported_format: the file is {name}; accepted are {', '.join(FORMATS)}"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\x00\x00\x00\x18ftypisom\x00\x00\x00\x00isom", "a video (MP4)"),
        (b"\x1aE\xdf\xa3" + bytes(20), "a video (WebM or Matroska)"),
        (b"PK\x03\x04" + bytes(20), "a zip archive"),
        (b"%PDF-1.7\n", "PDF"),
        (b"BMI is the body mass index of a person", None),
        (b"a sentence that begins with any letter", None),
        (b"Is this an image? It is not, it is a text.", None),
        (b'"id","url"\n1,http://a.test/1.jpg\n', None),
    ],
)
def test_what_is_no_image_is_not_called_one(data: bytes, name: str | None) -> None:
    assert other_content(data) == name
    assert fault(data).why == "not_an_image"


def test_random_bytes_are_seldom_taken_for_a_format_without_signature() -> None:
    rng = np.random.default_rng(0)
    assert sum(other_format(rng.bytes(200)) is not None for _ in range(10_000)) < 20


def test_a_bmp_or_tiff_of_an_unknown_kind_does_not_say_that_its_format_is_accepted() -> None:
    bmp = bytearray(encoded("BMP"))
    bmp[28:30] = struct.pack("<H", 2)  # two bits per pixel
    found = fault(bytes(bmp))
    assert found.why == "unsupported_format"
    assert found.detail.startswith("the file is a BMP of a kind that cannot be read: ")


def icon(*pictures: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, "ICO", append_images=list(pictures[1:]), sizes=[one.size for one in pictures], **options
    )
    return buffer.getvalue()


@pytest.mark.parametrize("bitmap_format", ["png", "bmp"])
def test_of_an_icon_the_largest_picture_counts_and_its_alpha_is_laid_on_white(bitmap_format: str) -> None:
    small, large = Image.new("RGBA", (16, 16), "red"), Image.new("RGBA", (48, 48), (0, 0, 200, 255))
    large.putpixel((0, 0), (0, 0, 200, 0))
    data = icon(large, small, bitmap_format=bitmap_format)
    found = verify(data)
    assert (found.format, found.width, found.height) == ("ICO", 48, 48)
    pixels = np.asarray(decode(data))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[5, 5].tolist() == [0, 0, 200]
    assert (
        fault(icon(Image.new("RGBA", (16, 16), (9, 9, 9, 0)), bitmap_format=bitmap_format)).why
        == "transparent"
    )


def test_a_bomb_in_an_icon_is_refused_before_it_is_decoded() -> None:
    """Its list of pictures says 16 x 16; the PNG in it says 20,000 x 20,000."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(2501 * 20_000)))
    bomb = b"\x00\x00\x01\x00\x01\x00" + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22) + png
    began = time.monotonic()
    assert str(fault(bomb)) == "too_many_pixels: the image has 400000000 pixels, the limit is 50000000"
    assert time.monotonic() - began < 0.5
