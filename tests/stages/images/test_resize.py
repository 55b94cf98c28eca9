"""Smaller images: sizes by mode, the pixels right, nothing carried along, bytes kept where nothing is asked."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from vlpipe.stages.common.pixels import MAX_PIXELS, ORIENTATION
from vlpipe.stages.images.check import Rules, check
from vlpipe.stages.images.resize import Resize, inner_size


def resized(data: bytes, **options: Any) -> Image.Image:
    rules = Rules(max_pixels=MAX_PIXELS, max_frames=10, resize=Resize(**{"format": "png", **options}))
    found = check(data, rules)
    image = Image.open(io.BytesIO(found.data))
    assert image.size == (found.width, found.height)
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        ("keep_ratio", (100, 50)),
        ("keep_ratio_largest", (50, 25)),
        ("center_crop", (50, 50)),
        ("border", (50, 50)),
    ],
)
def test_sizes(picture: Callable[..., bytes], mode: str, size: tuple[int, int]) -> None:
    assert resized(picture("PNG", (400, 200)), size=50, mode=mode).size == size
    assert resized(picture("PNG", (200, 400)), size=50, mode=mode).size == size[::-1]
    assert resized(picture("PNG", (10, 5)), size=50, mode=mode, only_if_bigger=False).size == size


def test_no_side_is_ever_nothing() -> None:
    assert inner_size(Resize(size=8, mode="keep_ratio_largest"), 1, 3000) == (1, 8)


def test_small_images_keep_their_bytes(picture: Callable[..., bytes]) -> None:
    data = picture("JPEG", (40, 30))
    rules = Rules(max_pixels=MAX_PIXELS, max_frames=10, resize=Resize(size=30))
    assert check(data, rules).data is data
    assert check(data, Rules(max_pixels=MAX_PIXELS, max_frames=10, resize=Resize(size=29))).data is not data


def test_left_and_right_halves_stay_where_they_were() -> None:
    """A red and a blue half, turned by EXIF: upright in the result, and the orientation is gone."""
    image = Image.new("RGB", (200, 100), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 100, 100))
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # turn clockwise to show: red is above
    small = resized(encoded(image, "JPEG", exif=exif, quality=95), size=50)
    assert small.size == (50, 100)
    assert ORIENTATION not in small.getexif()
    pixels = np.asarray(small).astype(int)
    assert pixels[:40, :, 0].min() > 240 > 20 > pixels[60:, :, 0].max()
    assert pixels[60:, :, 2].min() > 240 > 20 > pixels[:40, :, 2].max()


def test_a_border_is_white_and_a_crop_is_the_middle() -> None:
    image = Image.new("RGB", (300, 100), (9, 9, 9))
    image.paste((200, 0, 0), (100, 0, 200, 100))
    framed = np.asarray(resized(encoded(image), size=90, mode="border"))
    assert (framed[:30] == 255).all()
    assert (framed[60:] == 255).all()
    assert framed[45, 45].tolist() == [200, 0, 0]
    cropped = np.asarray(resized(encoded(image), size=50, mode="center_crop"))
    assert (abs(cropped[:, 2:-2].astype(int) - [200, 0, 0]) <= 1).all()


def test_16_bits_alpha_and_grey_keep_their_meaning() -> None:
    grey = Image.fromarray(np.full((40, 40), 32896, np.uint16))
    assert np.asarray(resized(encoded(grey), size=20)).tolist() == [[[128] * 3] * 20] * 20
    half = Image.new("RGBA", (40, 40), (0, 0, 0, 128))
    assert abs(int(np.asarray(resized(encoded(half), size=20)).mean()) - 127) <= 1


def test_a_jpeg_decoded_small_is_near_one_decoded_whole() -> None:
    """The scaled decoder is a shortcut: a smooth picture comes out within 2 of 255 of the long way."""
    ramp = Image.linear_gradient("L").resize((1024, 768)).convert("RGB")
    data = encoded(ramp, "JPEG", quality=95)
    short = np.asarray(resized(data, size=96)).astype(int)
    long = np.asarray(ramp.resize((128, 96), Image.Resampling.BICUBIC)).astype(int)
    assert abs(short - long).max() <= 2


def test_what_the_file_carried_stays_behind(picture: Callable[..., bytes]) -> None:
    exif = Image.Exif()
    exif[0xA431] = "serial number"
    exif[0x010E] = "a secret place"
    data = picture("JPEG", (80, 80), exif=exif, comment=b"hidden words") + b"#!/bin/sh"
    for kind in ("jpg", "webp", "png"):
        rules = Rules(max_pixels=MAX_PIXELS, max_frames=10, resize=Resize(size=40, format=kind))
        kept = check(data, rules).data
        assert not [word for word in (b"serial", b"secret", b"hidden", b"/bin/sh") if word in kept]


def test_the_same_bytes_each_time(picture: Callable[..., bytes]) -> None:
    data = picture("JPEG", (80, 80))
    rules = Rules(max_pixels=MAX_PIXELS, max_frames=10, resize=Resize(size=40))
    assert check(data, rules).data == check(data, rules).data


@pytest.mark.parametrize("wrong", [{"size": 0}, {"mode": "squash"}, {"quality": 101}, {"format": "gif"}])
def test_parameters_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Resize).validate_python(wrong)
