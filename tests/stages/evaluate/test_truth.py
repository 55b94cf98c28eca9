"""Figures worked out by hand on a world of six lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.demo.world import TRUTH
from vlpipe.stages.ground_truth.dedup import DedupTruth
from vlpipe.stages.ground_truth.filter import FilterTruth

RED = {
    "shape": "circle",
    "colour": "red",
    "size": "small",
    "row": "top",
    "column": "left",
    "x": 0.1,
    "y": 0.1,
    "w": 0.2,
    "h": 0.2,
}
ROWS = pa.schema([("id", pa.string()), ("url", pa.string()), ("texts", TEXTS)])


def truth_file(folder: Path, **columns: list[Any]) -> File:
    num = len(columns["url"])
    rows = {"text": ["a red circle"] * num, "ground": ["grey"] * num, "objects": [[RED]] * num} | columns
    table = pa.table({f.name: pa.array(rows.get(f.name, [None] * num), f.type) for f in TRUTH})
    pq.write_table(table, folder / "truth.parquet")
    return File(path=str(folder / "truth.parquet"))


def rows_of(texts: dict[str, list[dict[str, Any]]]) -> pa.Table:
    return pa.Table.from_pylist([{"id": u, "url": u, "texts": t} for u, t in texts.items()], ROWS)


def results(table: pa.Table) -> dict[str, tuple[float | None, int]]:
    return {r["name"]: (r["value"], r["num_rows"]) for r in table.to_pylist()}


def test_filter_figures(tmp_path: Path) -> None:
    noise = [None, None, None, "junk", "junk", "wrong_attribute"]
    texts = ["a red circle", "a red circle", "a disc", "IMG_1", "best price", "a blue circle"]
    truth = truth_file(
        tmp_path, url=list("abcdef"), text=texts, right=[n is None for n in noise], noise=noise
    )
    kept = [True, True, False, True, False, False]
    listed = {u: [text(t, "web", kept=k)] for u, t, k in zip("abcdef", texts, kept, strict=True)}
    listed["a"].append(text("a small red circle", "synth", kept=True))
    listed["b"].append(text("a large red circle", "synth", kept=True))
    listed["c"].append(text("a red star", "synth", kept=False))
    listed["d"].append(text("anything", "human"))
    listed["elsewhere"] = [text("two dogs", "human")]
    got = run_gather(FilterTruth(truth=truth), [dataset(tmp_path, rows_of(listed), shard_rows=4)], tmp_path)
    assert results(got.table) == {
        "web_right": (3 / 6, 6),
        "filter_precision": (2 / 3, 3),
        "filter_recall": (2 / 3, 3),
        "filter_precision/junk": (2 / 3, 3),
        "filter_rejected/junk": (1 / 2, 2),
        "filter_precision/wrong_attribute": (2 / 2, 2),
        "filter_rejected/wrong_attribute": (1 / 1, 1),
        "synth_right": (1 / 3, 3),
        "synth_kept": (2 / 3, 3),
        "synth_right/kept": (1 / 2, 2),
        "noise_ratio/before": (3 / 6, 6),
        "noise_ratio/after": (2 / 5, 5),
    }


def test_unjudged_texts_count_as_kept_and_nothing_kept_gives_null(tmp_path: Path) -> None:
    truth = truth_file(tmp_path, url=["a"], right=[True])
    for kept, precision in ((None, (1.0, 1)), (False, (None, 0))):
        rows = dataset(tmp_path / str(kept), rows_of({"a": [text("a red circle", "web", kept=kept)]}))
        assert (
            results(run_gather(FilterTruth(truth=truth), [rows], tmp_path).table)["filter_precision"]
            == precision
        )


@pytest.mark.parametrize(
    ("url", "said", "lacks"),
    [("z", "a red circle", "row for z"), ("a", "a red star", "text 'a red star' for a")],
)
def test_another_worlds_truth_is_an_error(tmp_path: Path, url: str, said: str, lacks: str) -> None:
    truth = truth_file(tmp_path, url=["a"], right=[True])
    rows = dataset(tmp_path, rows_of({url: [text(said, "web")]}))
    with pytest.raises(
        VlpipeError, match=f"the ground-truth file has no {lacks}; set `truth` to truth.parquet"
    ):
        run_gather(FilterTruth(truth=truth), [rows], tmp_path)


def test_columns_are_checked_without_data() -> None:
    with pytest.raises(SchemaError, match="'texts'"):
        FilterTruth(truth=File(path="t")).schema(pa.schema([("url", pa.string())]))


def test_dedup_figures(tmp_path: Path) -> None:
    """The original of group 0 was never fetched, 1 loses one, 2 both (one too many), and x is innocent."""
    truth = truth_file(
        tmp_path,
        url=["a0", "b0", "a1", "b1", "a2", "b2", "x", "y"],
        group=[0, 0, 1, 1, 2, 2, None, None],
        copy=["original", "exact", "original", "exact", "original", "near", None, None],
    )
    before = ["b0", "a1", "b1", "a2", "b2", "x", "y", "coco.jpg"]
    after = ["b0", "b1", "y", "coco.jpg"]
    sets = [
        dataset(tmp_path, rows_of({u: [] for u in urls}), name)
        for name, urls in (("before", before), ("after", after))
    ]
    assert results(run_gather(DedupTruth(truth=truth), sets, tmp_path).table) == {
        "dedup_recall": (2 / 2, 2),
        "dedup_recall/exact": (1 / 1, 1),
        "dedup_recall/near": (1 / 1, 1),
        "dedup_precision": (2 / 4, 4),
    }
