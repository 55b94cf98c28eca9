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
