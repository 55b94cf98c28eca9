from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from vlpipe.stages.common.phash import colour_gap
from vlpipe.stages.decontamination import image_hits
from vlpipe.stages.decontamination.image_hits import Hit, by_bytes, by_picture, by_vector
from vlpipe.stages.dedup.looks import Looks

NAMES = [f"e{n}" for n in range(40)]


def looks(rng: np.random.Generator, num: int) -> Looks:
    """Hashes that differ in up to 12 of 64 bits, few colours, some without a hash."""
    hashes = np.zeros(num, np.uint64)
    for bit in rng.integers(0, 64, (num, 6)).T:
        hashes ^= np.uint64(1) << bit.astype(np.uint64)
    colours = rng.integers(100, 120, (num, 48)).astype(np.uint8)
    return Looks(hashes, colours, rng.random(num) < 0.8, np.full(num, None, object))


@pytest.mark.parametrize("block", [7, 16_384])
def test_pictures_as_all_pairs(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_hits, "BLOCK_ITEMS", block)
    rng = np.random.default_rng(0)
    rows, items = looks(rng, 60), looks(rng, 40)
    want = {}
    for r in range(60):
        near = []
        for e in range(40):
            bits = bin(int(rows.hashes[r]) ^ int(items.hashes[e])).count("1")
            gap = colour_gap(rows.colours, items.colours, np.array([r]), np.array([e]))[0]
            if rows.seen[r] and items.seen[e] and bits <= 8 and gap <= 17:
                near.append((bits, e))
        if near:
            bits, e = min(near)
            want[r] = Hit("picture", f"e{e}", 1 - bits / 64)
    assert by_picture(rows, items, NAMES, max_distance=8, max_colour_gap=17) == want
    assert 5 < len(want) < 55


@pytest.mark.parametrize("block", [7, 16_384])
def test_vectors_as_all_pairs(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_hits, "BLOCK_ITEMS", block)
    rng = np.random.default_rng(1)
    rows, items = (rng.standard_normal((n, 4)).astype(np.float32) for n in (60, 40))
    rows[5] = items[11]
    items[30] = items[11]
    rows, items = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (rows, items))
    cosines = rows.astype(np.float64) @ items.T.astype(np.float64)
    found = by_vector(rows, items, NAMES, 0.9)
    assert {r: hit.witness for r, hit in found.items()} == {
        r: NAMES[int(cosines[r].argmax())] for r in range(60) if cosines[r].max() >= 0.9
    }
    assert found[5] == Hit("embedding", "e11", 1.0), "of equal ones the first"
    assert all(hit.similarity == pytest.approx(cosines[r].max(), abs=1e-6) for r, hit in found.items())
    assert 5 < len(found) < 55


def test_a_set_of_equal_vectors_takes_no_memory() -> None:
    """64 x 16,384 pairs of 64 numbers are 0.5 GB in float64, and as much again for each step with them."""
    rows, items = np.zeros((64, 64), np.float32), np.zeros((16_384, 64), np.float32)
    rows[:, 0] = items[:, 0] = 1
    tracemalloc.start()
    found = by_vector(rows, items, [f"e{n}" for n in range(len(items))], 0.9)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert set(found.values()) == {Hit("embedding", "e0", 1.0)}
    assert peak < 200_000_000


def test_bytes() -> None:
    assert by_bytes(["a", None, "b"], {"b": "x.jpg"}) == {2: Hit("same_bytes", "x.jpg", 1.0)}
