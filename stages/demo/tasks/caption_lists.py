"""The demo world with several alt-texts per web image, for models that read captions in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from vlpipe.stages.demo.captions import web_caption
from vlpipe.stages.demo.world import Listing, World


@dataclass(frozen=True, kw_only=True)
class CaptionListWorld(World):
    """As `World`, but the column `text` of web.parquet is a list: the text of `World`, and right ones up to `captions`."""

    NAME: ClassVar[str] = "demo.tasks.caption_lists:CaptionListWorld"

    captions: Annotated[int, Field(ge=1)] = 2

    def _write_web(self, folder: Path, listings: Sequence[Listing]) -> None:
        super()._write_web(folder, listings)
        found = pq.read_table(folder / "web.parquet")
        texts = []
        for index, (one, first) in enumerate(zip(listings, found["text"].to_pylist(), strict=True)):
            rng = np.random.default_rng([self.seed, 7, index])
            texts.append([first, *(web_caption(one.scene, rng) for _ in range(self.captions - 1))])
        at = found.schema.get_field_index("text")
        listed = found.set_column(at, pa.field("text", pa.list_(pa.string())), pa.array(texts))
        pq.write_table(listed, folder / "web.parquet")
