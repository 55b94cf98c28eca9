"""Tasks made from the image alone: tiles, puzzles, pairs of patches, overlapping patches, holes, noise."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from vlpipe.stages.loading.corruptors.pretext.holes import Holes
from vlpipe.stages.loading.corruptors.pretext.jigsaw import Jigsaw, orders
from vlpipe.stages.loading.corruptors.pretext.noise import Noise
from vlpipe.stages.loading.corruptors.pretext.patch_grid import PatchGrid
from vlpipe.stages.loading.corruptors.pretext.patch_pairs import PLACES, PatchPairs
from vlpipe.stages.loading.corruptors.pretext.shuffle_tiles import ShuffleTiles

Pixels = npt.NDArray[np.uint8]


def numbered(num: int, side: int = 12) -> list[Pixels]:
    """Pictures whose red is the row, green the column and blue the picture's number."""
    row, column = np.mgrid[0:side, 0:side].astype(np.uint8)
    return [np.stack([row, column, np.full_like(row, k % 256)]) for k in range(num)]


def changed(corruptor: Any, pictures: list[Pixels], seed: int = 0) -> list[dict[str, Any]]:
    samples = [{"image": {"data": p}} for p in pictures]
    found = corruptor(samples, lambda k: np.random.default_rng((seed, k)), {})
    return [sample["image"] for sample in found]


def cells(pixels: Pixels, grid: int = 3) -> list[Pixels]:
    step = pixels.shape[1] // grid
    corners = [(r * step, c * step) for r in range(grid) for c in range(grid)]
    return [pixels[:, y : y + step, x : x + step] for y, x in corners]


def test_tiles_change_places_within_a_picture() -> None:
    pictures = numbered(200)
    moved = Counter[tuple[int, int]]()
    for before, after in zip(pictures, changed(ShuffleTiles(), pictures), strict=True):
        old = [cell.tobytes() for cell in cells(before)]
        new = [cell.tobytes() for cell in cells(after["data"])]
        assert sorted(old) == sorted(new)
        moved.update((old.index(cell), place) for place, cell in enumerate(new))
    assert len(moved) == 81
    spread = math.sqrt(200 * 1 / 9 * 8 / 9)
    assert all(abs(count - 200 / 9) < 5 * spread for count in moved.values())


def test_tiles_go_to_other_pictures_and_keep_their_places() -> None:
    pictures = numbered(8)
    found = changed(ShuffleTiles(among="pictures"), pictures)
    for place in range(9):
        new = [cells(item["data"])[place] for item in found]
        assert sorted(int(cell[2, 0, 0]) for cell in new) == list(range(8))
        for cell in new:
            assert np.array_equal(cell[:2], cells(pictures[0])[place][:2])
    mixed = [len({int(cell[2, 0, 0]) for cell in cells(item["data"])}) for item in found]
    assert min(mixed) > 1
    assert np.array_equal(pictures[3], numbered(8)[3])
    with pytest.raises(ValueError, match="12 x 12 pixels cannot be cut into 5 rows"):
        changed(ShuffleTiles(grid=5), pictures)


def test_orders_are_the_farthest_apart() -> None:
    """Algorithm 1, step by step; of 24 orders of 4 tiles, no two of the first four share a place."""
    found = orders(4, 24)
    assert len({tuple(order) for order in found}) == 24
    distances = (found[:, None] != found[None]).sum(2)
    for k in range(1, 24):
        rest = distances[k:, :k].sum(1)
        assert rest[0] == rest.max()
    assert distances[:4, :4].sum() == 4 * 4 * 3
    assert orders(9, 10).shape == (10, 9)
    with pytest.raises(ValueError, match="4 tiles have 24 orders, fewer than num_orders 25"):
        orders(4, 25)


