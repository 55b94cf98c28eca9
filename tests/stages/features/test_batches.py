from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import torch

from vlpipe.pipeline.shard import Reject
from vlpipe.stages.common.batches import encode_images, fixed_batches, read_images, seed_of, without


def test_every_batch_has_the_same_size_and_says_how_much_of_it_is_real() -> None:
    assert list(fixed_batches("abcde", 2)) == [(["a", "b"], 2), (["c", "d"], 2), (["e", "e"], 1)]
    assert list(fixed_batches("", 4)) == []
    assert list(fixed_batches("ab", 4)) == [(["a", "b", "b", "b"], 2)]


def test_batches_are_read_as_they_are_needed() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for i in range(10):
            read.append(i)
            yield i

    next(fixed_batches(items(), 4))
    assert read == [0, 1, 2, 3]


def test_encode_sees_one_shape_and_each_image_once() -> None:
    seen: list[torch.Tensor] = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels)
        return pixels.mean((1, 2, 3))

    images = [(f"key{i}", np.full((3, 2, 2), i, np.float32)) for i in range(5)]
    found = list(encode_images(images, encode, 2))
    assert [(key, value.item()) for key, value in found] == [(f"key{i}", float(i)) for i in range(5)]
    assert [tuple(p.shape) for p in seen] == [(2, 3, 2, 2)] * 3


def test_unreadable_images_are_rejected_one_by_one(image_rows: Callable[..., pa.Table]) -> None:
    good = image_rows([[]])["image"][0].as_py()
    table = image_rows([[]] * 5, [b"", good, b"<html>", good, good[:60]])
    rejects: list[Reject] = []
    found = list(read_images(table, 8, rejects))
    assert [row for row, _ in found] == [1, 3]
    assert np.array_equal(found[0][1], found[1][1])
    assert found[0][1].shape == (3, 8, 8)
    assert [(r.id, r.why) for r in rejects] == [
        ("row0", "empty"),
        ("row2", "not_an_image"),
        ("row4", "truncated"),
    ]
    assert without(table, rejects)["id"].to_pylist() == ["row1", "row3"]
    assert without(table, []).equals(table)


def test_seeds_are_stable_and_apart() -> None:
    digest = hashlib.sha256(b"0:row0:3").digest()
    assert seed_of(0, "row0", 3) == int.from_bytes(digest[:8], "big") // 2
    seeds = {seed_of(s, f"row{r}", j) for s in range(5) for r in range(20) for j in range(5)}
    assert len(seeds) == 500
