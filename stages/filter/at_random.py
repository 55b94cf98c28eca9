"""Random decisions at the keep rate of a filter: a control that tells a filter's choice from the number of texts it leaves.

Two steps: `RandomCut` counts how many texts of each source the filter kept, `RandomFilter` keeps as many of them, chosen
by a hash of the row's id and the text's place in it. A model trained on them has seen as many texts of each source.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import need, with_field
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, Work
from vlpipe.stages.common.batches import draws
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.texts import FlatTexts, Mask, to_mask
from vlpipe.stages.filter.itm import NOT_MATCHED

AT_RANDOM = "at_random"
KEPT = pa.schema([("source", pa.string()), ("num_kept", pa.int64()), ("num_texts", pa.int64())])
Draws = npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class RandomCut(GatherStage):
    """Emits one row per source (columns: KEPT): the number of texts that an earlier filter judged, and that it kept.

    Artifact `cut.json`, for `RandomFilter`. The texts that the filter judged are those of `sources` with kept=True, and
    those dropped with the code `replaces`. Each has a pseudo-random number, a hash of (seed, row id, place in `texts`); of a
    source with k kept texts, the k texts with the lowest numbers are to be kept. Memory: 16 bytes per text.
    """

    NAME: ClassVar[str] = "filter.at_random:RandomCut"
    ROWS_ARE: ClassVar[str] = "numbers of texts per source"

    seed: int = 0
    sources: tuple[str, ...] = ("web", "synth")
    replaces: str = NOT_MATCHED

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.at_random", id=pa.string(), texts=TEXTS)
        return KEPT

    def preflight(self) -> list[str]:
        is_fine = self.sources and len(set(self.sources)) == len(self.sources)
        return [] if is_fine else [f"sources: wanted each source once, got {list(self.sources)}"]

    def run(self, job: Job) -> None:
        parts: dict[str, list[Draws]] = {source: [] for source in self.sources}
        num_kept = dict.fromkeys(self.sources, 0)
        for data in job.inputs:
            for rows in data.batches(["id", "texts"]):
                texts = FlatTexts(rows["texts"])
                for source in self.sources:
                    mine = judged(texts, [source], self.replaces)
                    num_kept[source] += int((mine & texts.kept()).sum())
                    parts[source].append(draws_of(self.seed, rows["id"], texts, mine))
        num_texts = {source: sum(map(len, found)) for source, found in parts.items()}
        if not any(num_texts.values()):
            raise VlpipeError(
                f"filter.at_random: no text of {', '.join(self.sources)} is kept by a filter or dropped with the code "
                f"{self.replaces!r}; take the rows of a filter, and set `replaces` to its code"
            )
        last = {source: _last(parts.pop(source), num_kept[source]) for source in self.sources}
        cut = {"seed": self.seed, "replaces": self.replaces, "last": last}
        Path(job.artifacts, "cut.json").write_text(json.dumps(cut))
        job.emit(
            pa.table([list(self.sources), list(num_kept.values()), list(num_texts.values())], schema=KEPT)
        )
        job.say("; ".join(f"{s}: {num_kept[s]:,} of {num_texts[s]:,} texts kept" for s in self.sources))


@dataclass(frozen=True, kw_only=True)
class RandomFilter(MapStage):
    """Replaces the decisions of a filter by random ones: it keeps exactly as many texts of each source over all rows.

    Sets `kept` and `why` (`at_random`) of the texts that the filter judged, and removes their scores, which no longer say
    why a text is kept. Other texts (human ones, those dropped for another reason) stay as they are.
    cut: `{from: STEP, path: cut.json}` of a `RandomCut` over the same rows, which has the seed.
    """

    NAME: ClassVar[str] = "filter.at_random:RandomFilter"

    cut: File

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.at_random", id=pa.string(), texts=TEXTS)
        return with_field(inp, pa.field("texts", TEXTS))  # no encoder: there are no scores

    @contextmanager
    def open(self) -> Iterator[Work]:
        cut = read_cut(self.cut.path)
        last = {source: int(mark, 16) for source, mark in cut["last"].items() if mark is not None}

        def work(rows: pa.Table) -> pa.Table:
            texts = FlatTexts(rows["texts"])
            mine = judged(texts, list(cut["last"]), cut["replaces"])
            keep = np.zeros(len(mine), np.bool_)
            for source, mark in last.items():
                ours = judged(texts, [source], cut["replaces"])
                keep[ours] = draws_of(cut["seed"], rows["id"], texts, ours) <= mark
            return redecided(rows, texts, mine, keep, AT_RANDOM)

        yield work


def judged(texts: FlatTexts, sources: Sequence[str], code: str) -> Mask:
    """Returns a mask (M,): True for texts of `sources` that a filter kept (kept=True), or dropped with this code."""
    ours = to_mask(pc.is_in(texts.field("source"), pa.array(sources, pa.string())))
    kept, dropped = to_mask(texts.field("kept")), to_mask(pc.equal(texts.field("why"), code))
    return ours & (kept | dropped)


def draws_of(seed: int, ids: pa.ChunkedArray, texts: FlatTexts, which: Mask) -> Draws:
    """Returns the pseudo-random numbers of the texts in the mask `which` (M,). ids: (N,), of their rows."""
    places = np.arange(len(texts.row)) - np.repeat(np.cumsum(texts.lengths) - texts.lengths, texts.lengths)
    names = ids.to_pylist()
    pairs = zip(texts.row[which].tolist(), places[which].tolist(), strict=True)
    return draws(seed, (f"{names[row]}\x00{place}" for row, place in pairs))


def redecided(rows: pa.Table, texts: FlatTexts, mine: Mask, keep: Mask, why: str) -> pa.Table:
    """Returns `rows` with new decisions and without a score for the texts in the mask `mine` (M,).

    keep: (M,), which of them are kept; the others are dropped with the code `why`.
    """
    ours = pa.array(mine)
    new = {
        "score": pa.nulls(len(mine), pa.float32()),
        "kept": pa.array(keep),
        "why": pc.if_else(pa.array(keep), pa.scalar(None, pa.string()), why),
    }
    return texts.replace(rows, **{name: pc.if_else(ours, new[name], texts.field(name)) for name in new})


def _last(parts: list[Draws], num_kept: int) -> str | None:
    """Returns the largest number of a kept text as hexadecimal digits; None if none is kept. parts: all numbers.

    Raises VlpipeError if another text has the same number.
    """
    if not num_kept:
        return None
    found = np.concatenate(parts)
    parts.clear()
    found.partition(num_kept - 1)
    last = found[num_kept - 1]
    if (found[num_kept:] == last).any():
        raise VlpipeError("filter.at_random: two texts have the same number at the cut; set another `seed`")
    return f"{int(last):016x}"


def read_cut(path: str) -> dict[str, Any]:
    """Returns the content of a `cut.json` of `RandomCut`. Raises VlpipeError if it is another file."""
    try:
        cut: dict[str, Any] = json.loads(Path(path).read_bytes())
        cut["seed"], cut["replaces"], cut["last"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise VlpipeError(
            f"cut: {path} cannot be read ({type(error).__name__}: {error}); wanted {{from: STEP, path: cut.json}} of a "
            "step of filter.at_random:RandomCut"
        ) from error
    return cut
