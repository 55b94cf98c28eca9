"""Distortions: hand-worked pixels, draws within their ranges and rates, nothing left to chance."""

from __future__ import annotations

import io
import math
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from vlpipe.stages.loading import distort
from vlpipe.stages.loading.distort import Distortion, drawn
from vlpipe.stages.loading.makers.images.distorted import Distorted
from vlpipe.stages.loading.rows import Row

JITTER: dict[str, Any] = {"jitter": (0.8, 0.8, 0.8, 0.2), "jitter_rate": 0.8}
SIMCLR = Distortion(crop_scale=(0.08, 1.0), flip=True, grey_rate=0.2, blur_rate=0.5, **JITTER)
NAMES = ("brightness", "contrast", "saturation", "hue")


def picture(*rows: list[tuple[int, int, int]]) -> Image.Image:
    return Image.fromarray(np.array(rows, np.uint8))


def pixels(image: Image.Image) -> list[list[list[int]]]:
    return np.asarray(image).tolist()


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8))


def test_brightness_and_saturation_by_hand() -> None:
    one = picture([(100, 200, 50)])
    assert pixels(distort.brightness(one, 0.5)) == [[[50, 100, 25]]]
    assert pixels(distort.brightness(one, 1.8)) == [[[180, 255, 90]]]
    luminance = (100 * 299 + 200 * 587 + 50 * 114 + 500) // 1000
    assert pixels(distort.grey(one)) == [[[luminance] * 3]] == pixels(distort.saturation(one, 0.0))
    assert pixels(distort.saturation(one, 1.0)) == pixels(one)
    (((red, green, blue),),) = pixels(distort.saturation(one, 1.5))
    wanted = [max(0, luminance + 1.5 * (v - luminance)) for v in (100, 200, 50)]
    assert [red, green, blue] == pytest.approx(wanted, abs=1)


def test_contrast_moves_from_the_mean() -> None:
    two = picture([(50, 50, 50), (150, 150, 150)])
    assert pixels(distort.contrast(two, 0.0)) == [[[100] * 3, [100] * 3]]
    assert pixels(distort.contrast(two, 0.4)) == [[[80] * 3, [120] * 3]]
    assert pixels(distort.contrast(two, 1.8)) == [[[10] * 3, [190] * 3]]


def test_hues_turn() -> None:
    red = picture([(255, 0, 0)])
    for turn, wanted in ((0, (255, 0, 0)), (1 / 3, (0, 255, 0)), (-1 / 3, (0, 0, 255)), (0.5, (0, 255, 255))):
        assert np.abs(np.array(pixels(distort.hue(red, turn))[0][0]) - wanted).max() <= 6, turn
    grey = picture([(90, 90, 90)])
    assert pixels(distort.hue(grey, 0.3)) == pixels(grey)


def test_solarisation_inverts_the_upper_half() -> None:
    (operation,) = drawn(Distortion(solarise_rate=1.0), np.random.default_rng(0))
    assert pixels(operation(picture([(0, 127, 128), (255, 200, 10)]))) == [[[0, 127, 127], [0, 55, 10]]]


def test_a_blurred_point_is_its_kernel() -> None:
    """30 pixels high and 10 %: a kernel of 3, whose weights are in the ratio of exp(-1/2) to 1 at a deviation of 1."""
    black = np.zeros((30, 40, 3), np.uint8)
    black[10, 20] = (255, 0, 128)
    found = np.asarray(distort.blur(Image.fromarray(black), 1.0, 0.1)).astype(float)
    side = math.exp(-0.5) / (1 + 2 * math.exp(-0.5))
    line = np.array([side, 1 - 2 * side, side])
    for colour, height in enumerate((255, 0, 128)):
        np.testing.assert_allclose(found[9:12, 19:22, colour], height * np.outer(line, line), atol=0.51)
    found[9:12, 19:22] = 0
    assert not found.any()


