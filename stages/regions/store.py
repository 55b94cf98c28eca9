"""Access to region features for training: by id, by index, or sequentially; reads one row group at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import Heavy, Shard, open_shard
from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.common.region_rows import Arrays, image_arrays


class RegionStore:
    """The regions of each row of step `data`, by row id, read from the shards that store them.

    These may be those of an earlier step; rows of it that are not in `data` are not included. `store[id]` and
    `store.at(number)` read the whole row group (about 32 MB) of the image; the most recently used groups are cached, up to
    `max_bytes`. For random access, shuffle within windows of whole row groups, as the training loader does.
    column: name of the column of regions. Raises VlpipeError if a shard does not have it.
    """

    def __init__(self, data: Dataset, column: str = "regions", max_bytes: int = 512 << 20) -> None:
        self.data, self.column, self.max_bytes = data, column, max_bytes
        self.ids: list[str] = []
        self._place: dict[str, tuple[str, int, int]] = {}  # id -> (path, row group, row)
        self._holders: dict[str, Shard | Heavy] = {}
        self._groups: OrderedDict[tuple[str, int], tuple[int, list[Arrays]]] = OrderedDict()
        for shard in data.shards:
            holder = shard.holder(column)
            self._holders[holder.path] = holder
            self._index(holder.path, self._listed(shard) if holder.path != shard.path else None)

    def _listed(self, shard: Shard) -> list[str]:
        with open_shard(self.data.store, shard) as file:
            return [
                i
                for g in range(file.num_row_groups)
                for i in file.read_row_group(g, ["id"])["id"].to_pylist()
            ]

    def _index(self, path: str, wanted: list[str] | None) -> None:
        places: dict[str, tuple[str, int, int]] = {}
        with open_shard(self.data.store, self._holders[path]) as file:
            if self.column not in file.schema_arrow.names:
                raise VlpipeError(
                    f"{path} has no column {self.column!r}: add a region stage before this step "
                    "(`regions.regions` or `regions.hf_detectors`)"
                )
            for group in range(file.num_row_groups):
                for row, id_ in enumerate(file.read_row_group(group, ["id"])["id"].to_pylist()):
                    places[id_] = (path, group, row)
        names = list(places) if wanted is None else wanted
        self._place |= {name: places[name] for name in names}
        self.ids += names

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, id_: str) -> Arrays:
        """Returns field -> array (N, ...) of the image with this id. Raises KeyError for an unknown id."""
        path, group, row = self._place[id_]
        return self._read(path, group)[row]

    def at(self, number: int) -> Arrays:
        """Returns the regions of row `number` of the step, from 0."""
        return self[self.ids[number]]

    def __iter__(self) -> Iterator[tuple[str, Arrays]]:
        """Yields (id, regions) of all rows in order; each row group is read once."""
        return ((id_, self[id_]) for id_ in self.ids)

    def unit(self, id_: str) -> tuple[str, int]:
        """Returns (file, row group) of an image; a shuffled reader should read the images of a row group together."""
        return self._place[id_][:2]

    def _read(self, path: str, group: int) -> list[Arrays]:
        key = (path, group)
        if key not in self._groups:
            with open_shard(self.data.store, self._holders[path]) as file:
                column = file.read_row_group(group, [self.column])[self.column].combine_chunks()
            self._groups[key] = (column.nbytes, image_arrays(column))
        self._groups.move_to_end(key)
        while len(self._groups) > 1 and sum(size for size, _ in self._groups.values()) > self.max_bytes:
            self._groups.popitem(last=False)
        return self._groups[key][1]
