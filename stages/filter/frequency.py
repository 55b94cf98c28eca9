"""Frequency of each text over all rows. COYO-700M drops texts that occur more than 10 times, ALIGN those of >10 images.

Two steps: `CountTexts` counts over all rows, `TextCounts` adds each text's count as a column. A rule of `filter.rules`
then drops frequent texts. Texts are identified by a 16-byte blake2b hash (the probability of any collision among 10^9
texts is about 10^-21), so counts are exact.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import ShardWriter, need, read_batches, with_field
from vlpipe.pipeline.stage import Dataset, GatherStage, Job, MapStage, Work
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.common.texts import FlatTexts

COUNTS = pa.schema([("hash", pa.binary(16)), ("count", pa.int64())])
SEEN = pa.schema([("count", pa.int64()), ("num_texts", pa.int64())])
BUCKET_TEXTS = 4_000_000  # hashes sorted at once: 64 MB, twice that while sorting

Hashes = npt.NDArray[np.bytes_]  # (M,) S16


@dataclass(frozen=True, kw_only=True)
class CountTexts(GatherStage):
    """Counts the occurrences of each text of `sources` over all rows; texts that are already dropped are ignored.

    Artifact `counts.parquet`, for `TextCounts`: columns COUNTS, one row per text that occurs at least twice. Output rows:
    columns SEEN, the number of distinct texts with each count. Texts are equal if they differ only in whitespace. Memory:
    one shard's texts, then 128 MB; disk: 16 bytes per text. Each shard's hashes are stored in the step's work folder, so
    a killed run loses the work on at most one shard.
    """

    ROWS_ARE: ClassVar[str] = "how many texts have each count"

    sources: tuple[str, ...] = ("web",)

    NAME: ClassVar[str] = "filter.frequency:CountTexts"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.frequency", texts=TEXTS)
        return SEEN

    def run(self, job: Job) -> None:
        shards = [(data, k) for data in job.inputs for k in range(len(data.shards))]
        parts = [np.load(self._part(job, data, k), mmap_mode="r") for data, k in shards]
        seen: Counter[int] = Counter()
        with ShardWriter(f"{job.artifacts}/counts.parquet", COUNTS) as writer:
            for hashes in buckets(parts):
                found, counts = np.unique(hashes, return_counts=True)
                seen.update(
                    dict(zip(*(v.tolist() for v in np.unique(counts, return_counts=True)), strict=True))
                )
                writer.write(count_table(found[counts > 1], counts[counts > 1]))
        rows = sorted(seen.items())
        job.emit(pa.table([[c for c, _ in rows], [n for _, n in rows]], schema=SEEN))
        job.say(f"{sum(c * n for c, n in rows):,} texts, {sum(n for _, n in rows):,} distinct")

    def _part(self, job: Job, data: Dataset, k: int) -> str:
        path = os.path.join(job.work, f"hashes-{data.shards[k].digest}.npy")
        if not os.path.exists(path):
            found = [np.empty(0, "S16")]
            for rows in read_batches(data.store, data.shards[k], ["texts"]):
                texts = FlatTexts(rows["texts"])
                ours = pa.array(texts.still_in(self.sources))
                found.append(hash_texts(texts.field("text").filter(ours).to_pylist()))
            np.save(f"{path}.part.npy", np.sort(np.concatenate(found)))
            os.replace(f"{path}.part.npy", path)
        return path


def hash_texts(texts: Iterable[str | None]) -> Hashes:
    """Returns 16-byte hashes (M,) of the whitespace-normalised texts, in input order."""
    digests = b"".join(
        hashlib.blake2b(" ".join((t or "").split()).encode(), digest_size=16).digest() for t in texts
    )
    return np.frombuffer(digests, "S16")


def buckets(parts: Sequence[Hashes]) -> Iterator[Hashes]:
    """Yields the hashes of all `parts` in buckets, by ranges of their first two bytes: equal hashes are in one bucket.

    parts: each sorted. A bucket has about BUCKET_TEXTS hashes or fewer, and is not sorted.
    """
    num = min(65536, 1 + sum(map(len, parts)) // BUCKET_TEXTS)
    marks = np.array([(k * 65536 // num).to_bytes(2, "big") for k in range(1, num)], "S16")
    bounds = [[0, *np.searchsorted(part, marks).tolist(), len(part)] for part in parts]
    for k in range(num):
        yield np.concatenate(
            [np.empty(0, "S16"), *(p[b[k] : b[k + 1]] for p, b in zip(parts, bounds, strict=True))]
        )


def count_table(hashes: Hashes, counts: npt.NDArray[np.int64]) -> pa.Table:
    data = pa.py_buffer(np.ascontiguousarray(hashes).tobytes())
    return pa.table(
        [pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(hashes), [None, data]), counts],
        schema=COUNTS,
    )


@dataclass(frozen=True, kw_only=True)
class TextCounts(MapStage):
    """Adds `text_count`: list<int64>, the number of occurrences of each text; null for texts that were not counted.

    counts: `{from: STEP, path: counts.parquet}` of a `CountTexts` over the same rows. sources: the same as in that step.
    """

    counts: File
    sources: tuple[str, ...] = ("web",)

    NAME: ClassVar[str] = "filter.frequency:TextCounts"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.frequency", id=pa.string(), texts=TEXTS)
        return with_field(inp, pa.field("text_count", pa.list_(pa.int64())))

    @contextmanager
    def open(self) -> Iterator[Work]:
        hashes, counts = load_counts(self.counts.path, self.counts.digest)

        def work(rows: pa.Table) -> pa.Table:
            texts = FlatTexts(rows["texts"])
            wanted = hash_texts(texts.field("text").to_pylist())
            at = np.minimum(np.searchsorted(hashes, wanted), max(len(hashes) - 1, 0))
            known = hashes[at] == wanted if len(hashes) else np.zeros(len(wanted), np.bool_)
            found = np.where(known, counts[at] if len(counts) else 1, 1)
            values = pa.array(found.astype(np.int64), mask=~texts.still_in(self.sources))
            return with_columns(rows, text_count=texts.nested(values))

        yield work


@lru_cache(maxsize=1)  # a worker process serves many shards of one step
def load_counts(path: str, digest: str) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Returns the hashes, sorted, and the counts, both (M,), of a `counts.parquet`; 24 bytes per repeated text.

    digest: of the file; only a key of the cache.
    """
    table = read_artifact(path, COUNTS, "counts.parquet")
    hashes = table["hash"].combine_chunks()
    return np.frombuffer(b"".join(hashes.to_pylist()), "S16"), np.asarray(table["count"], np.int64)


def read_artifact(path: str, schema: pa.Schema, name: str) -> pa.Table:
    """Reads a step's Parquet artifact. Raises VlpipeError if it is unreadable or its column names are not those of `schema`.

    name: of the artifact, for error texts.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise VlpipeError(
            f"counts: {path} cannot be read as Parquet ({error}); wanted {{from: STEP, path: {name}}}"
        ) from error
    if table.schema.names != schema.names:
        raise VlpipeError(
            f"counts: {path} must have the columns {', '.join(schema.names)}, but has {', '.join(table.schema.names)}; "
            f"wanted {{from: STEP, path: {name}}} of the step that counts"
        )
    return table
