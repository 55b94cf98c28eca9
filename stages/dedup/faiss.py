"""Rows whose embeddings are nearly parallel: the pairs are searched once and stored with their cosine.

Up to `exact_below` rows all pairs are compared. Above it spherical k-means (FAISS) cuts the rows into clusters, and a row is
compared with those of its own cluster and of each one nearly as near.
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
    decide,
    decision_table,
    placed,
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

# They all install the same top-level folder `faiss`.
PACKAGES = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu12")
NOT_INSTALLED = "dedup.faiss needs faiss: pip install 'vlpipe[cpu]', or 'vlpipe[gpu]' on a machine with CUDA"


@dataclass(frozen=True, kw_only=True)
class FaissDuplicates(GatherStage):
    """Emits one decision per row (columns: DECISIONS), made at `threshold` with `dedup.decide`'s defaults.

    Artifacts: `decisions.parquet`, for `dedup.apply`; `edges.parquet`, from which `dedup.decide` makes other
    decisions without a new search: search at the loosest threshold. It belongs to the encoder: no value suits all.

    against: the ids and embeddings of an earlier kept set (Parquet, a file or a folder, as `vlpipe export` writes):
    rows are compared with it and among themselves, and it stays as it is. Clusters are found anew among both, so that the
    pairs follow from the rows and not from how they came (12 % of the time of 20,000 rows beside 200,000).
    exact_below: up to so many rows all pairs are compared.
    clusters: how many above that; left out: the square root of the number of rows, so that a row is compared with
    about as many centroids as a cluster has rows. margin: how much less than to its nearest centroid a row's cosine may
    be to those of the clusters it visits; probes: of these at most so many; seed: of the k-means. Recall at the
    defaults, and what others cost: benchmarks/dedup.md.
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
    VERSION: ClassVar[int] = 3
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
        order = np.concatenate([np.arange(num_new, len(ids)), numbers[:num_new][rows.order]])
        twins = decide(len(ids), placed(edges, order), "greedy")
        decisions = decision_table(ids, order, twins, numbers[:num_new])
        write_decisions(job.artifacts, decisions)
        job.emit(decisions)
        job.say(f"{say_counts(decisions)}; {len(edges.a):,} pairs at cosine >= {self.threshold:g}")


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
def threads() -> Iterator[Any]:
    """The faiss module with as many threads as torch has; k-means gives the same bits with one or two (measured)."""
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
