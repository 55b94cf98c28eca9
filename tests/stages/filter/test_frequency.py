from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.common.rule import load_preset
from vlpipe.stages.filter import frequency
from vlpipe.stages.filter.frequency import CountTexts, TextCounts, buckets, hash_texts
from vlpipe.stages.filter.rules import Rules


def rows_of(texts: list[list[str]]) -> pa.Table:
    entries = [[text(t, "web") for t in ts] for ts in texts]
    return pa.table({"id": [f"r{i}" for i in range(len(texts))], "texts": pa.array(entries, TEXTS)})


def random_texts(num_rows: int) -> list[list[str]]:
    draw = random.Random(1)
    words = [f"text {k}" for k in range(60)]
    return [
        [words[min(int(draw.expovariate(0.1)), 59)] for _ in range(draw.randint(0, 3))]
        for _ in range(num_rows)
    ]


@pytest.mark.parametrize("bucket_texts", [4_000_000, 40])
def test_counts_are_exact_over_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket_texts: int
) -> None:
    monkeypatch.setattr(frequency, "BUCKET_TEXTS", bucket_texts)
    texts = random_texts(500)
    expected = Counter(t for ts in texts for t in ts)
    got = run_gather(CountTexts(), [dataset(tmp_path / "in", rows_of(texts), shard_rows=90)], tmp_path)
    seen = dict(zip(got.table["count"].to_pylist(), got.table["num_texts"].to_pylist(), strict=True))
    assert seen == dict(Counter(expected.values()))
    stage = TextCounts(counts=File(path=str(tmp_path / "artifacts/counts.parquet"), digest=str(tmp_path)))
    out = run_map(stage, rows_of(texts)).table
    assert out["text_count"].to_pylist() == [[expected[t] for t in ts] for ts in texts]


def test_the_rule_of_coyo(tmp_path: Path) -> None:
    """More than 10 times is too often; spaces do not matter, case does."""
    texts = [["seen  often "]] * 6 + [["seen often"]] * 5 + [["seen ten times"]] * 10 + [["Seen often"]]
    table = rows_of(texts)
    run_gather(CountTexts(), [dataset(tmp_path / "in", table)], tmp_path)
    stage = TextCounts(counts=File(path=str(tmp_path / "artifacts/counts.parquet"), digest=str(tmp_path)))
    rule = next(r for r in load_preset("coyo") if r.code == "text_count")
    out = run_map(Rules(rules=(rule,)), run_map(stage, table).table)
    assert [ts[0]["why"] for ts in out.table["texts"].to_pylist()] == ["text_count"] * 11 + [None] * 11


def test_dropped_texts_and_other_sources_are_not_counted(tmp_path: Path) -> None:
    entries = [
        [text("a b", "web"), text("a b", "synth"), text("a b", "web", kept=False, why="old")],
        [text("a b", "web")],
    ]
    table = pa.table({"id": ["x", "y"], "texts": pa.array(entries, TEXTS)})
    run_gather(CountTexts(), [dataset(tmp_path / "in", table)], tmp_path)
    stage = TextCounts(counts=File(path=str(tmp_path / "artifacts/counts.parquet"), digest=str(tmp_path)))
    assert run_map(stage, table).table["text_count"].to_pylist() == [[2, None, None], [2]]


def test_hashes_that_end_in_zeros_are_whole() -> None:
    """numpy's byte strings drop zeros at their end when they are shown; nothing may be lost by it."""
    hashes = np.array([b"\x00" * 16, b"a" + b"\x00" * 15, b"a" * 16], "S16")
    assert [h.tobytes() for h in np.concatenate(list(buckets([hashes]))).view("V16")] == [
        b"\x00" * 16,
        b"a" + b"\x00" * 15,
        b"a" * 16,
    ]
    assert len(set(hash_texts(f"{i}" for i in range(5000)).tolist())) == 5000


def test_another_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "counts.parquet").write_bytes(b"none")
    stage = TextCounts(counts=File(path=str(tmp_path / "counts.parquet"), digest="x"))
    with pytest.raises(VlpipeError, match=r"wanted \{from: STEP, path: counts.parquet\}"):
        run_map(stage, rows_of([["a"]]))
