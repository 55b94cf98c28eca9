from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vlpipe.models.interface.model import Model
from vlpipe.models.teachers import Ema

Make = Callable[..., Any]


def teacher_of(model: Any, **options: Any) -> Ema:
    ema = Ema(**options)
    ema.bind(model)
    return ema


def test_it_follows_in_place(make_blip: Make) -> None:
    blip = make_blip()
    ema = teacher_of(blip, momentum=0.9)
    before = {n: p.clone() for n, p in ema.copy.named_parameters()}
    where = [p.data_ptr() for p in ema.copy.parameters()]
    for p in blip.parameters():
        p.data.add_(1.0)
    ema.follow(blip)
    assert where == [p.data_ptr() for p in ema.copy.parameters()]
    assert not any(p.requires_grad for p in ema.parameters())
    for name, param in ema.copy.named_parameters():
        torch.testing.assert_close(param, before[name] + 0.1)
    assert {n.split(".")[0] for n in before} == {"vision", "text", "vision_proj", "text_proj", "temp"}
    assert not any(".decoder." in n or ".cross." in n for n in before)


def test_closed_form_of_several_steps(make_blip: Make) -> None:
    blip = make_blip()
    ema = teacher_of(blip, momentum=0.995)
    start = ema.copy.text.words.weight.clone()
    blip.text.words.weight.data.zero_()
    for _ in range(3):
        ema.follow(blip)
    torch.testing.assert_close(ema.copy.text.words.weight, start * 0.995**3)


def test_dropout_is_optional(make_blip: Make) -> None:
    blip = make_blip(dropout=0.5).train()
    for wanted in (True, False):
        ema = teacher_of(blip, dropout=wanted).train()
        assert ema.copy.training is wanted
        assert not ema.eval().copy.training


def test_any_model_is_copied_whole_unless_it_says_otherwise() -> None:
    class Small(Model):
        def __init__(self, *, width: int = 3) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(width, width)

    small = Small(width=5)
    ema = teacher_of(small)
    small.layer.weight.data.zero_()
    assert ema.copy.layer.weight.any()
    assert ema.copy.config.width == 5


def test_a_momentum_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"teachers: momentum must be from 0 to 1, got 1\.5"):
        Ema(momentum=1.5)
