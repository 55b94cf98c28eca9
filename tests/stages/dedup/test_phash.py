from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from vlpipe.stages.common import phash
from vlpipe.stages.common.phash import colour_grid, grey, has_texture, hash_greys, pairs_within


def test_hash_equals_imagehash_on_real_photos(photos: list[Path]) -> None:
    import imagehash

    images = [Image.open(path).convert("RGB") for path in photos[:150]]
    ours = hash_greys(np.stack([grey(image) for image in images]))
    theirs = [int(str(imagehash.phash(image)), 16) for image in images]
    assert ours.tolist() == theirs


def test_a_hash_does_not_depend_on_its_batch() -> None:
    greys = np.random.default_rng(0).integers(0, 256, (50, 32, 32)).astype(np.uint8)
    one_by_one = np.concatenate([hash_greys(g[None]) for g in greys])
    assert (hash_greys(greys) == one_by_one).all()


def test_one_cosine_sets_one_bit() -> None:
    # x -> cos(pi * 3 * (2x + 1) / 64) has one DCT coefficient besides the mean: (0, 3), the fourth bit.
    wave = np.cos(np.pi * 3 * (2 * np.arange(32) + 1) / 64)
    greys = np.round(128 + 100 * np.tile(wave, (32, 1))).astype(np.uint8)[None]
    bits = f"{int(hash_greys(greys)[0]):064b}"
    assert bits[0] == "1"
    assert bits[3] == "1"
    assert set(bits[8:]) == {"0"}, "rows are equal: nothing varies from top to bottom"


@pytest.mark.parametrize("max_distance", [0, 3, 4, 8, 12])
def test_pairs_equal_all_pairs(max_distance: int) -> None:
    rng = np.random.default_rng(max_distance)
    hashes = rng.integers(0, 2**64, 300, dtype=np.uint64)
    flips = [sum(1 << int(b) for b in rng.choice(64, rng.integers(0, 14), replace=False)) for _ in range(200)]
    near = hashes[rng.integers(0, 300, 200)] ^ np.array(flips, np.uint64)
    hashes = np.concatenate([hashes, near])
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    want = np.argwhere(np.triu(apart <= max_distance, k=1))
    a, b, distance = pairs_within(hashes, max_distance)
    assert np.stack([a, b], 1).tolist() == want.tolist()
    assert (distance == apart[a, b]).all()
    assert len(a)


def test_pairs_are_the_same_when_found_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.random.default_rng(1).integers(0, 4, 60, dtype=np.uint64)
    whole = pairs_within(hashes, 4)
    monkeypatch.setattr(phash, "MAX_CANDIDATES", 7)
    assert all((x == y).all() for x, y in zip(whole, pairs_within(hashes, 4), strict=True))


def test_no_hashes_no_pairs() -> None:
    assert [len(x) for x in pairs_within(np.empty(0, np.uint64), 4)] == [0, 0, 0]


def test_a_flat_picture_has_no_texture_and_a_photo_has() -> None:
    flat = np.full((1, 32, 32), 200, np.uint8)
    busy = np.random.default_rng(0).integers(0, 256, (1, 32, 32)).astype(np.uint8)
    assert has_texture(np.concatenate([flat, busy])).tolist() == [False, True]


def test_grey_is_blind_to_colour_and_the_grid_is_not() -> None:
    red, blue = (np.full((64, 64, 3), 235, np.uint8) for _ in range(2))
    red[20:44, 20:44], blue[20:44, 20:44] = (214, 40, 40), (40, 115, 215)
    images = [Image.fromarray(pixels) for pixels in (red, blue)]
    a, b = hash_greys(np.stack([grey(image) for image in images]))
    assert int(a ^ b).bit_count() <= 2
    gap = np.abs(np.subtract(*(colour_grid(image).astype(int) for image in images))).max()
    assert gap > 50


def gap(one: np.ndarray, other: np.ndarray) -> float:
    grids = [np.clip(np.round(g), 0, 255).astype(np.uint8).reshape(1, -1) for g in (one, other)]
    (found,) = phash.colour_gap(*grids, np.zeros(1, np.int64), np.zeros(1, np.int64))
    (back,) = phash.colour_gap(*grids[::-1], np.zeros(1, np.int64), np.zeros(1, np.int64))
    assert found == back, "a pair has no order"
    return float(found)


def test_lighting_is_no_difference_of_colour_and_another_hue_is() -> None:
    grid = np.random.default_rng(0).integers(40, 160, (16, 3)).astype(float)
    assert gap(grid, grid) == 0
    assert gap(grid, grid * 1.3) < 1  # brighter
    assert gap(grid, (grid - grid.mean()) / 1.3 + grid.mean()) < 1  # less contrast
    assert gap(grid, grid + 60) < 1
    assert 5 < gap(grid, grid + 70) < 7
    assert gap(grid, grid[:, [1, 2, 0]]) > 40  # other hue, same brightness over all
    assert gap(grid, np.full((16, 3), 100.0)) > 30  # an even picture has no contrast to even out
    assert gap(np.full((16, 3), 0.0), np.full((16, 3), 255.0)) == 255 - 64
    white_shirt, black_shirt = (np.full((16, 3), 250.0) for _ in range(2))
    white_shirt[5:11], black_shirt[5:11] = 220, 20
    assert gap(white_shirt, black_shirt) > 100, "more contrast than an edit has"


def test_many_pairs_as_one_by_one() -> None:
    rng = np.random.default_rng(1)
    left, right = (rng.integers(0, 256, (30, 48)).astype(np.uint8) for _ in range(2))
    a, b = rng.integers(0, 30, (2, 100))
    single = [phash.colour_gap(left, right, a[k : k + 1], b[k : k + 1])[0] for k in range(100)]
    assert phash.colour_gap(left, right, a, b, block=7).tolist() == single
    assert 0 <= min(single) <= max(single) <= 255


@pytest.mark.parametrize(("edit", "found"), [("brighter", 0.6), ("darker", 0.95), ("contrast", 0.9)])
def test_edits_of_brightness_and_contrast_are_found(photos: list[Path], edit: str, found: float) -> None:
    """Shares that benchmarks/dedup_colours.md has, less chance on 200 photos; with the plain difference: below 0.1."""
    change = {
        "brighter": lambda i: ImageEnhance.Brightness(i).enhance(1.3),
        "darker": lambda i: ImageEnhance.Brightness(i).enhance(0.8),
        "contrast": lambda i: ImageEnhance.Contrast(i).enhance(1.4),
    }[edit]
    images = [Image.open(path).convert("RGB") for path in photos[:200]]
    colours = [np.stack([colour_grid(i) for i in each]) for each in (images, [change(i) for i in images])]
    places = np.arange(200)
    assert (phash.colour_gap(*colours, places, places) <= 16).mean() >= found


def test_reencoded_photos_are_found_and_others_are_not(photos: list[Path]) -> None:
    originals = [Image.open(path).convert("RGB") for path in photos[:200]]
    copies = [_changed(image, k) for k, image in enumerate(originals)]
    a, b, _ = pairs_within(hash_greys(np.stack([grey(image) for image in originals + copies])), 4)
    found = set(zip(a.tolist(), b.tolist(), strict=True))
    planted = {(k, k + len(originals)) for k in range(len(originals))}
    assert found <= planted
    assert len(found & planted) >= 0.98 * len(planted)


def _changed(image: Image.Image, k: int) -> Image.Image:
    if k % 3 == 0:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=60)
        return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")
    if k % 3 == 1:
        return image.resize((97, 113))
    return Image.eval(image, lambda v: min(255, round(v * 1.06)))
