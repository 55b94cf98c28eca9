"""A score that is no finite number is no missing one: its row is rejected, and the others are as without it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.model import Loaded
from vlpipe.stages.common.row import text
from vlpipe.stages.dual_encoders.score import add_scores
from vlpipe.stages.dual_encoders.towers import Encoders
from vlpipe.stages.features.embed import Embed
from vlpipe.stages.filter import itm
from vlpipe.stages.inference.ahead import Ahead
from vlpipe.stages.vision_language import answers

Rows = Callable[..., pa.Table]


def texts(num: int) -> list[list[dict[str, Any]]]:
    return [[text(f"{k} a", "web"), text(f"{k} b", "web")] for k in range(num)]


def lost(out: Out) -> list[tuple[str, str, str]]:
    return [(r.id, r.kind, r.why) for r in out.rejects]


def test_of_two_encoders(image_rows: Rows) -> None:
    def vectors(some: Iterable[str], _: int) -> Iterator[np.ndarray]:
        yield from (np.array([np.nan if one == "1 b" else 1, 1], np.float32) for one in some)

    model = Encoders(lambda _: np.zeros((3, 4, 4), np.float32), lambda x: torch.ones(len(x), 2), vectors, 4)
    with Ahead(1, False) as ahead:
        out = add_scores(model, "score", 4, image_rows(texts(3)), ahead)
    assert lost(out) == [("row1", "fault", "not_finite")]
    assert out.table["score"].to_pylist() == [[pytest.approx(1)] * 2] * 2


@pytest.mark.parametrize("stage", [itm.ItmFilter, itm.ItmScore])
def test_of_the_matching_head(
    stage: type[itm.ItmFilter], weights: Weights, image_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_map(stage(model=weights, batch_size=4, max_text_length=12), image_rows(texts(3)))
    real = itm.match_logits

    def odd(*args: Any) -> Iterator[tuple[Any, torch.Tensor]]:
        for k, (key, logits) in enumerate(real(*args)):
            yield key, logits * torch.nan if k == 3 else logits

    monkeypatch.setattr(itm, "match_logits", odd)
    out = run_map(stage(model=weights, batch_size=4, max_text_length=12), image_rows(texts(3)))
    assert lost(out) == [("row1", "fault", "not_finite")]
    assert out.table.equals(whole.table.take([0, 2]))


def test_of_embeddings(weights: Weights, image_rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Embed(model=weights, dim=8, batch_size=4)
    whole = run_map(stage, image_rows(texts(3)))
    real = Loaded.embed_images

    def odd(self: Loaded, pixels: torch.Tensor) -> torch.Tensor:
        found = real(self, pixels).clone()
        found[1] = torch.inf
        return found

    monkeypatch.setattr(Loaded, "embed_images", odd)
    out = run_map(stage, image_rows(texts(3)))
    assert lost(out) == [("row1", "fault", "not_finite")]
    assert out.table.equals(whole.table.take([0, 2]))


def test_two_answers_that_are_too_unlikely_for_a_float_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """exp(-800) is 0, and 0 / 0 is no number."""
    logs = {"Yes": [-800.0, -1.0], "No": [-801.0, -2.0]}
    monkeypatch.setattr(answers, "in_groups", lambda keyed, *_: [([(key, None) for key, _ in keyed], 2)])
    monkeypatch.setattr(
        answers, "log_probabilities", lambda _, __, answer: torch.tensor(logs[answer], dtype=torch.float64)
    )

    class Model:
        side = ""

    judge = answers.LocalAnswers(Model(), 2, "Yes", "No")  # type: ignore[arg-type]
    found = dict(judge.probabilities([("a", {}), ("b", {})]))
    assert found == {"a": pytest.approx(1 / (1 + np.exp(-1))), "b": pytest.approx(1 / (1 + np.exp(-1)))}
