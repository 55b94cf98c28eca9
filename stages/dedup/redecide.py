"""Decides which rows to keep from stored pairs: another threshold, rule or keep order takes seconds, without a search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import Dataset, GatherStage, Job
from vlpipe.stages.common.row import DONORS, TEXTS
from vlpipe.stages.dedup.decisions import (
    DECISIONS,
    DECISIONS_REFERENCES,
    Rule,
    decide,
    decision_table,
    groups_of,
    placed,
    say_counts,
    write_decisions,
)
from vlpipe.stages.dedup.edges import Places, edges_of, read_edges
from vlpipe.stages.dedup.image_counts import image_counts, with_counts
from vlpipe.stages.dedup.keep_order import Keep, keys_of, read_rows
from vlpipe.stages.dedup.row_ids import BLOCK_ROWS, Names, joined, packed

GIANT_SHARE, GIANT_ROWS = 0.01, 100  # warn of a group larger than both limits

Given = tuple[dict[str, Any], list[str]]  # a text, and the ids of its source rows


@dataclass(frozen=True, kw_only=True)
class Decide(GatherStage):
    """Emits one decision per row (columns: DECISIONS). Artifact `decisions.parquet`: the same, for `dedup.apply`.

    edges: `{from: STEP}`, a step of `dedup.faiss` or `dedup.exact` over the same rows.
    threshold: min similarity of a duplicate, not below that of the search; default: that of the search.
    rule: greedy (every dropped row has a similar kept row, its witness), semdedup (a row is dropped if any better row is
    similar, even a dropped one) or components (one row is kept per connected component). In this order, each rule drops
    all rows that the previous one drops, or more.
    keep: the keep order, best first: `[score desc, pixels desc, source: [human, web], sha256]`. Keys are columns, or
    pixels, score and source (of `texts`). Ties are broken by id. Default: these four, if the rows have them.
    merge_texts: a kept row gets the texts of its dropped duplicates that it does not have yet. max_texts: an image under
    more different texts (`image_texts`, see `dedup.image_counts`) is a placeholder, and none of its texts is merged. The
    default is COYO-700M's limit on images per text; ALIGN's limit on texts per image is 1,000. To drop placeholders, add a
    rule on `image_texts` after `dedup.apply`.
    """

    CONSERVES: ClassVar[bool] = True

    edges: File
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    rule: Rule = "greedy"
    keep: Keep | None = None
    merge_texts: bool = False
    max_texts: Annotated[int, Field(ge=1)] = 10

    NAME: ClassVar[str] = "dedup.decide:Decide"
    VERSION: ClassVar[int] = 4
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = DECISIONS_REFERENCES

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "dedup.redecide", id=pa.string())
        keys_of(self.keep, inp, "dedup.redecide")
        if self.merge_texts:
            need(inp, "dedup.redecide (merge_texts)", texts=TEXTS)
        return DECISIONS

    def run(self, job: Job) -> None:
        table, searched = read_edges(self.edges)
        threshold = searched if self.threshold is None else self.threshold
        if threshold < searched:
            raise VlpipeError(
                f"dedup.redecide: threshold {threshold:g} is below {searched:g}, the threshold of the search; "
                f"search again with `threshold: {threshold:g}` (of dedup.exact: with a larger `max_distance`)"
            )
        rows = read_rows(job.inputs, self.keep, "dedup.redecide")
        num_rows = len(rows.ids)
        ids = joined(rows.ids, _earlier(table))
        edges = edges_of(table, ids).at_least(threshold)
        _check_known(edges.a, edges.b)
        order = np.concatenate(
            [np.arange(num_rows, len(ids)), rows.order]
        )  # rows of the earlier set come first, so they are never dropped
        duplicates = decide(len(order), placed(edges, order), self.rule)
        decisions = decision_table(ids, order, duplicates, np.arange(num_rows))
        groups = groups_of(order, duplicates)[:num_rows]
        counts = image_counts(job.inputs, groups)
        decisions = with_counts(decisions, counts)
        is_placeholder = counts["image_texts"] > self.max_texts
        if self.merge_texts:
            decisions = with_gained(decisions, groups, job.inputs, rows.order[~is_placeholder[rows.order]])
        write_decisions(job.artifacts, decisions)
        job.emit(decisions)
        job.say(f"{say_counts(decisions)}, at threshold {threshold:g} with rule {self.rule}")
        self._warn_of_placeholders(decisions, is_placeholder, job)
        same_bytes = np.asarray(pc.equal(pc.fill_null(decisions["why"], ""), "exact_duplicate"))
        _warn_of_giants(groups[~is_placeholder & ~same_bytes], ids, job)

    def _warn_of_placeholders(
        self, decisions: pa.Table, is_placeholder: npt.NDArray[np.bool_], job: Job
    ) -> None:
        places = np.flatnonzero(is_placeholder & np.asarray(decisions["keep"]))
        if len(places):
            largest = places[np.asarray(decisions["image_texts"])[places].argmax()]
            (first,) = decisions.slice(largest, 1).to_pylist()
            job.say(
                f"{len(places):,} image(s) under more than {self.max_texts} different texts, placeholders: none of their "
                f"texts was merged; the largest: row {first['id']}, {first['image_rows']:,} rows, "
                f"{first['image_texts']:,} texts"
            )


def _check_known(*ends: np.ndarray[Any, Any]) -> None:
    unknown = sum(int((end < 0).sum()) for end in ends)
    if unknown:
        raise VlpipeError(
            f"dedup.redecide: {unknown} id(s) in the pairs are not among the rows of this step; "
            "give it the rows of the search"
        )


def _earlier(edges: pa.Table) -> Names:
    """Returns the ids of the rows of the earlier set that are in a pair, sorted."""
    ids = edges.filter(edges["earlier"])["b"]
    return Names(packed([pc.unique(ids.cast(pa.large_string())).sort()]))


def _warn_of_giants(groups: Places, ids: Names, job: Job) -> None:
    """Logs a warning if very many rows have one representative.

    groups: row number of each row's kept representative, without the rows of placeholders and those dropped for equal
    bytes, which chains of pairs did not join.
    """
    sizes = np.bincount(groups, minlength=1)
    largest = int(sizes.max())
    if largest > max(GIANT_ROWS, GIANT_SHARE * len(groups)):
        (name,) = ids.take(np.array([sizes.argmax()])).to_pylist()
        job.say(
            f"warning: {largest:,} rows were merged into row {name}: chains of pairs may have joined dissimilar rows; "
            "inspect the group, or raise the threshold"
        )


def with_gained(decisions: pa.Table, groups: Places, inputs: tuple[Dataset, ...], order: Places) -> pa.Table:
    """Fills `gained` and `donors` of kept rows: the texts of their dropped duplicates that they lack, best duplicate first.

    groups: (N,), the row number of each row's kept representative; N or more: it is in the earlier set, which gets no texts.
    order: row numbers in keep order, without the rows of placeholders, whose texts are not merged.
    """
    keeps = np.asarray(decisions["keep"])
    dropped = order[~keeps[order] & (groups[order] < len(groups))].tolist()
    kept = set(groups[dropped].tolist())
    texts = _texts_at({*dropped, *kept}, inputs)
    gained: dict[int, dict[str, Given]] = {row: {} for row in kept}
    own = {row: {text["text"] for text, _ in texts[row]} for row in kept}
    for row in dropped:
        to = int(groups[row])
        for text, donors in texts[row]:
            if text["text"] and text["text"] not in own[to]:
                known = gained[to].setdefault(text["text"], (text, []))[1]
                known += [id_ for id_ in donors if id_ not in known]
    for place, (name, kind) in enumerate({"gained": TEXTS, "donors": DONORS}.items()):
        column = pa.chunked_array(
            [_one_block(gained, rows, place, kind) for rows in _blocks(len(keeps))], kind
        )
        decisions = decisions.set_column(decisions.schema.get_field_index(name), name, column)
    return decisions


def _blocks(num_rows: int) -> Iterator[range]:
    for start in range(0, num_rows, BLOCK_ROWS):
        yield range(start, min(start + BLOCK_ROWS, num_rows))


def _one_block(
    gained: Mapping[int, Mapping[str, Given]], rows: range, place: int, kind: pa.DataType
) -> pa.Array:
    return pa.array([[one[place] for one in gained.get(row, {}).values()] or None for row in rows], kind)


def _texts_at(wanted: set[int], inputs: tuple[Dataset, ...]) -> dict[int, list[Given]]:
    """Returns position in input order -> texts of the row, each with its source rows (by default the row itself)."""
    found, start = {}, 0
    for batch in _batches(inputs):
        in_batch = [row for row in range(start, start + batch.num_rows) if row in wanted]
        rows = batch.take(pa.array([row - start for row in in_batch], pa.int64())).to_pylist()
        for row, one in zip(in_batch, rows, strict=True):
            texts, donors = one["texts"] or [], one.get("donors") or []
            found[row] = [(text, given or [one["id"]]) for text, given in zip_longest(texts, donors)]
        start += batch.num_rows
    return found


def _batches(inputs: tuple[Dataset, ...]) -> Iterator[pa.Table]:
    for data in inputs:
        yield from data.batches([name for name in ("id", "texts", "donors") if name in data.schema.names])
