from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlpipe.pipeline.errors import SchemaError
from vlpipe.pipeline.shard import heavy
from vlpipe.pipeline.testing import GatherOutput, dataset, run_gather
from vlpipe.stages.dedup.exact import ExactDuplicates

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("url", pa.string()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        heavy("image", pa.binary()),
    ]
)


def table(*rows: tuple[str, bytes, int]) -> pa.Table:
    """(id, image bytes, width) each."""
    return pa.Table.from_pylist(
        [
            {
                "id": id_,
                "url": f"http://x.test/{id_}",
                "sha256": hashlib.sha256(data).hexdigest(),
                "width": width,
                "height": 10,
                "image": data,
            }
            for id_, data, width in rows
        ],
        schema=SCHEMA,
    )


def run(folder: Path, rows: pa.Table, *, shard_rows: int = 1000, **parameters: object) -> dict[str, dict]:
    got: GatherOutput = run_gather(
        ExactDuplicates(**parameters), [dataset(folder, rows, shard_rows=shard_rows)], folder / "step"
    )
    artifact = pq.read_table(got.artifacts / "decisions.parquet")
    assert artifact.equals(got.table)
    assert artifact["id"].to_pylist() == rows["id"].to_pylist(), "decisions come in input order"
    return {row["id"]: row for row in artifact.to_pylist()}


def picture(seed: int, *, size: int = 64, quality: int = 90, tint: tuple[int, int, int] = (0, 0, 0)) -> bytes:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 200, (12, 12, 3)) // 2 + 40 + np.array(tint)
    image = Image.fromarray(small.astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def test_same_bytes_one_stays_and_the_others_name_it(tmp_path: Path) -> None:
    got = run(tmp_path, table(("b", b"1", 10), ("c", b"2", 10), ("a", b"1", 10), ("d", b"1", 10)))
    assert {i for i, row in got.items() if row["keep"]} == {"a", "c"}
    assert got["b"] == {
        "id": "b",
        "keep": False,
        "why": "exact_duplicate",
        "witness": "a",
        "similarity": 1.0,
        "group": "a",
        "gained": None,
        "donors": None,
        "image_rows": 3,
        "image_hosts": 1,
        "image_texts": None,
    }
    assert (got["c"]["image_rows"], got["c"]["image_hosts"]) == (1, 1)


def test_rows_without_a_hash_are_never_twins(tmp_path: Path) -> None:
    rows = table(("a", b"1", 10), ("b", b"1", 10)).set_column(
        2, "sha256", pa.array([None, None], pa.string())
    )
    assert all(row["keep"] for row in run(tmp_path, rows).values())


def test_near_pictures_are_found_and_the_larger_one_stays(tmp_path: Path) -> None:
    rows = table(("a", picture(1, quality=60), 64), ("b", picture(1, size=128), 128), ("c", picture(2), 64))
    got = run(tmp_path, rows, phash=True)
    assert (got["a"]["why"], got["a"]["witness"]) == ("near_duplicate", "b")
    assert got["a"]["similarity"] >= 1 - 10 / 64
    assert got["b"]["keep"]
    assert got["c"]["keep"]


def test_without_phash_no_image_is_read(tmp_path: Path) -> None:
    rows = table(("a", picture(1, quality=60), 64), ("b", picture(1), 64)).drop_columns(["image"])
    assert all(row["keep"] for row in run(tmp_path, rows).values())


def test_a_copy_of_a_near_duplicate_follows_it_to_the_row_that_stays(tmp_path: Path) -> None:
    small = picture(1, quality=60)
    got = run(
        tmp_path, table(("a", small, 64), ("b", small, 64), ("c", picture(1, size=128), 128)), phash=True
    )
    assert [(got[i]["why"], got[i]["witness"]) for i in "ab"] == [("near_duplicate", "c")] * 2
    assert {row["group"] for row in got.values()} == {"c"}


def test_same_shapes_in_other_colours_are_not_twins(tmp_path: Path) -> None:
    rows = table(("a", picture(1), 64), ("b", picture(1, tint=(60, -40, 0)), 64))
    assert all(row["keep"] for row in run(tmp_path / "1", rows, phash=True, max_distance=15).values())
    blind = run(tmp_path / "2", rows, phash=True, max_distance=15, max_colour_gap=255)
    assert sum(row["keep"] for row in blind.values()) == 1


def test_flat_pictures_are_twins_only_by_their_bytes(tmp_path: Path) -> None:
    pages = []
    for quality in (50, 95):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), "white").save(buffer, "JPEG", quality=quality)
        pages.append(buffer.getvalue())
    got = run(tmp_path, table(("a", pages[0], 64), ("b", pages[1], 64), ("c", pages[0], 64)), phash=True)
    assert {i for i, row in got.items() if row["keep"]} == {"a", "b"}


