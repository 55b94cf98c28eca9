"""Regions with the picture that they lie in, and their hiding in its pixels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.stages.loading.test_regions import rows_of
from vlpipe.stages.loading.corruptors.image_text.hide_regions import HideRegions, blanked
from vlpipe.stages.loading.makers.image import Image as Picture
from vlpipe.stages.loading.makers.pixel_regions import PixelRegions

RNG = np.random.default_rng(0)


def rows() -> list[Any]:
    found = rows_of(5, 2, 4)[1]
    for row in found:
        file = io.BytesIO()
        pixels = np.random.default_rng(row.image_id).integers(1, 256, (50, 100, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        row.columns["image"] = file.getvalue()
    return found


def test_pixels_are_those_of_the_image_stream() -> None:
    maker, picture = PixelRegions(size=16), Picture(size=16)
    found = maker.on_device(maker.collate([maker(row, "", RNG) for row in rows()]))
    wanted = picture.on_device(picture.collate([picture(row, "", RNG) for row in rows()]))
    np.testing.assert_array_equal(found.extra["pixels"].numpy(), wanted.data.numpy())
    assert found.data.shape[:2] == (3, 5)
    assert set(PixelRegions.COLUMNS) == {"regions", "width", "height", "image"}


@pytest.mark.parametrize("pixels", [True, False])
def test_what_is_hidden(pixels: bool) -> None:
    maker = PixelRegions(size=16)
    given = [{"regions": maker(row, "", RNG)} for row in rows() * 100]
    hide = HideRegions(rate=0.5, at_least=1, hide=0.8, pixels=pixels)
    found = hide([dict(one) for one in given], lambda k: np.random.default_rng((2, k)), {"regions": maker})
    masked = np.concatenate([one["regions"]["target/masked"] for one in found])
    hidden = np.concatenate([one["regions"]["extra/hidden"] for one in found])
    assert not (hidden & ~masked).any()
    assert abs(hidden.sum() / masked.sum() - 0.8) < 4 * (0.16 / masked.sum()) ** 0.5
    for old, new in zip(given, found, strict=True):
        before, after, gone = old["regions"], new["regions"], new["regions"]["extra/hidden"]
        assert new["regions"]["target/masked"].any()
        np.testing.assert_array_equal(after["data"], np.where(gone[:, None], 0, before["data"]))
        wanted = (
            blanked(before["extra/pixels"], before["extra/box"][gone]) if pixels else before["extra/pixels"]
        )
        np.testing.assert_array_equal(after["extra/pixels"], wanted)
        assert (before["extra/pixels"] > 0).all()  # the given sample is not changed


def test_pixels_that_a_box_touches() -> None:
    """Of 4 x 4 pixels, a box from 0.3 to 0.6 across and 0.5 to 0.75 down touches columns 1 and 2, and row 2."""
    ones = np.ones((3, 4, 4), np.uint8)
    found = blanked(ones, np.array([[0.3, 0.5, 0.6, 0.75]], np.float32))
    assert found[0].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    assert (found[0] == found[1]).all()
    assert (blanked(ones, np.array([[-0.5, 0, 1.5, 1]], np.float32)) == 0).all()
