"""Deduplicates rows by the cosine of their embeddings. Pairs are searched once and stored with their cosine.

Up to `exact_below` rows, all pairs are compared. Above that, spherical k-means (FAISS) partitions the rows into clusters,
and a row is compared with the rows of its own cluster and of clusters almost as near.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.pipeline.storage.store import Store
from vlpipe.stages.dedup.apply import marks
from vlpipe.stages.dedup.cosine import workers
from vlpipe.stages.dedup.decisions import (
    DECISIONS,
    DECISIONS_REFERENCES,
    decide_new,
    say_counts,
    write_decisions,
)
from vlpipe.stages.dedup.edges import EDGES_REFERENCES, with_copies, write_edges
from vlpipe.stages.dedup.keep_order import read_rows
from vlpipe.stages.dedup.search import Plan, search
from vlpipe.stages.dedup.vectors import (
    check_embedding,
    earlier_files,
    number_rows,
    same_vectors,
    store_vectors,
)

# All of them install the same top-level package `faiss`.
PACKAGES = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu12")
NOT_INSTALLED = "dedup.faiss needs faiss: pip install 'vlpipe[cpu]', or 'vlpipe[gpu]' on a machine with CUDA"


@dataclass(frozen=True, kw_only=True)
class FaissDuplicates(GatherStage):
    """Emits one decision per row (columns: DECISIONS), at `threshold` with the defaults of `dedup.redecide`.

    Artifacts: `decisions.parquet`, for `dedup.apply`; `edges.parquet`, for other decisions by `dedup.redecide` without a
    new search.

    threshold: min cosine of a pair. `dedup.redecide` can only raise it, so search at the lowest one you want. It depends
    on the encoder, so there is no default.
    against: ids and embeddings of an earlier kept set (a Parquet file or folder, as written by `vlpipe export`). Rows are
    compared with it and with each other; rows of the earlier set are never dropped. Clusters are recomputed over both sets,
    so that the pairs do not depend on how rows are split (12 % of the time for 20,000 rows against 200,000).
    exact_below: up to this many rows, all pairs are compared. On a GPU (`resources: {gpus: 1}`), where a comparison costs
    less, a larger value finds all pairs of larger sets.
    clusters: the number of clusters for more rows; default: the square root of the number of rows, so that a row is
    compared with about as many centroids as a cluster has rows. margin: max gap between a row's cosine to its nearest
    centroid and to those of the other clusters it is compared in; probes: max number of clusters per row; seed: of k-means.
    Recall at the defaults and the cost of other values: benchmarks/dedup.md.
    """

    CONSERVES: ClassVar[bool] = True

    threshold: Annotated[float, Field(gt=0, le=1)]
    against: File | None = None
    exact_below: Annotated[int, Field(ge=0)] = 50_000
    clusters: Annotated[int, Field(ge=1)] | None = None
    margin: Annotated[float, Field(ge=0, le=2)] = 0.16
    probes: Annotated[int, Field(ge=1)] = 64
    seed: int = 0

    NAME: ClassVar[str] = "dedup.faiss:FaissDuplicates"
    VERSION: ClassVar[int] = 4
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = DECISIONS_REFERENCES | EDGES_REFERENCES
    TORCH: ClassVar[bool] = True

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "dedup.faiss", id=pa.string())
        check_embedding(inp, "dedup.faiss")
        return DECISIONS

    def preflight(self) -> list[str]:
        problem = packages_problem()
        if importlib.util.find_spec("faiss") is None:
            problem = NOT_INSTALLED
        return [problem] if problem else []

    def run(self, job: Job) -> None:
        rows = read_rows(job.inputs, None, "dedup.faiss")
        files = earlier_files(self.against, check_embedding)
        ids, numbers = number_rows(rows.ids, files)
        num_new = len(rows.ids)
        store = Store(job.work)
        vectors = store_vectors(store, job.inputs, files, numbers)
        leader = same_vectors(vectors, num_new)
        plan = Plan(
            threshold=self.threshold,
            num_new=num_new,
            exact_below=self.exact_below,
            clusters=self.clusters,
            margin=self.margin,
            probes=self.probes,
            seed=self.seed,
        )
        own = np.concatenate([marks(()), *(marks(block.to_pylist()) for block in ids.blocks())])
        with threads() as faiss, workers() as at:
            near = search(faiss, at, store, vectors, np.unique(leader), own, plan)
        edges = with_copies(near, leader, num_new, "same_vector")
        write_edges(job.artifacts, ids, num_new, edges, self.threshold)
        decisions = decide_new(job.inputs, ids, numbers, rows.order, edges)
        write_decisions(job.artifacts, decisions)
        job.emit(decisions)
        job.say(f"{say_counts(decisions)}; {len(edges.a):,} pairs at cosine >= {self.threshold:g}")


def packages_problem() -> str | None:
    """Returns an error message if several installed packages provide `faiss`, else None."""
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
def threads() -> Iterator[Any]:
    """Yields the faiss module, set to torch's number of threads.

    k-means gave bit-identical results with one and two threads. Raises VlpipeError if faiss is missing or ambiguous.
    """
    import torch

    problem = packages_problem()
    if problem:
        raise VlpipeError(problem)
    try:
        import faiss
    except ImportError as error:
        raise VlpipeError(f"{NOT_INSTALLED} ({error})") from error
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(before)
