"""Neighbours against all pairs by the plain formula; limits of time and memory as counts."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.text_neighbours.index import TfIdfIndex
from vlpipe.stages.text_neighbours.neighbours import Lookup, TfIdfNeighbours

WORDS = ["red", "blue", "dog", "cat", "sofa", "tree", "on", "under", "a", "the", "two", "zebra", "moon"]


def texts_at_random(num: int, seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    law = 1 / np.arange(1, len(WORDS) + 1)
    return [" ".join(draw.choice(WORDS, draw.integers(2, 9), p=law / law.sum())) for _ in range(num)]


def rows_of(texts: list[str]) -> pa.Table:
    entries = [[text(one, "web")] for one in texts]
    return pa.table({"id": [f"r{k}" for k in range(len(texts))], "texts": pa.array(entries, TEXTS)})


def index_of(table: pa.Table, folder: Path, **settings: Any) -> File:
    out = run_gather(TfIdfIndex(**settings), [dataset(folder / "in", table, shard_rows=17)], folder)
    return File(path=str(out.artifacts))


def cosine(one: str, other: str, texts: list[str]) -> float:
    """The formula with dicts."""
    num_with = Counter(word for text in texts for word in set(text.split()))

    def vector(text: str) -> dict[str, float]:
        found = {
            word: n * (math.log((1 + len(texts)) / (1 + num_with[word])) + 1)
            for word, n in Counter(text.split()).items()
        }
        norm = math.sqrt(sum(value**2 for value in found.values()))
        return {word: value / norm for word, value in found.items()}

    a, b = vector(one), vector(other)
    return sum(value * b.get(word, 0.0) for word, value in a.items())


@pytest.mark.parametrize(("above", "below"), [(0.0, 1.01), (0.2, 0.5)])
def test_neighbours_are_those_of_all_pairs(tmp_path: Path, above: float, below: float) -> None:
    texts = texts_at_random(60)
    index = index_of(rows_of(texts), tmp_path)
    stage = TfIdfNeighbours(index=index, num=5, above=above, below=below)
    found = run_map(stage, rows_of(texts)).table["neighbours"].to_pylist()
    for k, ((near,), own) in enumerate(zip(found, texts, strict=True)):
        wanted = {
            other: cosine(own, other, texts)
            for j, other in enumerate(texts)
            if j != k and other != own and above <= cosine(own, other, texts) < below
        }
        best = sorted(wanted.values(), reverse=True)[:5]
        assert [one["similarity"] for one in near] == pytest.approx([b for b in best if b > 0], abs=1e-5)
        for one in near:
            assert one["similarity"] == pytest.approx(wanted[one["text"]], abs=1e-5)
            assert texts[int(one["row"][1:])] == one["text"]
        assert len({one["text"] for one in near}) == len(near)


def test_dropped_texts_and_other_sources_are_not_in_it(tmp_path: Path) -> None:
    texts = [
        [text("a dog", "web"), text("a dog runs", "synth")],
        [text("a dog sleeps", "web", kept=False)],
        None,
    ]
    table = pa.table({"id": ["a", "b", "c"], "texts": pa.array(texts, TEXTS)})
    index = index_of(table, tmp_path, sources=("web",))
    out = run_map(TfIdfNeighbours(index=index), rows_of(["dog dog"]))
    assert [one["text"] for one in out.table["neighbours"].to_pylist()[0][0]] == ["a dog"]
    out = run_map(TfIdfNeighbours(index=index, column="near"), table)
    assert [
        [near and [one["text"] for one in near] for near in row] for row in out.table["near"].to_pylist()
    ] == [
        [[], []],  # the one text in the index is of the same row
        [None],
        [],
    ]
    assert out.counts == {"without_neighbours": 2}


def test_frequent_words_have_a_random_part_of_their_texts(tmp_path: Path) -> None:
    """So that the time of a look-up does not grow with the number of texts."""
    index = index_of(rows_of([f"a w{k}" for k in range(4000)]), tmp_path, max_postings=100)
    lookup = Lookup(index.path)
    places, similar = lookup.similar("a", 16)
    assert abs(len(places) - 100) < 4 * math.sqrt(100)
    assert places.max() > 3000
    assert places.min() < 1000
    assert len(lookup.similar("w17 a", 1)[0]) == 1  # the rarest word alone
    assert similar.max() < 0.5


def test_memory_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    """The second index has eight times as many texts."""
    peaks = []
    for num in (250, 2000):
        folder = tmp_path / str(num)
        data = dataset(folder / "in", rows_of(texts_at_random(num)), shard_rows=100)
        tracemalloc.start()
        run_gather(TfIdfIndex(), [data], folder)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2e6


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(VlpipeError, match=r"no kept text of sources \['human'\]"):
        index_of(rows_of(["a dog"]), tmp_path, sources=("human",))
    with pytest.raises(VlpipeError, match=r"wanted the artifact of a step text_neighbours\.index:TfIdfIndex"):
        Lookup(str(tmp_path / "nothing"))
    stage = TfIdfNeighbours(index=File(path="x"), above=0.6, below=0.5)
    assert stage.preflight() == ["above must be less than below = 0.5, got 0.6"]
