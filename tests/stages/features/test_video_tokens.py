from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest
import torch

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import HEAVY
from vlpipe.pipeline.testing import GatherOutput, dataset, run_gather, run_map
from vlpipe.stages.features.s3d import features_type
from vlpipe.stages.features.video_tokens import FitVideoTokens, VideoTokens
from vlpipe.stages.features.video_tree import Tree, grow, split, spread
from vlpipe.stages.features.video_tree_sample import Sample

DIM = 8


def tree_like(levels: int, k: int, per_leaf: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, DIM) around the leaves of a known tree, and each point's path, in random order.

    Siblings at level l lie 10 ** (2 - l) apart: no cluster of one level overlaps another's.
    """
    draw = np.random.default_rng(seed)
    points, paths = [], []
    for path in itertools.product(range(k), repeat=levels):
        centre = np.zeros(DIM)
        for level, child in enumerate(path):
            centre[2 * level : 2 * level + 2] += (
                100 / 10**level * np.array([np.cos(2 * np.pi * child / k), np.sin(2 * np.pi * child / k)])
            )
        points.append(centre + draw.normal(0, 0.001, (per_leaf, DIM)))
        paths += [path] * per_leaf
    order = draw.permutation(len(paths))
    return np.concatenate(points)[order].astype(np.float32), np.array(paths)[order]


def feature_rows(points: np.ndarray, per_row: int = 5, weights: str = "w:unit", first: int = 0) -> pa.Table:
    """Rows `row0`, `row1`, ... of `per_row` windows of 1.5 s; the last has what is left."""
    rows = [points[i : i + per_row] for i in range(0, len(points), per_row)]
    column = [
        [
            {"start_s": 1.5 * k, "end_s": 1.5 * k + 1.5, "feat": p.astype(np.float16)}
            for k, p in enumerate(row)
        ]
        for row in rows
    ]
    dtype = features_type(points.shape[1])
    schema = pa.schema(
        [("id", pa.string()), pa.field("s3d", dtype, metadata={HEAVY: b"1"}), ("s3d_weights", pa.string())]
    )
    ids = [f"row{first + i}" for i in range(len(rows))]
    return pa.table([ids, pa.array(column, dtype), [weights] * len(rows)], schema=schema)


def fit(table: pa.Table, folder: Path, shard_rows: int = 7, **params: int) -> GatherOutput:
    return run_gather(
        FitVideoTokens(**params), [dataset(folder / "in", table, shard_rows=shard_rows)], folder
    )


def tokens(table: pa.Table, fitted: GatherOutput) -> np.ndarray:
    stage = VideoTokens(tree=File(path=str(fitted.artifacts / "tree")))
    out = run_map(stage, table).table
    return np.array([w["token"] for row in out["video_tokens"].to_pylist() for w in row])


def digest(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((folder / "artifacts" / "tree").iterdir())}


def test_a_tree_of_well_separated_clusters_is_found(tmp_path: Path) -> None:
    points, truth = tree_like(levels=3, k=3, per_leaf=20)
    table = feature_rows(points)
    fitted = fit(table, tmp_path, k=3, levels=3)
    found = tokens(table, fitted)
    paths = np.stack([found // 9, found // 3 % 3, found % 3], axis=1)
    for level in (1, 2, 3):  # equal paths up to a level exactly where the truth has equal paths
        ours = {tuple(p[:level]): set() for p in paths}
        for p, t in zip(paths, truth, strict=True):
            ours[tuple(p[:level])].add(tuple(t[:level]))
        assert len(ours) == 3**level
        assert all(len(theirs) == 1 for theirs in ours.values())
    nodes = fitted.table.to_pylist()
    assert [n["num_points"] for n in nodes] == [180] * 3 + [60] * 9 + [20] * 27
    assert [n["token"] for n in nodes] == [*range(3), *range(9), *range(27)]
    leaves = np.load(fitted.artifacts / "tree" / "centroids-2.npy")
    for token in range(27):
        np.testing.assert_allclose(
            leaves[token], points[found == token].astype(np.float16).mean(0), rtol=1e-3, atol=1e-3
        )


def test_the_times_of_a_token_are_its_windows(tmp_path: Path) -> None:
    points, _ = tree_like(levels=1, k=3, per_leaf=4)
    table = feature_rows(points)
    out = run_map(
        VideoTokens(tree=File(path=str(fit(table, tmp_path, k=3, levels=1).artifacts / "tree"))), table
    )
    for before, after in zip(table["s3d"].to_pylist(), out.table["video_tokens"].to_pylist(), strict=True):
        assert [(w["start_s"], w["end_s"]) for w in before] == [(w["start_s"], w["end_s"]) for w in after]


def test_same_tree_whatever_the_order_the_shards_and_the_threads(tmp_path: Path) -> None:
    points = np.random.default_rng(1).normal(size=(600, DIM)).astype(np.float32)
    table = feature_rows(points)
    turned = table.take(np.random.default_rng(2).permutation(table.num_rows))
    fit(table, tmp_path / "a", k=4, levels=2, sample=400)
    fit(turned, tmp_path / "b", shard_rows=50, k=4, levels=2, sample=400)
    torch.set_num_threads(2)
    fit(table, tmp_path / "c", k=4, levels=2, sample=400)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tmp_path / "c")
    other = fit(table, tmp_path / "d", k=4, levels=2, sample=400, seed=1)
    assert digest(tmp_path / "d") != digest(tmp_path / "a")
    assert other.table["num_points"].to_numpy().sum() == 2 * 400


def test_a_token_depends_on_no_neighbour(tmp_path: Path) -> None:
    points = np.random.default_rng(3).normal(size=(300, DIM)).astype(np.float32)
    table = feature_rows(points)
    fitted = fit(table, tmp_path, k=4, levels=3)
    together = tokens(table, fitted)
    alone = np.concatenate([tokens(table.slice(k, 1), fitted) for k in range(table.num_rows)])
    assert np.array_equal(together, alone)


def test_small_nodes_have_fewer_children_and_keep_the_layout(tmp_path: Path) -> None:
    """5 different points, one of them three times, under k = 4: nodes of 1 to 4 points, most tokens never given."""
    points = np.array([[0, 0], [0, 0], [0, 0], [0, 1], [50, 0], [50, 1], [50, 2]], np.float32)
    table = feature_rows(points)
    fitted = fit(table, tmp_path, k=4, levels=3)
    found = tokens(table, fitted)
    assert len(set(found.tolist())) == 5
    assert found[0] == found[1] == found[2]
    nodes = fitted.table.to_pylist()
    assert sum(n["level"] == 3 for n in nodes) == 5
    live = {n["token"] for n in nodes if n["level"] == 3}
    assert set(found.tolist()) == live
    for token in live:  # every part of a path is below k, and its parents live
        assert {n["token"] for n in nodes if n["level"] == 2} >= {token // 4}
        assert {n["token"] for n in nodes if n["level"] == 1} >= {token // 16}
    assert all(n["distance"] == 0 for n in nodes if n["level"] == 3)
    leaves = np.load(fitted.artifacts / "tree" / "centroids-2.npy")
    assert leaves.shape == (64, 2)
    assert set(np.flatnonzero(~np.isnan(leaves[:, 0])).tolist()) == live


def test_the_nearest_live_child_is_taken() -> None:
    """By hand: 2 x 2 leaves, one of them dead."""
    nan = np.nan
    tree = Tree(
        k=2,
        weights="w",
        centroids=(
            np.array([[0], [10]], np.float32),
            np.array([[-1], [1], [9], [nan]], np.float32),
        ),
    )
    points = np.array([[-3], [0], [0.5], [4], [5], [6], [99]], np.float32)
    assert tree.assign(points).tolist() == [0, 0, 1, 1, 1, 2, 2]
    with pytest.raises(
        VlpipeError, match="tree of video tokens is for vectors of 1 dimensions, but these have 3"
    ):
        tree.assign(np.zeros((2, 3)))


def test_as_many_different_points_as_children_are_taken_as_they_are() -> None:
    points = np.repeat(np.eye(4, dtype=np.float32), 100, axis=0)
    assert np.array_equal(split(faiss, points, 4, 0), np.unique(np.eye(4), axis=0))
    tree, nodes = grow(faiss, points, 4, 2, 0, "w")
    assert [n[2] for n in nodes] == [100] * 8
    assert sorted(set(tree.assign(points).tolist())) == [0, 4, 8, 12]


@pytest.mark.parametrize("seed", range(20))
def test_every_clear_cluster_gets_one_of_the_starts(seed: int) -> None:
    points, paths = tree_like(levels=1, k=12, per_leaf=30, seed=seed)
    starts = spread(points, 12, seed)
    nearest = np.square(points[:, None] - starts).sum(axis=2).argmin(axis=1)
    assert len({(int(n), int(p)) for n, p in zip(nearest, paths[:, 0], strict=True)}) == 12


def test_the_sample_depends_on_ids_alone() -> None:
    ids = [f"row{k}" for k in range(200)]
    counts = np.array([k % 7 for k in range(200)])
    points = np.arange(counts.sum(), dtype=np.float16)[:, None]
    bounds = np.concatenate([[0], np.cumsum(counts)])

    def drawn(order: np.ndarray, part: int) -> list[float]:
        sample = Sample(50, seed=3)
        for start in range(0, len(order), part):
            rows = order[start : start + part]
            values = [points[bounds[r] : bounds[r + 1]] for r in rows]
            sample.add([ids[r] for r in rows], counts[rows], np.concatenate(values))
        assert sample.num_seen == counts.sum()
        return sample.points()[:, 0].tolist()

    forward = np.arange(200)
    one = drawn(forward, 200)
    assert len(one) == 50
    assert drawn(forward[::-1], 3) == drawn(forward, 11) == one
    assert len(set(one)) == 50
    assert abs(np.mean(one) - counts.sum() / 2) < 80  # drawn from everywhere


def test_features_of_other_weights_are_refused(tmp_path: Path) -> None:
    points, _ = tree_like(levels=1, k=3, per_leaf=4)
    kinetics, mil_nce = (feature_rows(points, weights=w) for w in ("a:kinetics", "a:unit"))
    fitted = fit(kinetics, tmp_path, k=3, levels=1)
    with pytest.raises(
        VlpipeError, match=r"the tree is for features of weights a:kinetics, but .* of a:unit"
    ):
        tokens(mil_nce, fitted)
    both = pa.concat_tables([kinetics, feature_rows(points, weights="a:unit", first=50)])
    with pytest.raises(VlpipeError, match=r"of 2 different weights \(a:kinetics, a:unit\): a tree needs"):
        fit(both, tmp_path / "both", k=3, levels=1)


def test_what_cannot_work_is_said(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"reads column 's3d' as `features.s3d` writes it, but it is list"):
        FitVideoTokens().schema(
            pa.schema([("id", pa.string()), ("s3d_weights", pa.string()), ("s3d", pa.list_(pa.int8()))])
        )
    with pytest.raises(VlpipeError, match="not a tree of video tokens"):
        VideoTokens(tree=File(path=str(tmp_path))).open().__enter__()
    empty = feature_rows(np.zeros((1, DIM), np.float32)).slice(0, 0)
    with pytest.raises(VlpipeError, match="there are no rows to fit a tree on"):
        fit(empty, tmp_path)
    assert replace(FitVideoTokens(), levels=6, k=100).preflight() == [
        "k ** levels, the number of tokens, must be below 2^31; got k: 100, levels: 6"
    ]


def test_videoberts_tree_has_20736_tokens() -> None:
    assert FitVideoTokens().k ** FitVideoTokens().levels == 20_736
