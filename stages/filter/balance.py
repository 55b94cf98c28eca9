"""MetaCLIP curation: keeps texts that contain an entry of a metadata list, and subsamples those with only frequent entries.

Xu et al., 2023, https://arxiv.org/abs/2309.16671. Matching: spaces are inserted around , . ; : ? ! ` and an entry matches
as a case-sensitive substring between spaces. Sampling: each entry of a text is drawn with probability min(1, t / count),
where count is the number of texts that contain the entry; a text is kept if at least one of its entries is drawn.
Three steps: `CountEntries` counts, `DrawEntries` adds the draws as columns, `filter.rules` with preset `metaclip` drops
texts. They come after all other filters, because the counts cover only the texts present at that step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import ShardWriter, need, with_field
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, Work
from vlpipe.pipeline.storage.text_lines import lines_of
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.common.texts import FlatTexts
from vlpipe.stages.filter.frequency import read_artifact

ENTRIES = pa.schema([("entry", pa.string()), ("count", pa.int64())])
SPACED = {ord(c): f" {c} " for c in ",.;:?!`"} | {ord(c): " " for c in "\t\n\r"}
Match = Callable[[str], list[int]]  # text -> indices of its entries in the list, ascending


@dataclass(frozen=True, kw_only=True)
class CountEntries(GatherStage):
    """Counts, per entry, the texts of `sources` that contain it; texts that are already dropped are ignored.

    Output rows, and the same in the artifact `counts.parquet` for `DrawEntries`: one per entry (columns: ENTRIES), without
    entries that are in no text.
    entries: a text file with one entry per line, or a JSON list of strings. A text counts once per entry. Memory: the
    Aho-Corasick automaton (170 MB for 500,000 entries of up to 14 letters) and 8 bytes per entry.
    """

    ROWS_ARE: ClassVar[str] = "entries and their counts"

    entries: File
    sources: tuple[str, ...] = ("web",)

    NAME: ClassVar[str] = "filter.balance:CountEntries"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.balance", texts=TEXTS)
        return ENTRIES

    def run(self, job: Job) -> None:
        entries = read_entries(self.entries.path)
        match, counts, num_texts = matcher(entries), np.zeros(len(entries), np.int64), 0
        for data in job.inputs:
            for rows in data.batches(["texts"]):
                texts = FlatTexts(rows["texts"])
                for text in texts.field("text").filter(pa.array(texts.still_in(self.sources))).to_pylist():
                    counts[match(text)] += 1
                    num_texts += 1
        present = np.flatnonzero(counts)
        table = pa.table([[entries[i] for i in present], counts[present]], schema=ENTRIES)
        with ShardWriter(f"{job.artifacts}/counts.parquet", ENTRIES) as writer:
            writer.write(table)
        job.emit(table)
        job.say(f"{num_texts:,} texts contain {len(present):,} of {len(entries):,} entries")


@dataclass(frozen=True, kw_only=True)
class DrawEntries(MapStage):
    """Adds two columns with one value per text: `num_entries`, how many entries it contains, and `drawn` (bool).

    `drawn`: at least one of its entries is drawn, each with probability min(1, t / count).

    Both are null for texts that are already dropped or not of `sources`. A draw depends only on (seed, row id, entry).
    counts: `{from: STEP, path: counts.parquet}` of a `CountEntries` over the same rows. t: entries in at most t texts are
    always drawn; MetaCLIP uses 20,000 for 400 M pairs and 170,000 for 2.5 B.
    """

    counts: File
    t: Annotated[int, Field(ge=1)] = 20_000
    seed: int = 0
    sources: tuple[str, ...] = ("web",)

    NAME: ClassVar[str] = "filter.balance:DrawEntries"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.balance", id=pa.string(), texts=TEXTS)
        inp = with_field(inp, pa.field("num_entries", pa.list_(pa.int32())))
        return with_field(inp, pa.field("drawn", pa.list_(pa.bool_())))

    @contextmanager
    def open(self) -> Iterator[Work]:
        entries, counts, match = load_entries(self.counts.path, self.counts.digest)

        def work(rows: pa.Table) -> pa.Table:
            texts, ids = FlatTexts(rows["texts"]), rows["id"].to_pylist()
            ours = texts.still_in(self.sources)
            values = texts.field("text").to_pylist()
            found = [match(text) if mine else [] for text, mine in zip(values, ours, strict=True)]
            drawn = [
                any(draw(self.seed, ids[row], entries[i]) * int(counts[i]) < self.t for i in matched)
                for row, matched in zip(texts.row.tolist(), found, strict=True)
            ]
            num = pa.array(np.array([len(matched) for matched in found], np.int32), mask=~ours)
            drew = pa.array(np.array(drawn, np.bool_), mask=~ours)
            return with_columns(rows, num_entries=texts.nested(num), drawn=texts.nested(drew))

        yield work


def draw(seed: int, row_id: str, entry: str) -> float:
    """Returns a pseudo-random number, uniform in [0, 1): a hash of the arguments."""
    digest = hashlib.blake2b(f"{seed}\x00{row_id}\x00{entry}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def read_entries(path: str) -> list[str]:
    """Returns the unique entries in file order. Raises VlpipeError if the file is malformed or has none."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        lines = json.loads(text) if path.endswith(".json") else lines_of(text)
    except (ValueError, RecursionError) as error:
        raise VlpipeError(f"filter.balance: the entries in {path} cannot be read: {error}") from error
    if not (isinstance(lines, list) and all(isinstance(line, str) for line in lines)):
        raise VlpipeError(
            f'filter.balance: {path} must contain a JSON list of texts, such as ["dog", "red car"]'
        )
    entries = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not entries:
        raise VlpipeError(
            f"filter.balance: {path} has no entry; wanted a text file with one entry per line, or a JSON list of texts"
        )
    return entries


def spaced(text: str) -> str:
    return f" {text} ".translate(SPACED)


def matcher(entries: Sequence[str]) -> Match:
    """Returns a function: text -> indices of the entries that it contains, ascending, each once.

    It reads a text once (Aho-Corasick), however many entries there are. Raises VlpipeError without pyahocorasick.
    """
    try:
        import ahocorasick
    except ImportError as error:
        raise VlpipeError("filter.balance needs pyahocorasick: pip install 'vlpipe[web]'") from error
    automaton = ahocorasick.Automaton()
    for place, entry in enumerate(entries):
        automaton.add_word(f" {entry} ", place)
    automaton.make_automaton()

    def match(text: str) -> list[int]:
        return sorted({place for _, place in automaton.iter(spaced(text))})

    return match


@lru_cache(maxsize=1)  # a worker process serves many shards of one step
def load_entries(path: str, digest: str) -> tuple[list[str], npt.NDArray[np.int64], Match]:
    table = read_artifact(path, ENTRIES, "counts.parquet")
    entries = table["entry"].to_pylist()
    return entries, np.asarray(table["count"], np.int64), matcher(entries) if entries else lambda text: []