def test_what_cannot_be_decoded_stays_and_says_why(tmp_path: Path) -> None:
    cut = picture(1, size=128)[:-900]
    got = run(tmp_path, table(("a", cut, 64), ("b", b"<html>", 64), ("c", cut, 64)), phash=True)
    assert (got["a"]["keep"], got["a"]["why"]) == (True, "not_compared_truncated")
    assert (got["b"]["keep"], got["b"]["why"]) == (True, "not_compared_not_an_image")
    assert (got["c"]["why"], got["c"]["witness"]) == ("exact_duplicate", "a")


def test_the_order_of_rows_and_the_size_of_shards_change_no_decision(tmp_path: Path) -> None:
    seeds = np.random.default_rng(0).integers(0, 25, 60)
    rows = table(
        *[(f"r{k:02d}", picture(int(s), quality=60 + k % 4 * 10), 64 + k % 3) for k, s in enumerate(seeds)]
    )
    want = run(tmp_path / "0", rows, phash=True)
    assert sum(row["keep"] for row in want.values()) == len(set(seeds.tolist()))
    for attempt in (1, 2):
        shuffled = rows.take(np.random.default_rng(attempt).permutation(60))
        assert run(tmp_path / str(attempt), shuffled, phash=True, shard_rows=7 * attempt) == want


def test_every_removed_row_has_a_kept_witness_and_kept_rows_are_no_twins(tmp_path: Path) -> None:
    rows = table(*[(f"r{k}", picture(k // 3, quality=80 + k % 3 * 5), 64) for k in range(30)])
    got = run(tmp_path, rows, phash=True)
    assert all(got[row["witness"]]["keep"] for row in got.values() if not row["keep"])
    assert sum(row["keep"] for row in got.values()) == 10


def test_a_second_attempt_uses_the_finished_parts(tmp_path: Path) -> None:
    data = dataset(tmp_path, table(*[(f"r{k}", picture(k), 64) for k in range(6)]), shard_rows=3)
    first = run_gather(ExactDuplicates(phash=True), [data], tmp_path / "step")
    parts = sorted((tmp_path / "step/work").iterdir())
    assert len(parts) == 2
    parts[1].unlink()
    stamp = parts[0].stat().st_mtime_ns
    again = run_gather(ExactDuplicates(phash=True), [data], tmp_path / "step")
    assert again.table.equals(first.table)
    assert parts[0].stat().st_mtime_ns == stamp
    assert parts[1].exists()


def test_no_rows(tmp_path: Path) -> None:
    data = dataset(tmp_path, SCHEMA.empty_table())
    got = run_gather(ExactDuplicates(phash=True), [data], tmp_path / "step")
    assert got.table.num_rows == 0


def test_phash_wants_the_image_column() -> None:
    light = SCHEMA.remove(SCHEMA.get_field_index("image"))
    assert ExactDuplicates().schema(light).names[:3] == ["id", "keep", "why"]
    with pytest.raises(
        SchemaError, match=r"dedup\.exact reads column 'image', which its input does not have"
    ):
        ExactDuplicates(phash=True).schema(light)


def test_ground_truth_of_imagededup(tmp_path: Path, dup_images: Path) -> None:
    truth = json.loads((dup_images / "ground_truth.json").read_text())["imagededup"]
    rows, sets = [], {}
    for name, files in truth.items():
        for file in files:
            data = (dup_images / file).read_bytes()
            rows.append((file, data, 100))
            sets[file] = file if name == "distractors" else name
    got = run(tmp_path, table(*rows), phash=True)
    removed = [row for row in got.values() if not row["keep"]]
    assert all(sets[row["id"]] == sets[row["witness"]] for row in removed), "no false twin"
    contents = [data for file, data, _ in rows if got[file]["keep"]]
    assert len(contents) == len(set(contents)), "no two rows with the same bytes are left"
    near = {Path(row["id"]).stem for row in removed if row["why"] == "near_duplicate"}
    assert near == {"ukbench00120_resize"}
    kept = {Path(row["id"]).stem for row in got.values() if row["keep"]}
    assert {"ukbench00120_hflip", "ukbench00120_rotation"} <= kept, "a hash is not meant to see these"
    assert "ukbench00120_gray" in kept, "it has lost its colours"
