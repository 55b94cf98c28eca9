"""Drops the rows that a dedup step marked as duplicates. Only the small decisions table is shared between workers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Out, Reject, need, ref, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.row import DONORS, TEXTS
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.dedup.decisions import DECISIONS
from vlpipe.stages.dedup.image_counts import COUNTS, UNKNOWN

Gains = tuple[list[dict[str, Any]], list[list[str]]]  # texts, and per text the ids of its source rows


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The decisions in memory.

    dropped: id -> (why, detail). gained: id -> texts that a kept row gets from its duplicates, with their source rows.
    known: sorted 8-byte hashes of all N ids. counts: (N, 3), COUNTS of these rows, UNKNOWN for null. A kept row takes 32
    bytes.
    """

    dropped: dict[str, tuple[str, str]]
    gained: dict[str, Gains]
    known: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.int64]

    def judge(self, id_: str, mark: np.uint64) -> Reject | None:
        """Returns the reject of a duplicate or of a row without a decision; None if the row is kept.

        mark: the hash of `id_`, from `marks`.
        """
        if id_ in self.dropped:
            return Reject(id_, "filtered", *self.dropped[id_])
        at = int(np.searchsorted(self.known, mark))
        if at == len(self.known) or self.known[at] != mark:
            return Reject(
                id_,
                "fault",
                "not_in_decisions",
                "the dedup step did not read this row; give both steps the same rows",
            )
        return None

    def counts_of(self, marks: npt.NDArray[np.uint64]) -> dict[str, pa.Array]:
        """Returns COUNTS of rows with a decision, null where UNKNOWN. marks: hashes of their ids, from `marks`."""
        values = self.counts[np.searchsorted(self.known, marks)]
        return {
            name: pa.array(each, mask=each == UNKNOWN) for name, each in zip(COUNTS, values.T, strict=True)
        }


@dataclass(frozen=True, kw_only=True)
class DropDuplicates(MapStage):
    """Rejects duplicates (filtered, with the decision's `why`) and rows without a decision (fault, `not_in_decisions`).

    decisions: `{from: STEP, path: decisions.parquet}` of `dedup.exact`, `dedup.faiss`, `dedup.redecide` or
    `decontamination.decontaminate`. merge_texts: the same value as in `dedup.redecide`. If true, a kept row gets the texts
    of its duplicates, appended to its own, and the column `donors` lists the ids of each text's source rows (null for the
    row's own texts). `vlpipe forget` uses `donors`.
    Adds `image_rows`, `image_hosts` and `image_texts` (see `dedup.image_counts`), null if the decisions lack them. A rule
    such as `{id: placeholder, column: image_texts, op: "<=", value: 10}` of `filter.rules` then rejects placeholders.
    """

    decisions: File
    merge_texts: bool = False

    NAME: ClassVar[str] = "dedup.apply:DropDuplicates"
    VERSION: ClassVar[int] = 2  # 2: counts of rows, hosts and texts

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "dedup.apply", id=pa.string())
        for name in COUNTS:
            inp = with_field(inp, pa.field(name, pa.int64()))
        if not self.merge_texts:
            return inp
        need(inp, "dedup.apply (merge_texts)", texts=TEXTS)
        return with_field(inp, ref("donors", DONORS))

    @contextmanager
    def open(self) -> Iterator[Work]:
        verdicts = load_verdicts(self.decisions.path, self.decisions.digest)
        if verdicts.gained and not self.merge_texts:
            raise VlpipeError(
                f"dedup.apply: the decisions give {len(verdicts.gained):,} rows the texts of their duplicates, but "
                "`merge_texts` is false here; set it to true in this step, or to false in dedup.redecide"
            )

        def work(rows: pa.Table) -> Out:
            ids = rows["id"].to_pylist()
            hashes = marks(ids)
            found = [verdicts.judge(i, mark) for i, mark in zip(ids, hashes, strict=True)]
            keep = np.array([reject is None for reject in found], np.bool_)
            kept = with_columns(rows.filter(pa.array(keep)), **verdicts.counts_of(hashes[keep]))
            if self.merge_texts:
                kept = with_gained(kept, verdicts.gained)
            return Out(kept, [r for r in found if r is not None])

        yield work


