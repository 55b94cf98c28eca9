from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.common.rule import scored
from vlpipe.stages.selection.soft_cap import Copies, SoftCapCut, expected, start_of

SCHEMA = pa.schema([("id", pa.string()), ("texts", TEXTS), scored("a", pa.list_(pa.float32()), "judge a")])


def rows_of(scores: list[float | None]) -> pa.Table:
    """Two texts per row: one with the score, one by a human."""
    texts = [[text(f"t{i}", "synth"), text("h", "human")] for i in range(len(scores))]
    return pa.table([[f"r{i}" for i in range(len(scores))], texts, [[s, 9.0] for s in scores]], schema=SCHEMA)


def copies(folder: Path, table: pa.Table, **more: float) -> tuple[pa.Table, list[list[int | None]]]:
    found = run_gather(
        SoftCapCut(column="a", encoder="judge a", **more),
        [dataset(folder / "in", table, shard_rows=37)],
        folder,
    )  # type: ignore[arg-type]
    out = run_map(Copies(cut=File(path=str(folder / "artifacts/cut.json"))), table).table
    return found.table, out["copies"].to_pylist()


def greedy(scores: list[float], total: int, penalty: float) -> list[int]:
    """The next sample is always the text whose score, less the penalty for each time that it occurs, is highest."""
    now, found = np.array(scores), [0] * len(scores)
    for _ in range(total):
        at = int(now.argmax())
        found[at] += 1
        now[at] -= penalty
    return found


def test_texts_occur_as_often_as_by_taking_the_best_and_lowering_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 1, 400).astype(np.float32).astype(float).tolist()
    cut, found = copies(tmp_path, rows_of(scores), penalty=0.15)
    assert cut.to_pylist()[0]["num_samples"] == 400
    mine = [one for one, _ in found]
    one_by_one = greedy(scores, 400, 0.15)
    assert max(abs(a - b) for a, b in zip(mine, one_by_one, strict=True)) <= 1
    assert sum(mine) == pytest.approx(400, abs=30)  # what is left after whole numbers is drawn
    assert max(mine) > 5
    assert mine.count(0) > 100
    assert {human for _, human in found} == {None}


def test_the_expected_number_is_exact_and_capped() -> None:
    scores = np.array([0.0, 1.0, 2.0, 10.0])
    for total, most in ((4.0, 100), (4.0, 2), (7.5, 2), (0.3, 5)):
        start = start_of(scores, total, 1.0, most)
        assert expected(scores, start, 1.0, most).sum() == pytest.approx(total, abs=1e-9)
        assert expected(scores, start, 1.0, most).max() <= most
    assert expected(scores, start_of(scores, 4.0, 1e6, 100), 1e6, 100) == pytest.approx(
        [1, 1, 1, 1], abs=1e-4
    )


def test_the_draw_depends_on_the_row_alone_and_its_mean_is_right(tmp_path: Path) -> None:
    table = rows_of([0.5] * 4000)
    _, found = copies(tmp_path, table, penalty=1.0, samples_per_text=1.3)
    mine = np.array([one for one, _ in found])
    assert set(mine.tolist()) == {1, 2}
    assert mine.mean() == pytest.approx(1.3, abs=0.03)
    stage = Copies(cut=File(path=str(tmp_path / "artifacts/cut.json")))
    backwards = run_map(stage, table.take(list(range(3999, -1, -1)))).table["copies"].to_pylist()
    assert backwards[::-1] == found


def test_dropped_and_unscored_texts_do_not_count(tmp_path: Path) -> None:
    table = rows_of([1.0, None, 3.0, 4.0])
    texts = table["texts"].to_pylist()
    texts[3][0] |= {"kept": False, "why": "junk"}
    table = table.set_column(1, SCHEMA.field("texts"), pa.array(texts, TEXTS))
    cut, found = copies(tmp_path, table, penalty=0.1, max_copies=1)
    assert cut.to_pylist()[0]["num_texts"] == 2
    assert [one for one, _ in found] == [1, None, 1, None]
    with pytest.raises(VlpipeError, match="no text of web, synth that is kept has a score in 'a'"):
        copies(tmp_path / "none", rows_of([None]), penalty=0.1)
    (tmp_path / "cut.json").write_text(json.dumps({"column": "a"}))
    with pytest.raises(VlpipeError, match=r"wanted \{from: STEP, path: cut\.json\}"):
        run_map(Copies(cut=File(path=str(tmp_path / "cut.json"))), table)
    assert SoftCapCut(column="a", penalty=1, samples_per_text=3, max_copies=2).preflight() == [
        "samples_per_text 3 cannot be reached with max_copies 2"
    ]


def test_scores_without_bound_do_not_move_the_cut() -> None:
    """A log-probability may be -inf: bisecting from there gave every text `max_copies`."""
    scores = np.array([-np.inf, 0.0, 1.0, 2.0, np.inf])
    start = start_of(scores, 14.0, 1.0, 10)
    assert expected(scores, start, 1.0, 10) == pytest.approx([0, 1 / 3, 4 / 3, 7 / 3, 10])
    for bad, total in (([-np.inf, np.inf], 5.0), ([np.inf, np.inf, 1.0], 3.0)):
        with pytest.raises(VlpipeError, match="are finite numbers, which cannot occur"):
            start_of(np.array(bad), total, 1.0, 10)
