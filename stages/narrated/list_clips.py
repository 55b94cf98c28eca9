"""Lists the narrated clips of each video in one row, by any of the pairing rules of `clips`.

Training that draws several clips per video (HowTo100M: 64, UniVL: 3) reads the video's windows once, however much its clips
overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from vlpipe.models.build import find
from vlpipe.pipeline.errors import SchemaError
from vlpipe.pipeline.shard import Out, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.clips.pairing import READS, Pairing

CLIPS = pa.list_(
    pa.struct(
        [
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("text", pa.string()),
            ("candidates", pa.list_(pa.string())),  # texts near in time, nearest first, or empty
        ]
    )
)


@dataclass(frozen=True, kw_only=True)
class ListClips(MapStage):
    """Adds the column `clips` (CLIPS) to video rows. Reject codes: those of the rule.

    rule: {use: "clips.howto100m:HowTo100M", plus its parameters}; any of the pairing rules.
    """

    NAME: ClassVar[str] = "narrated.list_clips:ListClips"

    rule: dict[str, Any]

    def schema(self, inp: pa.Schema) -> pa.Schema:
        try:
            self._rule().schema(inp)
        except ValueError as error:
            raise SchemaError(f"narrated.list_clips: rule: {error}") from error
        return with_field(inp, pa.field("clips", CLIPS))

    def preflight(self) -> list[str]:
        try:
            return self._rule().preflight()
        except ValueError as error:
            return [f"rule: {error}"]

    def identity(self, use: str) -> tuple[str | int, ...]:
        """With the VERSION of the rule, once there is another than the first: its clips are this stage's."""
        try:
            version = self._rule().VERSION
        except ValueError:  # reported by `preflight`
            version = 1
        return (*super().identity(use), *([version] if version > 1 else []))

    def _rule(self) -> Pairing:
        cls = find(str(self.rule.get("use", "")), "vlpipe.stages")
        if not (isinstance(cls, type) and issubclass(cls, Pairing)):
            raise ValueError(f"{self.rule['use']} is not a pairing rule")
        given = {name: value for name, value in self.rule.items() if name not in ("use", "windows")}
        try:
            found: Pairing = TypeAdapter(cls).validate_python(given)
        except ValidationError as error:
            raise ValueError(
                f"{self.rule['use']}: {error.errors()[0]['msg']} {error.errors()[0]['loc']}"
            ) from error
        return found

    @contextmanager
    def open(self) -> Iterator[Work]:
        with self._rule().open() as cut:

            def work(videos: pa.Table) -> Out:
                found = cut(videos.select([*READS]))
                of: dict[str, list[dict[str, Any]]] = {}
                for clip in found.table.to_pylist():
                    of.setdefault(clip["parent"], []).append(
                        {
                            "start_s": clip["start_s"],
                            "end_s": clip["end_s"],
                            "text": clip["texts"][0]["text"],
                            "candidates": [one["text"] for one in clip["candidates"]],
                        }
                    )
                ids = videos["id"].to_pylist()
                kept = videos.filter(pa.array([id_ in of for id_ in ids]))
                clips = pa.array([of[id_] for id_ in ids if id_ in of], CLIPS)
                return Out(kept.append_column("clips", clips), found.rejects, counts=found.counts)

            yield work
