"""Images: damaged, cut short, of odd formats, invisible, or larger than Pillow's own limit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.common.pixels import decode, verify

Case = Callable[[str], Path]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("data/001_missing1k.jpg", "damaged: Corrupt JPEG data: premature end of data segment"),
        ("data/half_with_eoi.jpg", "damaged: Corrupt JPEG data: premature end of data segment"),
        ("data/half.webp", "truncated: the file starts as WEBP"),
        ("data/half.avif", "truncated: the file starts as AVIF"),
        ("data/16bit.s.tif", "unsupported_pixels: pixels of mode I have no standard conversion to RGB"),
        ("data/big225.png", "too_many_pixels: the image has 225000000 pixels, the limit is 50000000"),
        (
            "png/grey_trns.png",
            "transparent: the image is transparent: the alpha of every pixel is at most 0 of 255",
        ),
    ],
)
def test_what_is_refused(case: Case, name: str, said: str) -> None:
    with pytest.raises(RowFault) as caught:
        verify(case(name).read_bytes())
    assert str(caught.value).startswith(said)


def test_a_limit_above_that_of_pillow_counts(case: Case) -> None:
    data = case("data/big225.png").read_bytes()
    found = verify(data, max_pixels=225_000_000)
    assert (found.width, found.height) == (15_000, 15_000)
    with pytest.raises(
        RowFault, match=r"^too_many_pixels: the image has 225000000 pixels, the limit is 224999999"
    ):
        verify(data, max_pixels=224_999_999)


@pytest.mark.parametrize(
    ("name", "format", "size"),
    [
        ("data/whole.avif", "AVIF", (160, 160)),
        ("mpo/phone.jpg", "MPO", (64, 48)),
        ("mpo/plain.jpg", "JPEG", (64, 48)),
        ("placeholder/ph.png", "PNG", (200, 150)),
        ("placeholder/r0.jpg", "JPEG", (200, 150)),
    ],
)
def test_what_is_whole(case: Case, name: str, format: str, size: tuple[int, int]) -> None:
    data = case(name).read_bytes()
    assert verify(data).format == format
    assert decode(data).size == size


def test_pictures_of_the_transparent_colour_alone(case: Case, tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(case("png/trns.py"))], cwd=tmp_path, check=True, timeout=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grey_trns.png", "rgb_trns.png"]
    for path in tmp_path.iterdir():
        with pytest.raises(RowFault, match=r"^transparent"):
            verify(path.read_bytes())
