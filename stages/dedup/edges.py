"""Similar pairs as an artifact: `edges.parquet`, and `search.parquet` with the threshold of the search.

A search is expensive, a decision is cheap: `dedup.redecide` reads the pairs and applies another threshold, rule or order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import ShardWriter, need, ref, reference_columns
from vlpipe.stages.dedup.row_ids import Names, packed

# Sorted by (a, b). `a` < `b`, unless b is in the earlier set.
EDGES = pa.schema(
    [
        ref("a", pa.string()),
        ref("b", pa.string()),
        ("similarity", pa.float64()),  # cosine with 6 decimals, or 1 - differing bits / 64
        # near | same_vector | same_bytes | same_looks (hash and colours). Rows of a set of identical rows have an edge to
        # its representative; only the representative has near edges, which are valid for the whole set.
        ("kind", pa.string()),
        ("earlier", pa.bool_()),  # b is a row of the earlier kept set (parameter `against`)
    ]
)
EDGES_REFERENCES = {"edges.parquet": reference_columns(EDGES)}
SEARCH = pa.schema([("threshold", pa.float64())])  # one row
KINDS = ("near", "same_vector", "same_bytes", "same_looks")
ROW_GROUP_ROWS = 65_536

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Edges:
    """Similar pairs, as arrays (P,): a[i], b[i] are row numbers (or places); kind[i] is an index into KINDS."""

    a: Places
    b: Places
    similarity: npt.NDArray[np.float64]
    kind: npt.NDArray[np.int8]

    def at_least(self, threshold: float) -> Edges:
        """Returns the edges with this similarity or more, and all edges between identical rows."""
        near = (self.similarity >= threshold) | (self.kind > 0)
        return Edges(self.a[near], self.b[near], self.similarity[near], self.kind[near])


def with_copies(near: Edges, leader: Places, num_new: int, kind: str) -> Edges:
    """Returns the edges of `near` and, for each new row that another row represents, an edge to that row.

    leader: (N,), the row that represents each row. Rows below `num_new` are new. kind: of the added edges, one of KINDS.
    """
    copies = np.flatnonzero(leader[:num_new] != np.arange(num_new))
    ends = copies, leader[copies]
    return Edges(
        np.concatenate([near.a, np.minimum(*ends)]),
        np.concatenate([near.b, np.maximum(*ends)]),
        np.concatenate([near.similarity, np.ones(len(copies))]),
        np.concatenate([near.kind, np.full(len(copies), KINDS.index(kind), np.int8)]),
    )


def write_edges(folder: str, ids: Names, num_new: int, edges: Edges, threshold: float) -> None:
    """Writes `edges.parquet` and `search.parquet` into `folder`.

    ids: indexed by row number; rows from `num_new` on belong to the earlier set. threshold: of the search.
    """
    order = np.lexsort((edges.b, edges.a))
    with ShardWriter(f"{folder}/edges.parquet", EDGES, ROW_GROUP_ROWS) as writer:
        for start in range(0, len(order), ROW_GROUP_ROWS):
            part = order[start : start + ROW_GROUP_ROWS]
            columns = [
                ids.take(edges.a[part]),
                ids.take(edges.b[part]),
                edges.similarity[part],
                np.array(KINDS, object)[edges.kind[part]],
                edges.b[part] >= num_new,
            ]
            writer.write(pa.table(columns, schema=EDGES))
    with ShardWriter(f"{folder}/search.parquet", SEARCH) as writer:
        writer.write(pa.table([[threshold]], schema=SEARCH))


def read_edges(file: File) -> tuple[pa.Table, float]:
    """Returns the pairs (columns: EDGES) and the threshold of a search step. Raises VlpipeError for other files."""
    path = Path(file.path)
    try:
        (threshold,) = pq.read_table(path / "search.parquet", schema=SEARCH, page_checksum_verification=True)[
            "threshold"
        ].to_pylist()
        # dictionary encoding: an id is in memory once, however many pairs contain it
        table = pq.read_table(
            path / "edges.parquet", read_dictionary=["a", "b", "kind"], page_checksum_verification=True
        )
    except (OSError, pa.ArrowInvalid) as error:
        raise VlpipeError(
            f"edges: {path} is not the output of dedup.faiss or dedup.exact ({error}); wanted {{from: STEP}}"
        ) from error
    plain = pa.schema(
        [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in table.schema]
    )
    need(plain, f"dedup.redecide ({path}/edges.parquet)", **{f.name: f.type for f in EDGES})
    return table, float(threshold)


def edges_of(table: pa.Table, ids: Names) -> Edges:
    """Converts a table with columns EDGES to row numbers, which are positions in `ids`; -1 for an unknown id."""
    a, b = _numbers([table["a"], table["b"]], ids)
    (kind,) = _numbers([table["kind"]], Names(packed([pa.array(KINDS)])))
    return Edges(a, b, np.asarray(table["similarity"], np.float64), kind.astype(np.int8))


def _numbers(columns: Sequence[pa.ChunkedArray], ids: Names) -> list[Places]:
    """Returns the row numbers, positions in `ids`, of each dictionary-encoded column; each chunk has its own dictionary."""
    places = iter(ids.places([part.dictionary for column in columns for part in column.chunks]))
    found = [[next(places)[np.asarray(part.indices)] for part in column.chunks] for column in columns]
    return [np.concatenate([np.empty(0, np.int64), *parts]) for parts in found]
