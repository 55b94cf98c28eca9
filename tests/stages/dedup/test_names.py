"""Ids of all rows: as many as there are, in 32 bytes each, in the order of their text."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.dedup import decisions as decisions_module
from vlpipe.stages.dedup import redecide as decide_module
from vlpipe.stages.dedup import row_ids as names_module
from vlpipe.stages.dedup.exact import ExactDuplicates, same_bytes
from vlpipe.stages.dedup.redecide import Decide
from vlpipe.stages.dedup.row_ids import PACKED, TEXT, Names, joined, packed

HEX = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(200)]
SHORT = ["b", "a", "", "caf\u00e9", *HEX[:3]]


def names(ids: list[str]) -> Names:
    return Names(packed(pa.array(part, pa.string()) for part in (ids[:2], ids[2:5], ids[5:])))


@pytest.mark.parametrize("ids", [HEX, SHORT])
def test_ids_come_back_in_any_order_and_are_found(ids: list[str]) -> None:
    some = names(ids)
    assert len(some) == len(ids)
    assert [i for block in some.blocks() for i in block.to_pylist()] == ids
    assert some.take(some.order()).to_pylist() == sorted(ids)
    back = np.arange(len(ids))[::-1]
    assert some.reordered(back).take(np.array([0, 1])).to_pylist() == [ids[-1], ids[-2]]
    asked = [
        pa.array(["nobody", ids[3]]),
        pa.array([], pa.string()),
        pa.array([ids[0], ids[-1]]),
        pa.array([HEX[5]]),
    ]
    found = [place.tolist() for place in some.places(asked)]
    assert found == [[-1, 3], [], [0, len(ids) - 1], [5] if ids is HEX else [-1]]


def test_a_digest_takes_32_bytes_and_nothing_has_offsets_of_32_bits() -> None:
    assert packed([pa.array(HEX)]).type == PACKED
    assert packed([pa.array(HEX)]).nbytes == 32 * len(HEX)
    for other in ("a", HEX[0].upper(), HEX[0] + "0", "g" * 64, "\u00e9" * 32):
        mixed = packed([pa.array(HEX[:3]), pa.array([None, other]), pa.array(HEX[3:])])
        assert mixed.type == TEXT
        assert mixed.to_pylist() == [*HEX[:3], None, other, *HEX[3:]]


def test_nulls_and_slices() -> None:
    column = pa.array(["x", HEX[0], None, HEX[1], HEX[2], "y"]).slice(1, 4)
    found = packed([column, column.slice(1, 2)])
    assert found.type == PACKED
    assert [one and one.hex() for one in found.to_pylist()] == [HEX[0], None, HEX[1], HEX[2], None, HEX[1]]
    mixed = packed([column.slice(1, 2), pa.array(["z"])])
    assert mixed.to_pylist() == [None, HEX[1], "z"]
    assert packed([]).type == PACKED
    assert packed([pa.array([3, None])]).to_pylist() == [3, None]


@pytest.mark.parametrize(
    ("ids", "wanted"), [(HEX, 0), (HEX + HEX[7:9], 2), (SHORT, 0), (SHORT + ["a"] * 3, 3), ([], 0)]
)
def test_repeated_ids_are_counted(ids: list[str], wanted: int) -> None:
    assert names(ids).num_repeated() == wanted


def test_ids_that_begin_alike_are_in_order() -> None:
    """As chosen ones may; the order is first sought by 8 bytes alone."""
    ids = ["0" * 16 + one[16:] for one in HEX]
    assert names(ids).take(names(ids).order()).to_pylist() == sorted(ids)


@pytest.mark.parametrize("second", [HEX[100:], SHORT[:4]])
def test_joined(second: list[str]) -> None:
    both = joined(names(HEX[:100]), names(second))
    assert both.take(np.arange(len(both))).to_pylist() == HEX[:100] + second


def test_a_row_without_an_id_is_said() -> None:
    with pytest.raises(VlpipeError, match=r"1 row\(s\) have no id"):
        Names(packed([pa.array([*HEX, None])]))


@pytest.mark.parametrize("digests", [HEX, [f"x{one}" for one in HEX]])
def test_same_bytes(digests: list[str]) -> None:
    column = pa.chunked_array(
        [[None, digests[0], digests[1]], [digests[0], None, digests[1], digests[2], ""]]
    )
    assert same_bytes(column, 8).tolist() == [0, 1, 2, 1, 4, 2, 6, 7]
    assert same_bytes(column, 3).tolist() == [0, 3, 5, 3, 4, 5, 6, 7]  # rows from 3 on are of an earlier set


def test_decisions_do_not_depend_on_the_blocks_they_are_made_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more than 33,554,431 rows one array cannot hold their ids; here with more than 7."""
    bytes_of = [HEX[row % 31] for row in range(100)]
    texts = pa.array([[text(f"text {row}", "web")] for row in range(100)], TEXTS)
    data = dataset(tmp_path, pa.table({"id": HEX[:100], "sha256": bytes_of, "texts": texts}), shard_rows=9)

    def run(folder: Path) -> tuple[pa.Table, bytes]:
        found = run_gather(ExactDuplicates(), [data], folder / "exact")
        edges = File(path=str(found.artifacts))
        merged = run_gather(Decide(edges=edges, merge_texts=True), [data], folder / "decide")
        assert pq.read_table(merged.artifacts / "decisions.parquet").equals(merged.table)
        return merged.table, (found.artifacts / "decisions.parquet").read_bytes()

    whole, _ = run(tmp_path / "whole")
    assert sum(whole["keep"].to_pylist()) == 31
    assert sum(len(gained or ()) for gained in whole["gained"].to_pylist()) == 69
    monkeypatch.setattr(decisions_module, "ROW_GROUP_ROWS", 7)
    for module in (names_module, decide_module):
        monkeypatch.setattr(module, "BLOCK_ROWS", 7)
    parts, _ = run(tmp_path / "parts")
    assert max(map(len, parts["group"].chunks)) <= 7
    assert parts.equals(whole)
