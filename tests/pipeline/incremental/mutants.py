"""Mends of the engine, each of which can be taken out to see that the property test finds what it mended.

`python tests/pipeline/incremental --without W4 --stop`: exit code 1, and the number of the case that found it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def everywhere(old: Any, new: Any) -> None:
    """Put `new` in the place of a function in each module of the engine that has it by name."""
    for name, module in list(sys.modules.items()):
        if name.startswith("vlpipe.pipeline."):
            for key, value in list(vars(module).items()):
                if value is old:
                    setattr(module, key, new)


def relative_paths() -> None:
    """W1: the driver hashes a file, a worker in another folder opens the one of that name there."""
    from vlpipe.pipeline.engine.records import file_digests, keys

    everywhere(keys._absolute, lambda _, file: file)
    everywhere(file_digests.check_unchanged, lambda file: None)


def files_without_names() -> None:
    """W2: which parameter an artifact belongs to is not in what must match."""
    from vlpipe.pipeline.engine.records import manifest
    from vlpipe.pipeline.storage import digests

    def digest_artifacts(read: Any) -> str:
        return digests.sha256_json("artifacts", sorted(read.values())) if read else ""

    everywhere(manifest.digest_artifacts, digest_artifacts)


def heavy_columns_not_read() -> None:
    """W3: of a stage that reads a heavy column only the light shard must match."""
    from vlpipe.pipeline.shard import Shard

    Shard.heavy_digests = lambda self, columns: {}  # type: ignore[method-assign]


def last_folder_counts() -> None:
    """W4: of several finished shards made from the same things, the one in the last folder by name is taken over."""
    from vlpipe.pipeline.engine.adopt import Candidate, FinishedShards

    def find(self: Any, stage_key: str, made_from: Any, source: str, own: str) -> Candidate | None:
        found = [c for f in self.folders(stage_key) if f != own for c in self._of(f).get(made_from, ())]
        found.sort(key=lambda c: c.folder, reverse=True)
        return next((c for c in found if self.is_whole(c.receipt)), None)

    FinishedShards.find = find  # type: ignore[method-assign]


def mixed_code_is_silent() -> None:
    """W5: a step that was finished by the code there is now counts as made by it."""
    from vlpipe.pipeline.engine import planned

    warns = planned.stale_source

    def stale_source(one: Any, sources: Any) -> str:
        return "" if one.keyed.source in sources else warns(one, sources)

    everywhere(planned.stale_source, stale_source)


def helpers_do_not_count() -> None:
    """W5: only the stage's own file is hashed."""
    import dataclasses

    from vlpipe.pipeline.engine.records import source_hash

    parse = source_hash.parse
    everywhere(parse, lambda *args: dataclasses.replace(parse(*args), imports=()))


def ids_come_twice() -> None:
    """W7: an id may come twice in a shard, and the last row of that id is joined."""
    from vlpipe.pipeline.parquet.conform import OwnIds
    from vlpipe.pipeline.parquet.heavy_join import HeavyJoin

    class Last(dict[str, tuple[int, int]]):
        def setdefault(self, key: str, value: Any = None) -> Any:
            self[key] = value
            return value

    setattr_ = HeavyJoin.__setattr__

    def put(self: Any, name: str, value: Any) -> None:
        setattr_(self, name, Last() if name == "_place" else value)

    OwnIds.check = lambda self: None  # type: ignore[method-assign]
    HeavyJoin.__setattr__ = put  # type: ignore[method-assign, assignment]


def unfinished_is_lost() -> None:
    """D4: shards of a step that was not finished are not taken over."""
    from vlpipe.pipeline.engine.adopt import FinishedShards
    from vlpipe.pipeline.engine.records.manifest import read_manifest

    old = FinishedShards._receipts

    def receipts(self: Any, folder: str) -> Any:
        return old(self, folder) if read_manifest(self.store, folder) else []

    FinishedShards._receipts = receipts  # type: ignore[method-assign]


def names_count() -> None:
    """D4: shards of a step of another name are not taken over."""
    from vlpipe.pipeline.engine.adopt import FinishedShards

    old = FinishedShards.find

    def find(self: Any, stage_key: str, made_from: Any, source: str, own: str) -> Any:
        found = old(self, stage_key, made_from, source, own)
        return found if found and found.folder.rpartition("-")[0] == own.rpartition("-")[0] else None

    FinishedShards.find = find  # type: ignore[method-assign]


def retry_keeps_nothing() -> None:
    """A killed `retry` loses the shards it was about to make again."""
    from vlpipe.pipeline.change import retry

    everywhere(retry._keep, lambda one, store, touched: None)


MUTANTS: dict[str, Callable[[], None]] = {
    "W1": relative_paths,
    "W2": files_without_names,
    "W3": heavy_columns_not_read,
    "W4": last_folder_counts,
    "W5": mixed_code_is_silent,
    "W5-helpers": helpers_do_not_count,
    "W7": ids_come_twice,
    "D4": unfinished_is_lost,
    "D4-names": names_count,
    "retry": retry_keeps_nothing,
}
