"""Pixels against closed forms: small images whose right RGB values are known."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageCms

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.common.pixels import (
    MEAN,
    STD,
    decode,
    load_pixels,
    probe,
    square,
    to_pixels,
    verify,
)
from vlpipe.stages.loading.makers.image import normalised

UInt8 = npt.NDArray[np.uint8]
RAMP = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10  # 2 rows, 3 columns


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def shown(data: bytes) -> UInt8:
    return np.asarray(decode(data))


def why(fn: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(RowFault) as caught:
        fn(*args, **options)
    return caught.value.why


def raw_png(rows: list[bytes], width: int, depth: int, colour: int, height: int | None = None) -> bytes:
    """A PNG written by hand, for what Pillow cannot write: 16-bit RGB, sizes that lie."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height or len(rows), depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\x00" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


# For each EXIF orientation: stored pixels -> pixels as they are to be shown (EXIF 2.3, tag 0x0112).
UPRIGHT: dict[int, Callable[[UInt8], UInt8]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "TIFF": {"compression": "raw"}}.get(kind, {})
    data = encoded(Image.fromarray(RAMP), kind, exif=exif, **options)
    right = UPRIGHT[orientation](RAMP)
    np.testing.assert_array_equal(shown(data), right)
    for found in (probe(data), verify(data)):
        assert (found.height, found.width) == right.shape[:2]


def test_exif_that_cannot_be_read_leaves_the_pixels_as_stored() -> None:
    data = encoded(Image.fromarray(RAMP), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    np.testing.assert_array_equal(shown(data), RAMP)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    right = np.round(values / 257).astype(np.uint8)  # 255 / 65535 = 1 / 257
    np.testing.assert_array_equal(shown(encoded(Image.fromarray(values)))[..., 0], right)
    np.testing.assert_array_equal(shown(encoded(Image.fromarray(values), "TIFF"))[..., 1], right)


def test_16_bit_colour_keeps_its_range() -> None:
    values = np.array([[[0, 32768, 65535], [257, 514, 51400]]], ">u2")
    data = raw_png([values[0].tobytes()], width=2, depth=16, colour=2)
    assert np.abs(shown(data).astype(int) - np.round(values / 257).astype(int)).max() <= 1


def test_alpha_is_laid_on_white() -> None:
    rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [200, 0, 0, 51]]], np.uint8)
    right = [[200, 0, 0], [255, 255, 255], [244, 204, 204]]  # 51 / 255 = 0.2
    np.testing.assert_array_equal(shown(encoded(Image.fromarray(rgba)))[0], right)
    grey = Image.fromarray(rgba[..., [0, 3]])
    np.testing.assert_array_equal(shown(encoded(grey))[0, :, 0], [200, 255, 244])


def test_a_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        data = encoded(image, kind, transparency=1)
        np.testing.assert_array_equal(shown(data)[0], [[10, 20, 30], [255, 255, 255]])


@pytest.mark.parametrize(("mode", "value", "right"), [("L", 77, 77), ("1", 1, 255), ("1", 0, 0)])
def test_grey_becomes_three_equal_channels(mode: str, value: int, right: int) -> None:
    assert shown(encoded(Image.new(mode, (3, 2), value))).tolist() == [[[right] * 3] * 3] * 2


@pytest.mark.parametrize("profile", [None, b"not a profile"])
def test_cmyk_without_a_usable_profile(profile: bytes | None) -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100, icc_profile=profile)
    assert np.abs(shown(data).astype(int) - [255, 0, 0]).max() <= 2


def test_a_cmyk_image_with_an_rgb_profile_is_as_one_without() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = Image.new("CMYK", (16, 16), (200, 30, 0, 40))
    with_profile = encoded(plain, "JPEG", quality=100, icc_profile=profile)
    np.testing.assert_array_equal(shown(with_profile), shown(encoded(plain, "JPEG", quality=100)))


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert probe(data).num_frames == 3
    assert shown(data)[0, 0].tolist() == [255, 0, 0]
    assert why(probe, data, max_frames=2) == why(verify, data, max_frames=2) == "too_many_frames"


def test_a_camera_file_with_two_pictures_is_the_first_one() -> None:
    pictures = [Image.new("RGB", (16, 8), colour) for colour in ("red", "blue")]
    data = encoded(pictures[0], "MPO", save_all=True, append_images=pictures[1:])
    assert (verify(data).width, verify(data).num_frames) == (16, 2)
    assert np.abs(shown(data).astype(int) - [255, 0, 0]).max() <= 2


def test_float_images_name_no_white() -> None:
    for values in (np.ones((2, 2), np.float32), np.ones((2, 2), np.int32)):
        data = encoded(Image.fromarray(values), "TIFF")
        assert probe(data).format == "TIFF"
        assert why(verify, data) == why(decode, data) == "unsupported_pixels"


