"""A part of a large JPEG is decoded at a smaller scale, and looks as one that is cut from the whole."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlpipe.stages.common.pixels import Box, decode, decode_part
from vlpipe.stages.formats import jpeg

SIZE = 56


def smooth(width: int, height: int) -> Image.Image:
    """Waves of colour, some 30 pixels long."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 31 + k) + np.cos(y / (23 + 5 * k)) for k in range(3)]
    return Image.fromarray(np.uint8(np.clip(64 * np.stack(waves, 2) + 128, 0, 255)))


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def cut(data: bytes, box: Box) -> np.ndarray[Any, Any]:
    """From the whole, decoded at full size."""
    whole = decode(data).crop(tuple(map(round, box))).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(whole, np.int16)


def part(data: bytes, box: Box, **options: Any) -> np.ndarray[Any, Any]:
    return np.asarray(decode_part(data, lambda width, height: box, SIZE, **options)[0], np.int16)


@pytest.mark.parametrize(
    ("box", "scale"),
    [
        ((0, 0, 640, 480), 8),
        ((100, 60, 420, 400), 4),
        ((301, 7, 449, 207), 2),
        ((20, 300, 90, 360), 1),  # smaller than twice the output
    ],
)
def test_the_scale_leaves_the_part_large_enough(
    box: Box, scale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, scales = encoded(smooth(640, 480), quality=95), []
    plain = jpeg.decode

    def seen(data: bytes, colours: Any, width: int, height: int, scale: int = 1) -> Any:
        scales.append(scale)
        return plain(data, colours, width, height, scale)

    wanted = cut(data, box)
    monkeypatch.setattr(jpeg, "decode", seen)
    difference = np.abs(part(data, box) - wanted)
    assert scales == [scale]
    assert difference.mean() < (2 if scale > 1 else 1e-9)
    assert difference.max() < (16 if scale > 1 else 1)


@pytest.mark.parametrize("turn", range(1, 9))
def test_boxes_are_of_the_upright_image(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(smooth(640, 400), quality=95, exif=exif)
    box = (30, 40, 330, 350)
    assert np.abs(part(data, box) - cut(data, box)).mean() < 2


def errors(width: int, turn: int) -> list[float]:
    """Mean error of three parts of a picture with fine detail, beside the same parts cut from the whole."""
    exif = Image.Exif()
    exif[0x0112] = turn
    noise = np.random.default_rng(0).integers(0, 256, (61, 91, 3), np.uint8)
    image = Image.fromarray(noise).resize((width, 960 + width % 8), Image.Resampling.BICUBIC)
    data = encoded(image, quality=95, exif=exif)
    right, bottom = decode(data).size
    boxes: list[Box] = [(0, 0, right, bottom), (right - 500, bottom - 480, right, bottom), (3, 5, 470, 475)]
    return [float(np.abs(part(data, box) - cut(data, box)).mean()) for box in boxes]


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("width", [640, 1792])
def test_a_part_of_a_pixel_at_the_edge_moves_nothing(width: int, turn: int) -> None:
    """The sides of the second picture are no multiples of a scale; shifted by half a pixel, its errors would double."""
    for plain, odd in zip(errors(width, turn), errors(width + 1, turn), strict=True):
        assert odd < 1.3 * plain + 0.2


def test_an_orientation_after_the_pixels_of_a_png_is_obeyed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (300, 200), "white"), "PNG", exif=exif)
    chunks = {name: data.index(name) - 4 for name in (b"eXIf", b"IDAT", b"IEND")}
    end = chunks[b"eXIf"] + 12 + int.from_bytes(data[chunks[b"eXIf"] : chunks[b"eXIf"] + 4])
    chunk = data[chunks[b"eXIf"] : end]
    late = data.replace(chunk, b"")
    late = late[: late.index(b"IEND") - 4] + chunk + late[late.index(b"IEND") - 4 :]
    seen = []

    def lower(width: int, height: int) -> Box:
        seen.append((width, height))
        return (0, height // 2, width, height)

    found, whole = decode_part(late, lower, 8)
    assert seen == [(200, 300)]
    assert np.asarray(found).min() == 255
    assert whole is None


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_other_formats_are_decoded_whole(format: str) -> None:
    data, box = encoded(smooth(640, 480), format), (100, 60, 420, 400)
    assert (part(data, box) == cut(data, box)).all()


def test_a_small_image_is_returned_whole_and_at_full_size() -> None:
    data, box = encoded(smooth(128, 120)), (0, 0, 128, 120)
    found, whole = decode_part(data, lambda width, height: box, 8, keep_whole=128 * 128)
    assert whole is not None
    assert whole.size == (128, 120)
    assert found.tobytes() == whole.resize((8, 8), Image.Resampling.BICUBIC).tobytes()
    assert decode_part(data, lambda width, height: box, 8, keep_whole=127 * 120)[1] is None
