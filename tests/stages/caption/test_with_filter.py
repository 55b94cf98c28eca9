"""One model as captioner and filter gives the rows of both stages one after the other, and encodes each image once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.caption.generate import Caption
from vlpipe.stages.caption.with_filter import CaptionAndFilter
from vlpipe.stages.common.row import text
from vlpipe.stages.filter.itm import ItmFilter

Rows = Callable[..., pa.Table]


def rows_of(num: int, image_rows: Rows) -> pa.Table:
    texts = [
        [text("a dog", "web"), text("a cat", "human"), text("x", "web", kept=False, why="too_short")]
        for _ in range(num)
    ]
    return image_rows(texts)


@pytest.mark.parametrize("more", [{}, {"num_captions": 2, "top_p": 0.5}, {"num_beams": 2}])
def test_it_gives_the_rows_of_both_stages(weights: Weights, image_rows: Rows, more: dict[str, Any]) -> None:
    table = rows_of(23, image_rows)
    shared = {"model": weights, "batch_size": 16}
    captions = run_map(Caption(max_length=8, **shared, **more), table).table
    apart = run_map(ItmFilter(max_text_length=12, threshold=0.4, **shared), captions).table
    both = CaptionAndFilter(max_length=8, max_text_length=12, threshold=0.4, **shared, **more)
    found = run_map(both, table).table
    assert found["texts"].to_pylist() == apart["texts"].to_pylist()
    assert found["id"].to_pylist() == apart["id"].to_pylist()
    decided = [t for ts in found["texts"].to_pylist() for t in ts if t["score"] is not None]
    assert {t["source"] for t in decided} == {"web", "synth"}


def test_each_image_is_encoded_once(
    weights: Weights, image_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    real = Blip.encode_image

    def counted(self: Blip, images: Any) -> Any:
        encoded.append(len(images))
        return real(self, images)

    monkeypatch.setattr(Blip, "encode_image", counted)
    stage = CaptionAndFilter(model=weights, batch_size=16, max_length=6, max_text_length=12)
    run_map(stage, rows_of(32, image_rows))
    assert encoded == [16, 16]


def test_an_unreadable_image_is_one_reject(weights: Weights, image_rows: Rows) -> None:
    (picture,) = image_rows([[]])["image"].to_pylist()
    table = image_rows([[text("a dog", "web")], [text("a dog", "web")]], [b"not an image", picture])
    out = run_map(CaptionAndFilter(model=weights, batch_size=16, max_text_length=12), table)
    assert [r.id for r in out.rejects] == ["row0"]
    assert out.table["id"].to_pylist() == ["row1"]


def test_what_cannot_work_is_said_before_the_run(weights: Weights) -> None:
    bad = CaptionAndFilter(model=weights, threshold=2.0, top_p=0.0)
    assert [p.split(",")[0] for p in bad.preflight()] == [
        "top_p must be above 0 and at most 1",
        "threshold must be a probability",
    ]