def test_a_bomb_is_refused_by_its_header() -> None:
    bomb = raw_png([b"\x00"], width=30_000, height=30_000, depth=1, colour=0)
    for fn in (probe, verify):
        with pytest.raises(
            RowFault, match=r"^too_many_pixels: the image has 900000000 pixels, the limit is 50000000$"
        ):
            fn(bomb)
    assert why(probe, encoded(Image.new("L", (11, 10))), max_pixels=109) == "too_many_pixels"
    assert probe(encoded(Image.new("L", (11, 10))), max_pixels=110).width == 11


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "ICO", "TIFF"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_cut_short_is_never_taken_for_whole(kind: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    assert verify(data).format == kind
    for end in (30, int(len(data) * part)):
        assert why(verify, data[:end]) == "truncated"
    if kind in ("JPEG", "PNG"):
        assert probe(data[: int(len(data) * part)]).width == 64


@pytest.mark.parametrize(
    ("data", "code", "detail"),
    [
        (b"", "empty", "the file has 0 bytes"),
        (b"\n <!DOCTYPE html><html>", "not_an_image", "the file looks like HTML"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image", "the file looks like SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not_an_image", "the file looks like PostScript"),
        (b"\x00\x01\x02junkjunk", "not_an_image", r"the file starts with b'\x00\x01\x02junkj'"),
    ],
)
def test_what_is_no_image_says_what_it_is(data: bytes, code: str, detail: str) -> None:
    for fn in (probe, verify, decode):
        with pytest.raises(RowFault) as caught:
            fn(data)
        assert caught.value.why == code
        assert caught.value.detail.partition(";")[0] == detail


def test_pixels_are_the_same_wherever_they_are_normalised() -> None:
    """All values of all channels, to the last bit."""
    every = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    image = Image.fromarray(every)
    found = normalised(torch.from_numpy(square(image, 16).transpose(2, 0, 1)))
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.from_numpy(to_pixels(image, 16)))


def test_pixels_are_squashed_and_normalised() -> None:
    colour = (10, 128, 250)
    pixels = to_pixels(Image.new("RGB", (50, 20), colour), 8)
    right = (np.array(colour) / 255 - MEAN) / STD
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, np.broadcast_to(right[:, None, None], (3, 8, 8)), rtol=1e-6)
    wide = np.zeros((4, 40, 3), np.uint8)
    wide[:, 20:] = 255  # the right half stays the right half
    squashed = to_pixels(Image.fromarray(wide), 4)[0]
    assert (squashed[:, :1] < -1).all()
    assert (squashed[:, 3:] > 1).all()


def test_pixels_at_the_wanted_size_are_not_touched() -> None:
    pixels = to_pixels(Image.fromarray(np.ascontiguousarray(RAMP[:, :2])), 2)
    np.testing.assert_allclose(pixels[1] * STD[1] + MEAN[1], RAMP[:, :2, 1] / 255, atol=1e-6)


def test_a_batch_is_its_rows() -> None:
    images = [encoded(Image.new("RGB", (9, 5 + i), (i, 2 * i, 100)), "PNG") for i in range(3)]
    batch = load_pixels(images, 6)
    assert batch.shape == (3, 3, 6, 6)
    for row, data in enumerate(images):
        np.testing.assert_array_equal(batch[row], load_pixels([data], 6)[0])


def test_what_nobody_can_see_is_refused_and_what_is_faint_is_not() -> None:
    for alpha, seen in ((0, False), (2, False), (3, True)):
        data = encoded(Image.new("RGBA", (4, 4), (200, 0, 0, alpha)), "PNG")
        if seen:
            assert verify(data).width == 4
        else:
            with pytest.raises(
                RowFault,
                match=f"^transparent: the image is transparent: the alpha of every pixel is at most {alpha} of 255$",
            ):
                verify(data)
    palette = Image.new("P", (4, 4), 0)
    with pytest.raises(RowFault, match=r"^transparent: "):
        verify(encoded(palette, "PNG", transparency=0))
    palette.putpixel((0, 0), 1)
    assert verify(encoded(palette, "PNG", transparency=0)).width == 4


def test_a_jpeg_of_many_scans_is_refused_by_its_header() -> None:
    """Each scan is a pass over all pixels and costs some bytes: 20 MB could keep a decoder at work for hours."""
    whole = encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    many = whole[:last] + whole[last:-2] * 200 + whole[-2:]
    for fn in (probe, verify, decode):
        assert fn(whole)
        with pytest.raises(RowFault, match=r"^too_many_scans: the JPEG has 2\d\d scans, the limit is 100$"):
            fn(many)


def test_a_photo_with_a_video_behind_it_has_the_scans_of_the_photo() -> None:
    """Phones append one; among its bytes the start of a scan stands about once in 65,536."""
    video = np.random.default_rng(0).bytes(10_000_000)
    assert video.count(b"\xff\xda") > 100
    assert verify(encoded(Image.new("RGB", (64, 48)), "JPEG") + video).width == 64


def test_the_quick_check_of_a_jpeg_is_as_strict_as_decoding_it() -> None:
    """Cut anywhere, or with wrong bytes: the same verdict from an eighth of the size as from the whole."""

    def check(data: bytes) -> object:
        return verify(data, damaged="keep")

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    rng = np.random.default_rng(1)
    for options in ({}, {"progressive": True}):
        data = encoded(picture, "JPEG", **options)
        cases = [data[:end] for end in range(1, len(data), 37)]
        for _ in range(200):
            bad = bytearray(data)
            bad[rng.integers(len(data))] = rng.integers(256)
            cases.append(bytes(bad))
        for case in cases:
            assert verdict(check, case) == verdict(decode, case)


def verdict(fn: Callable[[bytes], object], data: bytes) -> str:
    try:
        fn(data)
    except RowFault as fault:
        return fault.why
    return "fine"
