"""BEiT's masks and streams: blocks, a picture in two sizes, codes of a column."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.common.pixels import to_pixels
from vlpipe.stages.loading.corruptors.mask_blocks import MaskBlocks, block
from vlpipe.stages.loading.distort import Distortion
from vlpipe.stages.loading.makers.base import Sample
from vlpipe.stages.loading.makers.images.image_codes import ImageWithCodes
from vlpipe.stages.loading.makers.images.two_sizes import TwoSizes
from vlpipe.stages.loading.rows import Row


def seeded(seed: int) -> Callable[[int], np.random.Generator]:
    return lambda k: np.random.default_rng((seed, k))


def masks(corruptor: MaskBlocks, num: int, sides: tuple[int, int] = (224, 224), seed: int = 0) -> np.ndarray:
    samples: list[Sample] = [{"image": {"data": np.zeros((3, *sides), np.uint8)}} for _ in range(num)]
    found = []
    for sample in corruptor(samples, seeded(seed), {}):
        item = sample["image"]
        assert item["extra/masked"] is item["target/masked"]
        found.append(item["target/masked"].reshape(sides[0] // corruptor.patch, -1))
    return np.stack(found)


def test_more_than_the_ratio_is_hidden() -> None:
    """Algorithm 1: until |M| > 0.4 N. A block adds at most what is left, or the smallest one, so it is little more."""
    found = masks(MaskBlocks(patch=16), 300)
    hidden = found.sum((1, 2))
    assert found.shape == (300, 14, 14)
    assert hidden.min() > 0.4 * 196
    assert hidden.max() <= 0.4 * 196 + 20
    assert found.any(0).all()
    assert len({mask.tobytes() for mask in found}) > 280
    assert np.array_equal(found, masks(MaskBlocks(patch=16), 300))
    assert not np.array_equal(found, masks(MaskBlocks(patch=16), 300, seed=1))


def test_the_released_law_hides_75_of_196_or_fewer() -> None:
    found = masks(MaskBlocks(patch=16, law="released", num=75), 300)
    hidden = found.sum((1, 2))
    assert hidden.max() == 75
    assert hidden.min() > 50
    assert 0.2 < np.mean(hidden == 75) < 1.0
    with pytest.raises(ValueError, match="law released has a `num`, paper has none"):
        MaskBlocks(patch=16, law="released")
    with pytest.raises(ValueError, match="law released has a `num`, paper has none"):
        MaskBlocks(patch=16, num=75)


def test_a_block_is_a_rectangle_of_the_wanted_size_and_aspect() -> None:
    """A ratio so low that one block is enough."""
    shapes = set()
    for mask in masks(MaskBlocks(patch=4, ratio=0.02, min_patches=20), 3000, sides=(80, 80)):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
        assert mask.sum() == height * width
        assert 16 <= height * width <= 25
        shapes.add((height, width))
    assert min(shapes) == (2, 8)
    assert (8, 2) in shapes


def test_sides_of_a_block() -> None:
    assert block(16, 1.0) == (4, 4)
    assert block(48, 1 / 3) == (4, 12)
    assert block(48, 3.0) == (12, 4)
    assert block(1, 0.01) == (1, 10)


def test_aspects_are_uniform_as_published_and_logarithmic_as_released() -> None:
    """Wide blocks are then as common as tall ones; drawn from 0.3 to 1 / 0.3 they are a quarter."""

    def wide(corruptor: MaskBlocks) -> float:
        found = masks(corruptor, 500, sides=(400, 400))
        shapes = [(m.any(1).sum(), m.any(0).sum()) for m in found]
        whole = [(h, w) for (h, w), m in zip(shapes, found, strict=True) if m.sum() == h * w and h != w]
        return float(np.mean([h < w for h, w in whole]))

    published = wide(MaskBlocks(patch=4, ratio=0.01, min_patches=100))
    released = wide(MaskBlocks(patch=4, law="released", num=100, min_patches=100))
    assert abs(published - (1 - 0.3) / (1 / 0.3 - 0.3)) < 0.1
    assert abs(released - 0.5) < 0.1


def test_a_mask_that_is_none_is_refused() -> None:
    for wrong in ({"ratio": 0.0}, {"ratio": 1.0}, {"aspect": (2.0, 1.0)}):
        with pytest.raises(ValueError, match="ratio must be between 0 and 1 and aspect ascend above 0"):
            MaskBlocks(patch=8, **wrong)  # type: ignore[arg-type]


@pytest.fixture
def row() -> Row:
    gradient = np.linspace(0, 255, 90)[None, :, None] * np.linspace(0.2, 1, 70)[:, None, None]
    picture = np.broadcast_to(gradient, (70, 90, 3)) * np.array([1.0, 0.6, 0.3])
    buffer = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(buffer, "PNG")
    return Row("a", 0, [], {"image": buffer.getvalue(), "image_codes": pa.scalar([3, 0, 5, 5])})


def test_two_sizes_are_of_the_same_part(row: Row) -> None:
    """The large picture, made small, is the small one."""
    picture = Image.open(io.BytesIO(row.columns["image"]))
    spec = Distortion(crop_scale=(0.2, 1.0), flip=True, jitter=(0.4, 0.4, 0.4, 0.1))
    maker = TwoSizes(size=64, second_size=16, augment=spec)
    items = [maker(row, "", np.random.default_rng(seed)) for seed in range(20)]
    for item in items:
        large, small = item["data"], item["extra/second"]
        assert small.shape == (3, 16, 16)
        shrunk = large.reshape(3, 16, 4, 16, 4).mean((2, 4))
        assert np.abs(shrunk - small).mean() < 4
    assert len({item["extra/second"].tobytes() for item in items}) == 20
    stream = maker.on_device(maker.collate(items))
    assert stream.extra["second"].shape == (20, 3, 16, 16)
    plain = TwoSizes(size=64, second_size=16)
    whole = plain.on_device(plain.collate([plain(row, "", np.random.default_rng(0))]))
    np.testing.assert_allclose(whole.extra["second"][0].numpy(), to_pixels(picture, 16), atol=1e-6)
    np.testing.assert_allclose(whole.data[0].numpy(), to_pixels(picture, 64), atol=1e-6)


def test_codes_of_a_column(row: Row) -> None:
    maker = ImageWithCodes(size=16, num_codes=6, num_places=4)
    stream = maker.collate([maker(row, "", np.random.default_rng(0))])
    assert stream.extra["codes"].tolist() == [[3, 0, 5, 5]]
    assert stream.extra["codes"].dtype == torch.int64
    for codes, said in (
        ([3, 0, 5], "3 codes from 0 to 5"),
        ([3, 0, 5, 6], "from 0 to 6"),
        ([], "0 codes, wanted"),
    ):
        other = Row("b", 0, [], {**row.columns, "image_codes": pa.scalar(codes, pa.list_(pa.int32()))})
        with pytest.raises(VlpipeError, match=f"row b: image_codes has .*{said}"):
            maker(other, "", np.random.default_rng(0))
    with pytest.raises(ValueError, match="the codes of the column image_codes are of the whole picture"):
        ImageWithCodes(size=16, num_codes=6, num_places=4, augment=Distortion(flip=True))


def test_masks_become_tensors_and_places(row: Row) -> None:
    maker = ImageWithCodes(size=16, num_codes=6, num_places=4)
    samples = [{"image": maker(row, "", np.random.default_rng(0))} for _ in range(3)]
    changed = MaskBlocks(patch=8, min_patches=1)(samples, seeded(2), {})
    stream = maker.collate([sample["image"] for sample in changed])
    masked = stream.target["masked"]
    assert masked.dtype == torch.bool
    assert torch.equal(masked, stream.extra["masked"])
    assert (masked.sum(1) > 0.4 * 4).all()
    assert torch.equal(stream.places["masked"], masked.flatten().nonzero()[:, 0])
    assert math.isclose(float(masked.float().mean()), float(masked.sum()) / 12)
