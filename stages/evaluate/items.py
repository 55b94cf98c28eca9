"""The value of a metric for each evaluated item (an image, a caption), from which `evaluate.compare` computes intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import ShardWriter, need, ref, reference_columns

ITEMS = pa.schema(
    [
        ("metric", pa.string()),  # its value in the results is the mean over its items
        ("item", pa.string()),  # unique within a metric
        ref("row", pa.string()),  # id of the row that the item belongs to, such as the image of a caption
        ("value", pa.float64()),
    ]
)
FILE = "items.parquet"
ITEMS_REFERENCES = {FILE: reference_columns(ITEMS)}
GROUP_ROWS = 65_536


def items(metric: str, of: Sequence[tuple[str, str]], values: npt.NDArray[np.generic]) -> pa.Table:
    """Returns ITEMS rows. of: (item, id of its row) of each value; values: (N,)."""
    names, rows = ([one[at] for one in of] for at in (0, 1))
    return pa.table([[metric] * len(names), names, rows, values.astype(np.float64)], schema=ITEMS)


def write_items(folder: Path, tables: Iterable[pa.Table]) -> None:
    """Writes the artifact items.parquet."""
    with ShardWriter(str(folder / FILE), ITEMS, GROUP_ROWS) as writer:
        for table in tables:
            writer.write(table)


def read_items(file: File, step: str) -> pa.Table:
    """Returns the ITEMS rows of a step, sorted by metric and item. Raises VlpipeError if the file is another one.

    step: its name, for error texts.
    """
    try:
        table = pq.read_table(file.path, page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise VlpipeError(f"items of {step}: {file.path} cannot be read as Parquet ({error})") from error
    need(table.schema, f"items of {step}", **{f.name: f.type for f in ITEMS})
    return (
        table.select(ITEMS.names).sort_by([("metric", "ascending"), ("item", "ascending")]).combine_chunks()
    )