@pytest.mark.parametrize(("size", "taps"), [(224, 23), (32, 3), (9, 1), (100, 11)])
def test_the_kernel_is_a_tenth_of_the_side(size: int, taps: int) -> None:
    line = np.zeros((size, size, 3), np.uint8)
    line[:, size // 2] = 255
    reached = np.asarray(distort.blur(Image.fromarray(line), 50.0, 0.1))[size // 2, :, 0] > 0
    assert int(reached.sum()) == taps


def test_a_blur_is_the_sum_over_the_square() -> None:
    image, sigma, radius = noise(21, 25), 1.3, 2
    at = np.arange(-radius, radius + 1)
    line = np.exp(-(at**2) / (2 * sigma**2))
    kernel = np.outer(line, line) / line.sum() ** 2
    wide = np.pad(np.asarray(image).astype(float), ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    wanted = np.zeros((25, 21, 3))
    for i in range(2 * radius + 1):
        for j in range(2 * radius + 1):
            wanted += kernel[i, j] * wide[i : i + 25, j : j + 21]
    np.testing.assert_allclose(np.asarray(distort.blur(image, sigma, 0.2)), wanted, atol=0.51)
    plain = Image.new("RGB", (30, 30), (3, 200, 77))
    assert pixels(distort.blur(plain, 2.0, 0.1)) == pixels(plain)


def named(operations: list[Any]) -> dict[str, float]:
    return {
        one.func.__name__: next(iter(one.keywords.values()))
        for one in operations
        if isinstance(one, partial) and one.func.__name__ in NAMES
    }


def test_factors_are_within_their_spans_in_any_order() -> None:
    rng, found, orders = np.random.default_rng(0), [], Counter[tuple[str, ...]]()
    always = Distortion(jitter=(0.8, 0.4, 1.5, 0.2))
    for _ in range(2400):
        values = named(drawn(always, rng))
        found.append([values[name] for name in NAMES])
        orders[tuple(values)] += 1
    lowest, highest = np.min(found, axis=0), np.max(found, axis=0)
    np.testing.assert_allclose(lowest, [0.2, 0.6, 0.0, -0.2], atol=0.01)
    np.testing.assert_allclose(highest, [1.8, 1.4, 2.5, 0.2], atol=0.01)
    assert np.array(found).mean(0) == pytest.approx(
        [1, 1, 1.25, 0], abs=0.05
    )  # not below 0: the third is lopsided
    assert len(orders) == 24
    assert min(orders.values()) > 100 - 4 * math.sqrt(100)


def test_operations_happen_at_their_rates() -> None:
    rng, num, counts = np.random.default_rng(1), 4000, Counter[str]()
    spec = Distortion(grey_rate=0.2, blur_rate=0.5, solarise_rate=0.1, **JITTER)
    sigmas = []
    for _ in range(num):
        for one in drawn(spec, rng):
            name = one.func.__name__ if isinstance(one, partial) else one.__name__  # type: ignore[attr-defined]
            counts[name] += 1
            sigmas += [one.keywords["sigma"]] if name == "blur" else []  # type: ignore[attr-defined]
    rates = {**dict.fromkeys(NAMES, 0.8), "grey": 0.2, "blur": 0.5, "solarize": 0.1}
    assert counts.keys() == rates.keys()
    for name, rate in rates.items():
        assert abs(counts[name] - num * rate) < 4 * math.sqrt(num * rate * (1 - rate)), name
    assert 0.1 <= min(sigmas) < 0.11
    assert 1.99 < max(sigmas) <= 2.0


def test_a_share_of_pictures_is_grey() -> None:
    row, rng, num = Row("a", 0, [], {"image": noise(20, 20)}), np.random.default_rng(2), 1000
    maker = Distorted(size=8, augment=Distortion(crop_scale=(0.3, 1.0), flip=True, grey_rate=0.2))
    made = np.stack([maker(row, "", rng)["data"] for _ in range(num)])
    num_grey = int((made == made[:, :1]).all((1, 2, 3)).sum())
    assert abs(num_grey - 0.2 * num) < 4 * math.sqrt(num * 0.2 * 0.8)


def test_the_generator_decides_everything() -> None:
    buffer = io.BytesIO()
    noise(60, 50).save(buffer, "PNG")
    row = Row("a", 0, [], {"image": buffer.getvalue()})
    maker = Distorted(size=24, augment=SIMCLR)
    first, again = (
        [maker(row, "", np.random.default_rng(seed))["data"].tobytes() for seed in range(20)]
        for _ in range(2)
    )
    assert first == again
    assert len(set(first)) == 20
    plain = Distorted(size=24)(row, "", np.random.default_rng(0))["data"]
    assert plain.shape == (3, 24, 24)
    assert plain.dtype == np.uint8


def test_what_is_no_distortion_is_refused() -> None:
    check = TypeAdapter(Distortion).validate_python
    assert check({"jitter": [0.8, 0.8, 0.8, 0.2], "crop_scale": [0.08, 1.0]}).jitter == (0.8, 0.8, 0.8, 0.2)
    for wrong in (
        {"jitter": [0.8, 0.8, 0.8, 0.6]},
        {"jitter": [0.8, 0.8, 0.2]},
        {"grey_rate": 1.2},
        {"blur_sigma": [2.0, 0.1]},
        {"gray_rate": 0.1},
    ):
        with pytest.raises(ValidationError):
            check(wrong)
