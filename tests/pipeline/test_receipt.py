"""All receipts of a step in one file."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.engine.records.manifest import Manifest, write_manifest
from vlpipe.pipeline.engine.records.receipts import Receipt, read_receipts
from vlpipe.pipeline.shard import Heavy, Shard
from vlpipe.pipeline.storage.store import Store

RECEIPTS = [
    Receipt(
        index=k,
        shard=Shard(
            path=f"åß/{k:06d}.parquet", num_rows=k, digest="d", key="é" * k, heavy=(Heavy("image", "x", "d"),)
        ),
        bytes=7,
        rows_in=k + 1,
        rejects={"fault:\N{GRINNING FACE}": 1},
        rejects_digest="r",
        input_heavy={"image": "d"},
        counts={"é": 2},
        columns={"a": {"nulls": 0, "min": 0.5}},
        run={"seconds": 1.5, "host": "ö"},
    )
    for k in range(3)
]


def write(root: Path, receipts: list[Receipt]) -> Store:
    names = {n: n for n in ("step", "use", "step_key", "stage_key", "inputs_digest", "shards_digest")}
    more: dict[str, Any] = {k: {} for k in ("params", "files", "read", "rejects", "artifacts", "versions")}
    more |= dict.fromkeys(("identity", "inputs", "schema", "sources"), ())
    manifest = Manifest(**names, **more, num_shards=3, rows_in=6, rows_out=3, bytes=21)
    store = Store(str(root))
    write_manifest(store, "step", manifest, receipts)
    return store


def test_receipts_come_back_from_typed_columns(tmp_path: Path) -> None:
    store = write(tmp_path, RECEIPTS)
    assert read_receipts(store, "step") == RECEIPTS
    table = pq.read_table(tmp_path / "step" / "_shards.parquet")
    assert table["num_rows"].to_pylist() == [0, 1, 2]
    assert table.schema.field("rejects").type == pa.map_(pa.string(), pa.int64())
    assert read_receipts(write(tmp_path / "empty", []), "step") == []


def test_writing_them_does_not_import_pandas(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from typing import Any
sys.path.insert(0, {str(Path(__file__).parent)!r})
from vlpipe.pipeline.engine.worker.pandas_later import leave_pandas_alone
leave_pandas_alone()
from test_receipt import RECEIPTS, write
write(Path({str(tmp_path)!r}), RECEIPTS)
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
