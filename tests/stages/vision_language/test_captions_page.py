"""The workflow of docs/captions.md, with tiny models and made pictures in place of the list and the models that it names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline.helpers import planned, rows, run
from tests.stages.filter.conftest import clip_folder
from tests.stages.filter.test_dual import siglip_folder
from vlpipe.pipeline.files import Weights

__all__ = ["clip_folder", "siglip_folder"]
PAGE = (Path(__file__).parents[3] / "docs" / "captions.md").read_text()
QWEN = "Qwen/Qwen2.5-VL-3B-Instruct"


@pytest.mark.slow
def test_the_workflow_of_the_page_runs_and_another_threshold_computes_no_score(
    captioner: Callable[[str], Weights],
    clip_folder: Path,
    siglip_folder: Path,
    tmp_path: Path,
) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    text = re.sub(
        r"images: \{use.*\}", 'images: {use: "judge_toys:Pictures", num_rows: 24, shard_rows: 12}', text
    )
    text = text.replace(QWEN, captioner("qwen2_vl").path).replace("fraction: 0.001", "fraction: 0.5")
    text = text.replace("max_tokens: 64", "max_tokens: 6\n    truncated: keep")
    text = text.replace("openai/clip-vit-base-patch32", str(clip_folder))
    text = text.replace("google/siglip-base-patch16-224", str(siglip_folder))
    for column, value in (("clip", "-0.5"), ("siglip", "-0.5"), ("vqa_score", "0.0")):
        text = re.sub(rf'(column: {column}, op: ">=", value: )[\d.]+', rf"\g<1>{value}", text)
    steps = run(tmp_path, text)
    table = rows(tmp_path, steps["copies"])
    assert table.num_rows == 24
    for texts, *columns in zip(
        *(table[n].to_pylist() for n in ("texts", "clip", "siglip", "vqa_score", "copies")), strict=True
    ):
        assert {len(one) for one in columns} == {len(texts)} == {3}
        assert [t["source"] for t in texts] == ["web", "synth", "synth"]
        assert columns[2][0] is not None
    kept = [t["kept"] for ts in table["texts"].to_pylist() for t in ts]
    assert kept.count(True) >= 24
    names = rows(tmp_path, steps["profile"])["name"].to_pylist()
    assert sum(name.startswith("caption_words_mean/") for name in names) == 2
    todo, _ = planned(tmp_path, text.replace("value: 0.0, encoder: qwen", "value: 0.2, encoder: qwen"))
    assert [one.name for one in todo if not one.is_done] == ["decided", "best", "chosen", "cut", "copies"]