def with_gained(rows: pa.Table, gained: dict[str, Gains]) -> pa.Table:
    """Returns kept rows with the texts that they gain appended to `texts`, and their source rows to `donors`.

    gained: as in `Verdicts`. The column `donors` is added if it is missing.
    """
    ids = rows["id"].to_pylist()
    if "donors" not in rows.schema.names:
        rows = rows.append_column("donors", pa.nulls(rows.num_rows, DONORS))
    if not any(i in gained for i in ids):
        return rows
    texts, donors = rows["texts"].to_pylist(), rows["donors"].to_pylist()
    for row, id_ in enumerate(ids):
        if id_ in gained:
            new, givers = gained[id_]
            own, known = texts[row] or [], donors[row] or []
            texts[row], donors[row] = own + new, known + [None] * (len(own) - len(known)) + givers
    for name, values, kind in (("texts", texts, TEXTS), ("donors", donors, DONORS)):
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values, kind))
    return rows


def marks(ids: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Returns an 8-byte hash per id, (N,); the probability of any collision among 10 M ids is 3 in a million."""
    digests = b"".join(
        hashlib.blake2b(i.encode("utf-8", "surrogatepass"), digest_size=8).digest() for i in ids
    )
    return np.frombuffer(digests, np.uint64)


@lru_cache(maxsize=1)  # a worker process serves many shards of one step
def load_verdicts(path: str, digest: str) -> Verdicts:
    dropped: dict[str, tuple[str, str]] = {}
    gained: dict[str, Gains] = {}
    known, counts = [np.empty(0, np.uint64)], [np.empty((0, len(COUNTS)), np.int64)]
    with _open_decisions(path) as file:
        have = [name for name in COUNTS if name in file.schema_arrow.names]
        for batch in file.iter_batches(
            columns=["id", "keep", "why", "witness", "similarity", "gained", "donors", *have]
        ):
            known.append(marks(batch["id"].to_pylist()))
            values = [batch[name] if name in have else pa.nulls(len(batch), pa.int64()) for name in COUNTS]
            counts.append(np.stack([np.asarray(v.fill_null(UNKNOWN)) for v in values], axis=1))
            for row in batch.filter(pc.invert(batch["keep"])).to_pylist():
                dropped[row["id"]] = (row["why"], _detail(row))
            for row in batch.filter(pc.is_valid(batch["gained"])).to_pylist():
                gained[row["id"]] = row["gained"], row["donors"]
    for taker, (_, donors) in gained.items():
        for donor, num in Counter(id_ for each in donors for id_ in each or ()).items():
            if donor in dropped:  # not if it was merged into the dropped row by an earlier dedup
                why, detail = dropped[donor]
                took = "its text was" if num == 1 else f"{num} of its texts were"
                dropped[donor] = why, f"{detail}; {took} added to row {taker}"
    at = np.concatenate(known)
    order = np.argsort(at, kind="stable")
    return Verdicts(dropped, gained, at[order], np.concatenate(counts)[order])


def _detail(row: dict[str, Any]) -> str:
    """Returns the detail of a reject. `vlpipe forget` finds ids in details by the words "duplicate of" before them."""
    if row["similarity"] is None:
        return f"duplicate of {row['witness']} through a chain of similar rows; the two were not compared"
    return f"duplicate of {row['witness']}, similarity {row['similarity']:.3f}"


@contextmanager
def _open_decisions(path: str) -> Iterator[pq.ParquetFile]:
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise VlpipeError(
            f"decisions: {path} cannot be read as Parquet ({error}); "
            "wanted {from: STEP, path: decisions.parquet}"
        ) from error
    with file:
        read = {
            f.name: f.type for f in DECISIONS if f.name not in ("donors", *COUNTS)
        }  # older files have `donors` in another type, with only nulls, and no counts
        need(file.schema_arrow, f"dedup.apply ({path})", **read)
        yield file
