"""Quantises S3D features to video tokens by hierarchical k-means; VideoBERT uses four levels with k = 12.

Sun et al. 2019, https://arxiv.org/abs/1904.01766, section 4.2: 12^4 = 20,736 tokens. A token's id encodes its path
in the tree, child a, then b, c and d, as ((a * 12 + b) * 12 + c) * 12 + d. The tree is an artifact; its leaf centroids can
initialise the token embeddings.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import need, with_field
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, Work
from vlpipe.pipeline.storage.store import Store
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.dedup.faiss import packages_problem, threads
from vlpipe.stages.features.video_tree import Ids, Tree, grow
from vlpipe.stages.features.video_tree_sample import Sample
from vlpipe.stages.features.windows import WRITERS

NODES = pa.schema(
    [
        ("level", pa.int32()),  # 1: below the root
        ("token", pa.int32()),  # path of the node; on the last level, the token id
        ("num_points", pa.int64()),  # points of the sample in this node
        ("distance", pa.float64()),  # root mean square distance to the centroid
    ]
)
VIDEO_TOKENS = pa.list_(
    pa.struct([("start_s", pa.float32()), ("end_s", pa.float32()), ("token", pa.int32())])
)


@dataclass(frozen=True, kw_only=True)
class FitVideoTokens(GatherStage):
    """Fits the tree to a sample of all windows. Artifact: `tree/`, for `VideoTokens`. Rows: its non-empty nodes (NODES).

    k, levels: defaults as in VideoBERT; there are k ** levels tokens. A node with k or fewer distinct points has one child
    per distinct point; the remaining ids are unused. sample: max number of windows, chosen by a hash of row id and window,
    so independent of row order; 500,000 are 24 per leaf and take 1 GB, twice that while reading. seed: of k-means.
    Raises VlpipeError if rows have features of different weights.
    """

    NAME: ClassVar[str] = "features.video_tokens:FitVideoTokens"
    ROWS_ARE: ClassVar[str] = "nodes of the tree"
    COLUMNS: ClassVar[tuple[str, str]] = ("s3d", "s3d_weights")  # of vectors, and of the id of their weights
    TORCH: ClassVar[bool] = True  # FAISS uses torch's number of threads

    k: Annotated[int, Field(ge=2)] = 12
    levels: Annotated[int, Field(ge=1, le=6)] = 4
    sample: Annotated[int, Field(ge=1)] = 500_000
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        check_features(inp, "features.video_tokens", *self.COLUMNS)
        return NODES

    def preflight(self) -> list[str]:
        problem = packages_problem()
        if importlib.util.find_spec("faiss") is None:
            problem = (
                "features.video_tokens needs faiss: pip install 'vlpipe[cpu]', or 'vlpipe[gpu]' with CUDA"
            )
        too_many = self.k**self.levels >= 2**31
        return [
            p
            for p in (
                problem,
                f"k ** levels, the number of tokens, must be below 2^31; got k: {self.k}, levels: {self.levels}"
                if too_many
                else None,
            )
            if p
        ]

    def run(self, job: Job) -> None:
        points, weights, num_seen = self._sample(job)
        with threads() as faiss:
            tree, nodes = grow(faiss, points, self.k, self.levels, self.seed, weights)
        tree.save(Path(job.artifacts) / "tree")
        job.emit(pa.table([list(column) for column in zip(*nodes, strict=True)], schema=NODES))
        live = sum(level == self.levels for level, *_ in nodes)
        all_tokens = self.k**self.levels
        job.say(
            f"sampled {len(points):,} of {num_seen:,} windows; {live:,} of {all_tokens:,} tokens are used"
        )

    def _sample(self, job: Job) -> tuple[npt.NDArray[np.float32], str, int]:
        """Returns sampled windows (N, D), the id of their weights, and the number of all windows. Cached in `job.work`."""
        store = Store(job.work)
        if not store.exists("sample.json"):
            sample, weights = Sample(self.sample, self.seed), set[str]()
            vectors, by = self.COLUMNS
            for data in job.inputs:
                for rows in data.batches(["id", by], want_heavy=[vectors]):
                    weights.update(rows[by].unique().to_pylist())
                    counts, _, _, points = _flat(rows[vectors])
                    sample.add(rows["id"].to_pylist(), counts, points)
            with store.writing("sample.npy", sync_folder=False) as part, open(part, "wb") as file:
                np.save(file, sample.points())
            about = {"weights": _one(weights), "num_seen": sample.num_seen}
            store.write_json("sample.json", about)
        about = store.read_json("sample.json")
        return np.load(store.path("sample.npy")), about["weights"], about["num_seen"]


@dataclass(frozen=True, kw_only=True)
class VideoTokens(MapStage):
    """Adds `video_tokens` (VIDEO_TOKENS): the token and times of each window of `s3d`.

    tree: `{from: fit, path: tree}`. Raises VlpipeError if features come from other weights than those of the tree.
    """

    NAME: ClassVar[str] = "features.video_tokens:VideoTokens"
    READS_HEAVY: ClassVar[tuple[str, ...]] = ("s3d",)
    COLUMNS: ClassVar[tuple[str, str]] = ("s3d", "s3d_weights")

    tree: File

    def schema(self, inp: pa.Schema) -> pa.Schema:
        check_features(inp, "features.video_tokens", *self.COLUMNS)
        return with_field(inp, pa.field("video_tokens", VIDEO_TOKENS))

    @contextmanager
    def open(self) -> Iterator[Work]:
        tree, (vectors, by) = Tree.load(Path(self.tree.path)), self.COLUMNS

        def work(rows: pa.Table) -> pa.Table:
            for weights in rows[by].unique().to_pylist():
                if weights != tree.weights:
                    raise VlpipeError(
                        f"the tree is for features of weights {tree.weights}, but there are rows with features of "
                        f"{weights}; fit a tree on features of these weights"
                    )
            counts, starts, ends, points = _flat(rows[vectors])
            flat = pa.StructArray.from_arrays(
                [starts, ends, pa.array(tree.assign(points), pa.int32())],
                fields=list(VIDEO_TOKENS.value_type),
            )
            offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
            return with_columns(rows, video_tokens=pa.ListArray.from_arrays(offsets, flat, type=VIDEO_TOKENS))

        yield work


def check_features(schema: pa.Schema, who: str, column: str = "s3d", weights: str = "s3d_weights") -> None:
    """Raises SchemaError unless there are columns of vectors and of their weights; any vector width is accepted.

    who: name of the stage, for the error text. column: one of `windows.WRITERS`.
    """
    need(schema, who, **{"id": pa.string(), weights: pa.string()})
    found = schema.field(column).type if column in schema.names else None
    inner = found.value_type if found is not None and pa.types.is_list(found) else None
    names = [field.name for field in inner] if inner is not None and pa.types.is_struct(inner) else []
    if names != ["start_s", "end_s", "feat"]:
        got = f"it is {found}" if found is not None else "there is none"
        raise SchemaError(f"{who} reads column {column!r} as `{WRITERS[column]}` writes it, but {got}")


def _one(weights: set[str]) -> str:
    if not weights:
        raise VlpipeError("features.video_tokens: there are no rows to fit a tree on")
    if len(weights) > 1:
        raise VlpipeError(
            f"features.video_tokens: the features are of {len(weights)} different weights ({', '.join(sorted(weights))}): "
            "a tree needs features of the same weights; fit one tree per weights"
        )
    return weights.pop()


def _flat(column: pa.ChunkedArray) -> tuple[Ids, pa.Array, pa.Array, npt.NDArray[np.float16]]:
    """Returns the number of windows per row, and starts, ends and vectors (M, D) of all windows in order."""
    lists = column.combine_chunks()
    flat = lists.flatten()
    features = flat.field("feat")
    dim = features.type.list_size
    counts = np.asarray(lists.value_lengths().fill_null(0), np.int64)
    vectors = features.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    return counts, flat.field("start_s"), flat.field("end_s"), vectors
