"""Compares blocks of rows with all evaluation sets; each match is a row of MATCHES."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import ref, reference_columns
from vlpipe.stages.decontamination.image_hits import Hit, by_bytes, by_picture, by_vector
from vlpipe.stages.decontamination.ngrams import Captions
from vlpipe.stages.decontamination.sets import Items, unit_vectors
from vlpipe.stages.dedup.looks import Looks, from_arrow, look_at

# A row that is in two sets has two matches.
MATCHES = pa.schema(
    [
        ("id", pa.string()),  # of the row
        ("place", pa.int32()),  # index of the text in `texts`; null: the row's image
        ("set", pa.string()),  # null: the image was compared by its bytes only, `how` has the reason
        ("how", pa.string()),  # same_bytes | picture | embedding | same_text | ngrams
        ref("witness", pa.string()),  # file, id or line of the evaluation item
        ("similarity", pa.float32()),  # 1 is equal; for ngrams: the matched fraction of the evaluation text
    ]
)
MATCHES_REFERENCES = {"matches.parquet": reference_columns(MATCHES)}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Compares tables of rows with all evaluation sets. The limits are those of `Decontaminate`."""

    sets: Sequence[Items]
    captions: Sequence[Captions | None]  # one per set; None if it has no texts
    max_distance: int | None
    max_colour_gap: int
    threshold: float | None
    stored_looks: bool  # the rows have the column `looks`: no image is decoded

    @property
    def light(self) -> list[str]:
        """The columns to read, except `heavy`: large ones (image, embedding) that are read only on request."""
        found = {
            "sha256": any(s.sha256 is not None for s in self.sets),
            "looks": self._pictures and self.stored_looks,
            "texts": any(self.captions),
        }
        return ["id", *(name for name, used in found.items() if used)]

    @property
    def heavy(self) -> list[str]:
        vectors = any(s.vectors for s in self.sets)
        found = {"image": self._pictures and not self.stored_looks, "embedding": vectors}
        return [name for name, used in found.items() if used]

    @property
    def _pictures(self) -> bool:
        return any(s.pictures for s in self.sets)

    def _looks(self, table: pa.Table) -> Looks | None:
        if not self._pictures:
            return None
        return from_arrow(table["looks"]) if self.stored_looks else look_at(table["image"].to_pylist())

    def matches(self, table: pa.Table) -> pa.Table:
        """Returns all matches of a table of rows (columns: MATCHES)."""
        found = [*self._images(table), *self._texts(table)]
        return pa.Table.from_pylist(found, MATCHES)

    def _images(self, table: pa.Table) -> Iterator[dict[str, Any]]:
        ids = table["id"].to_pylist()
        looks = self._looks(table)
        for row, code in enumerate(looks.why if looks else ()):
            if code is not None:
                yield _match(ids[row], None, None, Hit(f"not_compared_{code}", None, None))
        for items in self.sets:
            hits = self._hits(table, looks, items)
            yield from (_match(ids[row], None, items.name, hits[row]) for row in sorted(hits))

    def _hits(self, table: pa.Table, looks: Looks | None, items: Items) -> dict[int, Hit]:
        """Returns row -> its strongest match with this set: by bytes, else by picture, else by embedding.

        looks: of the rows' images; None if no set has pictures. Rows without a match are left out.
        """
        hits: dict[int, Hit] = {}
        if items.vectors is not None and self.threshold is not None:
            names, theirs = items.vectors
            vectors = unit_vectors(table, "the rows")
            if vectors.shape[1] != theirs.shape[1]:
                raise VlpipeError(
                    f"the embeddings of the evaluation set {items.name!r} have width {theirs.shape[1]}, those of the "
                    f"rows {vectors.shape[1]}; compute both with the same encoder"
                )
            hits |= by_vector(vectors, theirs, names, self.threshold)
        if items.pictures is not None and looks is not None and self.max_distance is not None:
            names, pictures = items.pictures
            limits = {"max_distance": self.max_distance, "max_colour_gap": self.max_colour_gap}
            hits |= by_picture(looks, pictures, names, **limits)
        if items.sha256 is not None:
            hits |= by_bytes(table["sha256"].to_pylist(), items.sha256)
        return hits

    def _texts(self, table: pa.Table) -> Iterator[dict[str, Any]]:
        """Yields the matches of texts. Texts that an earlier step dropped are not compared."""
        if not any(self.captions):
            return
        for id_, texts in zip(table["id"].to_pylist(), table["texts"].to_pylist(), strict=True):
            for place, text in enumerate(texts or ()):
                if text["kept"] is False or not text["text"]:
                    continue
                for items, captions in zip(self.sets, self.captions, strict=True):
                    hit = captions.find(text["text"]) if captions else None
                    if hit:
                        yield _match(id_, place, items.name, hit)


def _match(id_: str, place: int | None, name: str | None, hit: Hit) -> dict[str, Any]:
    return {
        "id": id_,
        "place": place,
        "set": name,
        "how": hit.how,
        "witness": hit.witness,
        "similarity": hit.similarity,
    }
