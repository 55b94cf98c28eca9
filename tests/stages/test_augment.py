"""Augmentation: boxes within their bounds, moves by the right number of pixels, nothing left to chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlpipe.stages.common.pixels import resized_part
from vlpipe.stages.loading import augment
from vlpipe.stages.loading.augment import Augmentation, augmented, crop_box


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8))


def parts_of(image: Image.Image) -> Any:
    """The first argument of `augmented` for a decoded image."""
    return lambda part, size: resized_part(image, part(*image.size), size)


def test_the_generator_decides_everything() -> None:
    image = noise(40, 30)
    spec = Augmentation(crop_scale=(0.2, 1.0), flip=True, randaugment=(2, 5.0))

    def made(seed: int) -> Image.Image:
        return augmented(parts_of(image), spec, 24, "", np.random.default_rng(seed))

    first, again = ([made(seed).tobytes() for seed in range(20)] for _ in range(2))
    assert first == again
    assert len(set(first)) > 15
    assert made(0).size == (24, 24)


def test_operations_come_after_crop_and_flip() -> None:
    image, plain = noise(40, 30), Augmentation(crop_scale=(0.2, 1.0), flip=True)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        wanted = augment.rand_augment(augmented(parts_of(image), plain, 24, "", rng), 2, 5.0, rng)
        spec = Augmentation(crop_scale=(0.2, 1.0), flip=True, randaugment=(2, 5.0))
        found = augmented(parts_of(image), spec, 24, "", np.random.default_rng(seed))
        assert found.tobytes() == wanted.tobytes()


def test_boxes_lie_inside_and_keep_the_wanted_share_and_aspect() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(2000):
        left, top, right, bottom = crop_box(300, 200, (0.2, 0.9), rng)
        assert 0 <= left < right <= 300
        assert 0 <= top < bottom <= 200
        shares.append((right - left) * (bottom - top) / 60_000)
        assert 0.73 < (right - left) / (bottom - top) < 1.36
    assert 0.19 < min(shares) < 0.25
    assert 0.80 < max(shares) < 0.91


@pytest.mark.parametrize(
    ("size", "box"), [((1000, 3), (498, 0, 502, 3)), ((3, 1000), (0, 498, 3, 502)), ((1, 1), (0, 0, 1, 1))]
)
def test_where_no_box_fits_the_middle_is_taken(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    assert crop_box(*size, (1.0, 1.0), np.random.default_rng(0)) == box


def test_without_operations_it_is_crop_and_resize() -> None:
    image = noise(50, 40)
    box = crop_box(50, 40, (0.5, 1.0), np.random.default_rng(3))
    right = image.crop(box).resize((16, 16), Image.Resampling.BICUBIC)
    found = augmented(parts_of(image), Augmentation(crop_scale=(0.5, 1.0)), 16, "", np.random.default_rng(3))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(right))


def test_about_half_are_flipped() -> None:
    image = Image.fromarray(np.tile(np.arange(0, 250, 5, dtype=np.uint8), (50, 1))).convert("RGB")
    flips = Augmentation(crop_scale=(0.2, 1.0), flip=True)
    rng = np.random.default_rng(0)
    mirrored = []
    for _ in range(400):
        row = np.asarray(augmented(parts_of(image), flips, 8, "", rng))[0, :, 0]
        mirrored.append(row[0] > row[7])
    assert 0.4 < np.mean(mirrored) < 0.6


@pytest.mark.parametrize("op", [augment.translate_x, augment.translate_y])
def test_a_shift_is_ten_pixels_at_224_and_full_magnitude(op: augment.Op) -> None:
    image = noise(224, 224)
    pixels = np.asarray(image) if op is augment.translate_x else np.asarray(image).transpose(1, 0, 2)
    moved = np.asarray(op(image, 1.0, np.random.default_rng(1)))
    moved = moved if op is augment.translate_x else moved.transpose(1, 0, 2)
    to_left = np.array_equal(moved[:, :-10], pixels[:, 10:]) and (moved[:, -10:] == 128).all()
    to_right = np.array_equal(moved[:, 10:], pixels[:, :-10]) and (moved[:, :10] == 128).all()
    assert to_left != to_right


@pytest.mark.parametrize(
    ("op", "level"),
    [
        (augment.identity, 0.7),
        (augment.brightness, 0.5),  # 0.1 + 1.8 * 0.5 = 1: at BLIP's M = 5 these two change nothing
        (augment.sharpness, 0.5),
        (augment.shear_x, 0.0),
        (augment.shear_y, 0.0),
        (augment.translate_x, 0.0),
        (augment.rotate, 0.0),
    ],
)
def test_where_an_operation_changes_nothing(op: augment.Op, level: float) -> None:
    image = noise(20, 20)
    np.testing.assert_array_equal(np.asarray(op(image, level, np.random.default_rng(0))), np.asarray(image))


def test_brightness_scales_and_contrast_fills_the_range() -> None:
    ramp = Image.fromarray(np.full((4, 4, 3), 100, np.uint8))
    rng = np.random.default_rng(0)
    assert np.asarray(augment.brightness(ramp, 0.0, rng))[0, 0, 0] == 10
    assert np.asarray(augment.brightness(ramp, 1.0, rng))[0, 0, 0] == 190
    two = Image.fromarray(np.array([[[50] * 3, [200] * 3]], np.uint8))
    assert np.asarray(augment.auto_contrast(two, 0.5, rng))[0, :, 0].tolist() == [0, 255]


def test_shear_moves_the_far_edge_by_its_tangent() -> None:
    line = np.full((101, 101, 3), 0, np.uint8)
    line[:, 50] = 255  # x' = x + 0.3 y: the white line leans by 0.3 * 100 from top to bottom
    leaning = np.asarray(augment.shear_x(Image.fromarray(line), 1.0, np.random.default_rng(0)))[..., 0]
    body = np.where(leaning == 128, 0, leaning).astype(float)
    top, bottom = body[0].argmax(), body[100].argmax()
    assert abs(abs(int(top) - int(bottom)) - 30) <= 1


def test_an_operation_is_applied_half_the_time() -> None:
    image = noise(12, 12)
    pixels, rng = np.asarray(image), np.random.default_rng(0)

    def changed(after: Image.Image) -> bool:
        return not np.array_equal(np.asarray(after), pixels)

    share = np.mean(
        [changed(op(image, 1.0, rng)) for op in augment.OPS]
    )  # identity, for one, changes nothing
    assert share >= 0.7
    found = np.mean([changed(augment.rand_augment(image, 1, 10, rng)) for _ in range(4000)])
    assert abs(found - share / 2) < 0.03
