"""Similar pairs as an artifact: `edges.parquet`, and `search.parquet` with the similarity they were searched at.

A search is dear, a decision is cheap: `dedup.decide` reads the pairs and applies another threshold, rule or keep order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import ShardWriter, need
from vlpipe.pipeline.stage import File

# Ordered by (a, b). `a` < `b`, unless b is of an earlier set.
EDGES = pa.schema(
    [
        ("a", pa.string()),
        ("b", pa.string()),
        ("similarity", pa.float64()),  # cosine, 6 decimals; or 1 - different bits / 64
        # near | same_vector | same_bytes | same_looks (hash and colours). Of rows that are the same, one stands for
        # all: each other row has one edge, to it, and whatever is near to it is near to all of them.
        ("kind", pa.string()),
        ("earlier", pa.bool_()),  # b is a row of an earlier kept set
    ]
)
SEARCH = pa.schema([("threshold", pa.float64())])  # one row
KINDS = ("near", "same_vector", "same_bytes", "same_looks")
ROW_GROUP_ROWS = 65_536

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Edges:
    """Similar pairs: a[i], b[i] are numbers of rows; kind[i] is a place in KINDS."""

    a: Places
    b: Places
    similarity: npt.NDArray[np.float64]
    kind: npt.NDArray[np.int8]

    def at_least(self, threshold: float) -> Edges:
        """Rows that are the same count at any threshold."""
        near = (self.similarity >= threshold) | (self.kind > 0)
        return Edges(self.a[near], self.b[near], self.similarity[near], self.kind[near])


def with_copies(near: Edges, leader: Places, num_new: int, kind: str) -> Edges:
    """`near`, and for each new row that is the same as another one edge to the row that stands for both."""
    copies = np.flatnonzero(leader[:num_new] != np.arange(num_new))
    ends = copies, leader[copies]
    return Edges(
        np.concatenate([near.a, np.minimum(*ends)]),
        np.concatenate([near.b, np.maximum(*ends)]),
        np.concatenate([near.similarity, np.ones(len(copies))]),
        np.concatenate([near.kind, np.full(len(copies), KINDS.index(kind), np.int8)]),
    )


def write_edges(folder: str, ids: pa.Array, num_new: int, edges: Edges, threshold: float) -> None:
    """`ids` by row number; rows from `num_new` on are of the earlier set."""
    order = np.lexsort((edges.b, edges.a))
    with ShardWriter(f"{folder}/edges.parquet", EDGES, ROW_GROUP_ROWS) as writer:
        for start in range(0, len(order), ROW_GROUP_ROWS):
            part = order[start : start + ROW_GROUP_ROWS]
            columns = [
                ids.take(pa.array(edges.a[part])),
                ids.take(pa.array(edges.b[part])),
                edges.similarity[part],
                np.array(KINDS, object)[edges.kind[part]],
                edges.b[part] >= num_new,
            ]
            writer.write(pa.table(columns, schema=EDGES))
    with ShardWriter(f"{folder}/search.parquet", SEARCH) as writer:
        writer.write(pa.table([[threshold]], schema=SEARCH))


def read_edges(file: File) -> tuple[pa.Table, float]:
    """EDGES and the threshold of the search, from the artifacts of a step that searches."""
    path = Path(file.path)
    try:
        (threshold,) = pq.read_table(path / "search.parquet", schema=SEARCH, page_checksum_verification=True)[
            "threshold"
        ].to_pylist()
        # an id comes once in memory, however many pairs it is in
        table = pq.read_table(
            path / "edges.parquet", read_dictionary=["a", "b", "kind"], page_checksum_verification=True
        )
    except (OSError, pa.ArrowInvalid) as error:
        raise VlpipeError(
            f"edges: {path} is not what dedup.faiss or dedup.exact leaves ({error}); wanted {{from: STEP}}"
        ) from error
    plain = pa.schema(
        [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in table.schema]
    )
    need(plain, f"dedup.decide ({path}/edges.parquet)", **{f.name: f.type for f in EDGES})
    return table, float(threshold)


def numbers_of(column: pa.ChunkedArray, ids: pa.Array) -> Places:
    """The place of each value of a dictionary-encoded column in `ids`, -1 where it is not there."""
    if not len(column):
        return np.empty(0, np.int64)
    values = column.unify_dictionaries().combine_chunks()
    values = values if isinstance(values, pa.DictionaryArray) else values.chunk(0)
    place = np.asarray(pc.fill_null(pc.index_in(values.dictionary, value_set=ids), -1), np.int64)
    return place[np.asarray(values.indices, np.int64)]


def edges_of(table: pa.Table, ids: pa.Array) -> Edges:
    """EDGES as numbers in `ids`; both ends must be there."""
    kind = numbers_of(table["kind"], pa.array(KINDS)).astype(np.int8)
    similarity = np.asarray(table["similarity"], np.float64)
    return Edges(numbers_of(table["a"], ids), numbers_of(table["b"], ids), similarity, kind)
