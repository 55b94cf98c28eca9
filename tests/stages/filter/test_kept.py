from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.row import text
from vlpipe.stages.filter.keep_matched import KeepMatched


def test_rows_without_a_kept_text_are_rejected_with_the_reasons(image_rows: Callable[..., pa.Table]) -> None:
    table = image_rows(
        [
            [text("right", "web", kept=True)],
            [text("wrong", "web", kept=False, why="not_matched"), text("", "synth", kept=False, why="empty")],
            [text("unjudged", "human")],
            [],
            [text("wrong", "web", kept=False, why="junk"), text("right", "synth", kept=True)],
        ]
    )
    out = run_map(KeepMatched(), table)
    assert out.table["id"].to_pylist() == ["row0", "row2", "row4"]
    assert (
        out.table["texts"].to_pylist()[2] == table["texts"].to_pylist()[4]
    )  # the dropped text stays in sight
    assert out.rejects == [
        Reject("row1", "filtered", "no_text_kept", "web: not_matched; synth: empty"),
        Reject("row3", "filtered", "no_text_kept", "it has no text"),
    ]
