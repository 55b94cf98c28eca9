"""Decisions on single texts: made over all rows at once, applied row group by row group.

No row is dropped; a later `filter.keep_matched:KeepMatched` drops rows without a kept text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Out, ShardWriter, need, ref, reference_columns
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import with_texts
from vlpipe.stages.common.row import TEXTS

# One row per entry of `texts`.
TEXT_DECISIONS = pa.schema(
    [
        ("id", pa.string()),  # of the row
        ("place", pa.int32()),  # index of the entry in `texts`, from 0
        ("keep", pa.bool_()),
        ("why", pa.string()),  # of a dropped text
        ref("witness", pa.string()),  # id of the row, or name of the evaluation item, that has the same text
        ("similarity", pa.float32()),  # to the witness, 1 is equal
        ("text", pa.string()),  # a dropped text, unmodified
    ]
)
TEXTS_REFERENCES = {"texts.parquet": reference_columns(TEXT_DECISIONS)}

Entry = tuple[str, int]  # id of the row, index in its `texts`


class Fate(NamedTuple):
    """A dropped text, why it is dropped, the row or item that it duplicates, and their similarity."""

    text: str
    why: str
    witness: str
    similarity: float


@dataclass(frozen=True, kw_only=True)
class DropTexts(MapStage):
    """Sets kept=False and `why` on the texts to drop; texts dropped earlier keep their reason.

    The step's log, shown by `vlpipe why`, has the witness of each: the row or evaluation item that it duplicates.
    decisions: `{from: STEP, path: texts.parquet}` of `text_dedup.texts` or `decontamination.decontaminate`. Entries added to
    `texts` after that step are unchanged. Faults: not_in_decisions (the row has no decision), text_changed (the text
    differs from the one decided on).
    """

    decisions: File

    NAME: ClassVar[str] = "dedup.text_decisions:DropTexts"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "text_dedup.decisions", id=pa.string(), texts=TEXTS)
        return inp

    @contextmanager
    def open(self) -> Iterator[Work]:
        known, dropped = load_text_decisions(self.decisions.path, self.decisions.digest)

        def judge(id_: str, texts: list[dict[str, Any]]) -> list[dict[str, Any]]:
            if texts and id_ not in known:
                detail = "the dedup step did not read this row; give both steps the same rows"
                raise RowFault("not_in_decisions", detail)
            return [mark(text, dropped.get((id_, place))) for place, text in enumerate(texts)]

        def work(rows: pa.Table) -> Out:
            both = list(zip(rows["id"].to_pylist(), rows["texts"].to_pylist(), strict=True))
            marked = [judge(id_, texts or []) for id_, texts in both]
            log = [
                {"id": id_, "dropped": fate.text, "witness": fate.witness, "similarity": fate.similarity}
                for id_, texts in both
                for place in range(len(texts or ()))
                if (fate := dropped.get((id_, place))) and texts[place]["kept"] is not False
            ]
            return Out(with_texts(rows, marked), log=log)

        yield work


def write_text_decisions(
    path: str, tables: Iterable[pa.Table], fates: Mapping[Entry, tuple[str, str, float]]
) -> int:
    """Writes one decision per text (columns: TEXT_DECISIONS), in order. Returns the number of texts.

    tables: all rows, with the columns `id` and `texts`.
    fates: (row id, index in `texts`) -> (why, witness, similarity) of the texts to drop.
    """
    with ShardWriter(path, TEXT_DECISIONS) as writer:
        for table in tables:
            both = zip(table["id"].to_pylist(), table["texts"].to_pylist(), strict=True)
            lines = [
                _line(id_, place, text["text"], fates.get((id_, place)))
                for id_, texts in both
                for place, text in enumerate(texts or ())
            ]
            writer.write(pa.Table.from_pylist(lines, TEXT_DECISIONS))
    return writer.num_rows


def _line(id_: str, place: int, text: str, fate: tuple[str, str, float] | None) -> dict[str, Any]:
    why, witness, similarity = fate or (None, None, None)
    return {
        "id": id_,
        "place": place,
        "keep": fate is None,
        "why": why,
        "witness": witness,
        "similarity": similarity,
        "text": None if fate is None else text,
    }


def mark(entry: dict[str, Any], fate: Fate | None) -> dict[str, Any]:
    """Returns the entry of `texts`, marked as dropped if there is a fate and it is not dropped already.

    Raises RowFault `text_changed` if the text differs from that of the fate.
    """
    if fate is None:
        return entry
    if entry["text"] != fate.text:
        raise RowFault(
            "text_changed",
            f"the decision is for {fate.text!r}, but the row now has {entry['text']!r}; apply decisions to "
            "the rows they were made for",
        )
    return entry if entry["kept"] is False else {**entry, "kept": False, "why": fate.why}


@lru_cache(maxsize=1)  # a worker process serves many shards of one step
def load_text_decisions(path: str, digest: str) -> tuple[frozenset[str], dict[Entry, Fate]]:
    """Returns the ids of all rows with decisions, and (row id, index in `texts`) -> Fate of the dropped texts.

    digest: of the file; only a key of the cache.
    """
    known: set[str] = set()
    dropped: dict[Entry, Fate] = {}
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise VlpipeError(
            f"decisions: {path} cannot be read as Parquet ({error}); wanted {{from: STEP, path: texts.parquet}}"
        ) from error
    with file:
        need(file.schema_arrow, f"text_dedup.decisions ({path})", **{f.name: f.type for f in TEXT_DECISIONS})
        for batch in file.iter_batches(
            columns=["id", "place", "keep", "why", "witness", "similarity", "text"]
        ):
            known.update(batch["id"].to_pylist())
            for row in batch.filter(pc.invert(batch["keep"])).to_pylist():
                dropped[row["id"], row["place"]] = Fate(*(row[name] for name in Fate._fields))
    return frozenset(known), dropped
