"""What a root holds that need not be made again, kept apart from the engine's own keys.

A unit is one shard of a map step (or a whole gather step): the class, its VERSION, its parameters, what its files hold, and
the rows it reads. Whatever is there as the same unit must be used, and of several the one with fewest faults.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Entry:
    unit: str
    code: str  # what it was made by
    digest: str
    faults: int
    run: int


@dataclass
class Ledger:
    """entries: path of a shard below the root -> what lies there; `gathers`: unit -> (step, folder) it was made in."""

    root: Path
    entries: dict[str, Entry] = field(default_factory=dict)
    gathers: dict[str, tuple[str, str, str, int]] = field(default_factory=dict)
    run: int = 0
    there: frozenset[str] = frozenset()  # before the run: shards with their receipts, finished gather steps

    def before_run(self) -> None:
        folders = {folder for _, folder, _, _ in self.gathers.values()}
        finished = {folder for folder in folders if (self.root / folder / "manifest.json").exists()}
        self.there = frozenset(path for path in self.entries if self._is_there(path)) | finished

    def note(self, events: list[dict[str, Any]]) -> list[str]:
        """Take in the events of one run; returns what should not have happened."""
        self.run += 1
        wrong = []
        for event in events:
            if event["what"] == "gather":
                wrong += self._gather(event)
            else:
                wrong += self._shard(event)
        return wrong

    def _gather(self, event: Mapping[str, Any]) -> list[str]:
        step, folder, code, run = self.gathers.get(event["unit"], ("", "", "", 0))
        again = run and run < self.run and code == event["code"]
        again = again and folder in self.there
        self.gathers[event["unit"]] = (event["step"], event["folder"], event["code"], self.run)
        return [f"gather step {step} in {folder} was made again of the same things"] if again else []

    def _shard(self, event: Mapping[str, Any]) -> list[str]:
        same = {
            p: e
            for p, e in self.entries.items()
            if e.unit == event["unit"] and e.run < self.run and p in self.there and self._is_there(p)
        }
        own, path = self.entries.get(event["path"]), event["path"]
        wrong: list[str] = []
        made_by = event["code"]
        if event["reused"]:
            twins = [e for e in same.values() if e.digest == event["digest"]]
            made_by = (
                own.code if own and own.digest == event["digest"] else twins[0].code if twins else made_by
            )
            fewest = min((e.faults for e in same.values()), default=event["faults"])
            if (own is None or own.unit != event["unit"]) and event["faults"] > fewest:
                wrong.append(
                    f"{path} was taken over with {event['faults']} faults; one with {fewest} was there"
                )
            if own is not None and own.unit == event["unit"] and own.digest != event["digest"]:
                wrong.append(f"{path} was reused with other bytes than it had")
        elif not event["retry"]:
            made = [p for p, e in same.items() if e.code == event["code"]]
            if made:
                wrong.append(f"{path} was made again ({event['rows']} rows) though {made[0]} was there")
        self.entries[path] = Entry(event["unit"], made_by, event["digest"], event["faults"], self.run)
        return wrong

    def _is_there(self, path: str) -> bool:
        """The shard and its receipt; what a killed run took away is not there."""
        folder, name = os.path.split(path)
        receipt = self.root / folder / "_receipts" / name.replace(".parquet", ".json")
        return (self.root / path).exists() and receipt.exists()

    def after_kill(self) -> None:
        """Drops shards that the killed run wrote anew, of which it left no event."""
        there = {path: entry for path, entry in self.entries.items() if (self.root / path).exists()}
        self.drop({path for path, entry in there.items() if sha(self.root / path) != entry.digest})

    def drop(self, paths: set[str]) -> None:
        for path in paths:
            self.entries.pop(path, None)


_seen: dict[tuple[str, int, int], str] = {}


def sha(path: str | Path) -> str:
    """sha256 of a file; of a folder, of the names and contents below it."""
    path = Path(path)
    if path.is_dir():
        return _hash([(str(p.relative_to(path)), sha(p)) for p in sorted(path.rglob("*")) if p.is_file()])
    stat = path.stat()
    key = (str(path), stat.st_mtime_ns, stat.st_ino)
    if key not in _seen:
        _seen[key] = hashlib.sha256(path.read_bytes()).hexdigest()
    return _seen[key]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:20]


class Units:
    """Names units in a child while it runs."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.here: dict[str, str] = {}  # path -> unit, of this run

    def of(self, path: str) -> str:
        """The unit of a shard; of a gather step's, its bytes."""
        entry = self.ledger.entries.get(path)
        return self.here.get(path) or (entry.unit if entry else "content " + sha(self.ledger.root / path))

    def of_map(self, stage: Any, params: Mapping[str, Any], shard: Any) -> str:
        above = [
            self.of(shard.path),
            sha(self.ledger.root / shard.path),
            self._heavy(shard, stage.READS_HEAVY),
        ]
        return _hash([*self._declared(stage, params), above])

    def of_gather(self, stage: Any, step: Any, inputs: Any) -> str:
        read = [
            [self.of(s.path), sha(self.ledger.root / s.path), self._heavy(s)]
            for one in inputs
            for s in one.shards
        ]
        return _hash([*self._declared(stage, step.params), step.shard_rows, read])

    def _heavy(self, shard: Any, names: tuple[str, ...] | None = None) -> list[str]:
        return [
            sha(self.ledger.root / path) for name, path, *_ in shard.heavy if names is None or name in names
        ]

    def _declared(self, stage: Any, params: Mapping[str, Any]) -> list[Any]:
        """Class, VERSION, parameters; a file counts by what it holds now, and what only lists rows not at all."""
        from vlpipe.pipeline.files import ListFile, files_of

        files = files_of(stage)
        names = {name.partition(".")[0] for name, _ in files}
        kept = {k: v for k, v in params.items() if k not in names and k not in stage.NOT_IN_KEY}
        held = [(name, sha(f.path)) for name, f in files if not isinstance(f, ListFile)]
        return [type(stage).__name__, stage.VERSION, kept, held]
