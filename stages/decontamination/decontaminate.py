"""Finds rows and texts that are also in an evaluation set, each with the matching item, and counts them per set."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import ShardWriter, need, read_batches, write_shard
from vlpipe.pipeline.stage import Dataset, GatherStage, Job
from vlpipe.pipeline.storage.store import Store
from vlpipe.stages.common.phash import MAX_DISTANCE
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.decontamination.compare import MATCHES, MATCHES_REFERENCES, Comparison
from vlpipe.stages.decontamination.ngrams import Captions
from vlpipe.stages.decontamination.sets import EvalSet, Items, from_files, from_rows
from vlpipe.stages.dedup.decisions import DECISIONS, DECISIONS_REFERENCES
from vlpipe.stages.dedup.looks import LOOK
from vlpipe.stages.text_dedup.decisions import TEXTS_REFERENCES, Entry, write_text_decisions

Fate = tuple[str, str, float]  # why it is dropped, witness, similarity


@dataclass(frozen=True, kw_only=True)
class Decontaminate(GatherStage):
    """Finds the rows whose image is in an evaluation set, and the texts that are in one.

    Artifacts: `decisions.parquet` (decisions on rows), for `dedup.apply:DropDuplicates`; `texts.parquet` (decisions on
    texts), for `text_dedup.decisions:DropTexts`; `matches.parquet` (columns: MATCHES), all matches.
    Emits the number of rows and texts that each set removes, in total and per kind of match (columns: RESULTS).

    The first step of `from` is the training data; each further one is an evaluation set, compared by all kinds of data
    (sha256, image, embedding, texts) that both have. sets: evaluation sets in files.

    max_distance: max number of differing bits between two 64-bit pHashes; null: images are compared by their bytes only.
    max_colour_gap: max difference (0 to 255) of the mean colour in each cell of a 4 x 4 grid; 255: no check.
    Images are decoded in one process (3 ms for 640 x 480), unless an earlier step has added `looks`
    (`dedup.looks:PictureLooks`) on all CPUs. Of 600 copies of Flickr8k photos (same bytes, JPEG at quality 50
    and 20, PNG, half and double size) all 600 were found, and none of 4,000 other photos. COYO-700M uses distance 0. Crops,
    flips and heavy edits need embeddings.
    threshold: min cosine of embeddings; null: they are not compared. It depends on the encoder, so there is no
    default: DataComp uses 0.604169 for isc_ft_v107 (https://arxiv.org/abs/2304.14108). Search is exhaustive: 512 rows
    against 200,000 images take 0.4 s on one core for pHashes, 2 s for cosines of 512 dimensions.
    ngram_words, min_words: a text matches an evaluation text if they share `ngram_words` consecutive words, or if it
    contains a shorter evaluation text as a whole; evaluation texts of fewer than `min_words` words are not compared.
    GPT-3 (https://arxiv.org/abs/2005.14165, appendix C) uses 8 to 13 words, by the length of the set's texts;
    captions are short. With 8 and 5, 5,000 captions of Flickr8k match none of 25,833 alt-texts of CC3M and LAION,
    and 206 of the 20,000 captions of its other photos, 39 of them equal; with 13 and 5, 87.
    """

    ROWS_ARE: ClassVar[str] = "figures; decisions are an artifact"

    sets: tuple[EvalSet, ...] = ()
    max_distance: Annotated[int, Field(ge=0, le=MAX_DISTANCE)] | None = 10
    max_colour_gap: Annotated[int, Field(ge=0, le=255)] = 16
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    ngram_words: Annotated[int, Field(ge=1)] = 8
    min_words: Annotated[int, Field(ge=1)] = 5

    NAME: ClassVar[str] = "dedup.decontaminate:Decontaminate"
    VERSION: ClassVar[int] = 3
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = (
        DECISIONS_REFERENCES | TEXTS_REFERENCES | MATCHES_REFERENCES
    )

    def names_in_key(self, names: Sequence[str]) -> Sequence[str]:
        return names[1:]  # evaluation sets have the names of their steps

    def schema(self, inp: pa.Schema) -> pa.Schema:
        who = "decontamination.decontaminate"
        need(inp, who, id=pa.string())
        if any(s.images for s in self.sets):
            need(inp, who, sha256=pa.string())
        if any(s.images for s in self.sets) and self.max_distance is not None:
            need(inp, who, **({"looks": LOOK} if "looks" in inp.names else {"image": pa.binary()}))
        if any(s.embeddings for s in self.sets) and "embedding" not in inp.names:
            need(inp, who, embedding=pa.list_(pa.float32()))  # raises, and lists the columns
        if any(s.texts for s in self.sets):
            need(inp, who, texts=TEXTS)
        return RESULTS

    def preflight(self) -> list[str]:
        problems = []
        for s in self.sets:
            if not re.fullmatch(r"[\w.-]+", s.name):
                problems.append(
                    f"sets: the name {s.name!r} becomes part of a reject code: use letters, digits and . _ - only"
                )
            if not (s.images or s.embeddings or s.texts):
                problems.append(f"sets: {s.name!r} has neither images, embeddings nor texts")
            if s.split is not None and s.texts is None:
                problems.append(
                    f"sets: {s.name!r} has a `split`, which applies to `texts` only: set `texts`, or remove it"
                )
            if s.embeddings and self.threshold is None:
                problems.append(f"sets: {s.name!r} has embeddings: set the `threshold` for their encoder")
        if self.min_words > self.ngram_words:
            problems.append(
                f"min_words must be at most ngram_words, got min_words: {self.min_words}, ngram_words: {self.ngram_words}; "
                "else evaluation texts of a length in between would not be compared"
            )
        return problems

    def run(self, job: Job) -> None:
        rows, *others = job.inputs
        sets = self._load(rows.schema, others)
        compare = self._comparison(sets, "looks" in rows.schema.names)
        for items, captions in zip(sets, compare.captions, strict=True):
            short = f" ({captions.num_short:,} under {self.min_words} words)" if captions else ""
            job.say(f"{items.said()}{short}")
        matches = _match_all(job, rows, compare)
        num_unread = pc.sum(pc.is_null(matches["set"])).as_py() or 0
        if num_unread:
            job.say(f"{num_unread:,} image(s) of the rows cannot be decoded: compared by their bytes only")
        with ShardWriter(f"{job.artifacts}/matches.parquet", MATCHES) as writer:
            writer.write(matches)
        rows_out, texts_out = _fates(matches)
        _write_decisions(f"{job.artifacts}/decisions.parquet", rows, rows_out)
        num_texts = 0
        if "texts" in rows.schema.names:
            tables = rows.batches(["id", "texts"])
            num_texts = write_text_decisions(f"{job.artifacts}/texts.parquet", tables, texts_out)
        results = list(_results(matches, sets, rows.num_rows, num_texts))
        job.emit(pa.Table.from_pylist(results, RESULTS))

    def _load(self, schema: pa.Schema, others: Sequence[Dataset]) -> list[Items]:
        pictures = self.max_distance is not None
        sets = [from_files(s, pictures=pictures) for s in self.sets]
        sets += [from_rows(d, schema, pictures=pictures, vectors=self.threshold is not None) for d in others]
        if not sets:
            raise VlpipeError(
                "there is no evaluation set: list files in `sets`, or evaluation steps after the first step in `from`"
            )
        twice = [name for name, num in Counter(s.name for s in sets).items() if num > 1]
        if twice:
            raise VlpipeError(f"evaluation sets must have different names; twice: {', '.join(twice)}")
        return sets

    def _comparison(self, sets: Sequence[Items], stored_looks: bool) -> Comparison:
        return Comparison(
            sets=sets,
            captions=[Captions(s.texts, self.ngram_words, self.min_words) if s.texts else None for s in sets],
            max_distance=self.max_distance,
            max_colour_gap=self.max_colour_gap,
            threshold=self.threshold,
            stored_looks=stored_looks,
        )


def _match_all(job: Job, rows: Dataset, compare: Comparison) -> pa.Table:
    """Returns all matches (columns: MATCHES), in row order.

    Each shard's matches are stored in `job.work`, so a killed run loses the work on at most one shard.
    """
    store = Store(job.work)
    parts = [MATCHES.empty_table()]
    for k, shard in enumerate(rows.shards):
        part = f"matches-{k:06d}-{shard.digest}.parquet"
        if not os.path.exists(store.path(part)):
            tables = read_batches(rows.store, shard, compare.light, compare.heavy)
            write_shard(store, part, map(compare.matches, tables), MATCHES)
        parts.append(pq.read_table(store.path(part), page_checksum_verification=True).cast(MATCHES))
    return pa.concat_tables(parts)


def _fates(matches: pa.Table) -> tuple[dict[str, Fate], dict[Entry, Fate]]:
    """Returns (id -> Fate, (id, index in `texts`) -> Fate) of rows and texts to drop. The first set that matches decides."""
    rows: dict[str, Fate] = {}
    texts: dict[Entry, Fate] = {}
    for m in matches.filter(pc.is_valid(matches["set"])).to_pylist():
        fate = (f"in_eval:{m['set']}", m["witness"], m["similarity"])
        if m["place"] is None:
            rows.setdefault(m["id"], fate)
        else:
            texts.setdefault((m["id"], m["place"]), fate)
    return rows, texts


def _write_decisions(path: str, rows: Dataset, fates: Mapping[str, Fate]) -> None:
    with ShardWriter(path, DECISIONS) as writer:
        for table in rows.batches(["id"]):
            decided = [_decision(id_, fates.get(id_)) for id_ in table["id"].to_pylist()]
            writer.write(pa.Table.from_pylist(decided, DECISIONS))


def _decision(id_: str, fate: Fate | None) -> dict[str, Any]:
    why, witness, similarity = fate or (None, None, None)
    return {
        "id": id_,
        "keep": fate is None,
        "why": why,
        "witness": witness,
        "similarity": similarity,
        "group": witness or id_,
    }


def _results(
    matches: pa.Table, sets: Sequence[Items], num_rows: int, num_texts: int
) -> Iterator[dict[str, Any]]:
    """Yields the counts removed_rows, removed_rows/SET, removed_rows/SET/HOW (`removed_rows/coco/picture`); same for texts.

    num_rows, num_texts: of the training data, kept and removed.
    """
    found = matches.filter(pc.is_valid(matches["set"])).to_pylist()
    for what, total in (("rows", num_rows), ("texts", num_texts)):
        hits = [m for m in found if (m["place"] is None) == (what == "rows")]
        by_set = Counter(m["set"] for m in hits)
        by_how = Counter((m["set"], m["how"]) for m in hits)
        values = {"": len({(m["id"], m["place"]) for m in hits})}
        for items in sets:
            if items.compared[what]:
                values[f"/{items.name}"] = by_set[items.name]
                values |= {f"/{items.name}/{how}": by_how[items.name, how] for how in items.compared[what]}
        for name, value in values.items():
            yield {"name": f"removed_{what}{name}", "value": value, "num_rows": total}
