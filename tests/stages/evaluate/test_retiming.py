from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.ground_truth.retiming import SCORES, RetimingTruth, auc
from vlpipe.stages.video.rows import CUES


def cue(start_s: float, end_s: float) -> dict[str, Any]:
    return {"start_s": start_s, "end_s": end_s, "text": "x", "words": None, "source": "auto", "lang": None}


def truth(folder: Path) -> dict[str, File]:
    """One film, 2 s late: segment 0 from 0 to 4 s, segment 1 from 4 to 8 s, and chatter at the end."""
    tables = {
        "videos": {"video": ["a.mp4", "b.mp4"], "lag_s": [2.0, 0.5]},
        "seen": {"video": ["a.mp4"] * 2, "segment": [0, 1], "start_s": [0.0, 4.0], "end_s": [4.0, 8.0]},
        "said": {
            "video": ["a.mp4"] * 3,
            "segment": pa.array([0, 1, None], pa.int32()),
            "start_s": [2.0, 6.0, 9.0],
            "end_s": [5.0, 9.0, 11.0],
            "about": ["seen", "seen", "chatter"],
        },
    }
    folder.mkdir(exist_ok=True)
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return {name: File(path=str(folder / f"{name}.parquet")) for name in tables}


def results(tmp_path: Path, rows: list[dict[str, Any]]) -> dict[str, tuple[float | None, int]]:
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("video", pa.string()),
            ("cues", CUES),
            ("cue_shift_s", SCORES),
            ("cue_score", SCORES),
        ]
    )
    files = truth(tmp_path)
    data = dataset(tmp_path / "data", pa.Table.from_pylist(rows, schema))
    table = run_gather(RetimingTruth(**files), [data], tmp_path).table
    assert table.schema == RESULTS
    return {row["name"]: (row["value"], row["num_rows"]) for row in table.to_pylist()}


def test_figures_of_a_film_that_was_late(tmp_path: Path) -> None:
    new = [
        cue(1.0, 3.5),
        cue(4.5, 7),
        cue(7.5, 9),
        cue(18, 19),
    ]  # moved by -1.5 s; of the last nothing was said
    row = {
        "id": "a",
        "video": "a.mp4",
        "cues": new,
        "cue_shift_s": [-1.5] * 4,
        "cue_score": [0.5, 0.2, 0.2, 0.9],
    }
    other = {"id": "b", "video": "b.mp4", "cues": [cue(1, 2)], "cue_shift_s": [0.5], "cue_score": [0.7]}
    found = results(tmp_path, [row, other])
    assert found == {
        "right_place/before": (1.0, 2),  # middles 3.75 and 7.25, each in its segment
        "right_place/after": (1.0, 2),
        "lag_s/before": (1.25, 2),
        "lag_s/after": (pytest.approx((0.5 + 1.0) / 2), 2),
        "score_auc": (0.75, 3),  # 0.5 and 0.2 against 0.2
    }
    later = {**row, "cues": [cue(3, 5.5), cue(6.5, 9), *new[2:]], "cue_shift_s": [0.5, 0.5, -1.5, -1.5]}
    found = results(tmp_path / "later", [later])
    assert (found["right_place/before"], found["right_place/after"]) == ((1.0, 2), (0.5, 2))


def test_over_nothing_a_figure_is_null(tmp_path: Path) -> None:
    row = {"id": "a", "video": "a.mp4", "cues": [], "cue_shift_s": [], "cue_score": []}
    assert set(results(tmp_path, [row]).values()) == {(None, 0)}


def test_auc_counts_pairs() -> None:
    assert auc([1.0, 2.0], [0.0, 1.0]) == (3 + 0.5) / 4
    assert auc([1.0], [1.0, 1.0]) == 0.5
