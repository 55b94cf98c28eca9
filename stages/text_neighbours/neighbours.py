"""The texts most similar to each text, as a column: retrieved positives (UNIMO), or hard negatives (InterBERT)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Out, need, ref, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.common.texts import FlatTexts
from vlpipe.stages.text_neighbours.index import FILES, mapped
from vlpipe.stages.text_neighbours.vectors import BUCKETS, WORD, counts_of, weighted

NEIGHBOUR = pa.struct(
    [
        pa.field("text", pa.string()),
        ref("row", pa.string(), is_origin=True),
        pa.field("similarity", pa.float32()),
    ]
)
NEIGHBOURS = pa.list_(pa.list_(NEIGHBOUR))  # of each text of the row; null for a dropped text


@dataclass(frozen=True, kw_only=True)
class TfIdfNeighbours(MapStage):
    """Adds `column` (NEIGHBOURS): for each kept text its `num` most similar texts of other rows, most similar first.

    index: of `text_neighbours.index:TfIdfIndex`. Similarity: the cosine of tf-idf vectors, from 0 to 1, at least `above` and
    less than `below`; texts of the same words in the same order are not neighbours, nor is one text listed twice.
    InterBERT's hard negatives have num: 30 and below: 0.5.
    Candidates are the texts that share one of the `query_terms` rarest words, so that a text takes at most query_terms x the
    index's `max_postings` comparisons; their similarities are exact. Counts: `without_neighbours` (texts).
    """

    NAME: ClassVar[str] = "text_neighbours.neighbours:TfIdfNeighbours"
    LOADS_WEIGHTS: ClassVar[bool] = True

    index: File
    num: Annotated[int, Field(ge=1)] = 30
    above: Annotated[float, Field(ge=0, le=1)] = 0.0
    below: Annotated[float, Field(gt=0)] = 1.01
    query_terms: Annotated[int, Field(ge=1)] = 16
    column: str = "neighbours"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "text_neighbours.neighbours", id=pa.string(), texts=TEXTS)
        return with_field(inp, pa.field(self.column, NEIGHBOURS))

    def preflight(self) -> list[str]:
        if self.above < self.below:
            return []
        return [f"above must be less than below = {self.below}, got {self.above}"]

    @contextmanager
    def open(self) -> Iterator[Work]:
        lookup = Lookup(self.index.path)

        def work(rows: pa.Table) -> Out:
            flat, ids = FlatTexts(rows["texts"]), rows["id"].to_pylist()
            found = [
                self._neighbours(lookup, ids[row], text) if kept and text else None
                for row, text, kept in zip(
                    flat.row.tolist(), flat.field("text").to_pylist(), flat.kept().tolist(), strict=True
                )
            ]
            column = flat.nested(pa.array(found, pa.list_(NEIGHBOUR)))
            empty = sum(one == [] for one in found)
            return Out(with_columns(rows, **{self.column: column}), counts={"without_neighbours": empty})

        yield work

    def _neighbours(self, lookup: Lookup, id_: str, text: str) -> list[dict[str, Any]]:
        places, similar = lookup.similar(text, self.query_terms)
        inside = (similar >= self.above) & (similar < self.below) & (similar > 0)
        places, similar = places[inside], similar[inside]
        found: list[dict[str, Any]] = []
        seen = {_said(text)}
        for at in np.lexsort((places, -similar)):
            other, row = lookup.text(int(places[at]))
            if row != id_ and _said(other) not in seen:
                seen.add(_said(other))
                found.append({"text": other, "row": row, "similarity": float(similar[at])})
                if len(found) == self.num:
                    break
        return found


_NONE = np.zeros(0, np.int32)


class Lookup:
    """The index of a folder. Its files are mapped, not read; memory: 16 bytes per bucket."""

    def __init__(self, folder: str) -> None:
        self._files = {name: mapped(folder, name) for name in FILES}
        self._query = np.zeros(BUCKETS, np.float32)
        self._num_with = np.asarray(self._files["num_with"])

    def similar(self, text: str, query_terms: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Returns the numbers of texts that share one of the text's rarest words, ascending, and their similarity to it."""
        files = self._files
        terms, weights = weighted(counts_of(text), self._num_with, len(files["ends"]))
        rare = terms[np.argsort(self._num_with[terms], kind="stable")[:query_terms]]
        lists = [files["postings"][files["starts"][t] : files["starts"][t + 1]] for t in rare]
        places: npt.NDArray[np.int64] = np.unique(np.concatenate([*lists, _NONE])).astype(np.int64)
        if not len(places):
            return places, np.zeros(0, np.float32)
        ends = np.asarray(files["ends"][places])
        starts = np.where(places > 0, files["ends"][places - 1], 0)
        lengths = ends - starts
        first = np.cumsum(lengths) - lengths
        at = np.arange(int(lengths.sum())) + np.repeat(starts - first, lengths)
        self._query[terms] = weights
        products = self._query[files["terms"][at]] * files["weights"][at]
        self._query[terms] = 0
        return places, np.add.reduceat(products, first).astype(np.float32)

    def text(self, place: int) -> tuple[str, str]:
        """Returns text number `place` and the id of its row."""
        return self._string("text", place), self._string("id", place)

    def _string(self, name: str, place: int) -> str:
        ends = self._files[f"{name}_ends"]
        start = int(ends[place - 1]) if place else 0
        return bytes(self._files[name][start : int(ends[place])]).decode("utf-8", "surrogatepass")


def _said(text: str) -> tuple[str, ...]:
    return tuple(WORD.findall(text.lower()))
