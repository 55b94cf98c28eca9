"""The keep order: a total order over all rows, best first, independent of shards. The better of two duplicates is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.errors import SchemaError, VlpipeError, did_you_mean
from vlpipe.pipeline.shard import is_heavy, need
from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.dedup.row_ids import Names, Packer

Keep = tuple[
    str | dict[str, tuple[str, ...]], ...
]  # as in YAML: [score desc, {source: [human, web]}, sha256]
DEFAULT: Keep = ("score desc", "pixels desc", {"source": ("human", "web", "synth")}, "sha256")
DECIMALS = 4  # of a score; further digits depend on the machine
# Keys that are computed if no column has their name, and the columns they need.
COMPUTED: Mapping[str, Mapping[str, pa.DataType]] = {
    "pixels": {"width": pa.int32(), "height": pa.int32()},
    "score": {"texts": TEXTS},  # the highest among a row's texts
    "source": {"texts": TEXTS},  # the best-ranked among a row's texts
}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the order. `ranking`: values from best to worst; other values come last."""

    name: str
    descending: bool = False
    ranking: tuple[str, ...] = ()

    def reads(self, schema: pa.Schema) -> list[str]:
        return [self.name] if self.name in schema.names else list(COMPUTED.get(self.name, ()))

    def values(self, rows: pa.Table) -> pa.Array | pa.ChunkedArray:
        """Returns one number or string per row, null if the row has none."""
        if self.name in rows.schema.names:
            found = rows[self.name]
        elif self.name == "pixels":
            found = pc.multiply(*(pc.cast(rows[n], pa.int64()) for n in ("width", "height")))
        else:
            return _of_texts(rows["texts"], self)
        if self.ranking:
            return pc.index_in(found, value_set=pa.array(self.ranking))
        return pc.round(found, DECIMALS) if pa.types.is_floating(found.type) else found


def keys_of(keep: Keep | None, schema: pa.Schema, who: str) -> list[Key]:
    """Returns the keys of `keep`, or those of DEFAULT that the rows have.

    Raises SchemaError for a malformed key or one that cannot be computed.
    """
    keys = [_parse(item) for item in (DEFAULT if keep is None else keep)]
    if keep is None:
        return [key for key in keys if all(name in schema.names for name in key.reads(schema) or [key.name])]
    for key in keys:
        _check(key, schema, who)
    return keys


def _parse(item: str | Mapping[str, Sequence[str]]) -> Key:
    if isinstance(item, str):
        name, _, direction = item.partition(" ")
        if direction in ("", "asc", "desc"):
            return Key(name, direction == "desc")
    elif len(item) == 1:
        ((name, ranking),) = item.items()
        return Key(name, ranking=tuple(ranking))
    raise SchemaError(
        f"keep: {item!r} does not say how to order rows; wanted COLUMN, COLUMN desc, or COLUMN: [best, ..., worst]"
    )


def _check(key: Key, schema: pa.Schema, who: str) -> None:
    light = [f.name for f in schema if not is_heavy(f)]
    if key.name not in light:
        wanted = COMPUTED.get(key.name)
        if wanted is None:
            known = did_you_mean(key.name, [*light, *COMPUTED])
            raise SchemaError(
                f"{who}: keep: {key.name!r} is neither a column that can order rows nor pixels, score or source{known}"
            )
        need(schema, f"{who} (for {key.name!r} in keep)", **wanted)
        return
    kind = schema.field(key.name).type
    sortable = (pa.types.is_integer, pa.types.is_floating, pa.types.is_string, pa.types.is_boolean)
    if not any(is_kind(kind) for is_kind in sortable):
        raise SchemaError(
            f"{who}: keep cannot order rows by {key.name!r}, a {kind}; wanted numbers, strings or booleans"
        )
    if key.ranking and not pa.types.is_string(kind):
        raise SchemaError(f"{who}: keep ranks the values of {key.name!r}, which must be strings, not {kind}")


def _of_texts(texts: pa.ChunkedArray, key: Key) -> pa.Array:
    """Returns, per row, the highest score of its texts, or the rank of their best source (0: best); null if it has none."""
    lists = texts.combine_chunks()
    lists = lists if isinstance(lists, pa.ListArray) else pa.concat_arrays(lists.chunks)
    rows = np.asarray(pc.list_parent_indices(lists), np.int64)
    field = pc.struct_field(pc.list_flatten(lists), key.name)
    if key.ranking:
        field = pc.index_in(field, value_set=pa.array(key.ranking))
        values = -np.asarray(pc.fill_null(field, len(key.ranking)), np.float64)
    else:
        values = np.asarray(pc.fill_null(field, -np.inf), np.float64)
        values = np.where(np.isnan(values), -np.inf, values)  # a NaN score must not hide the others
    best = np.full(len(lists), -np.inf)
    np.maximum.at(best, rows, values)
    return pa.array(np.round(-best if key.ranking else best, DECIMALS), mask=np.isinf(best))


@dataclass(frozen=True, slots=True)
class Rows:
    """The ids of all rows in input order, and the keep order: positions in `ids`, best row first."""

    ids: Names
    order: npt.NDArray[np.int64]


def read_rows(inputs: Sequence[Dataset], keep: Keep | None, who: str) -> Rows:
    """Returns the ids and the keep order of all rows. Null values come last; ties are broken by id.

    Raises VlpipeError if an id occurs twice or a row has no id.
    """
    keys = [keys_of(keep, data.schema, who) for data in inputs]
    shared = [key for key in keys[0] if all(key in other for other in keys)]
    packers = [Packer() for _ in range(len(shared) + 1)]
    for data in inputs:
        columns = ["id", *dict.fromkeys(name for key in shared for name in key.reads(data.schema))]
        for batch in data.batches(list(dict.fromkeys(columns))):
            for packer, values in zip(
                packers, [*(k.values(batch) for k in shared), batch["id"]], strict=True
            ):
                packer.add(values)
    *found, ids = [packer.array() for packer in packers]
    names = Names(ids)
    _check_unique(names, inputs)
    rows = pa.table([*found, ids], [str(k) for k in range(len(packers))])
    directions = ["descending" if key.descending else "ascending" for key in shared] + ["ascending"]
    order = pc.sort_indices(rows, sort_keys=[*zip(rows.schema.names, directions, strict=True)])
    return Rows(names, np.asarray(order, np.int64))


def _check_unique(ids: Names, inputs: Sequence[Dataset]) -> None:
    repeated = ids.num_repeated()
    if repeated:
        names = ", ".join(data.name for data in inputs)
        raise VlpipeError(
            f"{repeated} id(s) occur more than once in the rows of {names}: give each row to dedup once"
        )
