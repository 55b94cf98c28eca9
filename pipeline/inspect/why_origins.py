"""Lookups for `why`: a row's log lines, the step that made a model, URLs of other rows, sizes of training sets."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.engine.list_rows import ListRows
from vlpipe.pipeline.engine.planned import PlannedStep, launches
from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import files_of
from vlpipe.pipeline.inspect.on_disk import StepReceipts
from vlpipe.pipeline.shard import open_parquet
from vlpipe.pipeline.storage.printable import struct_text
from vlpipe.pipeline.storage.store import Store

Row = Mapping[str, Any]


@dataclass
class Facts:
    """Looks up the origins of rows and models in the steps of a root."""

    steps: Sequence[PlannedStep]
    store: Store
    have: dict[str, StepReceipts]

    @cached_property
    def makers(self) -> dict[str, str]:
        """Digest -> step that made it: digests of a step's whole `artifacts/`, and of each file or folder directly in it."""
        found: dict[str, str] = {}
        for one in self.steps:
            names = one.manifest.artifacts if one.manifest else {}
            for path in ("", *sorted({name.partition("/")[0] for name in names})):
                digest = one.manifest.artifact_digest(path) if one.manifest else None
                if digest:
                    found.setdefault(digest, one.name)
        return found

    def named(self, value: Any) -> Any:
        """Returns the value with digests of artifacts replaced by text that names the step that made them."""
        if isinstance(value, Mapping):
            return {name: self.named(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self.named(item) for item in value]
        if isinstance(value, str) and value in self.makers:
            return f"{value[:8]} of {self.makers[value]}"
        return value

    def log(self, one: PlannedStep, receipt: Receipt, id_: str) -> list[str]:
        """Returns the lines about a row in a shard's log, such as time and attempts. Raises VlpipeError if it is damaged."""
        path = f"{one.folder}/_log/{receipt.index:06d}.jsonl"
        if not self.store.exists(path):
            return []
        try:
            lines = [json.loads(line) for line in self.store.read_bytes(path).splitlines()]
        except ValueError as error:
            raise VlpipeError(
                f"the log {self.store.path(path)} is damaged ({error}); nothing depends on it: remove it"
            ) from error
        mine = [
            {k: v for k, v in line.items() if k != "id"}
            for line in lines
            if isinstance(line, dict) and line.get("id") == id_
        ]
        return [f"log: {struct_text(line)}" for line in mine]

    def urls_of(self, ids: Collection[str]) -> dict[str, str]:
        """Returns id -> URL for those of `ids` that a step without inputs lists. Reads its rows once, however many ids."""
        found: dict[str, str] = {}
        wanted = pa.array(sorted(ids), pa.string())
        for one in self.steps if ids else ():
            if one.above or not {"id", "url"} <= set(one.schema_out.names):
                continue
            for receipt in self.have[one.name].receipts.values():
                with open_parquet(self.store, receipt.shard.path) as file:
                    for group in range(file.num_row_groups):
                        table = file.read_row_group(group, columns=["id", "url"])
                        mine = table.filter(pc.is_in(table["id"], wanted)).to_pylist()
                        found = {row["id"]: str(row["url"]) for row in mine} | found
        return found

    def by(self, one: PlannedStep) -> list[str]:
        """Returns [`by filter.itm:ItmFilter: threshold 0.5, model of finetune`]; [] without thresholds and artifacts."""
        step = one.keyed.step
        if isinstance(step.stage, ListRows):
            return []
        parts = [
            f"{name} {value}"
            for name, value in step.params.items()
            if "threshold" in name and value is not None
        ]
        parts += [f"{field} of {file.step}" for field, file in files_of(step.stage) if file.step]
        return [f"by {step.use}: {', '.join(parts)}"] if parts else []

    def reading(self, one: PlannedStep, came: PlannedStep, row: Row) -> list[str]:
        """Returns lines about what gather step `one` did with a row it read. came: the input step the row came from."""
        stage = one.keyed.step.stage
        lines = list(stage.tell(row))
        if launches(one):
            rows = {
                p.name: sum(r.shard.num_rows for r in self.have[p.name].receipts.values()) for p in one.above
            }
            lines.append(f"1 of {rows[came.name]:,} rows of {came.name}, {sum(rows.values()):,} in all")
        if one.manifest is not None and launches(one):
            lines.append(f"it made the model {(one.manifest.artifact_digest('') or '')[:8]}")
        if one.manifest is not None and one.manifest.forgotten:
            lines.append(f"{one.manifest.forgotten:,} rows it read were forgotten since")
        return [*lines, *self.by(one)]


def is_below(one: PlannedStep, name: str) -> bool:
    """True if the step's rows come from step `name`, directly or through other steps."""
    return any(above.name == name or is_below(above, name) for above in one.above)
