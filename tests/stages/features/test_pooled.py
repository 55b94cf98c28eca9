"""Pooled windows: a closed form, and twins among made videos found by the stages that find those of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from vlpipe.pipeline.errors import SchemaError
from vlpipe.pipeline.shard import heavy
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.dedup.exact import ExactDuplicates
from vlpipe.stages.dedup.faiss import FaissDuplicates
from vlpipe.stages.features.pooled import PoolWindows
from vlpipe.stages.features.s3d import features_type

DIM = 8


def videos(windows: list[list[np.ndarray]], sha256: list[str] | None = None) -> pa.Table:
    rows = [
        [{"start_s": float(k), "end_s": k + 1.0, "feat": v.astype(np.float16)} for k, v in enumerate(one)]
        for one in windows
    ]
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("sha256", pa.string()),
            heavy("s3d", features_type(DIM)),
            ("s3d_weights", pa.string()),
        ]
    )
    ids = [f"{n:02d}" for n in range(len(rows))]
    columns = [ids, sha256 or ids, pa.array(rows, features_type(DIM)), ["w:n"] * len(rows)]
    return pa.table(columns, schema=schema)


def test_the_mean_of_unit_windows() -> None:
    e, rng = np.eye(DIM), np.random.default_rng(0)
    some = rng.normal(size=(5, DIM)).astype(np.float16).astype(np.float64)
    out = run_map(PoolWindows(), videos([[3 * e[0], 7 * e[1]], [e[2], e[2], e[3]], list(some)]))
    found = np.array(out.table["embedding"].to_pylist())
    unit = some / np.linalg.norm(some, axis=1, keepdims=True)
    wanted = [e[0] + e[1], 2 * e[2] + e[3], unit.sum(0)]
    np.testing.assert_allclose(found, [w / np.linalg.norm(w) for w in wanted], atol=1e-6)


def test_windows_without_a_direction_are_named() -> None:
    e = np.eye(DIM)
    out = run_map(PoolWindows(), videos([[0 * e[0]], [e[1]], [], [e[0], -e[0]]]))
    assert out.table["id"].to_pylist() == ["01"]
    assert [(r.id, r.why) for r in out.rejects] == [(i, "no_direction") for i in ("00", "02", "03")]


def test_it_wants_windows() -> None:
    with pytest.raises(SchemaError, match=r"features.pooled reads column 's3d'"):
        PoolWindows().schema(pa.schema([("id", pa.string()), ("s3d_weights", pa.string())]))


def test_twins_of_videos_are_found_as_those_of_images_are(tmp_path: Path) -> None:
    """The same bytes; and a re-encoded, shorter copy, whose windows are nearly the same."""
    rng = np.random.default_rng(1)
    films = [rng.normal(size=DIM) + 0.2 * rng.normal(size=(6, DIM)) for _ in range(5)]
    copy = films[2][:5] + 0.02 * rng.normal(size=(5, DIM))
    table = videos([*map(list, films), list(copy), list(films[0])], sha256=[*"abcdef", "a"])
    pooled = run_map(PoolWindows(), table).table
    data = [dataset(tmp_path / "pooled", pooled)]
    same = run_gather(ExactDuplicates(), data, tmp_path / "exact").table
    near = run_gather(FaissDuplicates(threshold=0.95), data, tmp_path / "near").table
    dropped = [set(t.filter(pc.invert(t["keep"]))["id"].to_pylist()) for t in (same, near)]
    assert len(dropped[0] & {"00", "06"}) == 1 == len(dropped[0])
    assert len(dropped[1] & {"02", "05"}) == 1
    assert len(dropped[1]) == 2