def test_a_puzzle_has_its_tiles_in_the_drawn_order() -> None:
    known, drawn = orders(9, 6), set()
    for item in changed(Jigsaw(tile=3, num_orders=6), numbered(60)):
        assert item["data"].shape == (9, 3, 3, 3)
        which = int(item["target/drawn"])
        drawn.add(which)
        for tile, cell in zip(item["data"], known[which], strict=True):
            top, left = int(tile[0, 0, 0]), int(tile[1, 0, 0])
            assert (top // 4, left // 4) == divmod(int(cell), 3)
            assert (top + 2) // 4 == top // 4
            assert np.array_equal(tile[0] - top, np.mgrid[0:3, 0:3][0])
    assert drawn == set(range(6))
    with pytest.raises(ValueError, match="4 x 4 pixels, fewer than tile 5"):
        changed(Jigsaw(tile=5, num_orders=6), numbered(1))
    with pytest.raises(ValueError, match="jigsaw needs a decoded picture"):
        changed(Jigsaw(tile=3, num_orders=6), [np.zeros(10, np.uint8)])


def test_colours_of_a_tile_are_moved_apart() -> None:
    far = Counter[int]()
    for item in changed(
        Jigsaw(tile=2, num_orders=6, colour_jitter=2), [np.stack([p[0]] * 3) for p in numbered(40)]
    ):
        for tile in item["data"]:
            tops = tile[:, 0, 0].astype(int)
            far.update(int(a - b) for a in tops for b in tops)
    assert set(far) == set(range(-4, 5))


@pytest.mark.parametrize("jitter", [0, 1])
def test_a_pair_is_a_patch_and_the_neighbour_that_was_drawn(jitter: int) -> None:
    seen = Counter[int]()
    for item in changed(PatchPairs(patch=3, gap=2, jitter=jitter), numbered(400, side=14)):
        which = int(item["target/drawn"])
        seen[which] += 1
        first, second = item["data"].astype(int)
        step = [second[axis, 0, 0] - first[axis, 0, 0] for axis in (0, 1)]
        for moved, along in zip(step, PLACES[which], strict=True):
            assert abs(moved - 5 * along) <= 2 * jitter
        assert np.array_equal(first[0] - first[0, 0, 0], np.mgrid[0:3, 0:3][0])
    spread = math.sqrt(400 * 1 / 8 * 7 / 8)
    assert len(seen) == 8
    assert all(abs(count - 50) < 5 * spread for count in seen.values())


def test_patches_keep_a_colour_and_lose_detail() -> None:
    noise = [np.random.default_rng(k).integers(256, size=(3, 40, 40), dtype=np.uint8) for k in range(60)]
    plain = changed(PatchPairs(patch=16, gap=2, keep_colour=True), noise)
    assert "extra/colour" not in changed(PatchPairs(patch=16, gap=2), noise)[0]
    assert {int(c) for item in plain for c in item["extra/colour"]} == {0, 1, 2}
    small = changed(PatchPairs(patch=16, gap=2, shrink_rate=1.0, least_pixels=16), noise)

    def detail(items: list[dict[str, Any]]) -> float:
        return float(np.mean([np.abs(np.diff(item["data"].astype(int), axis=-1)).mean() for item in items]))

    assert detail(small) < 0.75 * detail(plain)
    with pytest.raises(ValueError, match="12 pixels have no room for two patches of 6 and a gap of 1"):
        changed(PatchPairs(patch=6, gap=1), numbered(1))


def test_patches_of_a_grid_overlap_and_lose_their_edges() -> None:
    corners = set()
    for item in changed(PatchGrid(patch=6, stride=3, inner=4), numbered(30)):
        assert item["data"].shape == (9, 3, 6, 6)
        for place, patch in enumerate(item["data"]):
            inner = patch[:, 1:5, 1:5].astype(int)
            down, right = inner[0, 0, 0] - place // 3 * 3, inner[1, 0, 0] - place % 3 * 3
            corners.add((int(down), int(right)))
            assert np.array_equal(inner[1] - inner[1, 0, 0], np.mgrid[0:4, 0:4][1])
            edge = np.ones((6, 6), bool)
            edge[1:5, 1:5] = False
            assert np.unique(patch[:, edge], axis=1).T.tolist() == [[123, 117, 104]]
    assert corners == {(r, c) for r in range(3) for c in range(3)}
    whole = changed(PatchGrid(patch=6, stride=3, inner=6), numbered(1))[0]["data"]
    assert np.array_equal(whole[4], numbered(1)[0][:, 3:9, 3:9])
    with pytest.raises(ValueError, match="inner must be at most patch 6"):
        PatchGrid(patch=6, stride=3, inner=7)


def test_the_middle_is_hidden_but_for_its_edge() -> None:
    item = changed(Holes(overlap=1, overlap_weight=7), numbered(1, side=16))[0]
    hidden, counted = item["extra/hidden"], item["target/counted"]
    assert hidden.sum() == 36
    assert hidden[5:11, 5:11].all()
    assert counted[hidden].tolist() == [1] * 36
    counted[hidden] = 0
    assert (counted == 7).sum() == 64 - 36
    assert (counted[4:12, 4:12] > 0).sum() == 64 - 36
    assert np.array_equal(item["data"], numbered(1, side=16)[0])


def test_random_blocks_hide_up_to_a_quarter() -> None:
    shares, places = [], np.zeros((20, 20))
    for item in changed(Holes(kind="blocks", block=0.2), numbered(400, side=20)):
        assert np.array_equal(item["target/counted"], item["extra/hidden"])
        shares.append(float(item["extra/hidden"].mean()))
        places += item["extra/hidden"]
    assert 0.15 < min(shares) <= max(shares) <= 0.25
    assert places.min() > 0


def test_noise_strikes_its_share_of_values() -> None:
    num = 20 * 3 * 12 * 12
    masked = changed(Noise(rate=0.3), numbered(20))
    assert all(not item["extra/added"].any() for item in masked)
    struck = sum(int((item["extra/keep"] == 0).sum()) for item in masked)
    assert abs(struck / num - 0.3) < 5 * math.sqrt(0.3 * 0.7 / num)
    salt = changed(Noise(kind="salt_pepper", rate=0.3), numbered(20))
    values = np.concatenate([item["extra/added"][item["extra/keep"] == 0] for item in salt])
    assert set(values.tolist()) == {0.0, 1.0}
    assert abs(values.mean() - 0.5) < 5 * 0.5 / math.sqrt(len(values))
    assert all(not item["extra/added"][item["extra/keep"] == 1].any() for item in salt)
    normal = np.concatenate(
        [i["extra/added"] for i in changed(Noise(kind="gaussian", sigma=0.2), numbered(20))]
    )
    assert abs(normal.std() - 0.2) < 5 * 0.2 / math.sqrt(2 * num)
    assert changed(Noise(units=7), numbered(1))[0]["extra/keep"].shape == (7,)


CORRUPTORS = [
    ShuffleTiles(),
    ShuffleTiles(among="pictures"),
    Jigsaw(tile=3, num_orders=6),
    PatchPairs(patch=4, gap=0, keep_colour=True, shrink_rate=0.5, least_pixels=4),
    PatchGrid(patch=6, stride=3, inner=4),
    Holes(kind="blocks"),
    Noise(),
]


@pytest.mark.parametrize("corruptor", CORRUPTORS, ids=lambda c: type(c).__name__)
def test_equal_draws_give_equal_samples(corruptor: Any) -> None:
    one, again, other = (changed(corruptor, numbered(6), seed) for seed in (1, 1, 2))
    for a, b in zip(one, again, strict=True):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[key], b[key]) for key in a)
    assert any(not np.array_equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a)
