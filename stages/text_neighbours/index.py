"""An index of the tf-idf vectors of texts, in files that are mapped into memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import Dataset, GatherStage, Job
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.common.texts import FlatTexts
from vlpipe.stages.text_neighbours.vectors import BUCKETS, counts_of, frequencies, weighted

BLOCK_TERMS = 4 << 20  # words whose postings are sorted at once: about 100 MB
MIX = np.uint64(0x9E3779B97F4A7C15)  # a hash of (text, bucket): multiplications by odd numbers, and shifts
# file -> type of its values
FILES = {
    "num_with": np.int64,  # (BUCKETS,) texts that have each bucket
    "ends": np.int64,  # (N,) end of each text's terms
    "terms": np.int32,  # (T,) buckets
    "weights": np.float32,  # (T,)
    "starts": np.int64,  # (BUCKETS + 1,) of each bucket's postings
    "postings": np.int32,  # (P,) numbers of texts
    "text_ends": np.int64,  # (N,) end of each text
    "text": np.uint8,  # UTF-8
    "id_ends": np.int64,  # (N,) end of the id of each text's row
    "id": np.uint8,
}


@dataclass(frozen=True, kw_only=True)
class TfIdfIndex(GatherStage):
    """Writes an index of the kept texts of `sources` ([]: of all), for `text_neighbours.neighbours:TfIdfNeighbours`.

    Emits the numbers of texts, different words and postings (RESULTS). A posting is that a text has a word; of a word in
    more than `max_postings` texts a random part of about this size is kept, by `seed`, so that a look-up takes a limited
    time. Time is linear in the texts; memory is about 150 MB, whatever their number; files take about 16 bytes per word of a
    text, and its text and id. At most 2 ** 31 texts.
    """

    NAME: ClassVar[str] = "text_neighbours.index:TfIdfIndex"
    ROWS_ARE: ClassVar[str] = "figures; the index is an artifact"
    COPIES: ClassVar[bool] = True

    sources: tuple[str, ...] = ()
    max_postings: Annotated[int, Field(ge=1)] = 1000
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "text_neighbours.index", id=pa.string(), texts=TEXTS)
        return RESULTS

    def run(self, job: Job) -> None:
        folder = Path(job.artifacts)
        num_with, num = frequencies(text for _, text in self._texts(job.inputs))
        if not num:
            raise VlpipeError(
                f"text_neighbours.index: no kept text of sources {list(self.sources) or 'any'} in the input"
            )
        num_with.tofile(folder / "num_with")
        self._write_vectors(folder, job.inputs, num_with, num)
        num_postings = self._write_postings(folder, num_with)
        found = {"texts": num, "words": int((num_with > 0).sum()), "postings": num_postings}
        rows = [{"name": name, "value": value, "num_rows": num} for name, value in found.items()]
        job.emit(pa.Table.from_pylist(rows, RESULTS))

    def _texts(self, inputs: Sequence[Dataset]) -> Iterator[tuple[str, str]]:
        """Yields (id of the row, text)."""
        for data in inputs:
            for table in data.batches(["id", "texts"]):
                flat, ids = FlatTexts(table["texts"]), table["id"].to_pylist()
                wanted = flat.still_in(self.sources) if self.sources else flat.kept()
                for row, text, is_in in zip(flat.row, flat.field("text").to_pylist(), wanted, strict=True):
                    if is_in and text:
                        yield ids[row], text

    def _write_vectors(
        self, folder: Path, inputs: Sequence[Dataset], num_with: npt.NDArray[np.int64], num: int
    ) -> None:
        ends = {"ends": 0, "text_ends": 0, "id_ends": 0}
        with ExitStack() as stack:
            files = {name: stack.enter_context((folder / name).open("wb")) for name in (*ends, *_FILLED)}
            for id_, text in self._texts(inputs):
                terms, weights = weighted(counts_of(text), num_with, num)
                parts = text.encode("utf-8", "surrogatepass"), id_.encode("utf-8", "surrogatepass")
                files["terms"].write(terms.astype(np.int32).tobytes())
                files["weights"].write(weights.tobytes())
                files["text"].write(parts[0])
                files["id"].write(parts[1])
                for name, size in zip(ends, (len(terms), *map(len, parts)), strict=True):
                    ends[name] += size
                    files[name].write(np.int64(ends[name]).tobytes())

    def _write_postings(self, folder: Path, num_with: npt.NDArray[np.int64]) -> int:
        """Writes, for each bucket, the numbers of the texts that have it; returns how many there are."""
        sizes = np.zeros(BUCKETS + 1, np.int64)
        for buckets, _ in self._kept(folder, num_with):
            sizes[1:] += np.bincount(buckets, minlength=BUCKETS)
        starts = np.cumsum(sizes)
        starts.tofile(folder / "starts")
        total = int(starts[-1])
        with (folder / "postings").open("wb") as file:
            file.truncate(4 * total)
        if not total:
            return 0
        postings = np.memmap(folder / "postings", np.int32, "r+", shape=(total,))
        free = starts[:-1].copy()
        for buckets, texts in self._kept(folder, num_with):
            order = np.argsort(buckets, kind="stable")
            which, first, times = np.unique(buckets[order], return_index=True, return_counts=True)
            rank = np.arange(len(order)) - np.repeat(first, times)
            postings[np.repeat(free[which], times) + rank] = texts[order]
            free[which] += times
        postings.flush()
        return total

    def _kept(
        self, folder: Path, num_with: npt.NDArray[np.int64]
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Yields (bucket, text) of the postings that are kept, in blocks, in the order of texts."""
        ends, terms = mapped(folder, "ends"), mapped(folder, "terms")
        share = np.minimum(1.0, self.max_postings / np.maximum(1, num_with))
        start = 0
        while start < len(ends):
            begin = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, begin + BLOCK_TERMS, "right")))
            lengths = np.diff(ends[start:stop], prepend=begin)
            buckets = np.asarray(terms[begin : int(ends[stop - 1])], np.int64)
            texts = np.repeat(np.arange(start, stop), lengths)
            kept = uniform(texts, buckets, self.seed) < share[buckets]
            yield buckets[kept], texts[kept]
            start = stop


_FILLED = ("terms", "weights", "text", "id")


def uniform(
    texts: npt.NDArray[np.int64], buckets: npt.NDArray[np.int64], seed: int
) -> npt.NDArray[np.float64]:
    """Returns a pseudo-random number from 0 to 1 for each (text, bucket), a hash of both and the seed."""
    with np.errstate(over="ignore"):
        key = (texts.astype(np.uint64) * MIX) ^ (buckets.astype(np.uint64) + np.uint64(seed) * MIX)
        for shift in (31, 29, 32):
            key = (key ^ (key >> np.uint64(shift))) * MIX
    return (key >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mapped(folder: str | Path, name: str) -> Any:
    """Returns a file of the index, mapped into memory. Raises VlpipeError if it is not there."""
    path = Path(folder) / name
    if not path.exists():
        raise VlpipeError(
            f"{path} does not exist: wanted the artifact of a step text_neighbours.index:TfIdfIndex"
        )
    if not path.stat().st_size:
        return np.zeros(0, FILES[name])
    return np.memmap(path, FILES[name], "r")
