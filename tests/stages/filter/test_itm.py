from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.pixels import load_pixels
from vlpipe.stages.common.row import text
from vlpipe.stages.filter.itm import ItmFilter, ItmScore, match_logits

Rows = Callable[..., pa.Table]
SENTENCES = (
    "a red circle",
    "two dogs",
    "the blue square left of a star",
    "yellow",
    "a small green triangle on the right",
)


def mixed_texts(num_rows: int) -> list[list[dict[str, Any]]]:
    """0 to 4 texts per row."""
    return [
        [text(SENTENCES[(i + j) % 5], ("web", "synth")[j % 2]) for j in range(i % 5)] for i in range(num_rows)
    ]


def texts_by_id(stage: ItmFilter, table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    out = run_map(stage, table).table
    return dict(zip(out["id"].to_pylist(), out["texts"].to_pylist(), strict=True))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_text_gets_equal_bits_alone_in_any_company_and_order(
    weights: Weights, image_rows: Rows, threads: int
) -> None:
    stage = ItmFilter(model=weights, batch_size=16, max_text_length=12)
    table = image_rows(mixed_texts(23))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = texts_by_id(stage, table)
        assert texts_by_id(stage, table.slice(4, 1)) == {"row4": together["row4"]}
        assert texts_by_id(stage, table.slice(3, 7)) == {f"row{i}": together[f"row{i}"] for i in range(3, 10)}
        assert texts_by_id(stage, table.take(list(range(22, -1, -1)))) == together
    finally:
        torch.set_num_threads(before)
    scores = [t["score"] for ts in together.values() for t in ts]
    assert len(set(scores)) == len(scores) == sum(i % 5 for i in range(23))


def test_the_score_is_the_models_probability_of_match(weights: Weights, image_rows: Rows) -> None:
    """Against the model called by hand, one text at a time, without padding."""
    table = image_rows(mixed_texts(6))
    found = texts_by_id(ItmFilter(model=weights, batch_size=16, max_text_length=24), table)
    model, tokenizer = Blip.load(weights.path).eval(), Tokenizer.load(weights.path)
    for row, data in enumerate(table["image"].to_pylist()):
        tokens = model.encode_image(torch.from_numpy(load_pixels([data], 16)))
        for entry in found[f"row{row}"]:
            ids, mask = tokenizer.encode([entry["text"]], 24)
            length = int(mask.sum())
            logits = model.match_logits(ids[:, :length], mask[:, :length], tokens)
            assert entry["score"] == pytest.approx(logits.softmax(1)[0, 1].item(), abs=1e-5)


def test_threshold_decides_and_nothing_is_removed(weights: Weights, image_rows: Rows) -> None:
    table = image_rows(mixed_texts(20))
    scored = texts_by_id(ItmFilter(model=weights, batch_size=16, max_text_length=12), table)
    threshold = float(np.median([t["score"] for ts in scored.values() for t in ts]))
    stage = ItmFilter(model=weights, batch_size=16, max_text_length=12, threshold=threshold)
    for id_, texts in texts_by_id(stage, table).items():
        assert [t["score"] for t in texts] == [t["score"] for t in scored[id_]]
        for t in texts:
            assert (t["kept"], t["why"]) == (
                (True, None) if t["score"] >= threshold else (False, "not_matched")
            )
    everything = replace(stage, threshold=0.0)
    assert all(t["kept"] for ts in texts_by_id(everything, table).values() for t in ts)


def test_only_the_named_sources_are_judged(weights: Weights, image_rows: Rows) -> None:
    texts = [[text("a dog", "human"), text("a dog", "web"), text("a dog", "synth", model="m")]]
    human, web, synth = texts_by_id(
        ItmFilter(model=weights, batch_size=16, max_text_length=8), image_rows(texts)
    )["row0"]
    assert human == text("a dog", "human")
    assert web["score"] == synth["score"]
    assert synth["model"] == "m"
    only = ItmFilter(model=weights, batch_size=16, max_text_length=8, sources=("synth",))
    human, web, synth = texts_by_id(only, image_rows(texts))["row0"]
    assert web == text("a dog", "web")
    assert synth["score"] is not None


def test_a_rules_verdict_stands_and_an_earlier_rounds_is_made_anew(
    weights: Weights, image_rows: Rows
) -> None:
    texts = [
        [
            text("", "synth", kept=False, why="empty"),
            text("a dog", "web", kept=False, why="not_matched", score=0.01),
            text("a dog", "web", kept=True, score=0.99),
        ]
    ]
    stage = ItmFilter(model=weights, batch_size=16, max_text_length=8, threshold=0.0)
    empty, dropped, kept = texts_by_id(stage, image_rows(texts))["row0"]
    assert empty == texts[0][0]
    assert dropped == kept
    assert (dropped["kept"], dropped["why"]) == (True, None)


def test_the_image_encoder_runs_once_per_image(
    weights: Weights, image_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = Blip.encode_image

    def counted(self: Blip, pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        return original(self, pixels)

    monkeypatch.setattr(Blip, "encode_image", counted)
    run_map(ItmFilter(model=weights, batch_size=16, max_text_length=8), image_rows(mixed_texts(33)))
    assert calls == [16, 16, 16]


def test_an_unreadable_image_is_a_reject(weights: Weights, image_rows: Rows) -> None:
    out = run_map(
        ItmFilter(model=weights, batch_size=16, max_text_length=8), image_rows(mixed_texts(1), [b"GIF89a"])
    )
    assert [(r.id, r.kind) for r in out.rejects] == [("row0", "fault")]
    assert out.table.num_rows == 0


def test_sharing_images_changes_no_score(weights: Weights, image_rows: Rows) -> None:
    from vlpipe.stages.common.model import load

    model = load(weights)
    pixels = torch.from_numpy(load_pixels(image_rows([[]] * 3)["image"].to_pylist(), 16))
    images = list(model.encode_images(pixels))
    pairs = [((i, s), images[i], s) for i in (0, 1, 2, 0) for s in SENTENCES]
    plain = list(match_logits(model, iter(pairs), 16, 12))
    shared = list(match_logits(model, iter(pairs), 16, 12, share_images=True))
    assert [key for key, _ in plain] == [key for key, _ in shared] == [key for key, _, _ in pairs]
    for (_, one), (_, other) in zip(plain, shared, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_what_cannot_work_is_said(weights: Weights) -> None:
    problems = ItmFilter(model=weights, threshold=50, batch_size=8).preflight()
    assert problems == [
        "batch_size must be a positive multiple of 16, got 8: otherwise results depend on a row's position in its batch",
        "threshold must be a probability, from 0 to 1, got 50",
    ]
    with pytest.raises(VlpipeError, match="the model has 24 text positions, but 30 are needed"):
        ItmFilter(model=weights).open().__enter__()


def test_scores_as_a_column_are_those_of_the_filter_and_decide_nothing(
    weights: Weights, image_rows: Rows
) -> None:
    table = image_rows(
        [*mixed_texts(20), [text("two dogs", "web", kept=False, why="junk"), text("red", "human")]]
    )
    decided = run_map(ItmFilter(model=weights, batch_size=16, max_text_length=12), table).table
    out = run_map(ItmScore(model=weights, batch_size=16, max_text_length=12, column="match"), table).table
    assert out["texts"].to_pylist() == table["texts"].to_pylist()
    wanted = [[t["score"] for t in ts] for ts in decided["texts"].to_pylist()]
    assert out["match"].to_pylist() == wanted
    assert wanted[-1] == [None, None]
    assert ItmScore(model=weights, threshold=0.6).preflight() == [
        "threshold has no effect on scores; set it in a rule"
    ]
