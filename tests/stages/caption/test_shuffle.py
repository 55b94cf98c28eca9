"""Synthetic texts on other images: a permutation of rows without fixed points, the same for all shards and orders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Out, reference_columns
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.caption import shuffle
from vlpipe.stages.caption.shuffle import GROUPS_HELD, SHUFFLED, DrawShuffle, Given, ShuffleSynthetic
from vlpipe.stages.common.row import DONORS, text

Entries = list[dict[str, Any]]
Rows = Callable[..., pa.Table]


def drawn(folder: Path, table: pa.Table, shard_rows: int = 11, seed: int = 0) -> ShuffleSynthetic:
    data = dataset(folder / "in", table, shard_rows=shard_rows)
    got = run_gather(DrawShuffle(seed=seed), [data], folder)
    path = got.artifacts / "shuffled.parquet"
    return ShuffleSynthetic(shuffled=File(path=str(path), digest=str(path)))  # the digest is a key of a cache


def shuffled(stage: ShuffleSynthetic, table: pa.Table, size: int = 11) -> dict[str, tuple[Entries, Any]]:
    """Returns id -> texts and donors."""
    parts = [run_map(stage, table.slice(at, size)).table for at in range(0, len(table), size)]
    out = pa.concat_tables(parts)
    assert out["id"].to_pylist() == table["id"].to_pylist()
    columns = (out[name].to_pylist() for name in ("id", "texts", "donors"))
    return {id_: (texts, donors) for id_, texts, donors in zip(*columns, strict=True)}


def captioned(num: int) -> dict[str, Entries]:
    """Rows with a web text, a human text in each third, and 0, 1 or 2 synthetic ones that name their row."""
    return {
        f"r{n}": [
            text(f"web {n}", "web"),
            *([text(f"human {n}", "human")] if n % 3 == 0 else []),
            *(text(f"r{n} {k}", "synth", model="m", score=n / 128, kept=k == 0) for k in range(n % 3)),
        ]
        for n in range(num)
    }


def synth(texts: Entries) -> Entries:
    return [t for t in texts if t["source"] == "synth"]


def others(texts: Entries) -> Entries:
    return [t for t in texts if t["source"] != "synth"]


def test_every_text_moves_whole_and_none_stays(tmp_path: Path, text_rows: Rows) -> None:
    before = captioned(90)
    table = text_rows(before)
    found = shuffled(drawn(tmp_path, table), table)
    cycle: dict[str, str] = {}
    for id_, (texts, donors) in found.items():
        assert others(texts) == others(before[id_])
        if not synth(before[id_]):
            assert (texts, donors) == (before[id_], None)
            continue
        (giver,) = {t["text"].split()[0] for t in synth(texts)}
        assert giver != id_
        assert synth(texts) == synth(before[giver])
        assert donors == [[giver] if t["source"] == "synth" else None for t in texts]
        cycle[id_] = giver
    assert len(cycle) == len(set(cycle.values())) == 60
    at, length = cycle["r1"], 1
    while at != "r1":
        at, length = cycle[at], length + 1
    assert length == 60  # one cycle


def test_neither_shards_nor_order_matter_and_the_seed_does(
    tmp_path: Path, text_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = text_rows(captioned(60))
    once = shuffled(drawn(tmp_path / "once", table), table)
    for name, size in (("PART_ROWS", 7), ("GROUP_ROWS", 5)):  # several parts, and row groups of the artifact
        monkeypatch.setattr(shuffle, name, size)
    other = table.take(np.random.default_rng(1).permutation(60))
    assert shuffled(drawn(tmp_path / "other", other, shard_rows=50), other, size=32) == once
    assert shuffled(drawn(tmp_path / "other", other, shard_rows=50), table, size=8) == once
    assert shuffled(drawn(tmp_path / "seed", table, seed=1), table) != once


def test_two_rows_change_places(tmp_path: Path, text_rows: Rows) -> None:
    table = text_rows({"a": [text("of a", "synth")], "b": [text("of b", "synth")]})
    found = shuffled(drawn(tmp_path, table), table)
    assert found == {"a": ([text("of b", "synth")], [["b"]]), "b": ([text("of a", "synth")], [["a"]])}


def test_texts_keep_the_rows_they_came_from_and_their_places(tmp_path: Path, text_rows: Rows) -> None:
    """`a` has a synthetic text of a twin before a web text; both texts of `b` are its own."""
    table = text_rows({"a": [text("s", "synth"), "w", "g"], "b": ["v", text("t", "synth")]})
    table = table.append_column("donors", pa.array([[["twin"], None, ["x", "y"]], None], DONORS))
    found = shuffled(drawn(tmp_path, table), table)
    assert [t["text"] for t in found["a"][0]] == ["t", "w", "g"]
    assert found["a"][1] == [["b"], None, ["x", "y"]]
    assert [t["text"] for t in found["b"][0]] == ["v", "s"]
    assert found["b"][1] == [None, ["twin"]]


def test_a_row_that_was_not_drawn_is_a_fault(tmp_path: Path, text_rows: Rows) -> None:
    rows = {name: [text(f"of {name}", "synth")] for name in "abc"}
    stage = drawn(tmp_path, text_rows({name: rows[name] for name in "ab"}))
    out: Out = run_map(stage, text_rows(rows | {"d": [text("w", "web")]}))
    assert out.table["id"].to_pylist() == ["a", "b", "d"]
    assert [(r.id, r.kind, r.why) for r in out.rejects] == [("c", "fault", "not_in_shuffle")]


@pytest.mark.parametrize("num", [0, 1])
def test_fewer_than_two_rows_cannot_be_shuffled(tmp_path: Path, text_rows: Rows, num: int) -> None:
    rows = {f"r{n}": [text("s", "synth")] for n in range(num)} | {"w": [text("w", "web")]}
    with pytest.raises(VlpipeError, match=rf"{num} row\(s\) have a synthetic text, wanted at least two"):
        drawn(tmp_path, text_rows(rows))


def test_the_artifact_names_donors_as_references_and_leaves_no_parts(tmp_path: Path, text_rows: Rows) -> None:
    table = text_rows(captioned(30))
    drawn(tmp_path, table)
    rows = pq.read_table(tmp_path / "artifacts/shuffled.parquet").to_pylist()
    assert Counter(row["id"] for row in rows) == Counter(f"r{n}" for n in range(30) if n % 3)
    assert DrawShuffle.ARTIFACT_REFERENCES["shuffled.parquet"] == reference_columns(SHUFFLED) == ("donors",)
    assert list((tmp_path / "work").iterdir()) == []


def test_another_file_is_an_error(tmp_path: Path, text_rows: Rows) -> None:
    (tmp_path / "x.parquet").write_bytes(b"nothing")
    stage = ShuffleSynthetic(shuffled=File(path=str(tmp_path / "x.parquet"), digest="x"))
    with pytest.raises(
        VlpipeError, match=r"x.parquet cannot be read as Parquet .* wanted {from: STEP, path: shu"
    ):
        run_map(stage, text_rows({"a": [text("s", "synth")]}))


def test_each_row_group_is_read_once_and_few_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"r{n:02}" for n in range(50)]
    table = pa.table({"id": ids, "texts": [[]] * 50, "donors": [[]] * 50}).cast(SHUFFLED)
    pq.write_table(table, tmp_path / "shuffled.parquet", row_group_size=10)
    read: list[int] = []
    whole = pq.ParquetFile.read_row_group

    def counted(self: Any, group: int, *args: Any, **kwargs: Any) -> pa.Table:
        read.append(group)
        return whole(self, group, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    given = Given(str(tmp_path / "shuffled.parquet"))
    for start in range(0, 50, 5):
        asked = ids[start : start + 5]
        assert given.of(asked).keys() == set(asked)
        assert len(given._held) <= GROUPS_HELD
    assert read == [0, 1, 2, 3, 4]
