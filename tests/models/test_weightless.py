"""Modules without memory for their weights."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from vlpipe.models.weightless import weightless

CODE = """
import sys
from vlpipe.models.systems.image_text.blip.config import BlipConfig
from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.models.weightless import weightless
with weightless():
    blip = Blip(BlipConfig(vocab_size=30524, pad=0, cls=101, sep=102, dec=30522, enc=30523))
assert all(p.is_meta for p in blip.parameters())
print(sum(p.numel() for p in blip.parameters()), "sympy" in sys.modules, "torch._dynamo" in sys.modules)
"""


@pytest.mark.slow
def test_a_blip_is_built_without_what_takes_seconds_to_import() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=120
    )
    num, sympy, dynamo = done.stdout.split()
    assert (int(num) > 200_000_000, sympy, dynamo) == (True, "False", "False")


def test_shapes_are_those_of_a_module_with_weights() -> None:
    def net() -> nn.Module:
        made = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Embedding(7, 5))
        nn.init.trunc_normal_(made[0].weight)
        return made

    with weightless():
        empty = net()
    shapes = {name: value.shape for name, value in net().state_dict().items()}
    assert {name: value.shape for name, value in empty.state_dict().items()} == shapes


def test_an_error_of_shapes_is_still_one() -> None:
    with weightless(), pytest.raises(RuntimeError):
        torch.zeros(3).add_(torch.zeros(5))


def test_tensors_with_memory_are_filled() -> None:
    values = torch.zeros(3)
    with weightless():
        values.fill_(1.0)
    assert values.tolist() == [1.0, 1.0, 1.0]
