"""How evenly experts are used, on texts whose routing is known."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch

from vlpipe.models.experts.layer import experts_of
from vlpipe.models.folder import save
from vlpipe.models.systems.text.expert_lm import ExpertLm
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.experts.use import ExpertUse

CORPUS = ["a red circle above a blue square", "two green stars beside a yellow triangle", "a small dog"]


def folder(path: Path, experts: int, all_to_one: bool = False) -> Weights:
    tokenizer = Tokenizer.train(CORPUS, 80)
    torch.manual_seed(0)
    model = ExpertLm(
        vocab_size=tokenizer.vocab_size, experts=experts, width=16, layers=2, heads=2, max_text_length=30
    )
    for one in experts_of(model).values():
        with torch.no_grad():
            one.router.weight.zero_()  # equal logits: the first expert is chosen
            if not all_to_one:
                one.router.weight.normal_()
    save(model, path)
    tokenizer.save(path / "tokenizer")
    return Weights(path=str(path))


def rows(folder: Path, source: str = "human") -> list[object]:
    table = pa.table(
        {"id": ["a", "b"], "texts": pa.array([[text(CORPUS[0], source)], [text(CORPUS[0], source)]], TEXTS)}
    )
    return [dataset(folder, table)]


def test_the_busiest_expert_and_what_is_dropped(tmp_path: Path) -> None:
    one = ExpertUse(model=folder(tmp_path / "m", 4, all_to_one=True))
    got = run_gather(one, rows(tmp_path), tmp_path)  # type: ignore[arg-type]
    found = {row["name"]: row["value"] for row in got.table.to_pylist()}
    assert found["busiest"] == 1
    assert 0.4 <= found["dropped"] <= 0.5  # two of four times the even part find a place
    spread = ExpertUse(model=folder(tmp_path / "n", 4))
    got = run_gather(spread, rows(tmp_path), tmp_path / "n")  # type: ignore[arg-type]
    found = {row["name"]: row["value"] for row in got.table.to_pylist()}
    assert 0.25 <= found["busiest"] < 1


def test_what_has_no_experts_or_no_texts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VlpipeError, match="ExpertLm has no layer of experts"):
        run_gather(ExpertUse(model=folder(tmp_path / "m", 1)), rows(tmp_path), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(VlpipeError, match="no text of source 'human'"):
        run_gather(ExpertUse(model=folder(tmp_path / "n", 4)), rows(tmp_path, "web"), tmp_path)  # type: ignore[arg-type]
