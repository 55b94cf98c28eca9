"""A right answer that stands first is found only where nothing equals it."""

from __future__ import annotations

import torch

from vlpipe.models.objectives.images.first import first_alone


def test_a_tie_is_wrong() -> None:
    logits = torch.tensor([[1.0, 1, 1], [2, 1, 1], [1, 2, 0], [torch.nan, 0, 0]])
    assert first_alone(logits).tolist() == [False, True, False, False]
    left_out = torch.tensor([[True, True], [False, False], [True, False], [False, False]])
    assert first_alone(logits, left_out).tolist() == [True, True, True, False]
    assert first_alone(logits[:, :1]).tolist() == [True] * 4
