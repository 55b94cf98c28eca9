"""Rows with texts and image sizes, for the tests of rules."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from vlpipe.stages.common.row import TEXTS


def sized(texts: list[list[dict[str, Any]]], sizes: list[tuple[int | None, int | None]]) -> pa.Table:
    columns = {
        "id": pa.array([f"r{i}" for i in range(len(texts))]),
        "texts": pa.array(texts, TEXTS),
        "width": pa.array([w for w, _ in sizes], pa.int32()),
        "height": pa.array([h for _, h in sizes], pa.int32()),
    }
    return pa.table(columns)
