"""Rows whose embeddings are nearly parallel: which of them stays. The pairs are stored with their cosine.

Up to `exact_below` rows all pairs are searched, above it only the clusters nearest to each row. Looking into
1, 2, 4, 8 of them found 0.87, 0.96, 0.99, 0.998 of the pairs at cosine 0.90 (50,000 x 256, loose clusters).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import Dataset, GatherStage, Job
from vlpipe.stages.dedup import cosine
from vlpipe.stages.dedup.decisions import (
    DECISIONS,
    Edges,
    Places,
    check_input,
    decision_table,
    greedy,
    keep_order,
    read_rows,
    say_counts,
    write_artifact,
)

# `a` is before `b` in the keep order.
EDGES = pa.schema([("a", pa.string()), ("b", pa.string()), ("cosine", pa.float32())])
# They all install the same top-level folder `faiss`.
PACKAGES = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu12")
NOT_INSTALLED = "dedup.faiss needs faiss: pip install 'vlpipe[cpu]', or 'vlpipe[gpu]' on a machine with CUDA"
NORM_ERROR = 1e-3


@dataclass(frozen=True, kw_only=True)
class FaissDuplicates(GatherStage):
    """Emits one decision per row (columns: DECISIONS); artifacts `decisions.parquet`, `edges.parquet`.

    threshold: twins have at least this cosine. It belongs to the encoder: there is no good value for all.
    exact_below: up to so many rows all pairs are compared (50,000 x 512: 12 s of one core).
    nprobe: clusters that each row looks into above that; seed: of the k-means.
    """

    threshold: Annotated[float, Field(gt=0, le=1)]
    exact_below: Annotated[int, Field(ge=0)] = 50_000
    nprobe: Annotated[int, Field(ge=2)] = 8
    seed: int = 0

    VERSION: ClassVar[int] = 1

    def schema(self, inp: pa.Schema) -> pa.Schema:
        check_input(inp, "dedup.faiss")
        if "embedding" not in inp.names:
            need(inp, "dedup.faiss", embedding=pa.list_(pa.float32()))  # raises, and says what is there
        found = inp.field("embedding").type
        if not pa.types.is_fixed_size_list(found) or found.value_type != pa.float32():
            raise SchemaError(
                f"dedup.faiss reads column 'embedding' as fixed_size_list<float>[D], but it is {found}"
            )
        return DECISIONS

    def preflight(self) -> list[str]:
        problem = packages_problem()
        if importlib.util.find_spec("faiss") is None:
            problem = NOT_INSTALLED
        return [problem] if problem else []

    def run(self, job: Job) -> None:
        rows = read_rows(job.inputs)
        order = keep_order(rows)
        vectors = read_vectors(job.inputs, rows["id"], order)
        with one_thread() as faiss:
            edges = self._edges(faiss, vectors)
        twins = greedy(len(order), edges)
        why = [None if w < 0 else "near_duplicate" for w in twins.witness]
        decisions = decision_table(rows["id"], order, twins, why)
        write_artifact(f"{job.artifacts}/decisions.parquet", decisions, DECISIONS)
        write_artifact(f"{job.artifacts}/edges.parquet", edge_table(rows["id"].take(order), edges), EDGES)
        job.emit(decisions)
        job.say(f"{say_counts(decisions)}; {len(edges.a):,} pairs at cosine >= {self.threshold}")

    def _edges(self, faiss: Any, vectors: cosine.Vectors) -> Edges:
        """The pairs with at least the threshold, ordered by (a, b)."""
        if len(vectors) <= self.exact_below:
            found = cosine.search_all(faiss, vectors, self.threshold)
        else:
            found = cosine.search_clusters(faiss, vectors, self.threshold, nprobe=self.nprobe, seed=self.seed)
        a, b = cosine.unique_pairs(found, len(vectors))
        similarity = cosine.score(vectors, a, b)
        near = similarity >= self.threshold
        return Edges(a[near], b[near], similarity[near].astype(np.float32))


def packages_problem() -> str | None:
    """What to say when more than one package has written the same `faiss` folder."""
    names = {(d.name or "").lower().replace("_", "-") for d in importlib.metadata.distributions()}
    found = [p for p in PACKAGES if p in names]
    if len(found) < 2:
        return None
    return (
        f"{' and '.join(found)} are both installed and overwrite each other; the extras 'cpu' and 'gpu' "
        f"exclude each other: pip uninstall -y {' '.join(found)}, then "
        "pip install 'vlpipe[cpu]' or 'vlpipe[gpu]'"
    )


@contextmanager
def one_thread() -> Iterator[Any]:
    """The faiss module, computing on one thread: sums in a fixed order."""
    problem = packages_problem()
    if problem:
        raise VlpipeError(problem)
    try:
        import faiss
    except ImportError as error:
        raise VlpipeError(f"{NOT_INSTALLED} ({error})") from error
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(before)


def read_vectors(inputs: tuple[Dataset, ...], ids: pa.ChunkedArray, order: Places) -> cosine.Vectors:
    """Embeddings by place in the keep order. Raises when one is missing, not finite, or not of length 1."""
    widths = {data.schema.field("embedding").type.list_size for data in inputs}
    if len(widths) != 1:
        raise VlpipeError(f"the inputs have embeddings of widths {sorted(widths)}; embed all with one model")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    vectors = np.empty((len(order), widths.pop()), np.float32)
    start = 0
    for batch in (b for data in inputs for b in data.batches(["id"], want_heavy=["embedding"])):
        found = pa.concat_arrays(batch["embedding"].chunks)
        _check_vectors(found, ids.slice(start, len(found)))
        vectors[place[start : start + len(found)]] = found.flatten().to_numpy().reshape(len(found), -1)
        start += len(found)
    return vectors


def _check_vectors(found: pa.FixedSizeListArray, ids: pa.ChunkedArray) -> None:
    if found.null_count:
        bad, what = np.asarray(found.is_null()), "null"
    else:
        values = found.flatten().to_numpy().astype(np.float64).reshape(len(found), -1)
        bad, what = ~(np.abs(np.linalg.norm(values, axis=1) - 1) <= NORM_ERROR), "not a vector of length 1"
    if bad.any():
        first = ids[int(np.flatnonzero(bad)[0])]
        raise VlpipeError(
            f"the embedding of {bad.sum()} row(s) is {what} (first: {first}); "
            "the step that makes it must write one for each row, divided by its length"
        )


def edge_table(ids: pa.ChunkedArray, edges: Edges) -> pa.Table:
    """`ids` are by place in the keep order."""
    ends = (ids.take(pa.array(places)) for places in (edges.a, edges.b))
    return pa.table([*ends, pa.array(edges.similarity)], schema=EDGES)
