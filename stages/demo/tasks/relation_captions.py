"""Captions of demo scenes with two objects that say where one is from the other, made from the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.shard import Out, Reject, need
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import seed_of, with_texts, without
from vlpipe.stages.common.region_rows import OBJECTS
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.demo.scenes import COLOURS, SIZES

RELATIONS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}


@dataclass(frozen=True, kw_only=True)
class RelationCaptions(MapStage):
    """Replaces the texts of each row by one such as `a small red circle above a blue square`, true by column `objects`.

    The relation is that of the axis in which the objects are further apart; each object comes first as often as the other,
    and has its size named as often as not, by `seed` and the row's id. Reject code: not_two_objects.
    """

    NAME: ClassVar[str] = "demo.tasks.relation_captions:RelationCaptions"
    MAX_REJECT_RATE: ClassVar[float] = 1.0

    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "demo.tasks.relation_captions", id=pa.string(), texts=TEXTS, objects=OBJECTS)
        return inp

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield self._captioned

    def _captioned(self, rows: pa.Table) -> Out:
        rejects: list[Reject] = []
        texts: list[list[dict[str, Any]]] = []
        for id_, objects in zip(rows["id"].to_pylist(), rows["objects"].to_pylist(), strict=True):
            if len(objects or ()) == 2:
                rng = np.random.default_rng(seed_of("relation_captions", self.seed, id_))
                texts.append([text(caption(objects, rng), "human")])
            else:
                detail = f"{len(objects or ())} objects"
                rejects.append(Reject(id_, "filtered", "not_two_objects", detail))
        return Out(with_texts(without(rows, rejects), texts), rejects)


def caption(objects: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> str:
    """Returns a true caption of two objects, each with a box, a label, and its size and colour among its attributes."""
    first, second = (objects[int(k)] for k in rng.permutation(2))
    (x, y), (other_x, other_y) = (_centre(one["box"]) for one in (first, second))
    across, down = x - other_x, y - other_y
    side = (
        ("left" if across < 0 else "right") if abs(across) > abs(down) else "above" if down < 0 else "below"
    )
    return f"{_named(first, rng)} {RELATIONS[side]} {_named(second, rng)}"


def _centre(box: Sequence[float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _named(one: Mapping[str, Any], rng: np.random.Generator) -> str:
    said = [name for name in one["attributes"] if name in SIZES and rng.random() < 0.5]
    words = [*said, *(name for name in one["attributes"] if name in COLOURS), one["label"]]
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"
