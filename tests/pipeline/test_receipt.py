"""All receipts of a step in one file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.receipt import Manifest, Receipt, read_receipts, write_manifest
from vlpipe.pipeline.shard import Shard
from vlpipe.pipeline.store import Store

RECEIPTS = [
    Receipt(
        index=k,
        shard=Shard(path=f"åß/{k:06d}.parquet", num_rows=k, digest="d", key="é" * k, heavy=(("image", "x"),)),
        bytes=7,
        rows_in=k + 1,
        rejects={"fault:\N{GRINNING FACE}": 1},
    )
    for k in range(3)
]


def write(root: Path, receipts: list[Receipt]) -> Store:
    names = {name: name for name in ("step", "use", "step_key", "stage_key", "inputs_digest", "source")}
    more: dict[str, Any] = {key: {} for key in ("params", "files", "rejects", "artifacts", "versions")}
    manifest = Manifest(**names, **more, inputs=(), schema=(), num_shards=3, rows_in=6, rows_out=3)
    store = Store(str(root))
    write_manifest(store, "step", manifest, receipts)
    return store


def test_receipts_come_back_and_the_file_is_as_from_lists(tmp_path: Path) -> None:
    assert read_receipts(write(tmp_path, RECEIPTS), "step") == RECEIPTS
    columns = {
        "index": pa.array([0, 1, 2], pa.int64()),
        "key": pa.array(["", "é", "éé"]),
        "receipt": pa.array([json.dumps(r.to_json(), sort_keys=True) for r in RECEIPTS]),
    }
    pq.write_table(pa.table(columns), tmp_path / "reference.parquet", compression="zstd")
    assert (tmp_path / "step" / "_shards.parquet").read_bytes() == (
        tmp_path / "reference.parquet"
    ).read_bytes()
    assert read_receipts(write(tmp_path / "empty", []), "step") == []


def test_writing_them_does_not_import_pandas(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from typing import Any
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_receipt import RECEIPTS, write
write(Path({str(tmp_path)!r}), RECEIPTS)
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
